//! Products of rows with rows: `y[m][n] = x[m] . w[n]`, the form in which a linear layer's weights lie in a checkpoint.
//!
//! Both operands are read along their rows, so nothing is rearranged first: weights are used where the file is mapped. For few rows
//! of x, as in the coarse scales, that is all the cost there is.

use rayon::prelude::*;

use super::super::simd::{SimdF32, SimdKernel, SimdLevel};
use super::super::tasks::SyncPtr;

/// Rows of w that a task takes, a multiple of any tile's.
const TASK_W: usize = 48;
/// Numbers of x that a task goes over for each tile of w: they stay in a core's second cache.
const TASK_X: usize = 160 * 1024;
/// Rows of x that a task takes are a multiple of this, and so of any tile's.
const BLOCK: usize = 12;

/// Appends `x[m] . w[n] + b[n]` to y, rows of `width` numbers.
///
/// # Panics
///
/// If the lengths don't fit together.
pub(super) fn product(level: SimdLevel, x: &[f32], w: &[f32], bias: Option<&[f32]>, width: usize, y: &mut Vec<f32>) {
    let (rows, columns) = super::sizes(x, w, bias, width);
    y.reserve(rows * columns);
    let block = (TASK_X / width).max(1).next_multiple_of(BLOCK);
    let (blocks, parts) = (rows.div_ceil(block), columns.div_ceil(TASK_W));
    let out = SyncPtr::new(super::spare(y));
    (0..blocks * parts).into_par_iter().for_each(|task| {
        let (row, column) = (task / parts * block, task % parts * TASK_W);
        let part = Part {
            x: &x[row * width..(row + block).min(rows) * width],
            w: &w[column * width..(column + TASK_W).min(columns) * width],
            bias: bias.map(|b| &b[column..(column + TASK_W).min(columns)]),
            width,
            columns,
        };
        // SAFETY: the part's outputs begin at (row, column) of y, whose memory is reserved, and no other task has any of them.
        level.run(Tiles { part, y: unsafe { out.get().add(row * columns + column) } });
    });
    // SAFETY: every task has written its outputs, and together they are all.
    unsafe { y.set_len(y.len() + rows * columns) };
}

/// What a task multiplies.
struct Part<'a> {
    x: &'a [f32],
    w: &'a [f32],
    bias: Option<&'a [f32]>,
    width: usize,
    /// Numbers from one row of y to the next.
    columns: usize,
}

/// A part and where its outputs begin: there is room for them.
struct Tiles<'a> {
    part: Part<'a>,
    y: *mut f32,
}

impl SimdKernel for Tiles<'_> {
    #[inline(always)]
    unsafe fn run<S: SimdF32>(self) {
        // SAFETY: there is room, and the processor has the lanes.
        unsafe { tiles::<S>(self.part, self.y) }
    }
}

/// All tiles of a part.
///
/// # Safety
///
/// `y` has room for the part's outputs, and the processor has the lanes.
#[inline(always)]
unsafe fn tiles<S: SimdF32>(part: Part<'_>, y: *mut f32) {
    // SAFETY: as this function's; indices stay below the numbers of rows.
    unsafe {
        let (rows, columns) = (part.x.len() / part.width, part.w.len() / part.width);
        let mut n = 0;
        while n < columns {
            let wide = columns - n >= tile_w::<S>();
            let mut m = 0;
            while m < rows {
                let left = rows - m;
                match (S::HAS_32_REGISTERS, wide, left) {
                    (true, true, 4..) => tile::<S, 4, 6>(&part, m, n, y),
                    (true, true, 3) => tile::<S, 3, 6>(&part, m, n, y),
                    (true, true, 2) => tile::<S, 2, 6>(&part, m, n, y),
                    (true, true, _) => tile::<S, 1, 6>(&part, m, n, y),
                    (false, true, 3..) => tile::<S, 3, 4>(&part, m, n, y),
                    (false, true, 2) => tile::<S, 2, 4>(&part, m, n, y),
                    (false, true, _) => tile::<S, 1, 4>(&part, m, n, y),
                    (true, false, 4..) => tile::<S, 4, 1>(&part, m, n, y),
                    (_, false, 3..) => tile::<S, 3, 1>(&part, m, n, y),
                    (_, false, 2) => tile::<S, 2, 1>(&part, m, n, y),
                    (_, false, _) => tile::<S, 1, 1>(&part, m, n, y),
                }
                m += left.min(if S::HAS_32_REGISTERS { 4 } else { 3 });
            }
            n += if wide { tile_w::<S>() } else { 1 };
        }
    }
}

/// Rows of w in a tile: its sums, with the numbers that they are made of, fill the registers.
const fn tile_w<S: SimdF32>() -> usize {
    if S::HAS_32_REGISTERS { 6 } else { 4 }
}

/// `X` rows of x from row m on with `W` rows of w from row n on.
///
/// # Safety
///
/// As [`tiles`]; the rows are there.
#[allow(clippy::needless_range_loop)] // The two indices play the same part.
#[inline(always)]
unsafe fn tile<S: SimdF32, const X: usize, const W: usize>(part: &Part<'_>, m: usize, n: usize, y: *mut f32) {
    // SAFETY: reads stay within the rows, writes within the part's outputs.
    unsafe {
        let width = part.width;
        let (x, w) = (part.x.as_ptr().add(m * width), part.w.as_ptr().add(n * width));
        let mut sums = [[S::zero(); W]; X];
        let mut k = 0;
        while k + S::LANES <= width {
            let xs: [S; X] = std::array::from_fn(|i| S::load(x.add(i * width + k)));
            for j in 0..W {
                let wj = S::load(w.add(j * width + k));
                for i in 0..X {
                    sums[i][j] = sums[i][j].add_product(xs[i], wj);
                }
            }
            k += S::LANES;
        }
        if k < width {
            let left = width - k;
            let xs: [S; X] = std::array::from_fn(|i| S::load_partial(x.add(i * width + k), left));
            for j in 0..W {
                let wj = S::load_partial(w.add(j * width + k), left);
                for i in 0..X {
                    sums[i][j] = sums[i][j].add_product(xs[i], wj);
                }
            }
        }
        // Before anything branches, so that the sums stay in registers.
        let mut totals = [[0.0; W]; X];
        for i in 0..X {
            for j in 0..W {
                totals[i][j] = sums[i][j].reduce_sum();
            }
        }
        for (i, row) in totals.iter().enumerate() {
            for (j, total) in row.iter().enumerate() {
                let bias = part.bias.map_or(0.0, |bias| *bias.get_unchecked(n + j));
                y.add((m + i) * part.columns + n + j).write(total + bias);
            }
        }
    }
}
