//! The multi-scale codebook: from codes to the latent, scale by scale, and from the latent to codes (spec sections 3 and 6).

use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{Embedding, EmbeddingConfig, PaddingConfig2d};
use burn::prelude::*;

use super::resample::{downsample, to_map, to_rows, upsample};
use super::{ImageTokens, Latent};
use crate::config::VisualConfig;
use crate::kernels;
use crate::nn;
use crate::sampling::{CodebookRows, indices_on_host};
use crate::scales::{Scale, plan_of};

/// The codebook: V rows of Z channels, and the phi convolutions that smooth the upsampled codes of a scale.
#[derive(Module, Debug)]
pub struct Codebook {
    /// `[V, Z]`.
    pub(crate) embedding: Embedding,
    phis: Vec<Conv2d>,
    #[module(skip)]
    phi_ratio: f64,
    /// The metric of the codebook's training.
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

    /// Copies the rows to the host, for sampling.
    pub fn rows(&self) -> CodebookRows {
        CodebookRows::new(self.embedding.weight.val())
    }

    /// Returns the codebook rows of codes.
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

    /// Like [`Self::embed`], for codes on the device.
    ///
    /// # Shapes
    ///
    /// - codes: `[B, L]`
    /// - output: `[B, L, Z]`
    pub fn rows_of(&self, codes: Tensor<2, Int>) -> Tensor<3> {
        self.embedding.forward(codes)
    }

    /// Adds the features of a scale to the latent so far. Features of the last scale are added unchanged, all others are upsampled
    /// and smoothed by phi first.
    ///
    /// # Shapes
    ///
    /// - features: `[B, side^2, Z]`
    pub fn accumulate(&self, latent: Latent, features: Tensor<3>, scale: &Scale) -> Latent {
        if scale.is_last() { latent.plus(to_map(features)) } else { latent.plus(self.smooth(features, scale)) }
    }

    /// Downsamples the latent so far to the features of the next scale.
    ///
    /// # Shapes
    ///
    /// - output: `[B, next.side^2, Z]`
    pub fn next_features(&self, latent: &Latent, next: &Scale) -> Tensor<3> {
        downsample(latent.0.clone(), next.side)
    }

    /// Quantises features to the codes of all scales, and keeps the continuous tokens of the last one. Codes are the nearest by
    /// distance, even if the codebook was trained by angle (`using_znorm`), because the published hybrid tokenizer ignores that
    /// option.
    ///
    /// # Shapes
    ///
    /// - features: `[B, Z, h, w]`, where h and w are the last of `sides`
    ///
    /// # Panics
    ///
    /// If there are fewer than two sides.
    pub fn tokenize(&self, features: Tensor<4>, sides: &[usize]) -> ImageTokens {
        self.tokenize_with(Metric::Distance, features, sides)
    }

    fn tokenize_with(&self, metric: Metric, features: Tensor<4>, sides: &[usize]) -> ImageTokens {
        let scales = plan_of(sides);
        let mut residual = features.clone();
        let mut latent = Latent(features.zeros_like());
        let (mut codes, mut inputs) = (vec![], vec![]);
        for (scale, next) in scales.iter().zip(&scales[1..]) {
            let nearest = indices_on_host(self.nearest_codes(downsample(residual.clone(), scale.side), metric));
            let added = self.smooth(self.embed(&nearest), scale);
            codes.push(nearest);
            residual = residual - added.clone();
            latent = latent.plus(added);
            inputs.push(self.next_features(&latent, next));
        }
        let continuous = to_rows(residual);
        codes.push(indices_on_host(self.nearest_codes(continuous.clone(), metric)));
        ImageTokens { codes, continuous, inputs: Tensor::cat(inputs, 1), features }
    }

    /// Returns the latent of the codes alone. These codes are the nearest by the codebook's own metric. As in the decoder's
    /// training, phi smooths all scales, the last one too.
    pub fn discrete(&self, tokens: &ImageTokens, sides: &[usize]) -> Latent {
        match self.metric {
            Metric::Distance => self.latent_of(&tokens.codes, sides),
            Metric::Angle => self.latent_of(&self.tokenize_with(Metric::Angle, tokens.features.clone(), sides).codes, sides),
        }
    }

    /// Sums the smoothed features of all scales.
    fn latent_of(&self, codes: &[Vec<Vec<u32>>], sides: &[usize]) -> Latent {
        let features = codes.iter().zip(plan_of(sides)).map(|(codes, scale)| self.smooth(self.embed(codes), &scale));
        Latent(features.reduce(|sum, map| sum + map).expect("a plan has scales"))
    }

    /// Upsamples tokens to the latent's side, h, and smooths them: `(1 - r) h + r conv(h)`.
    ///
    /// # Shapes
    ///
    /// - rows: `[B, side^2, Z]`
    /// - output: `[B, Z, h, w]`
    pub(crate) fn smooth(&self, rows: Tensor<3>, scale: &Scale) -> Tensor<4> {
        let map = upsample(rows, scale.last_side);
        if self.phis.is_empty() {
            return map;
        }
        let phi = &self.phis[nearest_phi(self.phis.len(), scale.position())];
        nn::conv2d(map.clone(), phi) * self.phi_ratio + map * (1.0 - self.phi_ratio)
    }

    /// Returns the nearest code of each token.
    ///
    /// # Shapes
    ///
    /// - tokens: `[B, L, Z]`
    /// - output: `[B, L]`
    pub(crate) fn nearest_codes(&self, tokens: Tensor<3>, metric: Metric) -> Tensor<2, Int> {
        let [batch, length, channels] = tokens.dims();
        let tokens = tokens.reshape([batch * length, channels]); // [tokens, channels]
        let rows = self.embedding.weight.val();
        let scores = match metric {
            // The norm of a token does not change which angle is the smallest.
            Metric::Angle => kernels::matmul(tokens, unit_rows(rows).transpose()),
            // argmin |x - e|^2 is argmax of x e - |e|^2 / 2.
            Metric::Distance => {
                let half_squares = rows.clone().powf_scalar(2.0).sum_dim(1).transpose() * 0.5; // [1, V]
                kernels::matmul(tokens, rows.transpose()) - half_squares
            }
        };
        scores.argmax(1).reshape([batch, length]) // [batch, tokens]
    }
}

/// Normalises rows to length 1.
fn unit_rows(rows: Tensor<2>) -> Tensor<2> {
    const MIN_NORM: f32 = 1e-12;
    let norm = rows.clone().powf_scalar(2.0).sum_dim(1).sqrt().clamp_min(MIN_NORM);
    rows / norm
}

/// Returns the index of the phi whose tick is nearest to a position between 0 and 1, the first one on a tie. Ticks are spaced
/// evenly. The margin at each end is `1 / (3 count)` for four phis, and `1 / (2 count)` otherwise.
fn nearest_phi(count: usize, position: f64) -> usize {
    let n = count as f64;
    let margin = if count == 4 { 1.0 / 3.0 / n } else { 1.0 / 2.0 / n };
    let (first, last) = (margin, 1.0 - margin);
    let step = if count > 1 { (last - first) / (n - 1.0) } else { 0.0 };
    let tick = |i: usize| if i > 0 && i + 1 == count { last } else { first + step * i as f64 };
    let distance = |i: &usize| (tick(*i) - position).abs();
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
        // Exact arithmetic gives ties here, which rounding in f64 breaks, as in the published models of 256 and 512 pixels.
        assert_eq!(at(4, 10), [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]);
        assert_eq!(at(4, 9), [0, 0, 1, 1, 2, 2, 2, 3, 3]);
        assert_eq!(at(4, 7), [0, 0, 1, 2, 2, 3, 3]);
        assert_eq!(at(4, 5), [0, 1, 2, 2, 3]);
    }
}
