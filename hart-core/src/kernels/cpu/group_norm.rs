//! Group norm with SiLU behind it, and their gradients, over slices: each group is read while it is in a core's cache, and neither the
//! normed numbers nor what SiLU is taken of are kept.

use rayon::prelude::*;

use super::elementwise::silu_of;
use super::simd::{LoopKernel, SimdLevel};

/// Sums that are added up side by side, so that the compiler may use vectors.
const LANES: usize = 16;
/// Numbers that are added in f32 before their sum is added in f64.
const RUN: usize = 4096;

/// A norm and the map that it norms.
#[derive(Clone, Copy, Debug)]
pub(super) struct Norm<'a> {
    /// One number for each channel.
    pub(super) scale: &'a [f32],
    pub(super) shift: &'a [f32],
    /// Numbers of a channel.
    pub(super) places: usize,
    pub(super) groups: usize,
    pub(super) epsilon: f64,
    /// Whether SiLU follows.
    pub(super) silu: bool,
}

/// Mean, and one over the standard deviation, of a group.
pub(super) type Statistics = (f32, f32);

impl Norm<'_> {
    /// Channels of a group.
    fn channels(&self) -> usize {
        self.scale.len() / self.groups
    }

    /// Numbers of a group.
    fn group(&self) -> usize {
        self.channels() * self.places
    }

    fn check(&self, x: &[f32]) {
        assert!(self.groups > 0 && self.scale.len().is_multiple_of(self.groups), "groups of equally many channels");
        assert_eq!(self.scale.len(), self.shift.len(), "a scale and a shift for each channel");
        assert!(self.group() > 0 && x.len().is_multiple_of(self.group() * self.groups), "whole images");
    }

    /// `scale * (x - mean) / deviation + shift`, and its SiLU if that follows; and each group's statistics.
    ///
    /// # Panics
    ///
    /// If lengths don't fit together.
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

/// A group.
struct Forward<'a> {
    norm: &'a Norm<'a>,
    /// Its first channel.
    first: usize,
    x: &'a [f32],
    y: &'a mut [f32],
    statistics: &'a mut Statistics,
}

impl LoopKernel for Forward<'_> {
    #[inline(always)]
    fn run(self) {
        let Norm { scale, shift, places, epsilon, silu, .. } = *self.norm;
        let count = self.x.len() as f64;
        let mean = (sum(self.x, self.x, |x, _| x) / count) as f32;
        let variance = sum(self.x, self.x, |x, _| (x - mean) * (x - mean)) / count;
        let inverse = (1.0 / (variance + epsilon).sqrt()) as f32;
        for (channel, (x, y)) in self.x.chunks(places).zip(self.y.chunks_mut(places)).enumerate() {
            let (scale, shift) = (scale[self.first + channel], shift[self.first + channel]);
            let normed = |x: f32| (x - mean) * inverse * scale + shift;
            if silu {
                x.iter().zip(y).for_each(|(x, y)| *y = silu_of(normed(*x)));
            } else {
                x.iter().zip(y).for_each(|(x, y)| *y = normed(*x));
            }
        }
        *self.statistics = (mean, inverse);
    }
}

/// The sum of `f(x, y)` over two slices of one length.
#[inline(always)]
fn sum(x: &[f32], y: &[f32], f: impl Fn(f32, f32) -> f32) -> f64 {
    let mut total = 0.0;
    for (x, y) in x.chunks(RUN).zip(y.chunks(RUN)) {
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
    /// From the output's gradient and the statistics that [`forward`](Self::forward) gave.
    ///
    /// # Panics
    ///
    /// If lengths don't fit together.
    pub(super) fn gradients(&self, x: &[f32], dy: &[f32], statistics: &[Statistics]) -> Gradients {
        self.check(x);
        assert!(x.len() == dy.len() && statistics.len() * self.group() == x.len(), "a gradient and statistics for each number");
        let level = SimdLevel::best();
        let channels = self.channels();
        let mut dx = vec![0.0; x.len()];
        // For each channel of each image: the gradients of its scale and shift.
        let mut sums = vec![(0.0, 0.0); x.len() / self.places];
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

/// A group.
#[cfg(feature = "train")]
struct Backward<'a> {
    norm: &'a Norm<'a>,
    /// Its first channel.
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
        let Norm { scale, shift, places, silu, .. } = *self.norm;
        let (mean, inverse) = self.statistics;
        let normed = |x: f32| (x - mean) * inverse;
        // The means of `g` and `g * normed`, g the gradient of the normed numbers.
        let (mut mean_g, mut mean_product) = (0.0, 0.0);
        let maps = self.x.chunks(places).zip(self.dy.chunks(places)).zip(self.dx.chunks_mut(places));
        for (channel, (((x, dy), dx), sums)) in maps.zip(self.sums).enumerate() {
            let (scale, shift) = (scale[self.first + channel], shift[self.first + channel]);
            if silu {
                for ((dx, dy), x) in dx.iter_mut().zip(dy).zip(x) {
                    *dx = dy * super::elementwise::silu_slope(normed(*x) * scale + shift);
                }
            } else {
                dx.copy_from_slice(dy);
            }
            *sums = (sum(dx, x, |dx, x| dx * normed(x)), sum(dx, dx, |dx, _| dx));
            mean_g += f64::from(scale) * sums.1;
            mean_product += f64::from(scale) * sums.0;
        }
        let count = self.x.len() as f64;
        let (mean_g, mean_product) = ((mean_g / count) as f32, (mean_product / count) as f32);
        for (channel, (x, dx)) in self.x.chunks(places).zip(self.dx.chunks_mut(places)).enumerate() {
            let scale = scale[self.first + channel];
            for (dx, x) in dx.iter_mut().zip(x) {
                *dx = inverse * (*dx * scale - mean_g - normed(*x) * mean_product);
            }
        }
    }
}
