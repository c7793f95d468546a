//! Training losses (spec section 7).

use std::f64::consts::{LN_2, PI};

use burn::prelude::*;
use burn::tensor::activation;

use crate::kernels;
use crate::schedule::{DiffusionStep, FULL_STEPS, Respacing, schedule};
use crate::stages::ResidualMlp;

/// Returns the cross-entropy of each token's code.
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
    activation::log_softmax(logits, 2).gather(2, codes).neg().reshape([batch, length]) // [B, L]
}

/// Half the width of a bin of the discretized likelihood: half a level of an 8-bit image in [-1, 1], as in the published code.
const HALF_BIN: f64 = 1.0 / 255.0;
/// Targets with a larger absolute value belong to the outermost bins.
const OUTERMOST: f64 = 0.999;
/// Lower bound of probabilities before a logarithm.
const MIN_PROBABILITY: f64 = 1e-12;

/// Returns the residual diffusion's loss of each token over the full schedule: the squared error of the predicted noise plus the
/// variational bound in bits per dimension. The bound's gradient reaches only the variance (Nichol and Dhariwal, "Improved denoising
/// diffusion probabilistic models", 2021).
///
/// # Shapes
///
/// - target: `[1, N, Z]`, residuals divided by [`LATENT_SCALE`](crate::stages::LATENT_SCALE)
/// - condition: `[1, N, C]`, from [`Transformer::residual_condition`](crate::stages::Transformer::residual_condition)
/// - steps: `[N]`, 0 to 999
/// - noise: `[1, N, Z]`, standard normal
/// - output: `[1, N]`
pub fn diffusion_loss(mlp: &ResidualMlp, target: Tensor<3>, condition: Tensor<3>, steps: &[usize], noise: Tensor<3>) -> Tensor<2> {
    let device = target.device();
    let full = full_schedule();
    // A value of each token's step, `[1, N, 1]`.
    let of_step = |f: &dyn Fn(&DiffusionStep) -> f64| {
        let values = steps.iter().map(|&step| f(&full[step]) as f32).collect();
        kernels::tensor::<3>(values, [1, steps.len(), 1], &device)
    };
    // Add noise to the target.
    let x = target.clone() * of_step(&|s| s.alpha_bar.sqrt()) + noise.clone() * of_step(&|s| (1.0 - s.alpha_bar).sqrt());
    let step_numbers: Vec<f32> = steps.iter().map(|&step| step as f32).collect();
    let (eps, variance) = mlp.forward(x.clone(), &step_numbers, mlp.embed_condition(condition));
    let squared_error = (noise - eps.clone()).powf_scalar(2.0).mean_dim(2);

    // Variational bound. The mean uses the detached noise, and the predicted signal is not clipped.
    let signal =
        x.clone() * of_step(&|s| (1.0 / s.alpha_bar).sqrt()) - eps.detach() * of_step(&|s| (1.0 / s.alpha_bar - 1.0).sqrt());
    let difference = (target.clone() - signal.clone()) * of_step(&|s| s.signal_factor);
    let log_beta = of_step(&|s| s.beta.ln());
    let log_posterior = of_step(&|s| s.log_posterior_variance);
    let fraction = (variance + 1.0) * 0.5;
    let log_variance = fraction * (log_beta - log_posterior.clone()) + log_posterior.clone();
    let ratio = log_variance.clone() - log_posterior;
    let divergence =
        (ratio.clone() + ratio.neg().exp() + difference.powf_scalar(2.0) * log_variance.clone().neg().exp() - 1.0) * 0.5;

    // At step 0 the bound is the negative log-likelihood of the target.
    let mean = signal * of_step(&|s| s.signal_factor) + x * of_step(&|s| s.sample_factor);
    let likelihood = log_likelihood(target, mean, log_variance);
    let is_first = of_step(&|s| f64::from(u8::from(s.timestep == 0)));
    let bound = divergence.mean_dim(2) * (is_first.clone() * -1.0 + 1.0) - likelihood.mean_dim(2) * is_first;
    (squared_error + bound / LN_2).squeeze_dim(2)
}

/// Returns the log-likelihood of the target's bin under a discretized Gaussian.
fn log_likelihood(target: Tensor<3>, mean: Tensor<3>, log_variance: Tensor<3>) -> Tensor<3> {
    let inverse = (log_variance * -0.5).exp();
    let centered = target.clone() - mean;
    let upper = normal_cdf(inverse.clone() * (centered.clone() + HALF_BIN));
    let lower = normal_cdf(inverse * (centered - HALF_BIN));
    let log = |probability: Tensor<3>| probability.clamp_min(MIN_PROBABILITY).log();
    let inner = log(upper.clone() - lower.clone());
    let lowest = target.clone().lower_elem(-OUTERMOST);
    let highest = target.greater_elem(OUTERMOST);
    inner.mask_where(lowest, log(upper)).mask_where(highest, log(lower * -1.0 + 1.0))
}

/// Returns the standard normal cumulative distribution function, approximated by tanh as in the published code.
fn normal_cdf(x: Tensor<3>) -> Tensor<3> {
    let cubic = x.clone() + x.powf_scalar(3.0) * 0.044_715;
    ((cubic * (2.0 / PI).sqrt()).tanh() + 1.0) * 0.5
}

fn full_schedule() -> Vec<DiffusionStep> {
    let all_steps = Respacing::parse(&FULL_STEPS.to_string()).expect("the full number of steps is valid");
    schedule(&all_steps)
}

/// Returns the reconstruction loss of images: mean absolute error, mean squared error, and the weighted mean absolute error of the
/// image gradients. The last keeps edges sharp without the pretrained network of a perceptual loss.
///
/// # Shapes
///
/// - got, want: `[B, 3, H, W]`, values -1 to 1
/// - output: `[1]`
pub fn reconstruction_loss(got: Tensor<4>, want: Tensor<4>, edge_weight: f64) -> Tensor<1> {
    let difference = got - want;
    let [_, _, height, width] = difference.dims();
    // Mean absolute error of the differences between neighbouring pixels along one dimension.
    let gradient_error = |dim: usize, length: usize| {
        let next = difference.clone().narrow(dim, 1, length - 1);
        (next - difference.clone().narrow(dim, 0, length - 1)).abs().mean()
    };
    let edges = gradient_error(2, height) + gradient_error(3, width);
    difference.clone().abs().mean() + difference.clone().powf_scalar(2.0).mean() + edges * edge_weight
}
