//! The multi-scale codebook: codes to latent, scale by scale, and latent to codes (spec sections 3 and 6).

use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{Embedding, EmbeddingConfig, PaddingConfig2d};
use burn::prelude::*;

use super::resample::{enlarge, shrink, to_map, to_rows};
use super::{ImageTokens, Latent};
use crate::config::VisualConfig;
use crate::kernels;
use crate::nn;
use crate::sampling::{CodebookRows, indices_on_host};
use crate::scales::{Scale, plan_of};

/// V rows of Z channels, and the phi convolutions that smooth a scale's enlarged codes.
#[derive(Module, Debug)]
pub struct Codebook {
    /// `[V, Z]`.
    pub(crate) embedding: Embedding,
    phis: Vec<Conv2d>,
    #[module(skip)]
    phi_ratio: f64,
    /// The metric that it was trained with.
    #[module(skip)]
    pub(crate) metric: Metric,
}

/// Metric of the search for the nearest code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Metric {
    /// Euclidean distance.
    Distance,
    /// Cosine of the angle.
    Angle,
}

impl Codebook {
    pub(super) fn init(config: &VisualConfig, device: &Device) -> Self {
        let z = config.z_channels;
        let phi = |_| Conv2dConfig::new([z, z], [3, 3]).with_padding(PaddingConfig2d::Same).init(device);
        let phi_count = if config.has_phi() { config.phi_count } else { 0 };
        Self {
            embedding: EmbeddingConfig::new(config.vocab_size, z).init(device),
            phis: (0..phi_count).map(phi).collect(),
            phi_ratio: config.phi_ratio,
            metric: if config.cosine { Metric::Angle } else { Metric::Distance },
        }
    }

    /// The rows on the host, for sampling.
    pub fn rows(&self) -> CodebookRows {
        CodebookRows::new(self.embedding.weight.val())
    }

    /// Rows of the given codes.
    ///
    /// # Shapes
    ///
    /// - codes: `[B][L]`
    /// - output: `[B, L, Z]`
    pub fn embed(&self, codes: &[Vec<u32>]) -> Tensor<3> {
        let length = codes.first().map_or(0, Vec::len);
        let flat = codes.iter().flatten().copied().collect();
        self.rows_of(kernels::integers(flat, [codes.len(), length], &self.embedding.weight.lazy_device()))
    }

    /// Rows of codes that are on the device.
    ///
    /// # Shapes
    ///
    /// - codes: `[B, L]`
    /// - output: `[B, L, Z]`
    pub fn rows_of(&self, codes: Tensor<2, Int>) -> Tensor<3> {
        self.embedding.forward(codes)
    }

    /// Adds a scale's features to the running latent: enlarged and smoothed by phi, but at the last scale as they are.
    ///
    /// # Shapes
    ///
    /// - features: `[B, side^2, Z]`
    pub fn accumulate(&self, latent: Latent, features: Tensor<3>, scale: &Scale) -> Latent {
        if scale.is_last() { latent.plus(to_map(features)) } else { latent.plus(self.smooth(features, scale)) }
    }

    /// The features that the latent so far predicts for the next scale.
    ///
    /// # Shapes
    ///
    /// - output: `[B, next.side^2, Z]`
    pub fn next_features(&self, latent: &Latent, next: &Scale) -> Tensor<3> {
        shrink(latent.0.clone(), next.side)
    }

    /// Encoder features to codes of all scales, and what the last discrete scale leaves over. Rows are the nearest by distance, also
    /// where the codebook was trained by angle (`using_znorm`): the published hybrid tokenizer doesn't look at that option.
    ///
    /// # Shapes
    ///
    /// - features: `[B, Z, h, w]`, h = w = the last of `sides`
    ///
    /// # Panics
    ///
    /// With fewer than two sides.
    pub fn tokenize(&self, features: Tensor<4>, sides: &[usize]) -> ImageTokens {
        self.tokenize_with(Metric::Distance, features, sides)
    }

    fn tokenize_with(&self, metric: Metric, features: Tensor<4>, sides: &[usize]) -> ImageTokens {
        let scales = plan_of(sides);
        let mut rest = features.clone();
        let mut latent = Latent(features.zeros_like());
        let (mut codes, mut inputs) = (vec![], vec![]);
        for (scale, next) in scales.iter().zip(&scales[1..]) {
            let nearest = indices_on_host(self.nearest_codes(shrink(rest.clone(), scale.side), metric));
            let added = self.smooth(self.embed(&nearest), scale);
            codes.push(nearest);
            rest = rest - added.clone();
            latent = latent.plus(added);
            inputs.push(self.next_features(&latent, next));
        }
        let continuous = to_rows(rest);
        codes.push(indices_on_host(self.nearest_codes(continuous.clone(), metric)));
        ImageTokens { codes, continuous, inputs: Tensor::cat(inputs, 1), features }
    }

    /// The latent of codes alone, nearest by the metric that the codebook was trained with. Here phi is applied at all scales, the
    /// last included, as the decoder was trained.
    pub fn discrete(&self, tokens: &ImageTokens, sides: &[usize]) -> Latent {
        match self.metric {
            Metric::Distance => self.latent_of(&tokens.codes, sides),
            Metric::Angle => self.latent_of(&self.tokenize_with(Metric::Angle, tokens.features.clone(), sides).codes, sides),
        }
    }

    fn latent_of(&self, codes: &[Vec<Vec<u32>>], sides: &[usize]) -> Latent {
        let features = codes.iter().zip(plan_of(sides)).map(|(codes, scale)| self.smooth(self.embed(codes), &scale));
        Latent(features.reduce(|sum, map| sum + map).expect("a plan has scales"))
    }

    /// Enlarged to the latent's side and smoothed: `h (1 - r) + conv(h) r`.
    pub(crate) fn smooth(&self, rows: Tensor<3>, scale: &Scale) -> Tensor<4> {
        let map = enlarge(rows, scale.last_side);
        if self.phis.is_empty() {
            return map;
        }
        let phi = &self.phis[nearest_phi(self.phis.len(), scale.position())];
        nn::conv2d(map.clone(), phi) * self.phi_ratio + map * (1.0 - self.phi_ratio)
    }

    /// Returns the index of the nearest row of each token.
    ///
    /// # Shapes
    ///
    /// - tokens: `[B, L, Z]`
    /// - output: `[B, L]`
    pub(crate) fn nearest_codes(&self, tokens: Tensor<3>, metric: Metric) -> Tensor<2, Int> {
        let [batch, length, channels] = tokens.dims();
        let tokens = tokens.reshape([batch * length, channels]);
        let rows = self.embedding.weight.val();
        let scores = match metric {
            // The angle doesn't change with a token's own length.
            Metric::Angle => kernels::matmul(tokens, unit_rows(rows).transpose()),
            // argmin |x - e|^2 is argmax of x e - |e|^2 / 2.
            Metric::Distance => {
                let half_squares = rows.clone().powf_scalar(2.0).sum_dim(1).transpose() * 0.5; // [1, V]
                kernels::matmul(tokens, rows.transpose()) - half_squares
            }
        };
        scores.argmax(1).reshape([batch, length])
    }
}

fn unit_rows(rows: Tensor<2>) -> Tensor<2> {
    const SMALLEST_NORM: f32 = 1e-12;
    let norm = rows.clone().powf_scalar(2.0).sum_dim(1).sqrt().clamp_min(SMALLEST_NORM);
    rows / norm
}

/// Which of `count` phis serves a place between 0 and 1: the nearest tick, the first on a tie. With four phis the ticks lie a third
/// of a step inside the ends, otherwise half a step.
fn nearest_phi(count: usize, place: f64) -> usize {
    let n = count as f64;
    let inset = if count == 4 { 1.0 / 3.0 / n } else { 1.0 / 2.0 / n };
    let (first, last) = (inset, 1.0 - inset);
    let step = if count > 1 { (last - first) / (n - 1.0) } else { 0.0 };
    let tick = |i: usize| if i > 0 && i + 1 == count { last } else { first + step * i as f64 };
    let distance = |i: &usize| (tick(*i) - place).abs();
    (0..count).min_by(|a, b| distance(a).total_cmp(&distance(b))).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phis_are_chosen_by_the_nearest_tick() {
        let at = |count, scales: usize| (0..scales).map(|s| nearest_phi(count, s as f64 / (scales - 1) as f64)).collect::<Vec<_>>();
        assert_eq!(at(4, 6), [0, 0, 1, 2, 3, 3]);
        assert_eq!(at(1, 3), [0, 0, 0]);
        assert_eq!(at(2, 3), [0, 0, 1]); // a tie takes the first
        assert_eq!(at(10, 10), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        // Ties in theory that rounding in f64 decides, as in the published models of 256 and 512 pixels.
        assert_eq!(at(4, 10), [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]);
        assert_eq!(at(4, 9), [0, 0, 1, 1, 2, 2, 2, 3, 3]);
        assert_eq!(at(4, 7), [0, 0, 1, 2, 2, 3, 3]);
        assert_eq!(at(4, 5), [0, 1, 2, 2, 3]);
    }
}
