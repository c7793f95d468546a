//! Training: losses against recorded numbers, gradients that lead downhill, runs that resume to the last bit.
#![cfg(feature = "train")]

#[allow(dead_code, reason = "shared with the golden tests")]
mod support;

use burn::prelude::*;
use hart_core::WeightSet;
use hart_core::stages::LATENT_SCALE;
use hart_core::train::{cross_entropy, diffusion_loss, quantizer_loss};
use support::{Goldens, check_close, values};

/// Most that a loss may differ from the recorded one, relative to it.
const LOSS: f64 = 1e-4;
/// Weight of the features' pull towards their codes, in the published configuration.
const COMMITMENT: f64 = 0.25;

fn for_each(check: impl Fn(&Goldens)) {
    for goldens in Goldens::all() {
        println!("{}", goldens.folder.display());
        check(&goldens);
    }
}

#[test]
fn cross_entropy_is_the_recorded_one() {
    for_each(|goldens| {
        let logits = goldens.tensor("train.logits", &Device::flex());
        let loss = cross_entropy(logits, &goldens.codes("vae.indices")).mean();
        check_close("train.cross_entropy", &values(loss), &goldens.floats("train.cross_entropy"), LOSS);
    });
}

#[test]
fn quantizer_loss_is_the_recorded_one() {
    for_each(|goldens| {
        let hart = goldens.hart(WeightSet::Plain);
        let features = goldens.tensor("vae.features", hart.device());
        let loss = quantizer_loss(hart.visual(), features, COMMITMENT);
        check_close("vae.vq_loss", &values(loss), &goldens.floats("vae.vq_loss"), LOSS);
    });
}

/// From the recorded context and pictures through transformer and diffusion, with the recorded steps and noise.
#[test]
fn diffusion_loss_is_the_recorded_one() {
    for_each(|goldens| {
        let hart = goldens.hart(WeightSet::Plain);
        let conditioning = hart.transformer().condition(&goldens.context(hart.device()));
        let hidden = hart.transformer().forward_all(goldens.tensor("vae.var_input", hart.device()), &conditioning);
        let continuous: Tensor<3> = goldens.tensor("vae.last_stage_continuous", hart.device());
        let [batch, length, channels] = continuous.dims();
        let last: Vec<Vec<u32>> = goldens.codes("vae.indices").iter().map(|row| row[row.len() - length..].to_vec()).collect();
        let codes = hart.visual().codebook().embed(&last);
        let condition = hart.transformer().residual_condition(&hidden.last(length), codes.clone());
        let steps: Vec<usize> = goldens.integers("train.diffusion_t").iter().map(|&t| t as usize).collect();
        let repeats = steps.len() / (batch * length);
        let repeated = |x: Tensor<3>| {
            let width = x.dims()[2];
            x.reshape([1, batch * length, width]).repeat_dim(1, repeats)
        };
        let target = repeated((continuous - codes) / LATENT_SCALE);
        let noise: Tensor<2> = goldens.tensor("train.diffusion_noise", hart.device());
        let noise = noise.reshape([1, steps.len(), channels]);
        let loss = diffusion_loss(hart.residual().mlp(), target, repeated(condition), &steps, noise).mean();
        check_close("train.diffusion_loss", &values(loss), &goldens.floats("train.diffusion_loss"), LOSS);
    });
}
