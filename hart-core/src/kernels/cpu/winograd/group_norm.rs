//! Group-norm statistics of a channels-last map.

use rayon::prelude::*;

use super::super::simd::{LoopKernel, SimdLevel};
use super::value::Value;

/// Pixels whose values are summed in f32, channel by channel; partial sums are combined in f64.
pub(super) const PIXELS: usize = 256;

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

/// Partial sums of a map whose pixels arrive in order.
#[derive(Debug)]
pub(super) struct PartialSums {
    level: SimdLevel,
    channels: usize,
    /// Pixels so far.
    pixels: usize,
    /// The [`Sums`] of every part, `[parts][2][channels]`.
    parts: Vec<f32>,
}

impl PartialSums {
    pub(super) fn new(level: SimdLevel, channels: usize) -> Self {
        Self { level, channels, pixels: 0, parts: Vec::new() }
    }

    /// Adds the next pixels, `[pixels][channels]`: a multiple of [`PIXELS`], except for the last ones of a map.
    ///
    /// # Panics
    ///
    /// If there are no whole pixels, or a part was not full before.
    pub(super) fn add<T: Value>(&mut self, x: &[T]) {
        let (level, channels) = (self.level, self.channels);
        assert!(!x.is_empty() && x.len().is_multiple_of(channels), "whole pixels");
        assert!(self.pixels.is_multiple_of(PIXELS), "whole parts before");
        self.pixels += x.len() / channels;
        let before = self.parts.len();
        self.parts.resize(before + x.len().div_ceil(PIXELS * channels) * 2 * channels, 0.0);
        let work = self.parts[before..].par_chunks_mut(2 * channels).zip(x.par_chunks(PIXELS * channels));
        work.for_each(|(sums, x)| level.run_loop(Sums { x, sums }));
    }
}

impl GroupNormArgs<'_> {
    /// Returns the norm of a map `[pixels][channels]`, which is read once.
    ///
    /// # Panics
    ///
    /// If the lengths do not fit together.
    pub(super) fn normalization<T: Value>(&self, level: SimdLevel, x: &[T]) -> Normalization {
        let mut sums = PartialSums::new(level, self.scale.len());
        sums.add(x);
        self.normalization_of(&sums)
    }

    /// Returns the norm of a map from its partial sums.
    ///
    /// # Panics
    ///
    /// If the lengths do not fit together.
    pub(super) fn normalization_of(&self, sums: &PartialSums) -> Normalization {
        let PartialSums { channels, pixels: all_pixels, ref parts, .. } = *sums;
        assert!(channels == self.scale.len() && channels == self.shift.len(), "a scale and a shift for each channel");
        assert!(self.groups > 0 && channels.is_multiple_of(self.groups), "groups of equal size");
        let group = channels / self.groups;
        let pixels = |part: usize| (all_pixels - part * PIXELS).min(PIXELS) as f64;
        let (mut mean, mut factor) = (Vec::with_capacity(channels), Vec::with_capacity(channels));
        for channel in (0..channels).step_by(group) {
            let sums_of = |offset: usize| {
                let all = parts.chunks(channels).skip(offset).step_by(2).enumerate();
                all.flat_map(move |(part, sums)| sums[channel..channel + group].iter().map(move |sum| (part, f64::from(*sum))))
            };
            let count = (all_pixels * group) as f64;
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

/// Computes the sums of all channels over some pixels, followed by the sums of their squared deviations from their means over these
/// pixels.
struct Sums<'a, T> {
    x: &'a [T],
    sums: &'a mut [f32],
}

impl<T: Value> LoopKernel for Sums<'_, T> {
    #[inline(always)]
    fn run(self) {
        let channels = self.sums.len() / 2;
        let (sums, squares) = self.sums.split_at_mut(channels);
        for x in self.x.chunks(channels) {
            sums.iter_mut().zip(x).for_each(|(sum, x)| *sum += x.widen());
        }
        let one_over_pixels = 1.0 / (self.x.len() / channels) as f32;
        for x in self.x.chunks(channels) {
            for ((square, sum), x) in squares.iter_mut().zip(&*sums).zip(x) {
                let deviation = x.widen() - sum * one_over_pixels;
                *square += deviation * deviation;
            }
        }
    }
}
