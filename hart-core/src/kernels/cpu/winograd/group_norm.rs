//! Group-norm statistics of a channels-last map.

use rayon::prelude::*;

use super::super::simd::{LoopKernel, SimdLevel};

/// Pixels whose values are summed in f32, channel by channel; partial sums are combined in f64.
const PIXELS: usize = 256;

/// Parameters of a group norm.
#[derive(Clone, Copy, Debug)]
pub(super) struct GroupNormArgs<'a> {
    /// `[channels]`, like `shift`.
    pub(super) scale: &'a [f32],
    pub(super) shift: &'a [f32],
    pub(super) groups: usize,
    pub(super) epsilon: f64,
}

/// A group norm with known statistics: `(x - mean) * factor + shift`, all `[channels]`.
#[derive(Clone, Debug)]
pub(super) struct Normalization {
    pub(super) mean: Vec<f32>,
    pub(super) factor: Vec<f32>,
    pub(super) shift: Vec<f32>,
}

impl GroupNormArgs<'_> {
    /// Returns the norm of a map `[pixels][channels]`, which is read once.
    ///
    /// # Panics
    ///
    /// If the lengths do not fit together.
    pub(super) fn normalization(&self, level: SimdLevel, x: &[f32]) -> Normalization {
        let channels = self.scale.len();
        assert!(channels == self.shift.len() && self.groups > 0 && channels.is_multiple_of(self.groups), "groups of equal size");
        assert!(!x.is_empty() && x.len().is_multiple_of(channels), "whole pixels");
        let mut parts = vec![0.0; x.len().div_ceil(PIXELS * channels) * 2 * channels];
        let work = parts.par_chunks_mut(2 * channels).zip(x.par_chunks(PIXELS * channels));
        work.for_each(|(sums, x)| level.run_loop(Sums { x, sums }));
        let group = channels / self.groups;
        let pixels = |part: usize| (x.len() / channels - part * PIXELS).min(PIXELS) as f64;
        let (mut mean, mut factor) = (Vec::with_capacity(channels), Vec::with_capacity(channels));
        for channel in (0..channels).step_by(group) {
            let sums_of = |offset: usize| {
                let all = parts.chunks(channels).skip(offset).step_by(2).enumerate();
                all.flat_map(move |(part, sums)| sums[channel..channel + group].iter().map(move |sum| (part, f64::from(*sum))))
            };
            let count = (x.len() / self.groups) as f64;
            let group_mean = sums_of(0).map(|(_, sum)| sum).sum::<f64>() / count;
            // Squared deviations of the values from each part's mean, and of the parts' means from the group's mean.
            let within = sums_of(1).map(|(_, squares)| squares).sum::<f64>();
            let between = sums_of(0).map(|(part, sum)| (sum / pixels(part) - group_mean).powi(2) * pixels(part)).sum::<f64>();
            let inverse = 1.0 / ((within + between) / count + self.epsilon).sqrt();
            mean.extend((0..group).map(|_| group_mean as f32));
            factor.extend(self.scale[channel..channel + group].iter().map(|scale| inverse as f32 * scale));
        }
        Normalization { mean, factor, shift: self.shift.to_vec() }
    }
}

/// Per channel the sum over some pixels, then per channel the squared deviations from their mean.
struct Sums<'a> {
    x: &'a [f32],
    sums: &'a mut [f32],
}

impl LoopKernel for Sums<'_> {
    #[inline(always)]
    fn run(self) {
        let channels = self.sums.len() / 2;
        let (sums, squares) = self.sums.split_at_mut(channels);
        for x in self.x.chunks(channels) {
            sums.iter_mut().zip(x).for_each(|(sum, x)| *sum += x);
        }
        let one_over_pixels = 1.0 / (self.x.len() / channels) as f32;
        for x in self.x.chunks(channels) {
            for ((square, sum), x) in squares.iter_mut().zip(&*sums).zip(x) {
                let deviation = x - sum * one_over_pixels;
                *square += deviation * deviation;
            }
        }
    }
}
