//! Products of bf16 pairs, summed in f32, with the dot products of AVX512_BF16 or ARM's FEAT_BF16, or with AMX.

use bytemuck::{Pod, Zeroable};

use super::super::amx::{self, TILE_DWORDS, Tdpbf16ps, TileGuard, TileOperands, TileProduct};
use super::super::simd::{SimdF32, SimdLevel};
use super::CHUNK;
use super::gemm::{Operand, Product};

/// Two channels in bf16, the first in the lower half.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(transparent)]
pub(super) struct Pair(pub(super) u32);

// SAFETY: an integer; all bit patterns are valid.
unsafe impl Zeroable for Pair {}
// SAFETY: an integer without padding.
unsafe impl Pod for Pair {}

impl Pair {
    #[inline(always)]
    pub(super) fn new(first: f32, second: f32) -> Self {
        Self(u32::from(round_to_bf16(first)) | u32::from(round_to_bf16(second)) << 16)
    }
}

impl Operand for Pair {
    #[inline(always)]
    unsafe fn add_products<S: SimdF32>(sums: S, x: f32, w: S) -> S {
        // SAFETY: the caller's guarantee.
        unsafe { sums.add_bf16_dot(x, w) }
    }
}

/// Rounds to the nearest bf16, ties to even: the upper half of an f32.
#[inline(always)]
pub(super) fn round_to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    // Without branches, so that the compiler vectorises it. A NaN stays NaN: the mantissas of NaNs that arithmetic produces do not
    // overflow.
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// Rows that [`multiply_amx`] multiplies at a time.
pub(super) const ROWS: usize = 2 * amx::TILE_ROWS;

/// Returns whether the processor has instructions for bf16 pairs. Without them f32 is at least as fast.
pub(super) fn available() -> bool {
    SimdLevel::best().has_bf16()
}

/// Multiplies rows of pairs by a panel of pairs.
///
/// # Panics
///
/// If the lengths do not fit together.
pub(super) fn multiply(level: SimdLevel, product: Product<'_, Pair>) {
    if level.has_bf16() {
        level.run(product);
    } else {
        plain(product);
    }
}

/// Like [`multiply`], with AMX. The product has a multiple of [`ROWS`] rows, and a depth that fills the tiles.
///
/// # Panics
///
/// If the lengths do not fit together.
pub(super) fn multiply_amx(_: &TileGuard, product: Product<'_, Pair>) {
    product.check();
    let Product { x, stride, rows, panel, depth, columns, y } = product;
    assert!(depth > 0 && depth.is_multiple_of(TILE_DWORDS) && rows.is_multiple_of(ROWS), "rows and depth fill the tiles");
    let c_row_stride = columns * size_of::<f32>();
    for row in (0..rows).step_by(ROWS) {
        for column in (0..columns).step_by(2 * TILE_DWORDS) {
            let two = column + TILE_DWORDS < columns;
            let first = y[row * columns + column..].as_mut_ptr().cast::<u8>();
            let operands = TileOperands {
                a: [row, row + amx::TILE_ROWS].map(|row| x[row * stride..].as_ptr().cast()),
                a_row_stride: stride * size_of::<Pair>(),
                a_tile_stride: TILE_DWORDS * size_of::<Pair>(),
                b: [column, if two { column + TILE_DWORDS } else { column }].map(|column| panel[column..].as_ptr().cast()),
                b_row_stride: columns * size_of::<Pair>(),
                b_tile_stride: TILE_DWORDS * columns * size_of::<Pair>(),
                k_tiles: depth / TILE_DWORDS,
                c: [first, first.wrapping_add(amx::TILE_ROWS * c_row_stride)],
                c_row_stride,
            };
            // SAFETY: the tiles are configured, the lengths fit together, and columns are whole vectors.
            unsafe { if two { Tdpbf16ps::product_32x32(operands) } else { Tdpbf16ps::product_32x16(operands) } }
        }
    }
}

/// Like [`multiply`], for any processor.
fn plain(product: Product<'_, Pair>) {
    product.check();
    let Product { x, stride, panel, depth, columns, y, rows } = product;
    let halves = |pair: Pair| [f32::from_bits(pair.0 << 16), f32::from_bits(pair.0 & 0xffff_0000)];
    let panel: Vec<[f32; 2]> = panel[..depth * columns].iter().map(|pair| halves(*pair)).collect();
    for (x, y) in x.chunks(stride).zip(y.chunks_mut(columns)).take(rows) {
        let mut sums = [0.0; CHUNK];
        for (x, weights) in x[..depth].iter().zip(panel.chunks(columns)) {
            let [first, second] = halves(*x);
            sums.iter_mut().zip(weights).for_each(|(sum, w)| *sum += first * w[0] + second * w[1]);
        }
        y.copy_from_slice(&sums[..columns]);
    }
}
