//! Inputs and targets of a generator's training step.

use burn::prelude::*;
use rayon::prelude::*;

use super::random::{Purpose, StepRng};
use crate::kernels;
use crate::residual::LATENT_SCALE;
use crate::text::Context;
use crate::visual::ImageTokens;

/// Moves a tensor to the autodiff device.
pub(super) fn to_autodiff(tensor: Tensor<3>) -> Tensor<3> {
    Tensor::from_inner(tensor)
}

/// Replaces the context of the images in `dropped` by the unconditional context of classifier-free guidance: zeros at position 0.
pub(super) fn drop_context(context: Context, dropped: &[bool]) -> Context {
    let factors = dropped.iter().map(|&d| if d { 0.0 } else { 1.0 }).collect();
    let factors = kernels::tensor(factors, [dropped.len(), 1, 1], &context.hidden.device());
    let (mut mask, mut positions) = (context.mask, context.positions);
    for (row, _) in dropped.iter().enumerate().filter(|(_, d)| **d) {
        mask[row].iter_mut().enumerate().for_each(|(token, is_text)| *is_text = token == 0);
        positions[row].fill(0);
    }
    Context { hidden: context.hidden * factors, mask, positions, unconditional: 0 }
}

/// Samples a code from the softmax of logits, given a uniform sample in (0, 1).
fn sample_code(logits: &[f32], uniform: f64) -> u32 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights = || logits.iter().map(|l| f64::from(l - max).exp());
    let mut remaining = uniform * weights().sum::<f64>();
    let code = weights().position(|weight| {
        remaining -= weight;
        remaining < 0.0
    });
    code.unwrap_or(logits.len() - 1) as u32
}

/// Returns codes `[B][L]` for `tokens` of the last scale. A share of them is sampled from the model's logits; the others are the
/// image's codes.
///
/// # Shapes
///
/// - tokens: `[L]`, positions in the last scale
/// - logits: `[B, L, V]`
pub(super) fn mixed_codes(
    image_tokens: &ImageTokens,
    tokens: &[usize],
    logits: Tensor<3>,
    sampled_share: f64,
    rng: StepRng,
) -> Vec<Vec<u32>> {
    let [batch, length, vocabulary] = logits.dims();
    let logits = kernels::values(logits.detach());
    let uniforms = rng.uniforms(Purpose::SampledCode, batch * length);
    let mix = rng.uniforms(Purpose::CodeMix, batch * length);
    let image_codes = image_tokens.codes.last().expect("a plan has scales");
    let code = |image: usize, index: usize| {
        let token = image * length + index;
        if mix[token] < sampled_share {
            sample_code(&logits[token * vocabulary..][..vocabulary], uniforms[token])
        } else {
            image_codes[image][tokens[index]]
        }
    };
    (0..batch).into_par_iter().map(|image| (0..length).map(|index| code(image, index)).collect()).collect()
}

/// Returns the embedded codes on the autodiff device, and the residuals between the continuous tokens and them, divided by
/// [`LATENT_SCALE`].
///
/// # Shapes
///
/// - tokens: `[L]`, positions in the last scale
/// - codes, both outputs: `[B, L, Z]`
pub(super) fn residual_targets(image_tokens: &ImageTokens, tokens: &[usize], codes: Tensor<3>) -> (Tensor<3>, Tensor<3>) {
    let tokens = kernels::indices(tokens, &codes.device());
    let residuals = (image_tokens.continuous.clone().select(1, tokens) - codes.clone()) / LATENT_SCALE;
    (to_autodiff(codes), to_autodiff(residuals))
}
