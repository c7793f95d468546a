//! Self-attention of a block (spec section 3).

use burn::module::{Initializer, Module, Param};
use burn::prelude::*;

use super::state::Extend;
use crate::config::TransformerConfig;
use crate::kernels::{self, Linear, LinearConfig, Rotation};

/// Softmax scale of the published code, times 1/sqrt(d), where queries and keys are not normalised.
const SOFTMAX_FACTOR: f64 = 0.25;
/// Most that a head's learned scale may multiply by.
const MAX_SCALE: f32 = 100.0;
/// Smallest norm that L2 normalisation divides by, PyTorch's default.
const SMALLEST_NORM: f32 = 1e-12;

/// Queries, keys and values from one product; queries and values have a bias, keys have none.
#[derive(Module, Debug)]
pub(super) struct Attention {
    qkv: Linear,
    query_bias: Param<Tensor<1>>,
    value_bias: Param<Tensor<1>>,
    /// Logarithm of each head's scale `[1, H, 1, 1]`, with normalised queries and keys only.
    log_scale: Option<Param<Tensor<4>>>,
    output: Linear,
    #[module(skip)]
    num_heads: usize,
}

impl Attention {
    pub(super) fn init(config: &TransformerConfig, device: &Device) -> Self {
        let width = config.embed_dim;
        Self {
            qkv: LinearConfig::new(width, 3 * width).with_bias(false).init(device),
            query_bias: Initializer::Zeros.init([width], device),
            value_bias: Initializer::Zeros.init([width], device),
            log_scale: config.attn_l2_norm.then(|| {
                let value = 4f64.ln();
                Initializer::Constant { value }.init([1, config.num_heads, 1, 1], device)
            }),
            output: LinearConfig::new(width, width).init(device),
            num_heads: config.num_heads,
        }
    }

    /// The layers whose products may be computed in a lower precision.
    pub(super) fn packable(&mut self) -> [(&'static str, &mut Linear); 2] {
        [("qkv", &mut self.qkv), ("output", &mut self.output)]
    }

    #[cfg(feature = "train")]
    pub(super) fn for_training(mut self) -> Self {
        if self.log_scale.is_none() {
            let longer = 1.0 / SOFTMAX_FACTOR.sqrt();
            self.qkv.weight = self.qkv.weight.map(|w| {
                let [width, _] = w.dims();
                Tensor::cat(vec![w.clone().narrow(1, 0, 2 * width) * longer, w.narrow(1, 2 * width, width)], 1)
            });
        }
        self
    }

    /// # Shapes
    ///
    /// - x: `[R, L, C]`
    /// - bias: broadcast to `[R, H, L, keys]`
    /// - output: `[R, L, C]`
    pub(super) fn forward(&self, x: Tensor<3>, rotation: &Rotation, cache: Extend<'_>, bias: Option<Tensor<4>>) -> Tensor<3> {
        let [rows, length, width] = x.dims();
        let head_dim = width / self.num_heads;
        let key_bias = self.query_bias.val().zeros_like();
        let biases = Tensor::cat(vec![self.query_bias.val(), key_bias, self.value_bias.val()], 0);
        let qkv = kernels::linear(x, &self.qkv) + biases.unsqueeze();
        let part = |index: usize| {
            let part = qkv.clone().narrow(2, index * width, width);
            part.reshape([rows, length, self.num_heads, head_dim]).swap_dims(1, 2) // [rows, heads, seq, dim]
        };
        let (mut query, mut key, value) = (part(0), part(1), part(2));
        let mut scale = SOFTMAX_FACTOR / (head_dim as f64).sqrt();
        if let Some(log_scale) = &self.log_scale {
            query = l2_norm(query) * log_scale.val().clamp_max(MAX_SCALE.ln()).exp();
            key = l2_norm(key);
            scale = 1.0;
        }
        let (query, key) = (rotation.apply(query), rotation.apply(key));
        let (key, value) = cache.with(key, value);
        let mixed = kernels::attention(query, key, value, bias, scale);
        kernels::linear(mixed.swap_dims(1, 2).reshape([rows, length, width]), &self.output) // [rows, seq, channels]
    }
}

fn l2_norm(x: Tensor<4>) -> Tensor<4> {
    let norm = x.clone().powf_scalar(2.0).sum_dim(3).sqrt().clamp_min(SMALLEST_NORM);
    x / norm
}
