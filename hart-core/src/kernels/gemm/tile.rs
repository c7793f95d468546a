//! The loop that all products share: a tile of sums in registers, words of x broadcast, vectors of weights streamed.
//!
//! A word is 32 bits along the inputs: one f32, two bf16 or four bytes. Weights lie in panels `[words][16 outputs]`, so that a word of
//! each of 16 outputs is one vector. Rows of x lie in blocks of as many rows as a tile has, `[words][rows]`, so that a tile reads on
//! without a stride.
//!
//! Processors without instructions for narrow numbers multiply wider ones: a word of x comes in two words then, and a task widens its
//! weights before it goes over the rows with them.

use std::cell::RefCell;
use std::ops::Range;

use super::super::memory::Buffer;
use super::super::tasks;

/// Outputs of a panel.
pub(crate) const OUTPUTS: usize = 16;

/// How instructions want the rows of x.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    /// Rows of a block: 4, 6 or 8.
    pub(super) rows: usize,
    /// Whether a word's even and odd numbers are words of their own, twice as wide.
    pub(super) wide: bool,
}

impl Layout {
    /// 32-bit words of a block, whose rows have so many words before they are widened.
    pub(super) fn block(self, words: usize) -> usize {
        self.words(words) * self.rows
    }

    /// 32-bit words of all blocks of so many rows.
    pub(super) fn blocks(self, rows: usize, words: usize) -> usize {
        rows.div_ceil(self.rows) * self.block(words)
    }

    /// Room for all blocks of so many rows, of any value but for the last block's zeros: it may have fewer rows.
    pub(super) fn room(self, rows: usize, words: usize) -> Buffer<u32> {
        let mut blocks = Buffer::new(self.blocks(rows, words));
        let last = blocks.len().saturating_sub(self.block(words));
        blocks[last..].fill(0);
        blocks
    }

    /// Words that so many become.
    pub(super) fn words(self, words: usize) -> usize {
        if self.wide { 2 * words } else { words }
    }
}

/// Widened weights: a word of each of 16 outputs, in one cache line.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(super) struct Line {
    _words: [u32; OUTPUTS],
}

/// How a processor multiplies a word of a row by a word of each of 16 outputs, and adds.
///
/// All functions are unsafe to call where the processor lacks the instructions.
pub(super) trait Arithmetic {
    /// Rows of a block of x, which are those of the largest tile: 4, 6 or 8.
    const ROWS: usize;
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
            // One by one: a copy of any length would become the only way of writing, a function's call.
            for (i, value) in values.into_iter().enumerate().take(outputs - first) {
                y.add(i).write(value);
            }
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
    /// Which rows; the first is the first of a block.
    pub rows: Range<usize>,
    /// Which panels.
    pub panels: Range<usize>,
    /// Who takes the sums.
    pub finish: &'a F,
}

thread_local! {
    /// Kept from task to task: fresh memory costs as much as a product of a few rows.
    static WIDE: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

impl<F> Part<'_, F> {
    /// Multiplies the same part with its weights widened, for rows that are: `widen` gets a place for as many lines again.
    pub(super) fn widened(self, widen: impl FnOnce(&[u8], &mut [Line]), multiply: impl FnOnce(Part<'_, F>)) {
        let lines = self.panels.len() * self.words;
        WIDE.with_borrow_mut(|wide| {
            wide.resize(2 * lines, Line { _words: [0; OUTPUTS] });
            widen(&self.w[..lines * size_of::<Line>()], wide);
            // SAFETY: lines are whole numbers, and bytes.
            let w = unsafe { std::slice::from_raw_parts(wide.as_ptr().cast(), size_of_val(wide.as_slice())) };
            multiply(Part { w, words: 2 * self.words, ..self });
        });
    }
}

/// Panels that a task takes.
const TASK_PANELS: usize = 6;
/// 32-bit words of x that a task goes over: they stay in a core's second cache ...
const TASK_WORDS: usize = 128 * 1024;
/// ... or, where a task has its weights to widen, in the third.
const WIDE_TASK_WORDS: usize = 1024 * 1024;

/// Words of x that meet all of a part's panels before the next do: small second caches hold them.
const NEAR_WORDS: usize = 20 * 1024;

/// Does all rows and panels of a product, a part at a time, on all threads.
pub(super) fn parts(rows: usize, outputs: usize, words: usize, layout: Layout, each: impl Fn(Range<usize>, Range<usize>) + Sync) {
    let panels = outputs.div_ceil(OUTPUTS);
    let most = if layout.wide { WIDE_TASK_WORDS } else { TASK_WORDS };
    let task_rows = (most / layout.words(words)).max(1).next_multiple_of(layout.rows);
    let (row_tasks, panel_tasks) = (rows.div_ceil(task_rows), panels.div_ceil(TASK_PANELS));
    tasks::each(
        row_tasks * panel_tasks,
        || (),
        |(), task| {
            let (row, panel) = (task / panel_tasks * task_rows, task % panel_tasks * TASK_PANELS);
            each(row..(row + task_rows).min(rows), panel..(panel + TASK_PANELS).min(panels));
        },
    );
}

/// All tiles of a part.
///
/// # Safety
///
/// The processor has the arithmetic's instructions, and nobody else takes these rows and panels at the same time.
#[inline(always)]
pub(super) unsafe fn multiply<A: Arithmetic, F: Finish<A::Number>>(part: &Part<'_, F>) {
    let (rows, panels, words) = (part.rows.len(), part.panels.len(), part.words);
    assert!(
        part.x.len() >= rows.next_multiple_of(A::ROWS) * words && part.w.len() >= panels * words * OUTPUTS * 4,
        "parts are whole"
    );
    let near = (NEAR_WORDS / words).max(1).next_multiple_of(A::ROWS);
    for first in (0..rows).step_by(near) {
        let mut panel = 0;
        while panel < panels {
            let wide = (panels - panel).min(A::TILE_PANELS);
            for row in (first..rows.min(first + near)).step_by(A::ROWS) {
                // SAFETY: the caller's; the lengths are checked above, and the row is a block's first.
                unsafe {
                    match wide {
                        3 if A::TILE_PANELS >= 3 => block::<A, F, 3>(part, row, panel),
                        2 if A::TILE_PANELS >= 2 => block::<A, F, 2>(part, row, panel),
                        _ => block::<A, F, 1>(part, row, panel),
                    }
                }
            }
            panel += wide;
        }
    }
}

/// A block of rows, by the smallest tile that holds those that there are.
///
/// # Safety
///
/// As [`multiply`]; the row is a block's first, below the part's rows, and the panels are there.
#[inline(always)]
unsafe fn block<A: Arithmetic, F: Finish<A::Number>, const P: usize>(part: &Part<'_, F>, row: usize, panel: usize) {
    // SAFETY: the caller's; no tile has more rows than a block.
    unsafe {
        match part.rows.len() - row {
            5.. if A::ROWS == 6 => tile::<A, F, 6, P>(part, row, panel),
            5.. if A::ROWS >= 8 => tile::<A, F, 8, P>(part, row, panel),
            3.. => tile::<A, F, 4, P>(part, row, panel),
            2 => tile::<A, F, 2, P>(part, row, panel),
            _ => tile::<A, F, 1, P>(part, row, panel),
        }
    }
}

/// `R` rows by `P` panels.
///
/// # Safety
///
/// As [`block`]; `R` is at most a block's rows.
#[inline(always)]
unsafe fn tile<A: Arithmetic, F: Finish<A::Number>, const R: usize, const P: usize>(part: &Part<'_, F>, row: usize, panel: usize) {
    // SAFETY: reads stay within one block and the P panels, whose sizes `multiply` has checked.
    unsafe {
        let words = part.words;
        let mut x = part.x.as_ptr().add(row * words);
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
            x = x.add(A::ROWS);
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
}
