//! Training of the multi-scale codebook: straight-through quantization, and updates of the rows by exponential moving averages
//! (van den Oord et al., "Neural discrete representation learning", 2017, appendix A.1).

use burn::prelude::*;

use super::random::{Purpose, StepRng};
use crate::kernels;
use crate::sampling::indices_on_host;
use crate::scales::plan_of;
use crate::visual::resample::downsample;
use crate::visual::{Codebook, VisualTokenizer};

/// Features of images after quantization.
pub(super) struct QuantizedFeatures {
    /// The latent of the codes, `[B, Z, h, w]`. Its gradient passes straight through to the features.
    pub(super) latent: Tensor<4>,
    /// Codebook and commitment loss, `[1]`; see [`quantizer_loss`].
    pub(super) loss: Tensor<1>,
    /// The tokens of all scales and their codes.
    pub(super) assignments: CodeAssignments,
}

/// Quantizes features scale by scale. Like [`Codebook::discrete`], it applies phi at the last scale too.
///
/// # Shapes
///
/// - features: `[B, Z, h, w]`
pub(super) fn quantize_features(codebook: &Codebook, features: Tensor<4>, sides: &[usize], commitment: f64) -> QuantizedFeatures {
    let target = features.clone().detach();
    let mut residual = target.clone();
    let mut latent = target.zeros_like();
    let mut loss: Option<Tensor<1>> = None;
    let mut assignments = CodeAssignments::default();
    for scale in plan_of(sides) {
        let tokens = downsample(residual.clone(), scale.side);
        let codes = indices_on_host(codebook.nearest_codes(tokens.clone(), codebook.metric));
        let added = codebook.smooth(codebook.embed(&codes).detach(), &scale);
        assignments.push(tokens, &codes);
        residual = residual - added.clone().detach();
        latent = latent + added;
        let mse = |a: Tensor<4>, b: Tensor<4>| (a - b).powf_scalar(2.0).mean();
        let scale_loss = mse(latent.clone(), target.clone()) + mse(latent.clone().detach(), features.clone()) * commitment;
        loss = Some(loss.map_or(scale_loss.clone(), |sum| sum + scale_loss));
    }
    let loss = loss.expect("a plan has scales") / sides.len() as f32;
    // Straight-through estimator.
    let latent = features.clone() + (latent.detach() - features.detach());
    QuantizedFeatures { latent, loss, assignments }
}

/// Returns the quantizer's loss: the mean squared error between the features and the latent accumulated up to each scale, averaged over
/// the scales. It is the sum of the codebook loss, whose gradient reaches only the phi convolutions, and the commitment loss, which is
/// multiplied by `commitment` and whose gradient reaches only the features.
///
/// # Shapes
///
/// - features: `[B, Z, h, w]`, from [`VisualTokenizer::encode`]
/// - output: `[1]`
pub fn quantizer_loss(tokenizer: &VisualTokenizer, features: Tensor<4>, commitment: f64) -> Tensor<1> {
    quantize_features(tokenizer.codebook(), features, &tokenizer.config.sides, commitment).loss
}

/// Tokens of a batch and the codes assigned to them.
#[derive(Default)]
pub(super) struct CodeAssignments {
    /// `[tokens]`
    codes: Vec<u32>,
    /// `[tokens, Z]`
    tokens: Vec<f32>,
}

impl CodeAssignments {
    fn push(&mut self, tokens: Tensor<3>, codes: &[Vec<u32>]) {
        self.codes.extend(codes.iter().flatten());
        self.tokens.extend(kernels::values(tokens));
    }

    pub(super) fn append(&mut self, other: Self) {
        self.codes.extend(other.codes);
        self.tokens.extend(other.tokens);
    }

    /// Returns the codebook usage: the share of its `rows` that are assigned to at least one token.
    pub(super) fn codebook_usage(&self, rows: usize) -> f32 {
        let mut is_used = vec![false; rows];
        self.codes.iter().for_each(|&code| is_used[code as usize] = true);
        is_used.iter().filter(|used| **used).count() as f32 / rows as f32
    }
}

/// Exponential moving averages of the tokens assigned to each codebook row. A row is their mean, `sums / counts`.
pub(super) struct CodebookEma {
    /// Averaged number of assigned tokens, `[rows]`.
    pub(super) counts: Vec<f32>,
    /// Averaged sum of the assigned tokens, `[rows, Z]`.
    pub(super) sums: Vec<f32>,
    /// Number of steps since the row was last used, `[rows]`.
    pub(super) idle: Vec<f32>,
    decay: f32,
    /// Z, the number of channels of a row.
    channels: usize,
}

/// Number of steps after which an unused row is replaced. It is small because features drift while the encoder is trained, and an
/// unused row does not follow them.
const MAX_IDLE_STEPS: f32 = 16.0;
/// Initial count of a replaced row. It is small, so that the tokens assigned to the row soon outweigh it.
const INITIAL_COUNT: f32 = 0.1;

impl CodebookEma {
    /// Creates averages under which every row that the first step does not use is replaced.
    pub(super) fn new(rows: usize, channels: usize, decay: f32) -> Self {
        Self { counts: vec![0.0; rows], sums: vec![0.0; rows * channels], idle: vec![MAX_IDLE_STEPS; rows], decay, channels }
    }

    /// Creates averages from the rows of a trained codebook, `[rows, Z]`.
    pub(super) fn from_rows(table: Vec<f32>, channels: usize, decay: f32) -> Self {
        let rows = table.len() / channels;
        Self { counts: vec![1.0; rows], sums: table, idle: vec![0.0; rows], decay, channels }
    }

    /// Updates the averages by a batch and returns the new codebook, `[rows, Z]`. A row that has not been used for
    /// [`MAX_IDLE_STEPS`] is replaced by a random token of the batch.
    pub(super) fn update(&mut self, batch: &CodeAssignments, rng: StepRng) -> Vec<f32> {
        let (channels, weight) = (self.channels, 1.0 - self.decay);
        self.idle.iter_mut().for_each(|steps| *steps += 1.0);
        for &code in &batch.codes {
            let row = code as usize;
            if self.idle[row] > 0.0 {
                // Only used rows decay, each once a step. Unused rows keep their values.
                self.idle[row] = 0.0;
                self.counts[row] *= self.decay;
                self.sums[row * channels..][..channels].iter_mut().for_each(|sum| *sum *= self.decay);
            }
        }
        for (&code, token) in batch.codes.iter().zip(batch.tokens.chunks_exact(channels)) {
            let row = code as usize;
            self.counts[row] += weight;
            self.sums[row * channels..][..channels].iter_mut().zip(token).for_each(|(sum, value)| *sum += weight * value);
        }
        let unused: Vec<usize> = (0..self.idle.len()).filter(|&row| self.idle[row] > MAX_IDLE_STEPS).collect();
        let tokens = rng.integers(Purpose::RowReplacement, batch.codes.len(), unused.len());
        for (row, token) in unused.into_iter().zip(tokens) {
            (self.idle[row], self.counts[row]) = (0.0, INITIAL_COUNT);
            let token = &batch.tokens[token * channels..][..channels];
            self.sums[row * channels..][..channels].iter_mut().zip(token).for_each(|(sum, value)| *sum = INITIAL_COUNT * value);
        }
        let count = |index: usize| self.counts[index / channels];
        self.sums.iter().enumerate().map(|(index, sum)| sum / count(index)).collect()
    }
}
