//! Residual diffusion: a small MLP that samples, in a few denoising steps, the residuals of the last scale: the differences between
//! its continuous and its discrete tokens (spec section 4).
//!
//! Letters in shapes: B images; R rows of a batch, conditional rows first; L tokens of the last scale; C channels of the transformer; Z
//! channels of the latent.

mod mlp;

pub use mlp::ResidualMlp;

use burn::module::Module;
use burn::prelude::*;
use rayon::prelude::*;

use crate::config::Config;
use crate::error::Result;
use crate::kernels;
use crate::progress::{Progress, Step};
use crate::rng::{RandomKey, RandomSource, Stream};
use crate::schedule::{Respacing, schedule};

/// Divisor of residuals in the diffusion.
pub const LATENT_SCALE: f64 = 0.6;

/// The guidance at which the published sampler takes its unguided branch.
const UNGUIDED: f64 = 1.0;

/// Residuals of the last scale's tokens, `[B, L, Z]`.
#[derive(Clone, Debug)]
pub struct Residual(pub Tensor<3>);

/// The residual diffusion.
#[derive(Module, Debug)]
pub struct ResidualDiffusion {
    mlp: ResidualMlp,
}

impl ResidualDiffusion {
    /// Creates the diffusion with weights that are yet to be loaded.
    pub fn init(config: &Config, device: &Device) -> Self {
        Self { mlp: ResidualMlp::init(config, device) }
    }

    /// Returns the denoising MLP.
    pub fn mlp(&self) -> &ResidualMlp {
        &self.mlp
    }

    /// Estimates the multiply-adds of one token over all steps, for progress.
    pub(crate) fn work_per_token(&self, steps: usize) -> f64 {
        (self.mlp.num_params() * steps) as f64
    }

    /// Samples the residuals of the last scale. Guidance mixes the predicted noise of both halves. The variance comes from the conditional
    /// half, the only one that is sampled. Without guidance there is only this half.
    ///
    /// # Shapes
    ///
    /// - condition: `[2B, L, C]`, conditional rows first, or `[B, L, C]` without guidance
    /// - output: `[B, L, Z]`
    ///
    /// # Errors
    ///
    /// [`Error::Cancelled`](crate::Error::Cancelled).
    pub fn sample(
        &self,
        condition: Tensor<3>,
        guidance: Option<f64>,
        respacing: &Respacing,
        noise: &Noise<'_>,
        progress: &mut Progress<'_>,
    ) -> Result<Residual> {
        let device = condition.device();
        let [rows, length, _] = condition.dims();
        let (batch, channels) = (if guidance.is_some() { rows / 2 } else { rows }, self.mlp.channels());
        let steps = schedule(respacing);
        let guidance = guidance.filter(|guidance| *guidance != UNGUIDED);
        let condition = if guidance.is_some() { condition } else { condition.narrow(0, 0, batch) };
        let condition = self.mlp.embed_condition(condition);
        let shape = [batch, length, channels];

        let mut x = noise.initial(shape, &device);
        for (taken, step) in steps.iter().rev().enumerate() {
            let input = if guidance.is_some() { Tensor::cat(vec![x.clone(), x.clone()], 0) } else { x.clone() };
            let (eps, variance) = self.mlp.forward(input, &[step.timestep as f32], condition.clone());
            let eps = match guidance {
                Some(t) => eps.clone().narrow(0, 0, batch) * (1.0 + t) - eps.narrow(0, batch, batch) * t,
                None => eps,
            };
            // Predict x_0 and clip it, then step to the mean of the posterior.
            let signal = (x.clone() * (1.0 / step.alpha_bar).sqrt() - eps * (1.0 / step.alpha_bar - 1.0).sqrt()).clamp(-1.0, 1.0);
            x = signal * step.signal_factor + x * step.sample_factor;
            let is_final = taken + 1 == steps.len();
            if !is_final {
                // (v + 1) / 2 interpolates the log-variance between that of the posterior (0) and log beta (1).
                let fraction = (variance.narrow(0, 0, batch) + 1.0) * 0.5;
                let log_variance = fraction * (step.beta.ln() - step.log_posterior_variance) + step.log_posterior_variance;
                let step_noise = noise.step(taken, shape, &device);
                x = x + kernels::exp(log_variance * 0.5) * step_noise;
            }
            let work = self.work_per_token(1) * (rows * length) as f64;
            progress.report(Step::Diffusion { step: taken + 1, steps: steps.len() }, work)?;
        }
        Ok(Residual(x * LATENT_SCALE))
    }
}

/// The normal noise of a run.
pub struct Noise<'a> {
    /// Source of the noise.
    pub random: &'a dyn RandomSource,
    /// Index of the last scale, from 0.
    pub scale: usize,
}

impl Noise<'_> {
    /// Draws the noise that the diffusion starts from, `[B, L, Z]`.
    fn initial(&self, shape: [usize; 3], device: &Device) -> Tensor<3> {
        if let Some(seeds) = self.random.seeds()
            && let Some(noise) = kernels::normals(&Stream::initial_noise(seeds, self.scale), shape, device)
        {
            return noise;
        }
        self.on_host(shape, &|key, out| self.random.initial_noise(key, out), device)
    }

    /// Draws the noise that is added after a step, `[B, L, Z]`.
    fn step(&self, taken: usize, shape: [usize; 3], device: &Device) -> Tensor<3> {
        if let Some(seeds) = self.random.seeds()
            && let Some(noise) = kernels::normals(&Stream::step_noise(seeds, self.scale, taken), shape, device)
        {
            return noise;
        }
        self.on_host(shape, &|key, out| self.random.step_noise(key, taken, out), device)
    }

    /// Draws noise `[B, L, Z]` on the host, token by token.
    fn on_host(
        &self,
        [batch, length, channels]: [usize; 3],
        fill: &(dyn Fn(RandomKey, &mut [f32]) + Sync),
        device: &Device,
    ) -> Tensor<3> {
        let mut values = vec![0.0; batch * length * channels];
        values.par_chunks_mut(channels).enumerate().for_each(|(token, out)| {
            fill(RandomKey { image: token / length, scale: self.scale, position: token % length }, out);
        });
        kernels::tensor(values, [batch, length, channels], device)
    }
}
