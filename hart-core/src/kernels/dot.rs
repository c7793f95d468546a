//! Products of rows with rows: `y[m][n] = x[m] . w[n]`, the form in which a linear layer's weights lie in a checkpoint.
//!
//! Both operands are read along their rows, so nothing is rearranged first: weights are used where the file is mapped. For few rows
//! of x, as in the coarse scales, that is all the cost there is; for many, a product that rearranges its operands into panels first
//! is as fast or faster (docs/performance.md), and [`super::linear`] leaves them to burn's.

use rayon::prelude::*;

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
    rows_with_rows_by(best_tiles(), x, w, bias, width)
}

fn rows_with_rows_by(tile: Tiles, x: &[f32], w: &[f32], bias: Option<&[f32]>, width: usize) -> Vec<f32> {
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
        // SAFETY: the part's outputs begin at (row, column) of y, whose memory is reserved, and no other task has any of them; and the
        // function was chosen for this processor.
        unsafe { tile(part, { &out }.0.add(row * columns + column)) }
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

type Tiles = unsafe fn(Part<'_>, *mut f32);

/// The widest that the processor has.
fn best_tiles() -> Tiles {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl") {
            return x86::avx512;
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return x86::avx2;
        }
    }
    plain
}

/// A vector of floats.
trait Lanes: Copy {
    const COUNT: usize;
    /// Zeros.
    unsafe fn zero() -> Self;
    /// Reads `COUNT` numbers.
    unsafe fn load(from: *const f32) -> Self;
    /// Reads the first `count < COUNT` numbers, zeros behind.
    unsafe fn load_first(from: *const f32, count: usize) -> Self;
    /// `a b + self`.
    unsafe fn add_product(self, a: Self, b: Self) -> Self;
    /// All lanes together.
    unsafe fn sum(self) -> f32;
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

/// Eight numbers, for any processor.
#[derive(Clone, Copy)]
struct Plain([f32; 8]);

impl Lanes for Plain {
    const COUNT: usize = 8;

    #[inline(always)]
    unsafe fn zero() -> Self {
        Self([0.0; 8])
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's.
        Self(unsafe { from.cast::<[f32; 8]>().read() })
    }

    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> Self {
        // SAFETY: the caller's.
        Self(std::array::from_fn(|i| if i < count { unsafe { from.add(i).read() } } else { 0.0 }))
    }

    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] + a.0[i] * b.0[i]))
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        self.0.iter().sum()
    }
}

/// # Safety
///
/// As [`tiles`].
unsafe fn plain(part: Part<'_>, y: *mut f32) {
    // SAFETY: the caller's.
    unsafe { tiles::<Plain>(part, y) }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Lanes, Part, tiles};

    #[derive(Clone, Copy)]
    struct Avx512(__m512);

    // SAFETY of all functions: used in `avx512` only, which is called where the processor has AVX-512.
    impl Lanes for Avx512 {
        const COUNT: usize = 16;

        #[inline(always)]
        unsafe fn zero() -> Self {
            // SAFETY: see above.
            Self(unsafe { _mm512_setzero_ps() })
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: see above, and the caller's.
            Self(unsafe { _mm512_loadu_ps(from) })
        }

        #[inline(always)]
        unsafe fn load_first(from: *const f32, count: usize) -> Self {
            // SAFETY: see above, and the caller's; what is masked is not read.
            Self(unsafe { _mm512_maskz_loadu_ps((1u16 << count) - 1, from) })
        }

        #[inline(always)]
        unsafe fn add_product(self, a: Self, b: Self) -> Self {
            // SAFETY: see above.
            Self(unsafe { _mm512_fmadd_ps(a.0, b.0, self.0) })
        }

        #[inline(always)]
        unsafe fn sum(self) -> f32 {
            // SAFETY: see above.
            unsafe { _mm512_reduce_add_ps(self.0) }
        }
    }

    #[derive(Clone, Copy)]
    struct Avx2(__m256);

    // SAFETY of all functions: used in `avx2` only, which is called where the processor has AVX2 and FMA.
    impl Lanes for Avx2 {
        const COUNT: usize = 8;

        #[inline(always)]
        unsafe fn zero() -> Self {
            // SAFETY: see above.
            Self(unsafe { _mm256_setzero_ps() })
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: see above, and the caller's.
            Self(unsafe { _mm256_loadu_ps(from) })
        }

        #[inline(always)]
        unsafe fn load_first(from: *const f32, count: usize) -> Self {
            // SAFETY: see above, and the caller's.
            unsafe {
                let values: [f32; 8] = std::array::from_fn(|i| if i < count { from.add(i).read() } else { 0.0 });
                Self(_mm256_loadu_ps(values.as_ptr()))
            }
        }

        #[inline(always)]
        unsafe fn add_product(self, a: Self, b: Self) -> Self {
            // SAFETY: see above.
            Self(unsafe { _mm256_fmadd_ps(a.0, b.0, self.0) })
        }

        #[inline(always)]
        unsafe fn sum(self) -> f32 {
            // SAFETY: see above.
            unsafe {
                let four = _mm_add_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
                let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
                _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
            }
        }
    }

    /// # Safety
    ///
    /// As [`tiles`]; the processor has AVX-512.
    // VL lets the sums of lanes use all 32 registers too, without which the compiler keeps to 16 throughout.
    #[target_feature(enable = "avx512f,avx512vl")]
    pub(super) unsafe fn avx512(part: Part<'_>, y: *mut f32) {
        // SAFETY: the caller's.
        unsafe { tiles::<Avx512>(part, y) }
    }

    /// # Safety
    ///
    /// As [`tiles`]; the processor has AVX2 and FMA.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn avx2(part: Part<'_>, y: *mut f32) {
        // SAFETY: the caller's.
        unsafe { tiles::<Avx2>(part, y) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waves(count: usize, speed: f64) -> Vec<f32> {
        (0..count).map(|i| (i as f64 * speed).sin() as f32).collect()
    }

    /// All that this processor has.
    fn all_tiles() -> Vec<(&'static str, Tiles)> {
        let mut all: Vec<(&str, Tiles)> = vec![("plain", plain)];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                all.push(("avx2", x86::avx2));
            }
            if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl") {
                all.push(("avx512", x86::avx512));
            }
        }
        all
    }

    #[test]
    fn every_width_and_count_is_a_sum_of_products() {
        for (name, tile) in all_tiles() {
            for width in [1, 7, 16, 31, 64, 1000, 4101] {
                for (rows, columns) in [(1, 1), (2, 5), (3, 6), (4, 13), (9, 50), (1, 6), (0, 3), (3, 0)] {
                    let (x, w, bias) = (waves(rows * width, 0.7), waves(columns * width, 1.3), waves(columns, 0.4));
                    let got = rows_with_rows_by(tile, &x, &w, Some(&bias), width);
                    assert_eq!(got.len(), rows * columns);
                    for (i, got) in got.iter().enumerate() {
                        let (m, n) = (i / columns, i % columns);
                        let products = (0..width).map(|k| f64::from(x[m * width + k]) * f64::from(w[n * width + k]));
                        let want = products.sum::<f64>() + f64::from(bias[n]);
                        let error = (f64::from(*got) - want).abs();
                        assert!(
                            error < 2e-6 * (width as f64).sqrt().max(4.0),
                            "{name} {rows} x {columns} x {width}: {got} and not {want}"
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
