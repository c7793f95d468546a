//! Products by AMX: panels of weights lie as its registers want them; of x, 16 words of a row lie together.

use super::super::amx::{AmxToken, TILE_DWORDS, TILE_ROWS, Tdpbf16ps, Tdpbssd, TileGuard, TileOperands, TileProduct};
use super::microkernel::{Finish, OUTPUTS, Part};

/// Bytes of a register.
const SQUARE: usize = TILE_ROWS * TILE_DWORDS * 4;

/// Sums of two blocks of rows with two panels.
#[repr(align(64))]
struct Sums<N>([[[N; OUTPUTS]; 2]; 2 * TILE_ROWS]);

/// Bytes: all squares of a part, whose words are whole groups.
///
/// # Safety
///
/// The processor has AVX-512, and nobody else takes these rows and panels at the same time.
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx512f,avx512vl"))]
pub(super) unsafe fn int8(token: AmxToken, part: &Part<'_, impl Finish<i32>>) {
    // SAFETY: the caller's.
    unsafe { multiply::<Tdpbssd, _>(token, part) }
}

/// Pairs of bf16: all squares of a part, whose words are whole groups.
///
/// # Safety
///
/// As [`int8`].
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx512f,avx512vl"))]
pub(super) unsafe fn bf16(token: AmxToken, part: &Part<'_, impl Finish<f32>>) {
    // SAFETY: the caller's.
    unsafe { multiply::<Tdpbf16ps, _>(token, part) }
}

/// # Safety
///
/// As [`int8`].
#[inline(always)]
unsafe fn multiply<K: TileProduct, F: Finish<K::Accumulator>>(token: AmxToken, part: &Part<'_, F>) {
    let (rows, panels, words) = (part.rows.len(), part.panels.len(), part.words);
    let (block, panel_size) = (TILE_ROWS * words, OUTPUTS * words * 4);
    assert!(words > 0 && words.is_multiple_of(TILE_DWORDS), "words are whole groups");
    assert!(part.x.len() >= rows.div_ceil(TILE_ROWS) * block && part.w.len() >= panels * panel_size, "parts are whole");
    let _ready = TileGuard::new(token);
    let mut sums = Sums([[[K::Accumulator::default(); OUTPUTS]; 2]; 2 * TILE_ROWS]);
    let c_row_stride = size_of_val(&sums.0[0]);
    for panel in (0..panels).step_by(2) {
        // Where there is no second panel or block, the first is multiplied again and forgotten.
        let both = [panel, (panel + 1).min(panels - 1)];
        let of = both.map(|panel| part.finish.panel(part.panels.start + panel));
        for row in (0..rows).step_by(2 * TILE_ROWS) {
            let blocks = [row, if row + TILE_ROWS < rows { row + TILE_ROWS } else { row }];
            let y = (&raw mut sums).cast::<u8>();
            let operands = TileOperands {
                a: blocks.map(|row| part.x[row / TILE_ROWS * block..].as_ptr().cast()),
                a_row_stride: TILE_DWORDS * 4,
                a_tile_stride: SQUARE,
                b: both.map(|panel| part.w[panel * panel_size..].as_ptr()),
                b_row_stride: OUTPUTS * 4,
                b_tile_stride: SQUARE,
                k_tiles: words / TILE_DWORDS,
                c: [y, y.wrapping_add(TILE_ROWS * c_row_stride)],
                c_row_stride,
            };
            // SAFETY: the registers are ready; rows and panels are whole, as seen above, and there is room for their sums.
            unsafe { K::product_32x32_prefetch(operands) };
            for (p, of) in of.iter().enumerate().take(panels - panel) {
                for (r, sums) in sums.0.iter().enumerate().take(rows - row) {
                    // SAFETY: the caller's; the row and the panel are the part's.
                    unsafe { part.finish.finish(of, part.rows.start + row + r, part.panels.start + panel + p, &sums[p]) };
                }
            }
        }
    }
}
