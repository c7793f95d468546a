//! The CPU strategy: updates each parameter separately, on all cores.

use burn::optim::decay::WeightDecayConfig;
use burn::optim::momentum::MomentumConfig;
use burn::optim::{AdamW, AdamWConfig, AdjustLrFn, Muon, MuonConfig, Optimizer};
use burn::prelude::*;
use rayon::prelude::*;

use super::options::OptimizerOptions;
use super::parameter::{BETA_1, EPSILON, MOMENTUM, OptimizerState, Parameter, StepOptions, flatten};
use crate::train::shards::read_scalars;

/// Burn's optimizers, applied to one parameter at a time.
pub(super) struct PerParameter {
    adam: AdamW,
    muon: Muon,
}

impl PerParameter {
    pub(super) fn new(options: OptimizerOptions) -> Self {
        let adam = AdamWConfig::new()
            .with_beta_1(BETA_1)
            .with_beta_2(options.beta_2)
            .with_epsilon(EPSILON)
            .with_weight_decay(options.weight_decay);
        // `update` applies the momentum: burn's Muon state cannot be saved by name.
        let muon = MuonConfig::new()
            .with_momentum(MomentumConfig { momentum: 0.0, dampening: 0.0, nesterov: false })
            .with_weight_decay(Some(WeightDecayConfig::new(options.weight_decay)))
            .with_adjust_lr_fn(AdjustLrFn::MatchRmsAdamW);
        Self { adam: adam.build(), muon: muon.build() }
    }

    /// Updates all parameters and returns the global norm of the gradients before clipping. For a parameter without a gradient, the
    /// average becomes its value.
    pub(super) fn step(&self, parameters: &mut Vec<Parameter>, gradients: Vec<Option<Tensor<1>>>, step: &StepOptions) -> f32 {
        let norm = global_norm(&gradients);
        let clip_factor = step.clip_factor(norm);
        let pairs: Vec<_> = std::mem::take(parameters).into_iter().zip(gradients).collect();
        let update = |(mut parameter, gradient): (Parameter, Option<Tensor<1>>)| {
            match gradient {
                Some(gradient) => self.update(&mut parameter, gradient * clip_factor, step),
                None => parameter.ema = parameter.value.clone(),
            }
            parameter
        };
        *parameters = pairs.into_par_iter().map(update).collect();
        norm
    }

    /// Updates one parameter by its clipped gradient, `[elements]`.
    fn update(&self, parameter: &mut Parameter, gradient: Tensor<1>, step: &StepOptions) {
        // Moved out, so that burn can update the buffers in place.
        let value = std::mem::replace(&mut parameter.value, Tensor::empty([0], &gradient.device()));
        let state = std::mem::replace(&mut parameter.state, OptimizerState::Empty);
        (parameter.value, parameter.state) = match parameter.matrix {
            Some(shape) => {
                let velocity = match state {
                    OptimizerState::Muon(velocity) => velocity * MOMENTUM + gradient.clone(),
                    _ => gradient.clone(),
                };
                // Nesterov momentum.
                let direction = (gradient + velocity.clone() * MOMENTUM).reshape(shape); // [rows, columns]
                let value = value.reshape(shape); // [rows, columns]
                let (value, _) = self.muon.step(step.learning_rate, value, direction, None);
                (flatten(value), OptimizerState::Muon(velocity))
            }
            None => {
                let moments = if let OptimizerState::AdamW(moments) = state { Some(moments) } else { None };
                let (value, moments) = self.adam.step(step.learning_rate, value, gradient, moments);
                (value, moments.map_or(OptimizerState::Empty, OptimizerState::AdamW))
            }
        };
        parameter.ema = parameter.ema.clone() * step.ema_decay + parameter.value.clone() * (1.0 - step.ema_decay);
    }
}

/// Returns the L2 norm of all gradients together.
fn global_norm(gradients: &[Option<Tensor<1>>]) -> f32 {
    let squares: Vec<Tensor<1>> = gradients.par_iter().filter_map(|gradient| Some(gradient.clone()?.square().sum())).collect();
    let squares = if squares.is_empty() { Vec::new() } else { read_scalars(squares) };
    squares.into_iter().map(f64::from).sum::<f64>().sqrt() as f32
}
