//! f32 products of few rows, with w as a checkpoint stores it: `[outputs, inputs]`.
//!
//! Both operands are read along k and nothing is packed: w is read in place from the mapped file. For few rows of x, as in the
//! coarse scales, the time is that of reading w once.

use rayon::prelude::*;

use super::super::simd::{SimdF32, SimdKernel, SimdLevel};
use super::super::tasks::SyncPtr;
use super::stored::StoredRows;

/// Outputs of a task, a multiple of those of every register block.
const TASK_OUTPUTS: usize = 48;
/// The number of outputs of a task is a multiple of this, except in the last one.
const OUTPUTS_STEP: usize = 12;
/// Values of w in a task that widens them.
const TASK_WIDENED: usize = 64 * 1024;
/// Values of x in a task, which stay in the second-level cache while the task reads them for each register block of outputs.
const TASK_X: usize = 160 * 1024;
/// The number of rows of a task is a multiple of this, which is a multiple of the rows of every register block.
const TASK_ROWS_STEP: usize = 12;

/// Appends `x[m] . w[n] + bias[n]` to y, for rows m of x and n of w of `inputs` values each.
///
/// # Panics
///
/// If the lengths do not fit together.
pub(super) fn matmul(level: SimdLevel, x: &[f32], w: StoredRows<'_>, bias: Option<&[f32]>, inputs: usize, y: &mut Vec<f32>) {
    let (rows, outputs) = super::checked_sizes(x, w, bias, inputs);
    y.reserve(rows * outputs);
    let task_rows = (TASK_X / inputs).max(1).next_multiple_of(TASK_ROWS_STEP);
    let task_outputs = if w.is_widened() { widened_outputs(inputs) } else { TASK_OUTPUTS };
    let (row_tasks, output_tasks) = (rows.div_ceil(task_rows), outputs.div_ceil(task_outputs));
    let out = SyncPtr::new(super::spare(y));
    (0..row_tasks * output_tasks).into_par_iter().for_each_init(Vec::new, |wide, task| {
        let (row, output) = (task / output_tasks * task_rows, task % output_tasks * task_outputs);
        let output_end = (output + task_outputs).min(outputs);
        let operands = Operands {
            x: &x[row * inputs..(row + task_rows).min(rows) * inputs],
            w: w.slice(output * inputs..output_end * inputs).widen(inputs, 0..inputs, wide).values,
            bias: bias.map(|b| &b[output..output_end]),
            inputs,
            y_stride: outputs,
        };
        // SAFETY: the task's outputs start at (row, output) of y, whose memory is reserved, and no other task stores to them.
        level.run(Kernel { operands, y: unsafe { out.get().add(row * outputs + output) } });
    });
    // SAFETY: the memory is reserved, and the tasks have stored all outputs.
    unsafe { y.set_len(y.len() + rows * outputs) };
}

/// Returns the number of outputs of a task whose rows of w are widened: these rows stay in the second-level cache.
fn widened_outputs(inputs: usize) -> usize {
    (TASK_WIDENED / inputs / OUTPUTS_STEP * OUTPUTS_STEP).clamp(OUTPUTS_STEP, TASK_OUTPUTS)
}

/// Operands of a task.
struct Operands<'a> {
    x: &'a [f32],
    w: &'a [f32],
    bias: Option<&'a [f32]>,
    inputs: usize,
    /// Distance from one row of y to the next.
    y_stride: usize,
}

/// The kernel of a task. `y` points to its first output and has room for all of them.
struct Kernel<'a> {
    operands: Operands<'a>,
    y: *mut f32,
}

impl SimdKernel for Kernel<'_> {
    #[inline(always)]
    unsafe fn run<S: SimdF32>(self) {
        // SAFETY: y has room for the outputs, and the processor has the instructions.
        unsafe { register_blocks::<S>(self.operands, self.y) }
    }
}

/// Computes all register blocks of a task.
///
/// # Safety
///
/// `y` has room for the task's outputs, and the processor has the instructions.
#[inline(always)]
unsafe fn register_blocks<S: SimdF32>(operands: Operands<'_>, y: *mut f32) {
    // SAFETY: the caller upholds the contract of this function; m and n stay below the numbers of rows and outputs.
    unsafe {
        let (rows, outputs) = (operands.x.len() / operands.inputs, operands.w.len() / operands.inputs);
        let mut n = 0;
        while n < outputs {
            let is_full = outputs - n >= nr::<S>();
            let mut m = 0;
            while m < rows {
                let remaining = rows - m;
                match (S::HAS_32_REGISTERS, is_full, remaining) {
                    (true, true, 4..) => register_block::<S, 4, 6>(&operands, m, n, y),
                    (true, true, 3) => register_block::<S, 3, 6>(&operands, m, n, y),
                    (true, true, 2) => register_block::<S, 2, 6>(&operands, m, n, y),
                    (true, true, _) => register_block::<S, 1, 6>(&operands, m, n, y),
                    (false, true, 3..) if SMALL_MR == 3 => register_block::<S, 3, SMALL_NR>(&operands, m, n, y),
                    (false, true, 2..) => register_block::<S, 2, SMALL_NR>(&operands, m, n, y),
                    (false, true, _) => register_block::<S, 1, SMALL_NR>(&operands, m, n, y),
                    (true, false, 4..) => register_block::<S, 4, 1>(&operands, m, n, y),
                    (_, false, 3..) if S::HAS_32_REGISTERS || SMALL_MR == 3 => register_block::<S, 3, 1>(&operands, m, n, y),
                    (_, false, 2..) => register_block::<S, 2, 1>(&operands, m, n, y),
                    (_, false, _) => register_block::<S, 1, 1>(&operands, m, n, y),
                }
                m += remaining.min(if S::HAS_32_REGISTERS { 4 } else { SMALL_MR });
            }
            n += if is_full { nr::<S>() } else { 1 };
        }
    }
}

/// Returns the number of outputs of a full register block: its accumulators and operands fill the registers.
const fn nr<S: SimdF32>() -> usize {
    if S::HAS_32_REGISTERS { 6 } else { SMALL_NR }
}

/// Rows of a full register block where there are only 16 vector registers. Hosts of wasm keep some of them to themselves.
const SMALL_MR: usize = if cfg!(target_arch = "wasm32") { 2 } else { 3 };

/// Outputs of a full register block where there are only 16 vector registers. ARM has no instructions with operands in memory, so that
/// w takes registers too.
const SMALL_NR: usize = if cfg!(target_arch = "aarch64") { 3 } else { 4 };

/// Computes a register block: `MR` rows from m on by `NR` outputs from n on. Lanes run along k.
///
/// # Safety
///
/// Same as [`register_blocks`]; the rows and outputs exist.
#[allow(clippy::needless_range_loop)] // Rows and outputs are indexed the same way.
#[inline(always)]
unsafe fn register_block<S: SimdF32, const MR: usize, const NR: usize>(operands: &Operands<'_>, m: usize, n: usize, y: *mut f32) {
    // SAFETY: loads stay within the rows of x and w, stores within the task's outputs.
    unsafe {
        let inputs = operands.inputs;
        let (x, w) = (operands.x.as_ptr().add(m * inputs), operands.w.as_ptr().add(n * inputs));
        let mut accumulators = [[S::zero(); NR]; MR];
        let mut k = 0;
        while k + S::LANES <= inputs {
            let xs: [S; MR] = std::array::from_fn(|i| S::load(x.add(i * inputs + k)));
            for j in 0..NR {
                let wj = S::load(w.add(j * inputs + k));
                for i in 0..MR {
                    accumulators[i][j] = accumulators[i][j].add_product(xs[i], wj);
                }
            }
            k += S::LANES;
        }
        if k < inputs {
            let remaining = inputs - k;
            let xs: [S; MR] = std::array::from_fn(|i| S::load_partial(x.add(i * inputs + k), remaining));
            for j in 0..NR {
                let wj = S::load_partial(w.add(j * inputs + k), remaining);
                for i in 0..MR {
                    accumulators[i][j] = accumulators[i][j].add_product(xs[i], wj);
                }
            }
        }
        // Reduce all accumulators before the stores branch, so that they stay in registers during the k-loop.
        let mut sums = [[0.0; NR]; MR];
        for i in 0..MR {
            for j in 0..NR {
                sums[i][j] = accumulators[i][j].reduce_sum();
            }
        }
        for (i, row) in sums.iter().enumerate() {
            for (j, sum) in row.iter().enumerate() {
                let bias = operands.bias.map_or(0.0, |bias| *bias.get_unchecked(n + j));
                y.add((m + i) * operands.y_stride + n + j).write(sum + bias);
            }
        }
    }
}
