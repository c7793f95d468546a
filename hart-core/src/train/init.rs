//! Initial weights for training, and the scale of trained latents.

use burn::module::{Module, ModuleMapper, Param};
use burn::prelude::*;

use crate::config::{Config, VisualConfig};
use crate::nn::Linear;
use crate::residual::ResidualDiffusion;
use crate::transformer::Transformer;
use crate::transformer::attention::{Attention, SOFTMAX_FACTOR};
use crate::transformer::block::Modulator;
use crate::visual::VisualTokenizer;
use crate::weights::is_field_below;

/// Returns a transformer with random weights.
pub(super) fn transformer(config: &Config, device: &Device) -> Transformer {
    let mut transformer = Transformer::init(config, device);
    for block in &mut transformer.blocks {
        if let Some(Modulator::Linear(layer)) = &mut block.modulator {
            init_modulator(layer);
        }
        scale_queries_and_keys(&mut block.attention);
    }
    transformer
}

/// Scales down the weights of a block's modulator and sets its bias to the identity: gates of one, scales and shifts of zero.
fn init_modulator(modulator: &mut Linear) {
    let width = modulator.weight.lazy_shape()[0];
    modulator.weight = modulator.weight.clone().map(|weight| weight * 0.1);
    modulator.bias = modulator.bias.clone().map(|bias| {
        bias.map(|bias| {
            let (gates, rest) = (bias.clone().narrow(0, 0, 2 * width), bias.narrow(0, 2 * width, 4 * width));
            Tensor::cat(vec![gates.ones_like(), rest.zeros_like()], 0) // [6 channels]
        })
    });
}

/// Scales up queries and keys that are not normalised, which compensates for the published softmax scale.
fn scale_queries_and_keys(attention: &mut Attention) {
    if attention.log_scale.is_some() {
        return;
    }
    let factor = 1.0 / SOFTMAX_FACTOR.sqrt();
    attention.qkv.weight = attention.qkv.weight.clone().map(|weight| {
        let [width, _] = weight.dims();
        let (queries_and_keys, values) = (weight.clone().narrow(1, 0, 2 * width), weight.narrow(1, 2 * width, width));
        Tensor::cat(vec![queries_and_keys * factor, values], 1) // [channels, 3 channels]
    });
}

/// Returns a residual diffusion with random weights, whose blocks change nothing and whose output is zero (Peebles and Xie, "Scalable
/// diffusion models with transformers", 2023).
pub(super) fn residual(config: &Config, device: &Device) -> ResidualDiffusion {
    let zeros = ["mlp.blocks.*.modulator", "mlp.final_modulator", "mlp.output"];
    scale_parameters(ResidualDiffusion::init(config, device), |field| {
        zeros.iter().any(|module| is_field_below(field, module)).then_some(0.0)
    })
}

/// Returns a visual tokenizer with random weights, whose residual branches add nothing: the last convolution of each is zero.
pub(super) fn visual_tokenizer(config: &VisualConfig, device: &Device) -> VisualTokenizer {
    scale_parameters(VisualTokenizer::init(config, device), |field| {
        field.split('.').any(|module| module == "conv2" || module == "proj_out").then_some(0.0)
    })
}

impl VisualTokenizer {
    /// Returns the same tokenizer with latents multiplied by a factor: the weights of layers that write latents are multiplied by
    /// it, those of layers that read latents are divided. Decoded images stay the same. Training ends with this, so that residuals
    /// have the range of the diffusion.
    pub fn with_scaled_latents(self, factor: f64) -> Self {
        scale_parameters(self, |field| match field {
            "post_quant_conv.weight" => Some(1.0 / factor),
            _ if is_field_below(field, "quant_conv") || is_field_below(field, "codebook.embedding") => Some(factor),
            _ if is_field_below(field, "codebook.phis.*.bias") => Some(factor),
            _ => None,
        })
    }
}

/// Multiplies parameters by the factors that `factor` returns for their fields.
fn scale_parameters<M: Module>(module: M, factor: impl Fn(&str) -> Option<f64>) -> M {
    struct Scale<F> {
        path: Vec<String>,
        factor: F,
    }
    impl<F: Fn(&str) -> Option<f64>> ModuleMapper for Scale<F> {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.path.push(name.to_string());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.pop();
        }
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            match (self.factor)(&self.path.join(".")) {
                Some(factor) => param.map(|values| values * factor),
                None => param,
            }
        }
    }
    module.map(&mut Scale { path: Vec::new(), factor })
}
