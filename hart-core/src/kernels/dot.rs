//! Products of rows with rows: `y[m][n] = x[m] . w[n]`, the form in which a linear layer's weights lie in a checkpoint.
//!
//! Both operands are read along their rows, so nothing is rearranged first: weights are used where the file is mapped. For few rows
//! of x, as in the coarse scales, that is all the cost there is; for many, a product that rearranges its operands into panels first
//! is as fast or faster (docs/performance.md), and [`super::linear`] leaves them to burn's.

use rayon::prelude::*;

use super::lanes::{Job, Lanes, Level};

/// Rows of x in a tile.
const TILE_X: usize = 4;
/// Rows of w in a tile.
const TILE_W: usize = 6;
/// Rows of w that a task takes.
const TASK_W: usize = 8 * TILE_W;
/// Numbers of x that a task goes over for each tile of w: they stay in a core's second cache.
const TASK_X: usize = 160 * 1024;

/// `y[m][n] = x[m] . w[n] + b[n]`, rows of `width` numbers.
///
/// # Panics
///
/// If the lengths don't fit together.
pub(super) fn rows_with_rows(x: &[f32], w: &[f32], bias: Option<&[f32]>, width: usize) -> Vec<f32> {
    rows_with_rows_by(Level::best(), x, w, bias, width)
}

fn rows_with_rows_by(level: Level, x: &[f32], w: &[f32], bias: Option<&[f32]>, width: usize) -> Vec<f32> {
    assert!(width > 0 && x.len().is_multiple_of(width) && w.len().is_multiple_of(width), "rows must be whole");
    let (rows, columns) = (x.len() / width, w.len() / width);
    assert!(bias.is_none_or(|b| b.len() == columns), "one bias a column");
    let mut y = Vec::with_capacity(rows * columns);
    let block = (TASK_X / width / TILE_X).max(1) * TILE_X;
    let (blocks, parts) = (rows.div_ceil(block), columns.div_ceil(TASK_W));
    let out = Out(y.as_mut_ptr());
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
        level.run(Tiles { part, y: unsafe { { &out }.0.add(row * columns + column) } });
    });
    // SAFETY: every task has written its outputs, and together they are all.
    unsafe { y.set_len(rows * columns) };
    y
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

/// Where all tasks write, each in its own place.
struct Out(*mut f32);

// SAFETY: tasks write to places of their own.
unsafe impl Sync for Out {}

/// A part and where its outputs begin: there is room for them.
struct Tiles<'a> {
    part: Part<'a>,
    y: *mut f32,
}

impl Job for Tiles<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        // SAFETY: there is room, and the processor has the lanes.
        unsafe { tiles::<L>(self.part, self.y) }
    }
}

/// All tiles of a part.
///
/// # Safety
///
/// `y` has room for the part's outputs, and the processor has the lanes.
#[inline(always)]
unsafe fn tiles<L: Lanes>(part: Part<'_>, y: *mut f32) {
    // SAFETY: as this function's; indices stay below the numbers of rows.
    unsafe {
        let (rows, columns) = (part.x.len() / part.width, part.w.len() / part.width);
        let mut n = 0;
        while n < columns {
            let wide = columns - n >= TILE_W;
            let mut m = 0;
            while m < rows {
                match (rows - m, wide) {
                    (TILE_X.., true) => tile::<L, TILE_X, TILE_W>(&part, m, n, y),
                    (3, true) => tile::<L, 3, TILE_W>(&part, m, n, y),
                    (2, true) => tile::<L, 2, TILE_W>(&part, m, n, y),
                    (_, true) => tile::<L, 1, TILE_W>(&part, m, n, y),
                    (TILE_X.., false) => tile::<L, TILE_X, 1>(&part, m, n, y),
                    (3, false) => tile::<L, 3, 1>(&part, m, n, y),
                    (2, false) => tile::<L, 2, 1>(&part, m, n, y),
                    (_, false) => tile::<L, 1, 1>(&part, m, n, y),
                }
                m += (rows - m).min(TILE_X);
            }
            n += if wide { TILE_W } else { 1 };
        }
    }
}

/// `X` rows of x from row m on with `W` rows of w from row n on.
///
/// # Safety
///
/// As [`tiles`]; the rows are there.
#[allow(clippy::needless_range_loop)] // The two indices play the same part.
#[inline(always)]
unsafe fn tile<L: Lanes, const X: usize, const W: usize>(part: &Part<'_>, m: usize, n: usize, y: *mut f32) {
    // SAFETY: reads stay within the rows, writes within the part's outputs.
    unsafe {
        let width = part.width;
        let (x, w) = (part.x.as_ptr().add(m * width), part.w.as_ptr().add(n * width));
        let mut sums = [[L::zero(); W]; X];
        let mut k = 0;
        while k + L::COUNT <= width {
            let xs: [L; X] = std::array::from_fn(|i| L::load(x.add(i * width + k)));
            for j in 0..W {
                let wj = L::load(w.add(j * width + k));
                for i in 0..X {
                    sums[i][j] = sums[i][j].add_product(xs[i], wj);
                }
            }
            k += L::COUNT;
        }
        if k < width {
            let left = width - k;
            let xs: [L; X] = std::array::from_fn(|i| L::load_first(x.add(i * width + k), left));
            for j in 0..W {
                let wj = L::load_first(w.add(j * width + k), left);
                for i in 0..X {
                    sums[i][j] = sums[i][j].add_product(xs[i], wj);
                }
            }
        }
        // Before anything branches, so that the sums stay in registers.
        let totals: [[f32; W]; X] = std::array::from_fn(|i| std::array::from_fn(|j| sums[i][j].sum()));
        for (i, row) in totals.iter().enumerate() {
            for (j, total) in row.iter().enumerate() {
                let bias = part.bias.map_or(0.0, |bias| *bias.get_unchecked(n + j));
                y.add((m + i) * part.columns + n + j).write(total + bias);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waves(count: usize, speed: f64) -> Vec<f32> {
        (0..count).map(|i| (i as f64 * speed).sin() as f32).collect()
    }

    #[test]
    fn every_width_and_count_is_a_sum_of_products() {
        for level in Level::all() {
            for width in [1, 7, 16, 31, 64, 1000, 4101] {
                for (rows, columns) in [(1, 1), (2, 5), (3, 6), (4, 13), (9, 50), (1, 6), (0, 3), (3, 0)] {
                    let (x, w, bias) = (waves(rows * width, 0.7), waves(columns * width, 1.3), waves(columns, 0.4));
                    let got = rows_with_rows_by(level, &x, &w, Some(&bias), width);
                    assert_eq!(got.len(), rows * columns);
                    for (i, got) in got.iter().enumerate() {
                        let (m, n) = (i / columns, i % columns);
                        let products = (0..width).map(|k| f64::from(x[m * width + k]) * f64::from(w[n * width + k]));
                        let want = products.sum::<f64>() + f64::from(bias[n]);
                        let error = (f64::from(*got) - want).abs();
                        assert!(
                            error < 2e-6 * (width as f64).sqrt().max(4.0),
                            "{level:?} {rows} x {columns} x {width}: {got} and not {want}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_is_the_same_in_any_batch() {
        let width = 2348;
        let (x, w) = (waves(97 * width, 0.7), waves(61 * width, 1.3));
        let all = rows_with_rows(&x, &w, None, width);
        for count in [1, 2, 3, 5, 64] {
            let some = rows_with_rows(&x[..count * width], &w, None, width);
            assert!(some.iter().zip(&all).all(|(a, b)| a.to_bits() == b.to_bits()), "{count} rows");
            let last = rows_with_rows(&x[(97 - count) * width..], &w, None, width);
            assert!(last.iter().zip(&all[(97 - count) * 61..]).all(|(a, b)| a.to_bits() == b.to_bits()), "last {count} rows");
        }
    }

    #[test]
    #[should_panic(expected = "rows must be whole")]
    fn rows_that_are_not_whole_are_refused() {
        rows_with_rows(&[0.0; 7], &[0.0; 6], None, 3);
    }
}
