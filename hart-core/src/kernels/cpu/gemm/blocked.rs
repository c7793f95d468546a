//! f32 products of many rows, with w as a checkpoint stores it: `[outputs, inputs]`.
//!
//! The k-loop runs in blocks of [`KC`] inputs. For each block, x is packed into panels first. Then each task packs its own panels
//! of w, which stay in the second-level cache, and multiplies the rows by them. w is never copied or widened as a whole. Unlike
//! [`super::gemv`], this product does not suffer from cache conflicts between rows whose distance is a power of two.

use std::ops::Range;

use rayon::prelude::*;

use super::super::memory::AlignedVec;
use super::super::simd::{self, SimdF32, SimdLevel};
use super::super::tasks::{self, SyncPtr};
use super::epilogue::{Epilogue, load_panel, load_panel_row, store_panel_row};
use super::microkernel::{MacroBlock, MicroKernelOps, macro_kernel};
use super::packing::{NR, XFormat, XLayout};
use super::stored::{StoredRows, WideRows};

/// Panels of w in a task: with [`KC`] inputs they fill much of the second-level cache.
const TASK_PANELS: usize = 3;
/// Rows of x in a task.
const TASK_ROWS: usize = 2048;
/// Inputs of one block of the k-loop.
const KC: usize = 1536;

/// Inputs of a row that are packed before those of the next row: their part of a panel stays in the first-level cache.
const PACK_INPUTS: usize = 64;

/// Returns the packed layout of x for a level.
pub(super) fn x_layout(level: SimdLevel) -> XLayout {
    XLayout { mr: mr(level.has_32_registers()), format: XFormat::Panel }
}

/// Returns the number of rows of the register block.
const fn mr(has_32_registers: bool) -> usize {
    match has_32_registers {
        true => 8,
        // A panel of w takes four of the registers that hosts of wasm leave.
        false if cfg!(target_arch = "wasm32") => 2,
        false => 6,
    }
}

/// Appends `x[m] . w[n] + bias[n]` to y, for rows m of x and n of w of `inputs` values each.
///
/// # Panics
///
/// If the lengths do not fit together.
pub(super) fn matmul(level: SimdLevel, x: &[f32], w: StoredRows<'_>, bias: Option<&[f32]>, inputs: usize, y: &mut Vec<f32>) {
    let (rows, outputs) = super::checked_sizes(x, w, bias, inputs);
    y.reserve(rows * outputs);
    let out = SyncPtr::new(super::spare(y));
    let layout = x_layout(level);
    let task_rows = TASK_ROWS.next_multiple_of(layout.mr);
    let (row_tasks, panels) = (rows.div_ceil(task_rows), outputs.div_ceil(NR));
    let panel_tasks = panels.div_ceil(TASK_PANELS);
    for first in (0..inputs).step_by(KC) {
        let kc = KC.min(inputs - first);
        let packed_x = pack_x(level, x, inputs, first..first + kc, layout);
        let epilogue = AddToOutput { y: &out, outputs, is_first: first == 0, bias };
        tasks::for_each(row_tasks * panel_tasks, Default::default, |(packed_w, wide): &mut (AlignedVec<f32>, Vec<f32>), task| {
            let (row, panel) = (task % row_tasks * task_rows, task / row_tasks * TASK_PANELS);
            let (row_end, panel_end) = ((row + task_rows).min(rows), (panel + TASK_PANELS).min(panels));
            let w = w.slice(panel * NR * inputs..(panel_end * NR).min(outputs) * inputs);
            let outputs = w.len() / inputs;
            level.run(PackW { w: w.widen(inputs, first..first + kc, wide), outputs, kc, panels: packed_w });
            // SAFETY: f32 may be read as bytes.
            let w = unsafe { std::slice::from_raw_parts(packed_w.as_ptr().cast(), size_of_val(&packed_w[..])) };
            let (rows, panels) = (row..row_end, panel..panel_end);
            let x = &packed_x[layout.len(row, kc)..];
            level.run(F32MacroKernel(MacroBlock { x, w, k_dwords: kc, rows, panels, epilogue: &epilogue }));
        });
    }
    // SAFETY: the memory is reserved, and the tasks have stored all outputs.
    unsafe { y.set_len(y.len() + rows * outputs) };
}

/// Packs a range of the inputs of x.
fn pack_x(level: SimdLevel, x: &[f32], inputs: usize, range: Range<usize>, layout: XLayout) -> AlignedVec<u32> {
    let mut panels = layout.alloc(x.len() / inputs, range.len());
    let pairs = panels.par_chunks_mut(2 * layout.panel_len(range.len())).zip(x.par_chunks(2 * layout.mr * inputs));
    pairs.for_each(|(panels, x)| level.run(PackX { x, inputs, range: range.clone(), layout, panels }));
    panels
}

/// Packs up to two panels of x.
struct PackX<'a> {
    /// Rows of the panels.
    x: &'a [f32],
    inputs: usize,
    /// Inputs to pack.
    range: Range<usize>,
    layout: XLayout,
    panels: &'a mut [u32],
}

impl simd::SimdKernel for PackX<'_> {
    #[inline(always)]
    unsafe fn run<S: SimdF32>(self) {
        let Self { x, inputs, range, layout, panels } = self;
        let mr = layout.mr;
        let (first, second) = panels.split_at_mut(layout.panel_len(range.len()).min(panels.len()));
        // Inputs that are packed by transposing matrices of `LANES` by `LANES`, where a vector spans the rows of both panels.
        let mut done = 0;
        if S::LANES == 2 * mr && x.len() == S::LANES * inputs {
            let mut transposed = [0f32; 16 * 16];
            assert!(transposed.len() >= S::LANES * S::LANES && range.end <= inputs);
            while done + S::LANES <= range.len() {
                // SAFETY: x has `LANES` rows with `LANES` more inputs in the range; the processor has the instructions.
                unsafe { S::transpose(x.as_ptr().add(range.start + done), inputs, transposed.as_mut_ptr(), S::LANES) };
                let dwords = done * mr..(done + S::LANES) * mr;
                let to = first[dwords.clone()].chunks_exact_mut(mr).zip(second[dwords].chunks_exact_mut(mr));
                for ((first, second), column) in to.zip(transposed.chunks_exact(S::LANES)) {
                    let (low, high) = column.split_at(mr);
                    first.iter_mut().zip(low).for_each(|(to, value)| *to = value.to_bits());
                    second.iter_mut().zip(high).for_each(|(to, value)| *to = value.to_bits());
                }
                done += S::LANES;
            }
        }
        for (panel, x) in [first, second].into_iter().zip(x.chunks(mr * inputs)) {
            for from in (done..range.len()).step_by(PACK_INPUTS) {
                let dwords = from * mr..(from + PACK_INPUTS).min(range.len()) * mr;
                for (r, row) in x.chunks(inputs).enumerate() {
                    for (to, value) in panel[dwords.clone()].chunks_exact_mut(mr).zip(&row[range.start + from..]) {
                        to[r] = value.to_bits();
                    }
                }
            }
        }
    }
}

/// Packs `kc` inputs of some rows of w into panels. Outputs after the last one are zero.
struct PackW<'a> {
    w: WideRows<'a>,
    outputs: usize,
    kc: usize,
    panels: &'a mut AlignedVec<f32>,
}

impl simd::SimdKernel for PackW<'_> {
    #[inline(always)]
    unsafe fn run<S: SimdF32>(self) {
        let Self { w: WideRows { values: w, stride: inputs, first }, outputs, kc, panels } = self;
        panels.resize_unspecified(outputs.next_multiple_of(NR) * kc);
        for (index, panel) in panels.chunks_mut(NR * kc).enumerate() {
            let w = &w[index * NR * inputs..];
            let count = NR.min(outputs - index * NR);
            let mut done = 0;
            if count == NR {
                while done + S::LANES <= kc {
                    for output in (0..NR).step_by(S::LANES) {
                        // SAFETY: w has `LANES` rows with `LANES` more inputs, and the panel has room for them; the processor has the
                        // instructions.
                        unsafe {
                            let from = w.as_ptr().add(output * inputs + first + done);
                            S::transpose(from, inputs, panel.as_mut_ptr().add(done * NR + output), NR);
                        }
                    }
                    done += S::LANES;
                }
            } else {
                panel.fill(0.0);
            }
            for (output, row) in w.chunks(inputs).take(count).enumerate() {
                for k in done..kc {
                    panel[k * NR + output] = row[first + k];
                }
            }
        }
    }
}

/// The macro-kernel of f32.
pub(super) struct F32MacroKernel<'a, E>(pub(super) MacroBlock<'a, E>);

impl<E: Epilogue<f32>> simd::SimdKernel for F32MacroKernel<'_, E> {
    #[inline(always)]
    unsafe fn run<S: SimdF32>(self) {
        // SAFETY: the processor has the instructions, and no two tasks share rows and panels.
        unsafe {
            if S::LANES < NR / 2 { macro_kernel::<F32Ops<S, 4>, _>(&self.0) } else { macro_kernel::<F32Ops<S, 2>, _>(&self.0) }
        }
    }
}

/// Adds the accumulators of one block of the k-loop to y, or to the bias in the first block.
struct AddToOutput<'a> {
    y: &'a SyncPtr<f32>,
    /// Columns of y.
    outputs: usize,
    /// `true` for the first block of the k-loop, before which y is uninitialised.
    is_first: bool,
    bias: Option<&'a [f32]>,
}

impl Epilogue<f32> for AddToOutput<'_> {
    /// Biases.
    type PanelParams = [f32; NR];

    #[inline(always)]
    fn panel_params(&self, panel: usize) -> [f32; NR] {
        self.bias.map_or([0.0; NR], |bias| load_panel(bias, panel))
    }

    #[inline(always)]
    unsafe fn store(&self, bias: &[f32; NR], row: usize, panel: usize, accumulators: &[f32; NR]) {
        let mut y = *accumulators;
        // SAFETY: y has room for all rows and is initialised after the first block. The caller upholds the contract of this
        // function.
        unsafe {
            let before = if self.is_first { *bias } else { load_panel_row(self.y.get(), self.outputs, row, panel) };
            for (y, before) in y.iter_mut().zip(before) {
                *y += before;
            }
            store_panel_row(self.y.get(), self.outputs, row, panel, y);
        }
    }
}

/// Operations on f32: a k-group is one element. `V` vectors hold the outputs of a panel; the second one is unused if the first holds
/// all of them.
struct F32Ops<S, const V: usize>(S);

impl<S: SimdF32, const V: usize> MicroKernelOps for F32Ops<S, V> {
    const MR: usize = mr(S::HAS_32_REGISTERS);
    const PANELS: usize = if S::HAS_32_REGISTERS { 3 } else { 1 };
    type Accumulator = f32;
    type AccVector = [S; V];
    type WVector = [S; V];
    type XVector = f32;

    #[inline(always)]
    unsafe fn zero() -> [S; V] {
        // SAFETY: the caller upholds the contract of this function.
        unsafe { [S::zero(); V] }
    }

    #[inline(always)]
    unsafe fn load_w(from: *const u8) -> [S; V] {
        let from = from.cast::<f32>();
        // SAFETY: the caller upholds the contract of this function; w is packed as f32.
        unsafe {
            let mut w = [S::load(from); V];
            for (v, w) in w.iter_mut().enumerate().skip(1) {
                *w = S::load(from.add(first_output::<S>(v)));
            }
            w
        }
    }

    #[inline(always)]
    unsafe fn load_x(from: *const u32) -> f32 {
        // SAFETY: the caller upholds the contract of this function.
        unsafe { from.cast::<f32>().read() }
    }

    #[inline(always)]
    unsafe fn accumulate(mut accumulators: [S; V], x: f32, w: [S; V]) -> [S; V] {
        for (v, (accumulator, w)) in accumulators.iter_mut().zip(w).enumerate() {
            if v * S::LANES < NR {
                // SAFETY: the caller upholds the contract of this function.
                *accumulator = unsafe { accumulator.add_scaled(x, w) };
            }
        }
        accumulators
    }

    #[inline(always)]
    unsafe fn to_array(accumulators: [S; V]) -> [f32; NR] {
        let mut array = [0.0f32; NR];
        // If one vector holds all outputs, both stores have the same address, and the first vector is stored last.
        for (v, accumulator) in accumulators.iter().enumerate().rev() {
            // SAFETY: the caller upholds the contract of this function.
            unsafe { accumulator.store(array.as_mut_ptr().add(first_output::<S>(v))) };
        }
        array
    }
}

/// Returns the first output in a vector of a panel.
const fn first_output<S: SimdF32>(vector: usize) -> usize {
    let (first, last) = (vector * S::LANES, NR - S::LANES);
    if first < last { first } else { last }
}
