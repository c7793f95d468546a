//! f32 products of few rows, with w as a checkpoint stores it: `[outputs, inputs]`.
//!
//! Both operands are read along k and nothing is packed: w is read in place from the mapped file. For few rows of x, as in the
//! coarse scales, the time is that of reading w once.
//!
//! An output has 16 partial sums, to which input k is added at k % 16, in one vector of 16 lanes or two of 8. Processors with fused
//! multiply-add therefore compute the same bits. Wasm, which has none, keeps to one vector of 4 lanes.

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
                match (S::LANES, is_full, remaining) {
                    (16, true, 4..) => register_block::<S, 4, 6, 1>(&operands, m, n, y),
                    (16, true, 3) => register_block::<S, 3, 6, 1>(&operands, m, n, y),
                    (16, true, 2) => register_block::<S, 2, 6, 1>(&operands, m, n, y),
                    (16, true, _) => register_block::<S, 1, 6, 1>(&operands, m, n, y),
                    (16, false, 4..) => register_block::<S, 4, 1, 1>(&operands, m, n, y),
                    (16, false, 3) => register_block::<S, 3, 1, 1>(&operands, m, n, y),
                    (16, false, 2) => register_block::<S, 2, 1, 1>(&operands, m, n, y),
                    (16, false, _) => register_block::<S, 1, 1, 1>(&operands, m, n, y),
                    (8, true, 2..) => register_block::<S, 2, 3, 2>(&operands, m, n, y),
                    (8, true, _) => register_block::<S, 1, 3, 2>(&operands, m, n, y),
                    (8, false, 2..) => register_block::<S, 2, 1, 2>(&operands, m, n, y),
                    (8, false, _) => register_block::<S, 1, 1, 2>(&operands, m, n, y),
                    // Hosts of wasm keep some of their 16 registers to themselves.
                    (_, true, 2..) => register_block::<S, 2, 4, 1>(&operands, m, n, y),
                    (_, true, _) => register_block::<S, 1, 4, 1>(&operands, m, n, y),
                    (_, false, 2..) => register_block::<S, 2, 1, 1>(&operands, m, n, y),
                    (_, false, _) => register_block::<S, 1, 1, 1>(&operands, m, n, y),
                }
                m += remaining.min(if S::LANES == 16 { 4 } else { 2 });
            }
            n += if is_full { nr::<S>() } else { 1 };
        }
    }
}

/// Returns the number of outputs of a full register block: its accumulators and operands fill the registers.
const fn nr<S: SimdF32>() -> usize {
    match S::LANES {
        16 => 6,
        8 => 3,
        _ => 4,
    }
}

/// Computes a register block: `MR` rows from m on by `NR` outputs from n on. Lanes run along k; an accumulator has `V` vectors.
///
/// # Safety
///
/// Same as [`register_blocks`]; the rows and outputs exist.
#[allow(clippy::needless_range_loop)] // Rows and outputs are indexed the same way.
#[inline(always)]
unsafe fn register_block<S: SimdF32, const MR: usize, const NR: usize, const V: usize>(
    operands: &Operands<'_>,
    m: usize,
    n: usize,
    y: *mut f32,
) {
    // SAFETY: loads stay within the rows of x and w, stores within the task's outputs.
    unsafe {
        let inputs = operands.inputs;
        let (x, w) = (operands.x.as_ptr().add(m * inputs), operands.w.as_ptr().add(n * inputs));
        let mut accumulators = [[[S::zero(); V]; NR]; MR];
        let mut k = 0;
        while k + V * S::LANES <= inputs {
            for v in 0..V {
                let xs: [S; MR] = std::array::from_fn(|i| S::load(x.add(i * inputs + k)));
                for j in 0..NR {
                    let wj = S::load(w.add(j * inputs + k));
                    for i in 0..MR {
                        accumulators[i][j][v] = accumulators[i][j][v].add_product(xs[i], wj);
                    }
                }
                k += S::LANES;
            }
        }
        for v in 0..V {
            let count = (inputs - k).min(S::LANES);
            let xs: [S; MR] = std::array::from_fn(|i| load_up_to(x.add(i * inputs + k), count));
            for j in 0..NR {
                let wj = load_up_to(w.add(j * inputs + k), count);
                for i in 0..MR {
                    accumulators[i][j][v] = accumulators[i][j][v].add_product(xs[i], wj);
                }
            }
            k += count;
        }
        // Reduce all accumulators before the stores branch, so that they stay in registers during the k-loop.
        let mut sums = [[0.0; NR]; MR];
        for i in 0..MR {
            for j in 0..NR {
                let [first, rest @ ..] = accumulators[i][j].as_slice() else { unreachable!("V is at least 1") };
                sums[i][j] = rest.iter().fold(*first, |sum, vector| sum.add(*vector)).reduce_sum();
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

/// Loads the first `count` values of a vector; the other lanes are zero.
///
/// # Safety
///
/// There are `count <= S::LANES` values, and the processor has the instructions.
#[inline(always)]
unsafe fn load_up_to<S: SimdF32>(from: *const f32, count: usize) -> S {
    // SAFETY: the caller upholds the contract of this function.
    unsafe {
        match count {
            0 => S::zero(),
            _ if count == S::LANES => S::load(from),
            _ => S::load_partial(from, count),
        }
    }
}
