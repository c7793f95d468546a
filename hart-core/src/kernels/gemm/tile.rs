//! The loop that all products share: a tile of sums in registers, words of x broadcast, vectors of weights streamed.
//!
//! A word is 32 bits along the inputs: one f32, two bf16 or four bytes. Weights lie in panels `[words][16 outputs]`, so that a word of
//! each of 16 outputs is one vector; rows of x lie in blocks `[words][8 rows]`, so that a tile reads on without a stride.

use std::ops::Range;

use rayon::prelude::*;

/// Outputs of a panel.
pub(crate) const OUTPUTS: usize = 16;
/// Rows of a block.
pub(super) const ROWS: usize = 8;

/// How a processor multiplies a word of a row by a word of each of 16 outputs, and adds.
///
/// All functions are unsafe to call where the processor lacks the instructions.
pub(super) trait Arithmetic {
    /// Rows of a tile, at most [`ROWS`] and a power of two.
    const TILE_ROWS: usize;
    /// Panels of a tile, at most 3.
    const TILE_PANELS: usize;
    /// A sum.
    type Number: Copy + Default;
    /// Sums of 16 outputs.
    type Sums: Copy;
    /// A word of each of 16 outputs.
    type Weights: Copy;
    /// A word of x, everywhere.
    type Word: Copy;

    /// Nothing yet.
    unsafe fn zero() -> Self::Sums;
    /// Reads 64 bytes, wherever they lie.
    unsafe fn weights(from: *const u8) -> Self::Weights;
    /// Reads one word.
    unsafe fn broadcast(from: *const u32) -> Self::Word;
    /// `sums + word weights`.
    unsafe fn add(sums: Self::Sums, word: Self::Word, weights: Self::Weights) -> Self::Sums;
    /// The sums one by one.
    unsafe fn numbers(sums: Self::Sums) -> [Self::Number; OUTPUTS];
}

/// What becomes of sums.
pub(super) trait Finish<Number>: Sync {
    /// Takes the sums of one row and panel. To be marked `#[inline(always)]`.
    ///
    /// # Safety
    ///
    /// Nobody else takes this row and panel at the same time, and both exist.
    unsafe fn finish(&self, row: usize, panel: usize, sums: &[Number; OUTPUTS]);
}

/// A panel's share of what there is one of for each output, zeros behind the last. Always sixteen, so that vectors are made of it.
#[inline(always)]
pub(super) fn of_panel(all: &[f32], panel: usize) -> [f32; OUTPUTS] {
    let own = &all[panel * OUTPUTS..];
    match own.first_chunk() {
        Some(own) => *own,
        None => std::array::from_fn(|i| own.get(i).copied().unwrap_or(0.0)),
    }
}

/// Writes a row's outputs of one panel, as many as there are.
///
/// # Safety
///
/// `y` begins a matrix of `outputs` columns that has this row and panel, and nobody else takes them at the same time.
#[inline(always)]
pub(super) unsafe fn write(y: *mut f32, outputs: usize, row: usize, panel: usize, values: [f32; OUTPUTS]) {
    let first = panel * OUTPUTS;
    // SAFETY: the caller's.
    unsafe {
        let y = y.add(row * outputs + first);
        if first + OUTPUTS <= outputs {
            y.cast::<[f32; OUTPUTS]>().write(values);
        } else {
            std::ptr::copy_nonoverlapping(values.as_ptr(), y, outputs - first);
        }
    }
}

/// Rows and panels to multiply.
pub(super) struct Part<'a, F> {
    /// Blocks of rows, from the part's first row on; a block's last rows may be of no use.
    pub x: &'a [u32],
    /// Panels, from the part's first on.
    pub w: &'a [u8],
    /// Words along the inputs.
    pub words: usize,
    /// Which rows; the first is a multiple of [`ROWS`].
    pub rows: Range<usize>,
    /// Which panels.
    pub panels: Range<usize>,
    /// Who takes the sums.
    pub finish: &'a F,
}

/// Panels that a task takes.
const TASK_PANELS: usize = 6;
/// Words of x that a task goes over for each tile of weights: they stay in a core's second cache.
const TASK_WORDS: usize = 128 * 1024;

/// Does all rows and panels of a product, a part at a time, on all threads.
pub(super) fn parts(rows: usize, outputs: usize, words: usize, each: impl Fn(Range<usize>, Range<usize>) + Sync) {
    let panels = outputs.div_ceil(OUTPUTS);
    let task_rows = (TASK_WORDS / words).max(1).next_multiple_of(ROWS);
    let (row_tasks, panel_tasks) = (rows.div_ceil(task_rows), panels.div_ceil(TASK_PANELS));
    // One by one: whoever is done early takes from the others to the end.
    (0..row_tasks * panel_tasks).into_par_iter().with_max_len(1).for_each(|task| {
        let (row, panel) = (task / panel_tasks * task_rows, task % panel_tasks * TASK_PANELS);
        each(row..(row + task_rows).min(rows), panel..(panel + TASK_PANELS).min(panels));
    });
}

/// All tiles of a part.
///
/// # Safety
///
/// The processor has the arithmetic's instructions, and nobody else takes these rows and panels at the same time.
#[inline(always)]
pub(super) unsafe fn multiply<A: Arithmetic, F: Finish<A::Number>>(part: &Part<'_, F>) {
    let (rows, panels, words) = (part.rows.len(), part.panels.len(), part.words);
    assert!(part.x.len() >= rows.div_ceil(ROWS) * ROWS * words && part.w.len() >= panels * words * OUTPUTS * 4, "parts are whole");
    let mut panel = 0;
    while panel < panels {
        let wide = (panels - panel).min(A::TILE_PANELS);
        let mut row = 0;
        while row < rows {
            let left = rows - row;
            // SAFETY: the caller's; the lengths are checked above, and a tile's rows lie in one block.
            let tall = unsafe {
                match (wide, left) {
                    (3, 5..) if A::TILE_ROWS >= 8 => tile::<A, F, 8, 3>(part, row, panel),
                    (3, 3..) if A::TILE_ROWS >= 4 => tile::<A, F, 4, 3>(part, row, panel),
                    (3, 2..) => tile::<A, F, 2, 3>(part, row, panel),
                    (3, _) => tile::<A, F, 1, 3>(part, row, panel),
                    (2, 5..) if A::TILE_ROWS >= 8 => tile::<A, F, 8, 2>(part, row, panel),
                    (2, 3..) if A::TILE_ROWS >= 4 => tile::<A, F, 4, 2>(part, row, panel),
                    (2, _) => tile::<A, F, 2, 2>(part, row, panel),
                    (_, 5..) if A::TILE_ROWS >= 8 => tile::<A, F, 8, 1>(part, row, panel),
                    (_, 3..) if A::TILE_ROWS >= 4 => tile::<A, F, 4, 1>(part, row, panel),
                    (_, _) => tile::<A, F, 2, 1>(part, row, panel),
                }
            };
            row += tall;
        }
        panel += wide;
    }
}

/// `R` rows by `P` panels; gives R.
///
/// # Safety
///
/// As [`multiply`]; row is a multiple of R and below the part's rows, and the panels are there.
#[inline(always)]
unsafe fn tile<A: Arithmetic, F: Finish<A::Number>, const R: usize, const P: usize>(
    part: &Part<'_, F>,
    row: usize,
    panel: usize,
) -> usize {
    // SAFETY: reads stay within one block and the P panels, whose sizes `multiply` has checked.
    unsafe {
        let words = part.words;
        let mut x = part.x.as_ptr().add(row / ROWS * ROWS * words + row % ROWS);
        let mut w = part.w.as_ptr().add(panel * words * OUTPUTS * 4);
        let mut sums = [[A::zero(); P]; R];
        for _ in 0..words {
            // Without closures, in which the compiler doesn't know of the instructions.
            let mut weights = [A::weights(w); P];
            for (p, weights) in weights.iter_mut().enumerate().skip(1) {
                *weights = A::weights(w.add(p * words * OUTPUTS * 4));
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let word = A::broadcast(x.add(r));
                for (sums, weights) in sums.iter_mut().zip(weights) {
                    *sums = A::add(*sums, word, weights);
                }
            }
            x = x.add(ROWS);
            w = w.add(OUTPUTS * 4);
        }
        // Before anything branches, so that the sums stay in registers.
        let mut numbers = [[[A::Number::default(); OUTPUTS]; P]; R];
        for (numbers, sums) in numbers.iter_mut().zip(sums) {
            for (numbers, sums) in numbers.iter_mut().zip(sums) {
                *numbers = A::numbers(sums);
            }
        }
        for (r, numbers) in numbers.iter().enumerate().take(part.rows.len() - row) {
            for (p, numbers) in numbers.iter().enumerate() {
                part.finish.finish(part.rows.start + row + r, part.panels.start + panel + p, numbers);
            }
        }
    }
    R
}
