//! Macro-kernels for instructions of 64-bit ARM that take pairs of k-groups: the matrix products `smmla` and `bfmmla`, and, for int8
//! on processors without dot products, `smull` and `smlal`. x is packed [`XFormat::Pairs`](super::packing::XFormat::Pairs).

use std::arch::aarch64::*;
use std::arch::asm;
use std::marker::PhantomData;

use super::epilogue::Epilogue;
use super::microkernel::{CacheLine, MacroBlock, rows_in_cache};
use super::packing::NR;

/// Bytes of one k-group of a panel of w.
const LINE: usize = NR * 4;
/// Dwords of a vector.
const QUAD: usize = 4;

/// A register block in one instruction set.
///
/// # Safety
///
/// [`Self::multiply`] requires the processor to have the instructions.
trait PairTile {
    /// Rows of a panel of x.
    const MR: usize;
    /// One element of an accumulator.
    type Accumulator: Copy + Default;

    /// Multiplies the first `rows` rows of a panel of x by a panel of w with `k_dwords` k-groups. The other rows of the products are
    /// unspecified.
    ///
    /// # Safety
    ///
    /// The panels are whole: x has `MR` rows, and an even number of k-groups.
    unsafe fn multiply(x: *const u32, w: *const u8, k_dwords: usize, rows: usize, products: &mut Products<Self::Accumulator>);
}

/// Rows of the largest panel of x.
const MAX_ROWS: usize = 12;

/// Products of a panel of x by a panel of w.
type Products<T> = [[T; NR]; MAX_ROWS];

/// Multiplies all rows of a block by all of its panels.
///
/// # Safety
///
/// The processor has the instructions of `T`, and no other thread accesses the outputs of these rows and panels.
#[inline(always)]
unsafe fn macro_kernel<T: PairTile, E: Epilogue<T::Accumulator>>(block: &MacroBlock<'_, E>) {
    let (rows, panels, k_dwords) = (block.rows.len(), block.panels.len(), block.k_dwords);
    let (x_row, w_panel) = (k_dwords.next_multiple_of(2), k_dwords * LINE);
    assert!(block.x.len() >= rows.next_multiple_of(T::MR) * x_row && block.w.len() >= panels * w_panel, "panels are whole");
    let mc = rows_in_cache(x_row).next_multiple_of(T::MR);
    let mut products = [[T::Accumulator::default(); NR]; MAX_ROWS];
    for first in (0..rows).step_by(mc) {
        for panel in 0..panels {
            let params = block.epilogue.panel_params(block.panels.start + panel);
            for row in (first..rows.min(first + mc)).step_by(T::MR) {
                let count = (rows - row).min(T::MR);
                // SAFETY: the caller upholds the contract of this function; the lengths are checked above, and the row is the first of
                // its panel.
                unsafe {
                    let (x, w) = (block.x.as_ptr().add(row * x_row), block.w.as_ptr().add(panel * w_panel));
                    T::multiply(x, w, k_dwords, count, &mut products);
                    for (r, accumulators) in products.iter().enumerate().take(count) {
                        block.epilogue.store(&params, block.rows.start + row + r, block.panels.start + panel, accumulators);
                    }
                }
            }
        }
    }
}

/// A product of matrices of two rows by two outputs, each with two k-groups.
///
/// # Safety
///
/// Every function requires the processor to have the instruction.
trait Mmla {
    /// One sum.
    type Accumulator: Copy + Default;

    /// Returns `sums + x w^T` of int32 or f32, `[2 rows][2 outputs]`. x is `[2 rows][2 dwords]` and w `[2 outputs][2 dwords]`.
    unsafe fn accumulate(sums: uint32x4_t, x: uint32x4_t, w: uint32x4_t) -> uint32x4_t;
}

/// Defines a [`Mmla`] of one instruction.
macro_rules! mmla {
    ($name:ident, $accumulator:ty, $template:literal) => {
        struct $name;

        impl Mmla for $name {
            type Accumulator = $accumulator;

            #[inline(always)]
            unsafe fn accumulate(mut sums: uint32x4_t, x: uint32x4_t, w: uint32x4_t) -> uint32x4_t {
                // SAFETY: the caller guarantees the instruction. Assembly, because there is no stable intrinsic.
                unsafe {
                    asm!(
                        $template,
                        sums = inout(vreg) sums,
                        x = in(vreg) x,
                        w = in(vreg) w,
                        options(pure, nomem, nostack, preserves_flags)
                    );
                }
                sums
            }
        }
    };
}

mmla!(Smmla, i32, "smmla {sums:v}.4s, {x:v}.16b, {w:v}.16b");
mmla!(Bfmmla, f32, "bfmmla {sums:v}.4s, {x:v}.8h, {w:v}.8h");

/// Register blocks of up to 12 rows by half a panel: 24 accumulators. Panels of w are as stored, or by [`interleave`].
struct MmlaTile<M, const INTERLEAVED: bool>(PhantomData<M>);

impl<M: Mmla, const INTERLEAVED: bool> PairTile for MmlaTile<M, INTERLEAVED> {
    const MR: usize = MAX_ROWS;
    type Accumulator = M::Accumulator;

    #[inline(always)]
    unsafe fn multiply(x: *const u32, w: *const u8, k_dwords: usize, rows: usize, products: &mut Products<M::Accumulator>) {
        let to = products.as_mut_ptr().cast::<u32>();
        for half in 0..2 {
            // SAFETY: the caller upholds the contract of this function. `products` has `MAX_ROWS` rows, and its elements are dwords.
            unsafe {
                let half_len = if INTERLEAVED { k_dwords * LINE / 2 } else { LINE / 2 };
                let (w, to) = (w.add(half * half_len), to.add(half * NR / 2));
                match rows {
                    9.. => half_panel::<M, 6, INTERLEAVED>(x, w, k_dwords, to),
                    5.. => half_panel::<M, 4, INTERLEAVED>(x, w, k_dwords, to),
                    3.. => half_panel::<M, 2, INTERLEAVED>(x, w, k_dwords, to),
                    _ => half_panel::<M, 1, INTERLEAVED>(x, w, k_dwords, to),
                }
            }
        }
    }
}

/// Multiplies `P` pairs of rows by half a panel of w, from the first of its outputs on.
///
/// # Safety
///
/// The processor has the instruction. The panels are whole, and `to` has the rows, `[rows][NR]`. An interleaved panel has an even
/// number of k-groups.
#[inline(always)]
unsafe fn half_panel<M: Mmla, const P: usize, const INTERLEAVED: bool>(
    mut x: *const u32,
    mut w: *const u8,
    k_dwords: usize,
    to: *mut u32,
) {
    // SAFETY: the caller upholds the contract of this function.
    unsafe {
        let mut sums = [[vdupq_n_u32(0); 4]; P];
        for _ in 0..k_dwords / 2 {
            let ws = if INTERLEAVED {
                [load(w), load(w.add(16)), load(w.add(32)), load(w.add(48))]
            } else {
                zip([load(w), load(w.add(16))], [load(w.add(LINE)), load(w.add(LINE + 16))])
            };
            step::<M, P>(&mut sums, x, ws);
            x = x.add(2 * MAX_ROWS);
            w = w.add(if INTERLEAVED { LINE } else { 2 * LINE });
        }
        if !INTERLEAVED && k_dwords % 2 == 1 {
            // x is zero-padded.
            step::<M, P>(&mut sums, x, zip([load(w), load(w.add(16))], [vdupq_n_u32(0); 2]));
        }
        for (pair, sums) in sums.iter().enumerate() {
            for column in 0..2 {
                let (left, right) = (vreinterpretq_u64_u32(sums[2 * column]), vreinterpretq_u64_u32(sums[2 * column + 1]));
                let to = to.add(2 * pair * NR + column * QUAD);
                vst1q_u32(to, vreinterpretq_u32_u64(vzip1q_u64(left, right)));
                vst1q_u32(to.add(NR), vreinterpretq_u32_u64(vzip2q_u64(left, right)));
            }
        }
    }
}

/// Adds the products of two k-groups.
///
/// # Safety
///
/// The processor has the instruction, and x has `P` pairs of rows.
#[inline(always)]
unsafe fn step<M: Mmla, const P: usize>(sums: &mut [[uint32x4_t; 4]; P], x: *const u32, ws: [uint32x4_t; 4]) {
    for (pair, sums) in sums.iter_mut().enumerate() {
        // SAFETY: the caller upholds the contract of this function.
        unsafe {
            let x = vld1q_u32(x.add(pair * QUAD));
            for (sums, w) in sums.iter_mut().zip(ws) {
                *sums = M::accumulate(*sums, x, w);
            }
        }
    }
}

/// Loads 16 bytes.
///
/// # Safety
///
/// The processor has NEON, and the bytes exist.
#[inline(always)]
unsafe fn load(from: *const u8) -> uint32x4_t {
    // SAFETY: the caller upholds the contract of this function.
    unsafe { vreinterpretq_u32_u8(vld1q_u8(from)) }
}

/// Interleaves two k-groups of half a panel: two outputs in each vector, with both k-groups next to each other.
///
/// # Safety
///
/// The processor has NEON.
#[inline(always)]
unsafe fn zip(even: [uint32x4_t; 2], odd: [uint32x4_t; 2]) -> [uint32x4_t; 4] {
    // SAFETY: the caller upholds the contract of this function.
    unsafe { [vzip1q_u32(even[0], odd[0]), vzip2q_u32(even[0], odd[0]), vzip1q_u32(even[1], odd[1]), vzip2q_u32(even[1], odd[1])] }
}

/// Interleaves panels of `k_dwords` k-groups for [`MmlaTile`]: `[2 halves][k_dwords / 2, rounded up][4]` of what [`zip`] returns.
fn interleave(w: &[u8], k_dwords: usize, interleaved: &mut [CacheLine]) {
    let pairs = k_dwords.div_ceil(2);
    for (panel, to) in w.chunks_exact(k_dwords * LINE).zip(interleaved.chunks_exact_mut(2 * pairs)) {
        let (first, second) = to.split_at_mut(pairs);
        for (lines, to) in panel.chunks(2 * LINE).zip(first.iter_mut().zip(second)) {
            // An odd last k-group is paired with zeros.
            let (even, odd) = lines.split_at(LINE);
            let odd = if odd.is_empty() { &[0; LINE] } else { odd };
            for (half, to) in [to.0, to.1].into_iter().enumerate() {
                let (even, odd) = (&even[half * LINE / 2..][..LINE / 2], &odd[half * LINE / 2..][..LINE / 2]);
                // SAFETY: NEON belongs to every aarch64 target of Rust. Half a line has two vectors, and a cache line four.
                unsafe {
                    let zipped =
                        zip([load(even.as_ptr()), load(even[16..].as_ptr())], [load(odd.as_ptr()), load(odd[16..].as_ptr())]);
                    let to = (&raw mut *to).cast::<u32>();
                    for (i, vector) in zipped.into_iter().enumerate() {
                        vst1q_u32(to.add(i * QUAD), vector);
                    }
                }
            }
        }
    }
}

/// Register blocks of two rows by a panel, of int8 in the instructions that every 64-bit ARM processor has. `smull` and `smlal` sum two
/// products in 16 bits, which do not overflow: quantised x is at least -127.
struct MullTile;

/// Rows of a [`MullTile`].
const MULL_ROWS: usize = 2;

impl PairTile for MullTile {
    const MR: usize = MULL_ROWS;
    type Accumulator = i32;

    #[inline(always)]
    unsafe fn multiply(mut x: *const u32, mut w: *const u8, k_dwords: usize, _: usize, products: &mut Products<i32>) {
        // SAFETY: the caller upholds the contract of this function.
        unsafe {
            let mut sums = [[[vdupq_n_s32(0); 2]; NR / QUAD]; MULL_ROWS];
            for _ in 0..k_dwords / 2 {
                mull_step(&mut sums, x, w, w.add(LINE));
                x = x.add(2 * MULL_ROWS);
                w = w.add(2 * LINE);
            }
            if k_dwords % 2 == 1 {
                // x is zero-padded, so that any line of w follows the last one.
                mull_step(&mut sums, x, w, w);
            }
            for (products, sums) in products.iter_mut().zip(sums) {
                for (products, [low, high]) in products.as_chunks_mut::<QUAD>().0.iter_mut().zip(sums) {
                    vst1q_s32(products.as_mut_ptr(), vpaddq_s32(low, high));
                }
            }
        }
    }
}

/// Adds the products of two k-groups. Each output has two sums.
///
/// # Safety
///
/// The processor has NEON. x has all rows, and both lines of w are whole.
#[inline(always)]
unsafe fn mull_step(sums: &mut [[[int32x4_t; 2]; NR / QUAD]; MULL_ROWS], x: *const u32, even: *const u8, odd: *const u8) {
    // SAFETY: the caller upholds the contract of this function.
    unsafe {
        let mut dwords = [[vdupq_n_s8(0); 2]; MULL_ROWS];
        for (row, dwords) in dwords.iter_mut().enumerate() {
            let x = x.add(2 * row);
            *dwords = [broadcast(x), broadcast(x.add(1))];
        }
        for quad in 0..NR / QUAD {
            let (even, odd) = (vld1q_s8(even.add(quad * 16).cast()), vld1q_s8(odd.add(quad * 16).cast()));
            for (sums, [x_even, x_odd]) in sums.iter_mut().zip(dwords) {
                let low = vmull_s8(vget_low_s8(even), vget_low_s8(x_even));
                let low = vmlal_s8(low, vget_low_s8(odd), vget_low_s8(x_odd));
                let high = vmlal_high_s8(vmull_high_s8(even, x_even), odd, x_odd);
                let [low_sums, high_sums] = sums[quad];
                sums[quad] = [vpadalq_s16(low_sums, low), vpadalq_s16(high_sums, high)];
            }
        }
    }
}

/// Returns a dword in all lanes.
///
/// # Safety
///
/// The processor has NEON, and there is a dword.
#[inline(always)]
unsafe fn broadcast(dword: *const u32) -> int8x16_t {
    // SAFETY: the caller upholds the contract of this function.
    unsafe {
        let mut lanes = vreinterpretq_s8_u32(vld1q_dup_u32(dword));
        // Hide from the compiler that the lanes are equal. It would use `smull` for `smull2`, and move the upper half of w.
        asm!("/* {0:v} */", inout(vreg) lanes, options(pure, nomem, nostack, preserves_flags));
        lanes
    }
}

/// Rows from which on it is faster to interleave w once than for each panel of x.
const INTERLEAVED_ROWS: usize = 2 * MAX_ROWS + 1;

/// Defines the product of a block by a [`Mmla`].
macro_rules! mmla_macro_kernel {
    ($name:ident, $mmla:ty, $accumulator:ty, $features:literal) => {
        /// Multiplies a block.
        ///
        /// # Safety
        ///
        /// The processor has the feature of this name. Otherwise the same as [`macro_kernel`].
        pub(super) unsafe fn $name(block: MacroBlock<'_, impl Epilogue<$accumulator>>) {
            #[target_feature(enable = $features)]
            unsafe fn multiply<const INTERLEAVED: bool>(block: &MacroBlock<'_, impl Epilogue<$accumulator>>) {
                // SAFETY: the caller upholds the contract of this function.
                unsafe { macro_kernel::<MmlaTile<$mmla, INTERLEAVED>, _>(block) }
            }
            // SAFETY: as above.
            unsafe {
                if block.rows.len() < INTERLEAVED_ROWS {
                    multiply::<false>(&block);
                } else {
                    let k_dwords = block.k_dwords;
                    let repack = |w: &[u8], to: &mut [CacheLine]| interleave(w, k_dwords, to);
                    block.with_repacked_w(k_dwords.next_multiple_of(2), repack, |block| multiply::<true>(&block));
                }
            }
        }
    };
}

mmla_macro_kernel!(i8mm, Smmla, i32, "neon,i8mm");
mmla_macro_kernel!(bf16, Bfmmla, f32, "neon,bf16");

/// Multiplies a block.
///
/// # Safety
///
/// The processor has NEON. Otherwise the same as [`macro_kernel`].
pub(super) unsafe fn mull(block: &MacroBlock<'_, impl Epilogue<i32>>) {
    // SAFETY: the caller upholds the contract of this function.
    unsafe { macro_kernel::<MullTile, _>(block) }
}

/// Rows of a panel of x for [`i8mm`] and [`bf16`].
pub(super) const MMLA_MR: usize = MAX_ROWS;
/// Rows of a panel of x for [`mull`].
pub(super) const MULL_MR: usize = MULL_ROWS;
