//! The multi-scale codebook in training: straight-through quantization, and rows that follow the tokens they stand for
//! (van den Oord et al., "Neural discrete representation learning", 2017, appendix A.1).

use burn::prelude::*;

use super::random::{Purpose, StepRandom};
use crate::kernels;
use crate::sampling::indices_on_host;
use crate::scales::plan_of;
use crate::visual::resample::shrink;
use crate::visual::{Codebook, VisualTokenizer};

/// What the quantizer makes of features.
pub(super) struct Quantized {
    /// The latent of the codes alone, with the features' own gradient: `[B, Z, h, w]`.
    pub(super) latent: Tensor<4>,
    /// How far the running latent lies from the features after each scale: the phi convolutions are drawn to the features, and, times
    /// `beta`, the features to them.
    pub(super) loss: Tensor<1>,
    /// Which tokens took which rows.
    pub(super) usage: Usage,
}

/// Quantizes features scale by scale, as [`Codebook::discrete`] does: with phi at the last scale too.
///
/// # Shapes
///
/// - features: `[B, Z, h, w]`
pub(super) fn quantize(codebook: &Codebook, features: Tensor<4>, sides: &[usize], beta: f64) -> Quantized {
    let target = features.clone().detach();
    let mut rest = target.clone();
    let mut latent = target.zeros_like();
    let mut loss: Option<Tensor<1>> = None;
    let mut usage = Usage::default();
    for scale in plan_of(sides) {
        let tokens = shrink(rest.clone(), scale.side);
        let codes = indices_on_host(codebook.nearest_codes(tokens.clone(), codebook.metric()));
        let added = codebook.smooth(codebook.embed(&codes).detach(), &scale);
        usage.add(tokens, &codes);
        rest = rest - added.clone().detach();
        latent = latent + added;
        let distance = |a: Tensor<4>, b: Tensor<4>| (a - b).powf_scalar(2.0).mean();
        let here = distance(latent.clone(), target.clone()) + distance(latent.clone().detach(), features.clone()) * beta;
        loss = Some(loss.map_or(here.clone(), |sum| sum + here));
    }
    let loss = loss.expect("a plan has scales") / sides.len() as f32;
    Quantized { latent: features.clone() + (latent.detach() - features.detach()), loss, usage }
}

/// How far the running latent of a picture's codes lies from its features, averaged over scales: squared, drawing both sides, the
/// features `commitment` times as strongly.
///
/// # Shapes
///
/// - features: `[B, Z, h, w]`, from [`VisualTokenizer::encode`]
/// - output: `[1]`
pub fn quantizer_loss(tokenizer: &VisualTokenizer, features: Tensor<4>, commitment: f64) -> Tensor<1> {
    quantize(tokenizer.codebook(), features, &tokenizer.config().sides, commitment).loss
}

/// Tokens and the rows that they took.
#[derive(Default)]
pub(super) struct Usage {
    codes: Vec<u32>,
    tokens: Vec<f32>,
}

impl Usage {
    fn add(&mut self, tokens: Tensor<3>, codes: &[Vec<u32>]) {
        self.codes.extend(codes.iter().flatten());
        self.tokens.extend(kernels::values(tokens));
    }

    pub(super) fn join(&mut self, other: Self) {
        self.codes.extend(other.codes);
        self.tokens.extend(other.tokens);
    }

    /// Share of the rows that were taken at all.
    pub(super) fn share(&self, rows: usize) -> f32 {
        let mut taken = vec![false; rows];
        self.codes.iter().for_each(|&code| taken[code as usize] = true);
        taken.iter().filter(|t| **t).count() as f32 / rows as f32
    }
}

/// Running counts and sums of the tokens of each row, on the host.
pub(super) struct RowAverages {
    pub(super) counts: Vec<f32>,
    pub(super) sums: Vec<f32>,
    /// Steps since a row was last taken.
    pub(super) idle: Vec<f32>,
    decay: f32,
    width: usize,
}

/// A row that no token took for so many steps is given a new place. Features wander while the encoder learns: a row must not be
/// left behind for long.
const MOST_IDLE: f32 = 16.0;
/// Tokens that a new row counts as: its first real ones soon outweigh it.
const NEW_COUNT: f32 = 0.1;

impl RowAverages {
    pub(super) fn new(rows: usize, width: usize, decay: f32) -> Self {
        Self { counts: vec![0.0; rows], sums: vec![0.0; rows * width], idle: vec![MOST_IDLE; rows], decay, width }
    }

    /// Averages of rows that are known already.
    pub(super) fn of(table: Vec<f32>, width: usize, decay: f32) -> Self {
        let rows = table.len() / width;
        Self { counts: vec![1.0; rows], sums: table, idle: vec![0.0; rows], decay, width }
    }

    /// Moves every row towards the mean of its tokens; a row that is not taken any more starts anew at one of the batch's tokens.
    pub(super) fn update(&mut self, usage: &Usage, random: StepRandom) -> Vec<f32> {
        let (width, fresh) = (self.width, 1.0 - self.decay);
        self.idle.iter_mut().for_each(|steps| *steps += 1.0);
        for &code in &usage.codes {
            let row = code as usize;
            if self.idle[row] > 0.0 {
                // Only rows that are taken fade: one that waits keeps its place.
                self.idle[row] = 0.0;
                self.counts[row] *= self.decay;
                self.sums[row * width..][..width].iter_mut().for_each(|sum| *sum *= self.decay);
            }
        }
        for (&code, token) in usage.codes.iter().zip(usage.tokens.chunks_exact(width)) {
            let row = code as usize;
            self.counts[row] += fresh;
            self.sums[row * width..][..width].iter_mut().zip(token).for_each(|(sum, value)| *sum += fresh * value);
        }
        let dead: Vec<usize> = (0..self.idle.len()).filter(|&row| self.idle[row] > MOST_IDLE).collect();
        let places = random.below(Purpose::Revival, usage.codes.len(), dead.len());
        for (row, place) in dead.into_iter().zip(places) {
            (self.idle[row], self.counts[row]) = (0.0, NEW_COUNT);
            let token = &usage.tokens[place * width..][..width];
            self.sums[row * width..][..width].iter_mut().zip(token).for_each(|(sum, value)| *sum = NEW_COUNT * value);
        }
        let count = |index: usize| self.counts[index / width];
        self.sums.iter().enumerate().map(|(index, sum)| sum / count(index)).collect()
    }
}
