//! Products by AMX: panels of weights lie as its registers want them; of x, 16 words of a row lie together.

use super::super::amx::{Allowed, Bf16, Int8, Kind, ROWS, Ready, Squares, WORDS};
use super::microkernel::{Finish, OUTPUTS, Part};

/// Bytes of a register.
const SQUARE: usize = ROWS * WORDS * 4;

/// Sums of two blocks of rows with two panels.
#[repr(align(64))]
struct Sums<N>([[[N; OUTPUTS]; 2]; 2 * ROWS]);

/// Bytes: all squares of a part, whose words are whole groups.
///
/// # Safety
///
/// The processor has AVX-512, and nobody else takes these rows and panels at the same time.
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx512f,avx512vl"))]
pub(super) unsafe fn int8(allowed: Allowed, part: &Part<'_, impl Finish<i32>>) {
    // SAFETY: the caller's.
    unsafe { multiply::<Int8, _>(allowed, part) }
}

/// Pairs of bf16: all squares of a part, whose words are whole groups.
///
/// # Safety
///
/// As [`int8`].
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx512f,avx512vl"))]
pub(super) unsafe fn bf16(allowed: Allowed, part: &Part<'_, impl Finish<f32>>) {
    // SAFETY: the caller's.
    unsafe { multiply::<Bf16, _>(allowed, part) }
}

/// # Safety
///
/// As [`int8`].
#[inline(always)]
unsafe fn multiply<K: Kind, F: Finish<K::Number>>(allowed: Allowed, part: &Part<'_, F>) {
    let (rows, panels, words) = (part.rows.len(), part.panels.len(), part.words);
    let (block, panel_size) = (ROWS * words, OUTPUTS * words * 4);
    assert!(words > 0 && words.is_multiple_of(WORDS), "words are whole groups");
    assert!(part.x.len() >= rows.div_ceil(ROWS) * block && part.w.len() >= panels * panel_size, "parts are whole");
    let _ready = Ready::new(allowed);
    let mut sums = Sums([[[K::Number::default(); OUTPUTS]; 2]; 2 * ROWS]);
    let y_row = size_of_val(&sums.0[0]);
    for panel in (0..panels).step_by(2) {
        // Where there is no second panel or block, the first is multiplied again and forgotten.
        let both = [panel, (panel + 1).min(panels - 1)];
        let of = both.map(|panel| part.finish.panel(part.panels.start + panel));
        for row in (0..rows).step_by(2 * ROWS) {
            let blocks = [row, if row + ROWS < rows { row + ROWS } else { row }];
            let y = (&raw mut sums).cast::<u8>();
            let squares = Squares {
                x: blocks.map(|row| part.x[row / ROWS * block..].as_ptr().cast()),
                x_row: WORDS * 4,
                x_step: SQUARE,
                w: both.map(|panel| part.w[panel * panel_size..].as_ptr()),
                w_row: OUTPUTS * 4,
                w_step: SQUARE,
                steps: words / WORDS,
                y: [y, y.wrapping_add(ROWS * y_row)],
                y_row,
            };
            // SAFETY: the registers are ready; rows and panels are whole, as seen above, and there is room for their sums.
            unsafe { K::two_far(squares) };
            for (p, of) in of.iter().enumerate().take(panels - panel) {
                for (r, sums) in sums.0.iter().enumerate().take(rows - row) {
                    // SAFETY: the caller's; the row and the panel are the part's.
                    unsafe { part.finish.finish(of, part.rows.start + row + r, part.panels.start + panel + p, &sums[p]) };
                }
            }
        }
    }
}
