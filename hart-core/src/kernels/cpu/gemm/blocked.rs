//! f32 products of many rows with weights as they lie in a checkpoint, a row for each output.
//!
//! x is rearranged into blocks first; each task rearranges its own share of the weights, a piece that stays in a core's second cache,
//! and goes over the rows with it. No copy of all weights is ever made. Unlike [`super::gemv`] it doesn't mind rows that lie a power
//! of two apart, which meet in the same places of the cache.

use std::ops::Range;

use rayon::prelude::*;

use super::super::memory::AlignedVec;
use super::super::simd::{self, SimdF32, SimdLevel};
use super::super::tasks::{self, SyncPtr};
use super::microkernel::{Arithmetic, Finish, Layout, OUTPUTS, Part, Words, multiply, of_panel, read, write};

/// Panels that a task takes: with [`DEPTH`] inputs they fill a good part of a core's second cache.
const TASK_PANELS: usize = 3;
/// Rows that a task goes over, at most.
const TASK_ROWS: usize = 2048;
/// Inputs that are multiplied before the next are rearranged.
const DEPTH: usize = 1536;

/// Inputs that are arranged of one row after the other: their block stays in the first cache.
const PIECE: usize = 64;

/// How rows of x lie for such lanes.
pub(super) fn layout(level: SimdLevel) -> Layout {
    Layout { rows: rows(level.has_32_registers()), words: Words::Narrow }
}

/// Rows of a tile.
const fn rows(many: bool) -> usize {
    if many { 8 } else { 6 }
}

/// Appends `x[m] . w[n] + b[n]` to y, rows of `width` numbers.
///
/// # Panics
///
/// If the lengths don't fit together.
pub(super) fn product(level: SimdLevel, x: &[f32], w: &[f32], bias: Option<&[f32]>, width: usize, y: &mut Vec<f32>) {
    let (rows, columns) = super::sizes(x, w, bias, width);
    y.reserve(rows * columns);
    let out = SyncPtr::new(super::spare(y));
    let layout = layout(level);
    let task_rows = TASK_ROWS.next_multiple_of(layout.rows);
    let (row_tasks, panels) = (rows.div_ceil(task_rows), columns.div_ceil(OUTPUTS));
    let panel_tasks = panels.div_ceil(TASK_PANELS);
    for from in (0..width).step_by(DEPTH) {
        let depth = DEPTH.min(width - from);
        let blocks = arrange_rows(level, x, width, from..from + depth, layout);
        let finish = Sum { out: &out, columns, first: from == 0, bias };
        tasks::for_each(row_tasks * panel_tasks, AlignedVec::default, |scratch, task| {
            let (row, panel) = (task % row_tasks * task_rows, task / row_tasks * TASK_PANELS);
            let (row_end, panel_end) = ((row + task_rows).min(rows), (panel + TASK_PANELS).min(panels));
            let weights = &w[panel * OUTPUTS * width..(panel_end * OUTPUTS).min(columns) * width];
            level.run(Arrange { weights, width, from, depth, into: scratch });
            // SAFETY: f32 are bytes.
            let w = unsafe { std::slice::from_raw_parts(scratch.as_ptr().cast(), size_of_val(&scratch[..])) };
            let (rows, panels) = (row..row_end, panel..panel_end);
            level.run(Multiply(Part { x: &blocks[layout.blocks(row, depth)..], w, words: depth, rows, panels, finish: &finish }));
        });
    }
    // SAFETY: every task has written its outputs, and together they are all.
    unsafe { y.set_len(y.len() + rows * columns) };
}

/// Some inputs of x in blocks of rows, zeros behind the last row.
fn arrange_rows(level: SimdLevel, x: &[f32], width: usize, inputs: Range<usize>, layout: Layout) -> AlignedVec<u32> {
    let mut blocks = layout.room(x.len() / width, inputs.len());
    let parts = blocks.par_chunks_mut(2 * layout.block(inputs.len())).zip(x.par_chunks(2 * layout.rows * width));
    parts.for_each(|(blocks, x)| level.run(ArrangeRows { x, width, inputs: inputs.clone(), layout, blocks }));
    blocks
}

/// Two blocks of rows, or what there is of them.
struct ArrangeRows<'a> {
    x: &'a [f32],
    width: usize,
    inputs: Range<usize>,
    layout: Layout,
    blocks: &'a mut [u32],
}

impl simd::SimdKernel for ArrangeRows<'_> {
    #[inline(always)]
    unsafe fn run<S: SimdF32>(self) {
        let Self { x, width, inputs, layout, blocks } = self;
        let rows = layout.rows;
        let (first, second) = blocks.split_at_mut(layout.block(inputs.len()).min(blocks.len()));
        // Inputs that are turned in squares: a vector holds a word of both blocks.
        let mut done = 0;
        if S::LANES == 2 * rows && x.len() == S::LANES * width {
            let mut turned = [0f32; 16 * 16];
            assert!(turned.len() >= S::LANES * S::LANES && inputs.end <= width);
            while done + S::LANES <= inputs.len() {
                // SAFETY: so many numbers of so many rows are there, as seen above, and places; the processor has the lanes.
                unsafe { S::transpose(x.as_ptr().add(inputs.start + done), width, turned.as_mut_ptr(), S::LANES) };
                let words = done * rows..(done + S::LANES) * rows;
                let places = first[words.clone()].chunks_exact_mut(rows).zip(second[words].chunks_exact_mut(rows));
                for ((first, second), word) in places.zip(turned.chunks_exact(S::LANES)) {
                    let (low, high) = word.split_at(rows);
                    first.iter_mut().zip(low).for_each(|(to, number)| *to = number.to_bits());
                    second.iter_mut().zip(high).for_each(|(to, number)| *to = number.to_bits());
                }
                done += S::LANES;
            }
        }
        for (block, x) in [first, second].into_iter().zip(x.chunks(rows * width)) {
            for from in (done..inputs.len()).step_by(PIECE) {
                let words = from * rows..(from + PIECE).min(inputs.len()) * rows;
                for (r, row) in x.chunks(width).enumerate() {
                    for (word, number) in block[words.clone()].chunks_exact_mut(rows).zip(&row[inputs.start + from..]) {
                        word[r] = number.to_bits();
                    }
                }
            }
        }
    }
}

/// Rearranges some inputs of a task's weights into panels, zeros where outputs are missing.
struct Arrange<'a> {
    weights: &'a [f32],
    width: usize,
    from: usize,
    depth: usize,
    into: &'a mut AlignedVec<f32>,
}

impl simd::SimdKernel for Arrange<'_> {
    #[inline(always)]
    unsafe fn run<S: SimdF32>(self) {
        let Self { weights, width, from, depth, into } = self;
        let outputs = weights.len() / width;
        into.resize_unspecified(outputs.next_multiple_of(OUTPUTS) * depth);
        for (panel, into) in into.chunks_mut(OUTPUTS * depth).enumerate() {
            let weights = &weights[panel * OUTPUTS * width..];
            let count = OUTPUTS.min(outputs - panel * OUTPUTS);
            let mut done = 0;
            if count == OUTPUTS {
                while done + S::LANES <= depth {
                    for output in (0..OUTPUTS).step_by(S::LANES) {
                        // SAFETY: COUNT numbers of COUNT rows are there, and as many places for them.
                        unsafe {
                            let square = weights.as_ptr().add(output * width + from + done);
                            S::transpose(square, width, into.as_mut_ptr().add(done * OUTPUTS + output), OUTPUTS);
                        }
                    }
                    done += S::LANES;
                }
            } else {
                into.fill(0.0);
            }
            for (output, row) in weights.chunks(width).take(count).enumerate() {
                for k in done..depth {
                    into[k * OUTPUTS + output] = row[from + k];
                }
            }
        }
    }
}

/// A part of f32.
pub(super) struct Multiply<'a, F>(pub(super) Part<'a, F>);

impl<F: Finish<f32>> simd::SimdKernel for Multiply<'_, F> {
    #[inline(always)]
    unsafe fn run<S: SimdF32>(self) {
        // SAFETY: the level has the lanes, and tasks differ in rows or panels.
        unsafe { multiply::<Floats<S>, _>(&self.0) }
    }
}

/// Adds the sums to what is there already, or to the bias.
struct Sum<'a> {
    out: &'a SyncPtr<f32>,
    /// Numbers from one row of y to the next.
    columns: usize,
    /// Whether nothing is there yet.
    first: bool,
    bias: Option<&'a [f32]>,
}

impl Finish<f32> for Sum<'_> {
    type Panel = [f32; OUTPUTS];

    #[inline(always)]
    fn panel(&self, panel: usize) -> [f32; OUTPUTS] {
        self.bias.map_or([0.0; OUTPUTS], |bias| of_panel(bias, panel))
    }

    #[inline(always)]
    unsafe fn finish(&self, bias: &[f32; OUTPUTS], row: usize, panel: usize, sums: &[f32; OUTPUTS]) {
        let mut y = *sums;
        // SAFETY: y has room for all rows, the pieces before have written these outputs, and the caller's.
        unsafe {
            let before = if self.first { *bias } else { read(self.out.get(), self.columns, row, panel) };
            for (y, before) in y.iter_mut().zip(before) {
                *y += before;
            }
            write(self.out.get(), self.columns, row, panel, y);
        }
    }
}

/// A word is one f32.
struct Floats<S>(S);

impl<S: SimdF32> Arithmetic for Floats<S> {
    const ROWS: usize = rows(S::HAS_32_REGISTERS);
    const TILE_PANELS: usize = if S::HAS_32_REGISTERS { 3 } else { 1 };
    type Number = f32;
    /// The second is idle where a vector holds all.
    type Sums = [S; 2];
    type Weights = [S; 2];
    type Word = S;

    #[inline(always)]
    unsafe fn zero() -> [S; 2] {
        // SAFETY: the caller's.
        unsafe { [S::zero(); 2] }
    }

    #[inline(always)]
    unsafe fn weights(from: *const u8) -> [S; 2] {
        // SAFETY: the caller's; the panels are f32.
        unsafe { [S::load(from.cast()), S::load(from.cast::<f32>().add(OUTPUTS - S::LANES))] }
    }

    #[inline(always)]
    unsafe fn broadcast(from: *const u32) -> S {
        // SAFETY: the caller's.
        unsafe { S::splat(from.cast::<f32>().read()) }
    }

    #[inline(always)]
    unsafe fn add(sums: [S; 2], word: S, weights: [S; 2]) -> [S; 2] {
        // SAFETY: the caller's.
        unsafe {
            let second = if S::LANES < OUTPUTS { sums[1].add_product(word, weights[1]) } else { sums[1] };
            [sums[0].add_product(word, weights[0]), second]
        }
    }

    #[inline(always)]
    unsafe fn numbers(sums: [S; 2]) -> [f32; OUTPUTS] {
        let mut numbers = [0.0f32; OUTPUTS];
        // SAFETY: the caller's; where one vector holds all, both places are the same, and the first is written last.
        unsafe {
            sums[1].store(numbers.as_mut_ptr().add(OUTPUTS - S::LANES));
            sums[0].store(numbers.as_mut_ptr());
        }
        numbers
    }
}
