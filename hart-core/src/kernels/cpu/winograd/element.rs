//! What products are taken of: numbers, or pairs of bfloat16.

use bytemuck::Pod;

use super::super::amx::{self, AmxToken, TileGuard};
use super::super::simd::{SimdF32, SimdLevel};
use super::STEP;
use super::bf16_gemm::{self, Pair, rounded};
use super::gemm::Product;

/// What a product's operands are made of.
pub(super) trait Number: Pod + Default + Send + Sync {
    /// Channels that one holds.
    const CHANNELS: usize;

    /// Writes `S::LANES` channels.
    ///
    /// # Safety
    ///
    /// The processor has the lanes, and there is room.
    unsafe fn write<S: SimdF32>(channels: S, to: *mut Self);

    /// Writes `S::LANES` of these, each of a weight for one input channel and, in pairs, one for the next.
    ///
    /// # Safety
    ///
    /// The processor has the lanes, and there is room.
    unsafe fn write_weights<S: SimdF32>(first: S, second: S, to: *mut Self);

    /// Registers for matrices, where the processor has them for rows of so many of these.
    fn matrices(_level: SimdLevel, _depth: usize) -> Option<AmxToken> {
        None
    }

    /// Multiplies; with registers that are `ready`, whole [`bf16_gemm::ROWS`].
    fn multiply(level: SimdLevel, ready: Option<&TileGuard>, product: Product<'_, Self>);
}

impl Number for f32 {
    const CHANNELS: usize = 1;

    #[inline(always)]
    unsafe fn write<S: SimdF32>(channels: S, to: *mut Self) {
        // SAFETY: the caller's.
        unsafe { channels.store(to) }
    }

    #[inline(always)]
    unsafe fn write_weights<S: SimdF32>(first: S, _: S, to: *mut Self) {
        // SAFETY: the caller's.
        unsafe { first.store(to) }
    }

    #[inline(always)]
    fn multiply(level: SimdLevel, _: Option<&TileGuard>, product: Product<'_, Self>) {
        level.run(product);
    }
}

impl Number for Pair {
    const CHANNELS: usize = 2;

    #[inline(always)]
    unsafe fn write<S: SimdF32>(channels: S, to: *mut Self) {
        let mut numbers = [0.0; STEP];
        // SAFETY: the caller's, and no vector is longer than `STEP`.
        unsafe {
            channels.store(numbers.as_mut_ptr());
            let to = to.cast::<u16>();
            for (lane, number) in numbers.iter().enumerate().take(S::LANES) {
                to.add(lane).write(rounded(*number));
            }
        }
    }

    #[inline(always)]
    unsafe fn write_weights<S: SimdF32>(first: S, second: S, to: *mut Self) {
        let (mut firsts, mut seconds) = ([0.0; STEP], [0.0; STEP]);
        // SAFETY: the caller's, and no vector is longer than `STEP`.
        unsafe {
            first.store(firsts.as_mut_ptr());
            second.store(seconds.as_mut_ptr());
            for lane in 0..S::LANES {
                to.add(lane).write(Self::of(firsts[lane], seconds[lane]));
            }
        }
    }

    fn matrices(level: SimdLevel, depth: usize) -> Option<AmxToken> {
        level.amx().filter(|_| depth.is_multiple_of(amx::TILE_DWORDS))
    }

    #[inline(always)]
    fn multiply(_: SimdLevel, ready: Option<&TileGuard>, product: Product<'_, Self>) {
        match ready {
            Some(ready) => bf16_gemm::squares(ready, product),
            None => bf16_gemm::multiply(product),
        }
    }
}
