//! Group norm, optionally followed by SiLU, and its gradients, over slices. A group is processed while it is in the cache; no
//! intermediate is stored.

use rayon::prelude::*;

use super::elementwise::silu_of;
use super::simd::{LoopKernel, SimdLevel};

/// Partial sums of a reduction, so that the compiler may vectorise it.
const LANES: usize = 16;
/// Values summed in f32 before their sum is added in f64.
const BLOCK: usize = 4096;

/// Parameters of a group norm, and the size of the map.
#[derive(Clone, Copy, Debug)]
pub(super) struct Norm<'a> {
    /// `[channels]`, like `shift`.
    pub(super) scale: &'a [f32],
    pub(super) shift: &'a [f32],
    /// Pixels of a channel.
    pub(super) pixels: usize,
    pub(super) groups: usize,
    pub(super) epsilon: f64,
    /// `true` if SiLU follows.
    pub(super) silu: bool,
}

/// Mean and inverse standard deviation of a group.
pub(super) type Statistics = (f32, f32);

impl Norm<'_> {
    /// Returns the number of channels of a group.
    fn channels(&self) -> usize {
        self.scale.len() / self.groups
    }

    /// Returns the number of values of a group.
    fn group(&self) -> usize {
        self.channels() * self.pixels
    }

    fn check(&self, x: &[f32]) {
        assert!(self.groups > 0 && self.scale.len().is_multiple_of(self.groups), "groups of equal size");
        assert_eq!(self.scale.len(), self.shift.len(), "a scale and a shift for each channel");
        assert!(self.group() > 0 && x.len().is_multiple_of(self.group() * self.groups), "whole images");
    }

    /// Computes `scale * (x - mean) / deviation + shift` and its SiLU if that follows. Returns the statistics of each group as well.
    ///
    /// # Panics
    ///
    /// If the lengths do not fit together.
    pub(super) fn forward(&self, x: &[f32]) -> (Vec<f32>, Vec<Statistics>) {
        self.check(x);
        let level = SimdLevel::best();
        let mut y = vec![0.0; x.len()];
        let groups = y.par_chunks_mut(self.group()).zip(x.par_chunks(self.group())).enumerate();
        let work = |(index, (y, x)): (usize, (&mut [f32], &[f32]))| {
            let mut statistics = (0.0, 0.0);
            level.run_loop(Forward { norm: self, first: index % self.groups * self.channels(), x, y, statistics: &mut statistics });
            statistics
        };
        let statistics = groups.map(work).collect();
        (y, statistics)
    }
}

/// Normalises one group.
struct Forward<'a> {
    norm: &'a Norm<'a>,
    /// First channel of the group.
    first: usize,
    x: &'a [f32],
    y: &'a mut [f32],
    statistics: &'a mut Statistics,
}

impl LoopKernel for Forward<'_> {
    #[inline(always)]
    fn run(self) {
        let Norm { scale, shift, pixels, epsilon, silu, .. } = *self.norm;
        let count = self.x.len() as f64;
        let mean = (sum(self.x, self.x, |x, _| x) / count) as f32;
        let variance = sum(self.x, self.x, |x, _| (x - mean) * (x - mean)) / count;
        let inverse = (1.0 / (variance + epsilon).sqrt()) as f32;
        for (channel, (x, y)) in self.x.chunks(pixels).zip(self.y.chunks_mut(pixels)).enumerate() {
            let (scale, shift) = (scale[self.first + channel], shift[self.first + channel]);
            let normalized = |x: f32| (x - mean) * inverse * scale + shift;
            if silu {
                x.iter().zip(y).for_each(|(x, y)| *y = silu_of(normalized(*x)));
            } else {
                x.iter().zip(y).for_each(|(x, y)| *y = normalized(*x));
            }
        }
        *self.statistics = (mean, inverse);
    }
}

/// Returns the sum of `f(x, y)` over two slices of equal length.
#[inline(always)]
fn sum(x: &[f32], y: &[f32], f: impl Fn(f32, f32) -> f32) -> f64 {
    let mut total = 0.0;
    for (x, y) in x.chunks(BLOCK).zip(y.chunks(BLOCK)) {
        let mut sums = [0.0; LANES];
        let ((xs, x_rest), (ys, y_rest)) = (x.as_chunks::<LANES>(), y.as_chunks::<LANES>());
        for (x, y) in xs.iter().zip(ys) {
            for lane in 0..LANES {
                sums[lane] += f(x[lane], y[lane]);
            }
        }
        let rest: f32 = x_rest.iter().zip(y_rest).map(|(x, y)| f(*x, *y)).sum();
        total += f64::from(sums.iter().sum::<f32>() + rest);
    }
    total
}

/// Gradients of x, scale and shift.
#[cfg(feature = "train")]
pub(super) struct Gradients {
    pub(super) x: Vec<f32>,
    pub(super) scale: Vec<f32>,
    pub(super) shift: Vec<f32>,
}

#[cfg(feature = "train")]
impl Norm<'_> {
    /// Computes the gradients from that of the output and the statistics of [`forward`](Self::forward).
    ///
    /// # Panics
    ///
    /// If the lengths do not fit together.
    pub(super) fn gradients(&self, x: &[f32], dy: &[f32], statistics: &[Statistics]) -> Gradients {
        self.check(x);
        assert!(
            x.len() == dy.len() && statistics.len() * self.group() == x.len(),
            "a gradient for each value and statistics for each group"
        );
        let level = SimdLevel::best();
        let channels = self.channels();
        let mut dx = vec![0.0; x.len()];
        // Gradients of scale and shift for each channel of each image.
        let mut sums = vec![(0.0, 0.0); x.len() / self.pixels];
        let groups = dx.par_chunks_mut(self.group()).zip(sums.par_chunks_mut(channels)).enumerate();
        groups.for_each(|(index, (dx, sums))| {
            let (from, to) = (index * self.group(), (index + 1) * self.group());
            let (x, dy, first) = (&x[from..to], &dy[from..to], index % self.groups * channels);
            level.run_loop(Backward { norm: self, first, x, dy, statistics: statistics[index], dx, sums });
        });
        let (mut scale, mut shift) = (vec![0.0; self.scale.len()], vec![0.0; self.scale.len()]);
        for image in sums.chunks(self.scale.len()) {
            for (channel, sums) in image.iter().enumerate() {
                scale[channel] += sums.0;
                shift[channel] += sums.1;
            }
        }
        let rounded = |sums: Vec<f64>| sums.into_iter().map(|sum| sum as f32).collect();
        Gradients { x: dx, scale: rounded(scale), shift: rounded(shift) }
    }
}

/// Computes the gradient of one group.
#[cfg(feature = "train")]
struct Backward<'a> {
    norm: &'a Norm<'a>,
    /// First channel of the group.
    first: usize,
    x: &'a [f32],
    dy: &'a [f32],
    statistics: Statistics,
    dx: &'a mut [f32],
    sums: &'a mut [(f64, f64)],
}

#[cfg(feature = "train")]
impl LoopKernel for Backward<'_> {
    #[inline(always)]
    fn run(self) {
        let Norm { scale, shift, pixels, silu, .. } = *self.norm;
        let (mean, inverse) = self.statistics;
        let normalized = |x: f32| (x - mean) * inverse;
        // Means of g and of g * normalized, where g is the gradient of the normalised values.
        let (mut mean_g, mut mean_product) = (0.0, 0.0);
        let maps = self.x.chunks(pixels).zip(self.dy.chunks(pixels)).zip(self.dx.chunks_mut(pixels));
        for (channel, (((x, dy), dx), sums)) in maps.zip(self.sums).enumerate() {
            let (scale, shift) = (scale[self.first + channel], shift[self.first + channel]);
            if silu {
                for ((dx, dy), x) in dx.iter_mut().zip(dy).zip(x) {
                    *dx = dy * super::elementwise::silu_derivative(normalized(*x) * scale + shift);
                }
            } else {
                dx.copy_from_slice(dy);
            }
            *sums = (sum(dx, x, |dx, x| dx * normalized(x)), sum(dx, dx, |dx, _| dx));
            mean_g += f64::from(scale) * sums.1;
            mean_product += f64::from(scale) * sums.0;
        }
        let count = self.x.len() as f64;
        let (mean_g, mean_product) = ((mean_g / count) as f32, (mean_product / count) as f32);
        for (channel, (x, dx)) in self.x.chunks(pixels).zip(self.dx.chunks_mut(pixels)).enumerate() {
            let scale = scale[self.first + channel];
            for (dx, x) in dx.iter_mut().zip(x) {
                *dx = inverse * (*dx * scale - mean_g - normalized(*x) * mean_product);
            }
        }
    }
}
