//! Elements of the transformed operands: f32, or pairs of bf16.

use bytemuck::Pod;

use super::super::amx::{self, AmxToken, TileGuard};
use super::super::simd::{SimdF32, SimdLevel};
use super::ALIGN;
use super::bf16_gemm::{self, Pair, round_to_bf16};
use super::gemm::{Operand, Product};

/// An element of a product's operands.
pub(super) trait Element: Operand + Pod + Default + Send + Sync {
    /// Channels that one element holds.
    const CHANNELS: usize;

    /// Writes `S::LANES` channels.
    ///
    /// # Safety
    ///
    /// The processor has the instructions of `S`, and `to` points to space for them.
    unsafe fn write<S: SimdF32>(channels: S, to: *mut Self);

    /// Writes `S::LANES` elements, each with the weight of one input channel and, in pairs, that of the next one.
    ///
    /// # Safety
    ///
    /// The processor has the instructions of `S`, and `to` points to space for them.
    unsafe fn write_weights<S: SimdF32>(first: S, second: S, to: *mut Self);

    /// Returns the permission to use AMX if the processor has it and rows of `depth` elements fill its tiles.
    fn amx(_level: SimdLevel, _depth: usize) -> Option<AmxToken> {
        None
    }

    /// Computes a product. With AMX tiles configured, it has a multiple of [`bf16_gemm::ROWS`] rows.
    fn multiply(level: SimdLevel, tiles: Option<&TileGuard>, product: Product<'_, Self>);
}

impl Element for f32 {
    const CHANNELS: usize = 1;

    #[inline(always)]
    unsafe fn write<S: SimdF32>(channels: S, to: *mut Self) {
        // SAFETY: the caller's guarantee.
        unsafe { channels.store(to) }
    }

    #[inline(always)]
    unsafe fn write_weights<S: SimdF32>(first: S, _: S, to: *mut Self) {
        // SAFETY: the caller's guarantee.
        unsafe { first.store(to) }
    }

    #[inline(always)]
    fn multiply(level: SimdLevel, _: Option<&TileGuard>, product: Product<'_, Self>) {
        level.run(product);
    }
}

impl Element for Pair {
    const CHANNELS: usize = 2;

    #[inline(always)]
    unsafe fn write<S: SimdF32>(channels: S, to: *mut Self) {
        let mut values = [0.0; ALIGN];
        // SAFETY: the caller's guarantee, and no vector is longer than `ALIGN`.
        unsafe {
            channels.store(values.as_mut_ptr());
            let to = to.cast::<u16>();
            for (lane, value) in values.iter().enumerate().take(S::LANES) {
                to.add(lane).write(round_to_bf16(*value));
            }
        }
    }

    #[inline(always)]
    unsafe fn write_weights<S: SimdF32>(first: S, second: S, to: *mut Self) {
        let (mut firsts, mut seconds) = ([0.0; ALIGN], [0.0; ALIGN]);
        // SAFETY: the caller's guarantee, and no vector is longer than `ALIGN`.
        unsafe {
            first.store(firsts.as_mut_ptr());
            second.store(seconds.as_mut_ptr());
            for lane in 0..S::LANES {
                to.add(lane).write(Self::new(firsts[lane], seconds[lane]));
            }
        }
    }

    fn amx(level: SimdLevel, depth: usize) -> Option<AmxToken> {
        level.amx().filter(|_| depth.is_multiple_of(amx::TILE_DWORDS))
    }

    #[inline(always)]
    fn multiply(level: SimdLevel, tiles: Option<&TileGuard>, product: Product<'_, Self>) {
        match tiles {
            Some(tiles) => bf16_gemm::multiply_amx(tiles, product),
            None => bf16_gemm::multiply(level, product),
        }
    }
}
