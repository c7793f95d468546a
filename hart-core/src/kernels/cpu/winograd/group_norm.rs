//! Group norm's statistics of a map with channels last.

use rayon::prelude::*;

use super::super::simd::{LoopKernel, SimdLevel};

/// Places whose numbers are added in f32, channel by channel; everything further is added in f64.
const PLACES: usize = 256;

/// A group norm by its layer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Norm<'a> {
    /// One number for each channel.
    pub(super) scale: &'a [f32],
    pub(super) shift: &'a [f32],
    pub(super) groups: usize,
    pub(super) epsilon: f64,
}

/// A group norm whose statistics are known, `(x - mean) * factor + shift`: one of each for each channel.
#[derive(Clone, Debug)]
pub(super) struct Normed {
    pub(super) mean: Vec<f32>,
    pub(super) factor: Vec<f32>,
    pub(super) shift: Vec<f32>,
}

impl Norm<'_> {
    /// The norm of a map `[places][channels]`, read once.
    ///
    /// # Panics
    ///
    /// If lengths don't fit together.
    pub(super) fn of(&self, level: SimdLevel, x: &[f32]) -> Normed {
        let channels = self.scale.len();
        assert!(channels == self.shift.len() && self.groups > 0 && channels.is_multiple_of(self.groups), "groups of equally many");
        assert!(!x.is_empty() && x.len().is_multiple_of(channels), "whole places");
        let mut parts = vec![0.0; x.len().div_ceil(PLACES * channels) * 2 * channels];
        let work = parts.par_chunks_mut(2 * channels).zip(x.par_chunks(PLACES * channels));
        work.for_each(|(sums, x)| level.run_loop(Sums { x, sums }));
        let group = channels / self.groups;
        let places = |part: usize| (x.len() / channels - part * PLACES).min(PLACES) as f64;
        let (mut mean, mut factor) = (Vec::with_capacity(channels), Vec::with_capacity(channels));
        for channel in (0..channels).step_by(group) {
            let of = |what: usize| {
                let all = parts.chunks(channels).skip(what).step_by(2).enumerate();
                all.flat_map(move |(part, sums)| sums[channel..channel + group].iter().map(move |sum| (part, f64::from(*sum))))
            };
            let count = (x.len() / self.groups) as f64;
            let all_mean = of(0).map(|(_, sum)| sum).sum::<f64>() / count;
            // Squares about each part's own mean, and of that mean about the mean of all.
            let within = of(1).map(|(_, squares)| squares).sum::<f64>();
            let between = of(0).map(|(part, sum)| (sum / places(part) - all_mean).powi(2) * places(part)).sum::<f64>();
            let inverse = 1.0 / ((within + between) / count + self.epsilon).sqrt();
            mean.extend((0..group).map(|_| all_mean as f32));
            factor.extend(self.scale[channel..channel + group].iter().map(|scale| inverse as f32 * scale));
        }
        Normed { mean, factor, shift: self.shift.to_vec() }
    }
}

/// Some places: for each channel the sum, and behind those for each channel the squares about the places' own mean.
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
        let one_over_places = 1.0 / (self.x.len() / channels) as f32;
        for x in self.x.chunks(channels) {
            for ((square, sum), x) in squares.iter_mut().zip(&*sums).zip(x) {
                let off = x - sum * one_over_places;
                *square += off * off;
            }
        }
    }
}
