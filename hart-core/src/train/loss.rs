//! What is minimised (spec section 7).

use std::f64::consts::{LN_2, PI};

use burn::prelude::*;
use burn::tensor::activation;

use crate::kernels;
use crate::schedule::{DiffusionStep, FULL_STEPS, Respacing, schedule};
use crate::stages::ResidualMlp;

/// Cross-entropy of codes, one number a token.
///
/// # Shapes
///
/// - logits: `[B, L, V]`
/// - codes: `[B][L]`
/// - output: `[B, L]`, in nats
pub fn cross_entropy(logits: Tensor<3>, codes: &[Vec<u32>]) -> Tensor<2> {
    let [batch, length, _] = logits.dims();
    let codes: Vec<i32> = codes.iter().flatten().map(|&c| c as i32).collect();
    let codes = Tensor::<3, Int>::from_data(TensorData::new(codes, [batch, length, 1]), &logits.device());
    activation::log_softmax(logits, 2).gather(2, codes).neg().reshape([batch, length])
}

/// Half a level of an 8-bit picture between -1 and 1, as in the published code.
const HALF_BIN: f64 = 1.0 / 255.0;
/// A target beyond this belongs to the outermost bin.
const OUTERMOST: f64 = 0.999;
/// Smallest probability that a logarithm is taken of.
const SMALLEST_PROBABILITY: f64 = 1e-12;

/// Loss of the residual diffusion over the full schedule: the squared error of the predicted noise, and the variational bound in bits
/// a dimension, which teaches the variance alone. One number a token.
///
/// # Shapes
///
/// - target: `[1, N, Z]`, residuals divided by [`LATENT_SCALE`](crate::stages::LATENT_SCALE)
/// - condition: `[1, N, C]`, from [`Transformer::residual_condition`](crate::stages::Transformer::residual_condition)
/// - steps: N step numbers, 0 to 999
/// - noise: `[1, N, Z]`, normal
/// - output: `[1, N]`
pub fn diffusion_loss(mlp: &ResidualMlp, target: Tensor<3>, condition: Tensor<3>, steps: &[usize], noise: Tensor<3>) -> Tensor<2> {
    let device = target.device();
    let full = full_schedule();
    let column = |f: &dyn Fn(&DiffusionStep) -> f64| {
        let values = steps.iter().map(|&step| f(&full[step]) as f32).collect();
        kernels::tensor::<3>(values, [1, steps.len(), 1], &device)
    };
    let x = target.clone() * column(&|s| s.alpha_bar.sqrt()) + noise.clone() * column(&|s| (1.0 - s.alpha_bar).sqrt());
    let numbers: Vec<f32> = steps.iter().map(|&step| step as f32).collect();
    let (eps, variance) = mlp.forward(x.clone(), &numbers, mlp.embed_condition(condition));
    let squared_error = (noise - eps.clone()).powf_scalar(2.0).mean_dim(2);

    // The mean comes from the detached noise, and the signal is not clipped.
    let signal = x.clone() * column(&|s| (1.0 / s.alpha_bar).sqrt()) - eps.detach() * column(&|s| (1.0 / s.alpha_bar - 1.0).sqrt());
    let difference = (target.clone() - signal.clone()) * column(&|s| s.signal_factor);
    let log_beta = column(&|s| s.beta.ln());
    let log_posterior = column(&|s| s.log_posterior_variance);
    let share = (variance + 1.0) * 0.5;
    let log_variance = share * (log_beta - log_posterior.clone()) + log_posterior.clone();
    let ratio = log_variance.clone() - log_posterior;
    let divergence =
        (ratio.clone() + ratio.neg().exp() + difference.powf_scalar(2.0) * log_variance.clone().neg().exp() - 1.0) * 0.5;

    // At step 0 the target's own likelihood takes the divergence's place.
    let mean = signal * column(&|s| s.signal_factor) + x * column(&|s| s.sample_factor);
    let likelihood = log_likelihood(target, mean, log_variance);
    let is_first = column(&|s| f64::from(u8::from(s.number == 0)));
    let bound = divergence.mean_dim(2) * (is_first.clone() * -1.0 + 1.0) - likelihood.mean_dim(2) * is_first;
    (squared_error + bound / LN_2).squeeze_dim(2)
}

/// Logarithm of the probability that a Gaussian gives to a target's bin.
fn log_likelihood(target: Tensor<3>, mean: Tensor<3>, log_variance: Tensor<3>) -> Tensor<3> {
    let inverse = (log_variance * -0.5).exp();
    let centred = target.clone() - mean;
    let upper = normal_cdf(inverse.clone() * (centred.clone() + HALF_BIN));
    let lower = normal_cdf(inverse * (centred - HALF_BIN));
    let log = |probability: Tensor<3>| probability.clamp_min(SMALLEST_PROBABILITY).log();
    let inner = log(upper.clone() - lower.clone());
    let lowest = target.clone().lower_elem(-OUTERMOST);
    let highest = target.greater_elem(OUTERMOST);
    inner.mask_where(lowest, log(upper)).mask_where(highest, log(lower * -1.0 + 1.0))
}

/// The cumulative normal distribution, approximated by a tanh as in the published code.
fn normal_cdf(x: Tensor<3>) -> Tensor<3> {
    let cubic = x.clone() + x.powf_scalar(3.0) * 0.044_715;
    ((cubic * (2.0 / PI).sqrt()).tanh() + 1.0) * 0.5
}

fn full_schedule() -> Vec<DiffusionStep> {
    let every = Respacing::parse(&FULL_STEPS.to_string()).expect("all steps are a number of steps");
    schedule(&every)
}

/// Difference of pictures: absolute, squared, and that of neighbouring pixels' differences, which keeps edges sharp without a
/// pretrained network.
///
/// # Shapes
///
/// - got, want: `[B, 3, H, W]`, values -1 to 1
/// - output: `[1]`
pub fn reconstruction_loss(got: Tensor<4>, want: Tensor<4>, edge_weight: f64) -> Tensor<1> {
    let difference = got - want;
    let [_, _, height, width] = difference.dims();
    let along = |dim: usize, length: usize| {
        let next = difference.clone().narrow(dim, 1, length - 1);
        (next - difference.clone().narrow(dim, 0, length - 1)).abs().mean()
    };
    let edges = along(2, height) + along(3, width);
    difference.clone().abs().mean() + difference.clone().powf_scalar(2.0).mean() + edges * edge_weight
}
