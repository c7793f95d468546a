//! Products of pairs of bfloat16, summed in f32, by the instructions for them.

use bytemuck::{Pod, Zeroable};

use super::super::amx::{self, TILE_DWORDS, Tdpbf16ps, TileGuard, TileOperands, TileProduct};
use super::super::simd::SimdLevel;
use super::CHUNK;
use super::gemm::Product;

/// Two channels in bfloat16, the first in the lower half.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(transparent)]
pub(super) struct Pair(pub(super) u32);

// SAFETY: a whole number, of which all bits may be anything.
unsafe impl Zeroable for Pair {}
// SAFETY: as before.
unsafe impl Pod for Pair {}

impl Pair {
    #[inline(always)]
    pub(super) fn of(first: f32, second: f32) -> Self {
        Self(u32::from(rounded(first)) | u32::from(rounded(second)) << 16)
    }
}

/// To the nearest bfloat16, of two equally near ones the even one: the upper half of an f32.
#[inline(always)]
pub(super) fn rounded(number: f32) -> u16 {
    let bits = number.to_bits();
    // Written so that the compiler makes vectors of it. What is not a number stays so: those that arithmetic makes have a mantissa
    // whose upper half doesn't overflow.
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// Rows that [`squares`] multiplies together.
pub(super) const ROWS: usize = 2 * amx::TILE_ROWS;

/// Whether the processor has an instruction for them. Without it f32 is as fast as anything.
pub(super) fn available() -> bool {
    SimdLevel::best().has_bf16()
}

/// Rows of pairs times a panel of pairs.
///
/// # Panics
///
/// If lengths don't fit together.
pub(super) fn multiply(product: Product<'_, Pair>) {
    product.check();
    #[cfg(target_arch = "x86_64")]
    if available() {
        // SAFETY: the processor has the instructions; `check` has seen that the lengths fit together.
        unsafe {
            match product.columns / 16 {
                5 => x86::tiles::<5, 5>(product),
                4 => x86::tiles::<6, 4>(product),
                3 => x86::tiles::<8, 3>(product),
                2 => x86::tiles::<8, 2>(product),
                _ => x86::tiles::<8, 1>(product),
            }
        }
        return;
    }
    plain(product);
}

/// The same where registers for matrices are ready, of whole [`ROWS`] and a depth that fills the registers.
///
/// # Panics
///
/// If lengths don't fit together.
pub(super) fn squares(_: &TileGuard, product: Product<'_, Pair>) {
    product.check();
    let Product { x, stride, rows, panel, depth, columns, y } = product;
    assert!(depth > 0 && depth.is_multiple_of(TILE_DWORDS) && rows.is_multiple_of(ROWS), "registers are full");
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
            // SAFETY: the registers are ready; the lengths fit together, and columns are whole vectors.
            unsafe { if two { Tdpbf16ps::product_32x32(operands) } else { Tdpbf16ps::product_32x16(operands) } }
        }
    }
}

/// The same for any processor, so that the code is right everywhere; none that lacks the instruction is asked for it.
pub(super) fn plain(product: Product<'_, Pair>) {
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

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::mem::transmute;

    use super::{Pair, Product};

    /// All rows, `R` at a time, with all `V` vectors of columns.
    ///
    /// # Safety
    ///
    /// The processor has the instructions; rows, columns and room for the results are there, and there are `V` vectors of columns.
    #[target_feature(enable = "avx512f,avx512vl,avx512bf16")]
    pub(super) unsafe fn tiles<const R: usize, const V: usize>(mut product: Product<'_, Pair>) {
        let mut row = 0;
        // SAFETY: the caller's; rows are below their number.
        unsafe {
            while row + R <= product.rows {
                tile::<R, V>(&mut product, row);
                row += R;
            }
            while row < product.rows {
                tile::<1, V>(&mut product, row);
                row += 1;
            }
        }
    }

    /// # Safety
    ///
    /// As [`tiles`]; `R` rows from `row` on are there.
    #[allow(clippy::needless_range_loop)] // Rows and vectors play the same part.
    #[inline]
    #[target_feature(enable = "avx512f,avx512vl,avx512bf16")]
    unsafe fn tile<const R: usize, const V: usize>(product: &mut Product<'_, Pair>, row: usize) {
        // SAFETY: the caller's.
        unsafe {
            let x = product.x.as_ptr().add(row * product.stride);
            let mut w = product.panel.as_ptr().cast::<i32>();
            let mut sums = [[_mm512_setzero_ps(); V]; R];
            for k in 0..product.depth {
                let mut ws = [_mm512_setzero_si512(); V];
                for v in 0..V {
                    ws[v] = _mm512_loadu_si512(w.add(16 * v).cast());
                }
                for r in 0..R {
                    let x = _mm512_set1_epi32((*x.add(r * product.stride + k)).0.cast_signed());
                    for v in 0..V {
                        sums[r][v] =
                            _mm512_dpbf16_ps(sums[r][v], transmute::<__m512i, __m512bh>(x), transmute::<__m512i, __m512bh>(ws[v]));
                    }
                }
                w = w.add(product.columns);
            }
            for r in 0..R {
                let y = product.y.as_mut_ptr().add((row + r) * product.columns);
                for v in 0..V {
                    _mm512_storeu_ps(y.add(16 * v), sums[r][v]);
                }
            }
        }
    }
}
