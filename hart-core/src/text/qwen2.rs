//! The Qwen2 decoder, used as a text encoder: hidden states after the final norm, no language-model head (spec section 1).

use burn::module::Module;
use burn::nn::{Embedding, EmbeddingConfig, RmsNorm, RmsNormConfig};
use burn::prelude::*;

use super::{Context, Tokens};
use crate::config::TextConfig;
use crate::error::Result;
use crate::kernels;
use crate::nn::{self, Linear, LinearConfig, RotaryEmbedding};
use crate::progress::{Progress, Step};

/// Grouped-query self-attention.
#[derive(Module, Debug)]
struct Attention {
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    #[module(skip)]
    head_dim: usize,
}

impl Attention {
    fn init(config: &TextConfig, device: &Device) -> Self {
        let (hidden, head_dim) = (config.hidden_size, config.head_dim);
        let linear = |from, to, bias| LinearConfig::new(from, to).with_bias(bias).init(device);
        Self {
            query: linear(hidden, config.num_heads * head_dim, true),
            key: linear(hidden, config.num_kv_heads * head_dim, true),
            value: linear(hidden, config.num_kv_heads * head_dim, true),
            output: linear(config.num_heads * head_dim, hidden, false),
            head_dim,
        }
    }

    /// # Shapes
    ///
    /// - x: `[B, L, D]`
    /// - bias: `[B, 1, L, L]`, added to the scores
    /// - output: `[B, L, D]`
    fn forward(&self, x: Tensor<3>, rotation: &RotaryEmbedding, bias: Tensor<4>) -> Tensor<3> {
        let [batch, length, _] = x.dims();
        let heads = |t: Tensor<3>| {
            let count = t.dims()[2] / self.head_dim;
            t.reshape([batch, length, count, self.head_dim]).swap_dims(1, 2) // [batch, heads, seq, dim]
        };
        let query = kernels::rotate(heads(self.query.forward_to_f32(x.clone())), rotation.tables());
        let key = kernels::rotate(heads(self.key.forward_to_f32(x.clone())), rotation.tables());
        let value = heads(self.value.forward_to_f32(x));
        let scale = 1.0 / (self.head_dim as f64).sqrt();
        let mixed = kernels::attention(query, key, value, Some(&bias), scale);
        let [_, count, ..] = mixed.dims();
        let mixed = mixed.swap_dims(1, 2).reshape([batch, length, count * self.head_dim]); // [batch, seq, heads * dim]
        self.output.forward(mixed)
    }
}

/// One decoder layer.
#[derive(Module, Debug)]
struct Layer {
    attention_norm: RmsNorm,
    attention: Attention,
    feed_forward_norm: RmsNorm,
    feed_forward: nn::SwiGlu,
}

/// The decoder stack.
#[derive(Module, Debug)]
pub struct Qwen2 {
    embedding: Embedding,
    layers: Vec<Layer>,
    norm: RmsNorm,
    #[module(skip)]
    config: Skipped,
}

/// What the forward pass needs of the configuration.
#[derive(Clone, Debug)]
struct Skipped {
    head_dim: usize,
    rope_theta: f64,
}

impl Qwen2 {
    /// The stack with weights that are yet to be loaded.
    pub fn init(config: &TextConfig, device: &Device) -> Self {
        let norm = || RmsNormConfig::new(config.hidden_size).with_epsilon(config.rms_norm_eps).init(device);
        let layer = |_| Layer {
            attention_norm: norm(),
            attention: Attention::init(config, device),
            feed_forward_norm: norm(),
            feed_forward: nn::SwiGlu::init(config.hidden_size, config.intermediate_size, device),
        };
        Self {
            embedding: EmbeddingConfig::new(config.vocab_size, config.hidden_size).init(device),
            layers: (0..config.num_layers).map(layer).collect(),
            norm: norm(),
            config: Skipped { head_dim: config.head_dim, rope_theta: config.rope_theta },
        }
    }

    /// Cost of one row, in multiply-adds of the linear layers; for progress.
    pub(crate) fn work(&self, length: usize) -> f64 {
        let per_layer: usize = self.layers.first().map_or(0, |l| l.attention.num_params() + l.feed_forward.num_params());
        (per_layer * self.layers.len() * length) as f64
    }

    /// Prompts to context. Padding places are encoded too, since HART attends to them.
    ///
    /// # Shapes
    ///
    /// - tokens: B rows of T ids, a system prompt of P ids
    /// - output: `[B, T, D]`
    ///
    /// # Errors
    ///
    /// [`Error::Cancelled`](crate::Error::Cancelled).
    pub fn forward(&self, tokens: &Tokens, progress: &mut Progress<'_>) -> Result<Context> {
        let device = self.embedding.weight.lazy_device();
        let (rows, system) = (tokens.ids.len(), tokens.system.len());
        let length = system + tokens.ids.first().map_or(0, Vec::len);
        let ids: Vec<i32> = tokens.ids.iter().flat_map(|row| tokens.system.iter().chain(row)).map(|&id| id as i32).collect();
        let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [rows, length]), &device);
        let bias = visibility(tokens, &device);
        let positions: Vec<f32> = (0..length).map(|p| p as f32).collect();
        let rotation = RotaryEmbedding::sequence(&[positions], self.config.head_dim, self.config.rope_theta, &device);

        let mut x = self.embedding.forward(ids); // [batch, seq, hidden]
        for (index, layer) in self.layers.iter().enumerate() {
            let normed = nn::rms_norm(x.clone(), &layer.attention_norm, None);
            x = kernels::add_gated(x, layer.attention.forward(normed, &rotation, bias.clone()), None);
            let normed = nn::rms_norm(x.clone(), &layer.feed_forward_norm, None);
            x = kernels::add_gated(x, layer.feed_forward.forward(normed), None);
            let step = Step::TextLayer { layer: index + 1, layers: self.layers.len() };
            progress.report(step, self.work(length) * rows as f64 / self.layers.len() as f64)?;
        }
        let hidden = nn::rms_norm(x, &self.norm, None).narrow(1, system, length - system);
        Ok(Context { hidden, mask: tokens.mask.clone(), positions: tokens.positions.clone(), unconditional: 0 })
    }
}

/// Score bias `[B, 1, L, L]`: 0 where a place may look, the most negative float elsewhere. A place that may look nowhere (left
/// padding without a system prompt) so averages all L values, as adding that number to every score does in the published encoder.
fn visibility(tokens: &Tokens, device: &Device) -> Tensor<4> {
    let (rows, system) = (tokens.ids.len(), tokens.system.len());
    let length = system + tokens.mask.first().map_or(0, Vec::len);
    let mut bias = vec![f32::MIN; rows * length * length];
    for (row, mask) in tokens.mask.iter().enumerate() {
        for query in 0..length {
            for key in 0..=query {
                if key < system || mask[key - system] {
                    bias[(row * length + query) * length + key] = 0.0;
                }
            }
        }
    }
    kernels::tensor(bias, [rows, 1, length, length], device)
}
