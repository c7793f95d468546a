//! The loop that all products share: a tile of sums in registers, words of x broadcast, vectors of weights streamed.
//!
//! A word is 32 bits along the inputs: one f32, two bf16 or four bytes. Weights lie in panels `[words][16 outputs]`, so that a word of
//! each of 16 outputs is one vector. Rows of x lie in blocks of as many rows as a tile has, `[words][rows]`, so that a tile reads on
//! without a stride.
//!
//! Processors without instructions for narrow numbers multiply wider ones: a word of x comes in two words then, and a task widens its
//! weights before it goes over the rows with them. Processors that multiply whole matrices ([`super::amx`]) want 16 words of a row
//! together, and weights from a cache line's beginning on.

use std::cell::RefCell;
use std::ops::Range;

use super::super::amx;
use super::super::elementwise::silu_of;
use super::super::memory::AlignedVec;
use super::super::tasks::{self, SyncPtr};

/// Outputs of a panel.
pub(crate) const OUTPUTS: usize = 16;

/// How instructions want the rows of x.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    /// Rows of a block: 4, 6, 8 or 16.
    pub(super) rows: usize,
    pub(super) words: Words,
}

/// How the words of a block's rows lie.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Words {
    /// `[words][rows]`.
    Narrow,
    /// `[words][2][rows]`: a word's even and odd numbers are words of their own, twice as wide.
    Wide,
    /// `[words / 16][rows][16]`, zeros behind a row's last word.
    Grouped,
}

impl Layout {
    /// 32-bit words of a block, whose rows have so many words as they come.
    pub(super) fn block(self, words: usize) -> usize {
        self.words(words) * self.rows
    }

    /// 32-bit words of all blocks of so many rows.
    pub(super) fn blocks(self, rows: usize, words: usize) -> usize {
        rows.div_ceil(self.rows) * self.block(words)
    }

    /// Room for all blocks of so many rows, of any value but for the last block's zeros: it may have fewer rows.
    pub(super) fn room(self, rows: usize, words: usize) -> AlignedVec<u32> {
        let mut blocks = AlignedVec::new(self.blocks(rows, words));
        let last = blocks.len().saturating_sub(self.block(words));
        blocks[last..].fill(0);
        blocks
    }

    /// Words that so many become.
    pub(super) fn words(self, words: usize) -> usize {
        match self.words {
            Words::Narrow => words,
            Words::Wide => 2 * words,
            Words::Grouped => words.next_multiple_of(amx::TILE_DWORDS),
        }
    }

    /// Puts a row's words into its block. A word is made of what is given by `whole`, or by `halves` where its numbers are words of
    /// their own.
    #[inline(always)]
    pub(super) fn place<N: Copy>(
        self,
        block: &mut [u32],
        row: usize,
        from: &[N],
        whole: impl Fn(N) -> u32,
        halves: impl Fn(N) -> [u32; 2],
    ) {
        match self.words {
            Words::Narrow => block.chunks_exact_mut(self.rows).zip(from).for_each(|(to, word)| to[row] = whole(*word)),
            Words::Wide => {
                let places = block.chunks_exact_mut(2 * self.rows);
                places.zip(from).for_each(|(to, word)| [to[row], to[self.rows + row]] = halves(*word));
            }
            Words::Grouped => {
                for (to, from) in block.chunks_exact_mut(self.rows * amx::TILE_DWORDS).zip(from.chunks(amx::TILE_DWORDS)) {
                    let to = &mut to[row * amx::TILE_DWORDS..][..amx::TILE_DWORDS];
                    to[from.len()..].fill(0);
                    to.iter_mut().zip(from).for_each(|(to, word)| *to = whole(*word));
                }
            }
        }
    }
}

/// A word of each of 16 outputs, in one cache line.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(super) struct Line {
    _words: [u32; OUTPUTS],
}

impl Line {
    const ZERO: Self = Self { _words: [0; OUTPUTS] };
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

/// What becomes of sums. All functions are to be marked `#[inline(always)]`.
pub(super) trait Finish<Number>: Sync {
    /// What it knows of a panel's outputs.
    type Panel;

    /// Of one panel, for all of its rows.
    fn panel(&self, panel: usize) -> Self::Panel;

    /// Takes the sums of one row and panel.
    ///
    /// # Safety
    ///
    /// Nobody else takes this row and panel at the same time, and both exist; `of` is the panel's.
    unsafe fn finish(&self, of: &Self::Panel, row: usize, panel: usize, sums: &[Number; OUTPUTS]);
}

/// A panel's share of what there is one of for each output, zeros behind the last. Always sixteen, so that vectors are made of it.
#[inline(always)]
pub(super) fn of_panel(all: &[f32], panel: usize) -> [f32; OUTPUTS] {
    /// Apart from the rest, so that the compiler doesn't make one of both.
    #[cold]
    #[inline(never)]
    fn some(own: &[f32]) -> [f32; OUTPUTS] {
        std::array::from_fn(|i| own.get(i).copied().unwrap_or(0.0))
    }
    let own = &all[panel * OUTPUTS..];
    match own.first_chunk() {
        Some(own) => *own,
        None => some(own),
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

/// What stands where [`write`] writes, zeros behind the last.
///
/// # Safety
///
/// As [`write`]; all of it was written before.
#[inline(always)]
pub(super) unsafe fn read(y: *const f32, outputs: usize, row: usize, panel: usize) -> [f32; OUTPUTS] {
    let first = panel * OUTPUTS;
    let mut values = [0.0; OUTPUTS];
    // SAFETY: the caller's.
    unsafe {
        let y = y.add(row * outputs + first);
        if first + OUTPUTS <= outputs {
            values = y.cast::<[f32; OUTPUTS]>().read();
        } else {
            for (i, value) in values.iter_mut().enumerate().take(outputs - first) {
                *value = y.add(i).read();
            }
        }
    }
    values
}

/// Where outputs go.
pub(super) struct Place {
    pub(super) out: SyncPtr<f32>,
    /// Of a row.
    pub(super) outputs: usize,
    /// Whether they are multiplied by SiLU of what stands there, which is the gate.
    pub(super) gated: bool,
}

impl Place {
    /// Takes a row's outputs of one panel.
    ///
    /// # Safety
    ///
    /// As [`write`]; where it is gated, there are gates.
    #[inline(always)]
    pub(super) unsafe fn put(&self, row: usize, panel: usize, mut y: [f32; OUTPUTS]) {
        // SAFETY: the caller's.
        unsafe {
            if self.gated {
                let gates = read(self.out.get(), self.outputs, row, panel);
                for i in 0..OUTPUTS {
                    y[i] *= silu_of(gates[i]);
                }
            }
            write(self.out.get(), self.outputs, row, panel, y);
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
    static MOVED: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

impl<F> Part<'_, F> {
    /// Multiplies the same part with its weights elsewhere, in so many words: `fill` gets them, and the place where they are wanted.
    fn moved(self, words: usize, fill: impl FnOnce(&[u8], &mut [Line]), multiply: impl FnOnce(Part<'_, F>)) {
        let panels = self.panels.len();
        MOVED.with_borrow_mut(|moved| {
            moved.resize(panels * words, Line::ZERO);
            fill(&self.w[..panels * self.words * size_of::<Line>()], moved);
            // SAFETY: lines are whole numbers, and bytes.
            let w = unsafe { std::slice::from_raw_parts(moved.as_ptr().cast(), size_of_val(moved.as_slice())) };
            multiply(Part { w, words, ..self });
        });
    }

    /// The same with weights twice as wide.
    pub(super) fn widened(self, widen: impl FnOnce(&[u8], &mut [Line]), multiply: impl FnOnce(Part<'_, F>)) {
        let words = 2 * self.words;
        self.moved(words, widen, multiply);
    }

    /// The same with weights from a cache line's beginning on, and zeros behind a panel's last word.
    pub(super) fn grouped(self, multiply: impl FnOnce(Part<'_, F>)) {
        let (panel, words) = (self.words * size_of::<Line>(), self.words.next_multiple_of(amx::TILE_DWORDS));
        let copy = |weights: &[u8], lines: &mut [Line]| {
            for (from, to) in weights.chunks_exact(panel).zip(lines.chunks_exact_mut(words)) {
                let (whole, rest) = to.split_at_mut(panel / size_of::<Line>());
                rest.fill(Line::ZERO);
                // SAFETY: lines are whole numbers, and so many bytes.
                unsafe { std::slice::from_raw_parts_mut(whole.as_mut_ptr().cast::<u8>(), panel) }.copy_from_slice(from);
            }
        };
        self.moved(words, copy, multiply);
    }
}

/// Panels that a task takes.
const TASK_PANELS: usize = 6;
/// 32-bit words of x that a task goes over: they stay in a core's second cache ...
const TASK_WORDS: usize = 128 * 1024;
/// ... or, where a task has its weights to widen, in the third.
const WIDE_TASK_WORDS: usize = 1024 * 1024;
/// The same where weights are only copied: more, so that it is done seldom.
const GROUPED_TASK_WORDS: usize = 256 * 1024;

/// Words of x that meet all of a part's panels before the next do: small second caches hold them.
const NEAR_WORDS: usize = 20 * 1024;

/// Does all rows and panels of a product, a part at a time, on all threads.
pub(super) fn parts(rows: usize, outputs: usize, words: usize, layout: Layout, each: impl Fn(Range<usize>, Range<usize>) + Sync) {
    let panels = outputs.div_ceil(OUTPUTS);
    let most = match layout.words {
        Words::Narrow => TASK_WORDS,
        Words::Wide => WIDE_TASK_WORDS,
        Words::Grouped => GROUPED_TASK_WORDS,
    };
    let task_rows = (most / layout.words(words)).max(1).next_multiple_of(2 * layout.rows);
    let (row_tasks, panel_tasks) = (rows.div_ceil(task_rows), panels.div_ceil(TASK_PANELS));
    tasks::for_each(
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
        for p in 0..P {
            let panel = part.panels.start + panel + p;
            let of = part.finish.panel(panel);
            for (r, numbers) in numbers.iter().enumerate().take(part.rows.len() - row) {
                part.finish.finish(&of, part.rows.start + row + r, panel, &numbers[p]);
            }
        }
    }
}
