//! What products are taken of: numbers, or pairs of bfloat16.

use super::super::lanes::{Lanes, Level};
use super::STEP;
use super::pairs;
use super::product::Product;

/// What a product's operands are made of.
pub(super) trait Number: Copy + Default + Send + Sync {
    /// Channels that one holds.
    const CHANNELS: usize;

    /// Writes `L::COUNT` channels.
    ///
    /// # Safety
    ///
    /// The processor has the lanes, and there is room.
    unsafe fn write<L: Lanes>(channels: L, to: *mut Self);

    /// Weights `[from][columns]` as a panel of these, `[from / CHANNELS, rounded up][columns]`.
    fn panel(weights: &[f32], columns: usize) -> impl Iterator<Item = Self>;

    /// Multiplies.
    fn multiply(level: Level, product: Product<'_, Self>);
}

impl Number for f32 {
    const CHANNELS: usize = 1;

    #[inline(always)]
    unsafe fn write<L: Lanes>(channels: L, to: *mut Self) {
        // SAFETY: the caller's.
        unsafe { channels.store(to) }
    }

    fn panel(weights: &[f32], _: usize) -> impl Iterator<Item = Self> {
        weights.iter().copied()
    }

    #[inline(always)]
    fn multiply(level: Level, product: Product<'_, Self>) {
        level.run(product);
    }
}

/// Two channels in bfloat16, the first in the lower half.
#[derive(Clone, Copy, Debug, Default)]
#[repr(transparent)]
pub(super) struct Pair(pub(super) u32);

impl Pair {
    #[inline(always)]
    fn of(first: f32, second: f32) -> Self {
        Self(u32::from(rounded(first)) | u32::from(rounded(second)) << 16)
    }
}

/// To the nearest bfloat16, of two equally near ones the even one: the upper half of an f32.
#[inline(always)]
fn rounded(number: f32) -> u16 {
    let bits = number.to_bits();
    // Written so that the compiler makes vectors of it. What is not a number stays so: those that arithmetic makes have a mantissa
    // whose upper half doesn't overflow.
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
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

    fn panel(weights: &[f32], columns: usize) -> impl Iterator<Item = Self> {
        weights.chunks(2 * columns).flat_map(move |rows| {
            let (first, second) = rows.split_at(columns);
            first.iter().enumerate().map(|(column, number)| Self::of(*number, second.get(column).copied().unwrap_or(0.0)))
        })
    }

    #[inline(always)]
    fn multiply(_: Level, product: Product<'_, Self>) {
        pairs::multiply(product);
    }
}
