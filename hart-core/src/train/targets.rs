//! What a step of the generator is to predict, and from what.

use burn::prelude::*;
use rayon::prelude::*;

use super::random::{Purpose, StepRandom};
use crate::kernels;
use crate::residual::LATENT_SCALE;
use crate::text::Context;
use crate::visual::ImageTokens;

/// A plain tensor on the device that keeps gradients.
pub(super) fn tracked(tensor: Tensor<3>) -> Tensor<3> {
    Tensor::from_inner(tensor)
}

/// The context with some rows as guidance's unconditional ones are: zeros at position 0.
pub(super) fn without(context: Context, dropped: &[bool]) -> Context {
    let factors = dropped.iter().map(|&d| if d { 0.0 } else { 1.0 }).collect();
    let factors = kernels::tensor(factors, [dropped.len(), 1, 1], &context.hidden.device());
    let (mut mask, mut positions) = (context.mask, context.positions);
    for (row, _) in dropped.iter().enumerate().filter(|(_, d)| **d) {
        mask[row].iter_mut().enumerate().for_each(|(place, text)| *text = place == 0);
        positions[row].fill(0);
    }
    Context { hidden: context.hidden * factors, mask, positions, unconditional: 0 }
}

/// A code drawn from logits by a uniform number.
fn draw(logits: &[f32], uniform: f64) -> u32 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights = || logits.iter().map(|l| f64::from(l - largest).exp());
    let mut left = uniform * weights().sum::<f64>();
    let found = weights().position(|weight| {
        left -= weight;
        left < 0.0
    });
    found.unwrap_or(logits.len() - 1) as u32
}

/// Codes of the kept tokens of the last scale: a share of them drawn from the model's logits `[B, L, V]`, the others the picture's own.
pub(super) fn codes(picture: &ImageTokens, kept: &[usize], logits: Tensor<3>, share: f64, random: StepRandom) -> Vec<Vec<u32>> {
    let [batch, length, vocabulary] = logits.dims();
    let logits = kernels::values(logits.detach());
    let draws = random.uniforms(Purpose::SampledCode, batch * length);
    let mix = random.uniforms(Purpose::CodeMix, batch * length);
    let nearest = picture.codes.last().expect("a plan has scales");
    let code = |image: usize, index: usize| {
        let token = image * length + index;
        if mix[token] < share {
            draw(&logits[token * vocabulary..][..vocabulary], draws[token])
        } else {
            nearest[image][kept[index]]
        }
    };
    (0..batch).into_par_iter().map(|image| (0..length).map(|index| code(image, index)).collect()).collect()
}

/// Rows of the kept tokens' codes, and the residuals that they leave, divided by [`LATENT_SCALE`].
///
/// # Shapes
///
/// - rows, both outputs: `[B, L, Z]`
pub(super) fn residuals(picture: &ImageTokens, kept: &[usize], rows: Tensor<3>) -> (Tensor<3>, Tensor<3>) {
    let places = kernels::indices(kept, &rows.device());
    let target = (picture.continuous.clone().select(1, places) - rows.clone()) / LATENT_SCALE;
    (tracked(rows), tracked(target))
}
