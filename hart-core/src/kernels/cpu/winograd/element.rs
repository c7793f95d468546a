//! What products are taken of: numbers, or pairs of bfloat16.

use bytemuck::Pod;

use super::super::amx::{self, Allowed, Ready};
use super::super::simd::{Lanes, Level};
use super::STEP;
use super::bf16_gemm::{self, Pair, rounded};
use super::gemm::Product;

/// What a product's operands are made of.
pub(super) trait Number: Pod + Default + Send + Sync {
    /// Channels that one holds.
    const CHANNELS: usize;

    /// Writes `L::COUNT` channels.
    ///
    /// # Safety
    ///
    /// The processor has the lanes, and there is room.
    unsafe fn write<L: Lanes>(channels: L, to: *mut Self);

    /// Writes `L::COUNT` of these, each of a weight for one input channel and, in pairs, one for the next.
    ///
    /// # Safety
    ///
    /// The processor has the lanes, and there is room.
    unsafe fn write_weights<L: Lanes>(first: L, second: L, to: *mut Self);

    /// Registers for matrices, where the processor has them for rows of so many of these.
    fn matrices(_level: Level, _depth: usize) -> Option<Allowed> {
        None
    }

    /// Multiplies; with registers that are `ready`, whole [`bf16_gemm::ROWS`].
    fn multiply(level: Level, ready: Option<&Ready>, product: Product<'_, Self>);
}

impl Number for f32 {
    const CHANNELS: usize = 1;

    #[inline(always)]
    unsafe fn write<L: Lanes>(channels: L, to: *mut Self) {
        // SAFETY: the caller's.
        unsafe { channels.store(to) }
    }

    #[inline(always)]
    unsafe fn write_weights<L: Lanes>(first: L, _: L, to: *mut Self) {
        // SAFETY: the caller's.
        unsafe { first.store(to) }
    }

    #[inline(always)]
    fn multiply(level: Level, _: Option<&Ready>, product: Product<'_, Self>) {
        level.run(product);
    }
}

impl Number for Pair {
    const CHANNELS: usize = 2;

    #[inline(always)]
    unsafe fn write<L: Lanes>(channels: L, to: *mut Self) {
        let mut numbers = [0.0; STEP];
        // SAFETY: the caller's, and no vector is longer than `STEP`.
        unsafe {
            channels.store(numbers.as_mut_ptr());
            let to = to.cast::<u16>();
            for (lane, number) in numbers.iter().enumerate().take(L::COUNT) {
                to.add(lane).write(rounded(*number));
            }
        }
    }

    #[inline(always)]
    unsafe fn write_weights<L: Lanes>(first: L, second: L, to: *mut Self) {
        let (mut firsts, mut seconds) = ([0.0; STEP], [0.0; STEP]);
        // SAFETY: the caller's, and no vector is longer than `STEP`.
        unsafe {
            first.store(firsts.as_mut_ptr());
            second.store(seconds.as_mut_ptr());
            for lane in 0..L::COUNT {
                to.add(lane).write(Self::of(firsts[lane], seconds[lane]));
            }
        }
    }

    fn matrices(level: Level, depth: usize) -> Option<Allowed> {
        level.matrices().filter(|_| depth.is_multiple_of(amx::WORDS))
    }

    #[inline(always)]
    fn multiply(_: Level, ready: Option<&Ready>, product: Product<'_, Self>) {
        match ready {
            Some(ready) => bf16_gemm::squares(ready, product),
            None => bf16_gemm::multiply(product),
        }
    }
}
