//! Direct 3x3 convolution with stride 1 and zero padding, and its gradients.
//!
//! A channel is copied to a plane with rows of `width + 1` values: one zero before each row, and a row of zeros above and below. Every
//! filter tap then reads the same plane at another offset, and no position needs a case for the border. The zero before a row also
//! follows the row above. The one position per row that belongs to no output is computed and dropped.
//!
//! Every output is the sum of the same products in the same order: results do not depend on the number of threads.

mod forward;
#[cfg(any(test, feature = "train"))]
mod gradients;

pub(super) use forward::forward;
#[cfg(any(test, feature = "train"))]
pub(super) use forward::gradient_x;
#[cfg(any(test, feature = "train"))]
pub(super) use gradients::{gradient_bias, gradient_weights};

/// Taps of the filter.
const TAPS: usize = 9;
/// Output channels of a block.
const BLOCK: usize = 8;
/// Positions are padded to a multiple of this, the lanes of the widest vector.
const ALIGN: usize = 16;

/// Sizes of a convolution.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub(super) batch: usize,
    /// Input channels.
    pub(super) in_channels: usize,
    /// Output channels.
    pub(super) out_channels: usize,
    pub(super) height: usize,
    pub(super) width: usize,
}

impl Sizes {
    /// Returns the number of pixels of a channel.
    fn pixels(self) -> usize {
        self.height * self.width
    }

    /// Returns the distance from one row of a plane to the next.
    fn stride(self) -> usize {
        self.width + 1
    }

    fn check(self, x: &[f32], y: &[f32]) {
        assert_eq!(x.len(), self.batch * self.in_channels * self.pixels(), "x holds all input pixels");
        assert_eq!(y.len(), self.batch * self.out_channels * self.pixels(), "y holds all output pixels");
    }
}

/// Fills a plane with the rows of a map from row `first` on, and zeros beyond the map.
fn fill_plane(plane: &mut [f32], map: &[f32], width: usize, first: isize) {
    for (index, row) in plane.chunks_mut(width + 1).enumerate() {
        let from = usize::try_from(first + index as isize).ok().map(|row| row * width);
        match from.and_then(|at| map.get(at..at + width)) {
            Some(values) => {
                row[0] = 0.0;
                let count = row.len() - 1;
                row[1..].copy_from_slice(&values[..count]);
            }
            _ => row.fill(0.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::simd::SimdLevel;
    use super::*;
    use crate::kernels::testing::waves_f64;

    /// Sizes with and without whole blocks and vectors; one has several strips, parts and chunks.
    fn all_sizes() -> Vec<Sizes> {
        let of = |(batch, in_channels, out_channels, height, width)| Sizes { batch, in_channels, out_channels, height, width };
        let mut all: Vec<Sizes> =
            [(1, 3, 16, 9, 11), (2, 33, 5, 12, 8), (3, 5, 33, 1, 19), (1, 1, 1, 8, 8), (0, 3, 2, 8, 8), (2, 40, 9, 70, 67)]
                .map(of)
                .to_vec();
        for side in 8..20 {
            all.push(of((side % 3 + 1, [1, 3, 5][side % 3], [16, 5, 4, 3][side % 4], 27 - side, side)));
        }
        all
    }

    /// Returns the output and the gradients of x, weights and bias, in f64.
    fn plain_loops(x: &[f32], weights: &[f32], bias: &[f32], dy: &[f32], sizes: Sizes) -> [Vec<f64>; 4] {
        let Sizes { batch, in_channels, out_channels, height, width } = sizes;
        let mut y: Vec<f64> = (0..dy.len()).map(|i| f64::from(bias[i / sizes.pixels() % out_channels])).collect();
        let (mut dx, mut dw, mut db) = (vec![0.0; x.len()], vec![0.0; weights.len()], vec![0.0; out_channels]);
        dy.iter().enumerate().for_each(|(i, dy)| db[i / sizes.pixels() % out_channels] += f64::from(*dy));
        for (n, o, i, tap) in (0..batch * out_channels * in_channels * TAPS).map(|k| {
            (k / TAPS / in_channels / out_channels, k / TAPS / in_channels % out_channels, k / TAPS % in_channels, k % TAPS)
        }) {
            let w = (o * in_channels + i) * TAPS + tap;
            for (row, column) in (0..height * width).map(|pixel| (pixel / width, pixel % width)) {
                let (above, left) = (row + tap / 3, column + tap % 3); // offset by the padding
                if (1..=height).contains(&above) && (1..=width).contains(&left) {
                    let at = (n * in_channels + i) * sizes.pixels() + (above - 1) * width + left - 1;
                    let out = (n * out_channels + o) * sizes.pixels() + row * width + column;
                    y[out] += f64::from(x[at]) * f64::from(weights[w]);
                    dx[at] += f64::from(dy[out]) * f64::from(weights[w]);
                    dw[w] += f64::from(dy[out]) * f64::from(x[at]);
                }
            }
        }
        [y, dx, dw, db]
    }

    fn inputs(sizes: Sizes) -> [Vec<f32>; 4] {
        let Sizes { batch, in_channels, out_channels, .. } = sizes;
        let map = sizes.pixels();
        [
            waves_f64(batch * in_channels * map, 0.7),
            waves_f64(out_channels * in_channels * TAPS, 1.3),
            waves_f64(out_channels, 0.4),
            waves_f64(batch * out_channels * map, 0.9),
        ]
    }

    #[test]
    fn outputs_and_gradients_are_sums_of_products() {
        for sizes in all_sizes() {
            let [x, weights, bias, dy] = inputs(sizes);
            let want = plain_loops(&x, &weights, &bias, &dy, sizes);
            for level in SimdLevel::all() {
                let got = [
                    forward::forward_with(level, &x, &weights, &bias, sizes),
                    forward::gradient_x_with(level, &dy, &weights, sizes),
                    gradients::gradient_weights_with(level, &x, &dy, sizes),
                    gradient_bias(&dy, sizes),
                ];
                for (index, (got, want)) in got.iter().zip(&want).enumerate() {
                    assert_eq!(got.len(), want.len());
                    let error = got.iter().zip(want).map(|(g, w)| (f64::from(*g) - w).abs()).fold(0.0, f64::max);
                    assert!(error < 2e-4, "{level:?} {sizes:?}, result {index}: off by {error}");
                }
            }
        }
    }

    #[test]
    fn same_bits_with_any_number_of_threads() {
        let sizes = Sizes { batch: 3, in_channels: 40, out_channels: 33, height: 70, width: 45 };
        let [x, weights, bias, dy] = inputs(sizes);
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                [
                    forward(&x, &weights, &bias, sizes),
                    gradient_x(&dy, &weights, sizes),
                    gradient_weights(&x, &dy, sizes),
                    gradient_bias(&dy, sizes),
                ]
                .concat()
            })
        };
        let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        let one = bits(with(1));
        assert!(one == bits(with(2)) && one == bits(with(7)));
    }

    #[test]
    #[should_panic(expected = "x holds all input pixels")]
    fn lengths_that_do_not_fit_panic() {
        forward(&[0.0; 7], &[0.0; 9], &[0.0], Sizes { batch: 1, in_channels: 1, out_channels: 1, height: 8, width: 8 });
    }
}
