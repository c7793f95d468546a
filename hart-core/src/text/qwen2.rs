//! The Qwen2 decoder as a text encoder: hidden states after the final norm, without a language-model head (spec section 1).

use burn::module::Module;
use burn::nn::{Embedding, EmbeddingConfig, RmsNorm, RmsNormConfig};
use burn::prelude::*;

use super::{Context, Tokens};
use crate::config::TextConfig;
use crate::error::Result;
use crate::kernels;
use crate::nn::{self, Linear, LinearConfig, RotaryEmbedding};
use crate::progress::{Progress, Step};

/// Grouped-query attention.
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

    /// Computes the attention of all tokens to each other.
    ///
    /// # Shapes
    ///
    /// - x, output: `[B, L, D]`
    /// - bias: `[B, 1, L, L]`, added to the scores
    fn forward(&self, x: Tensor<3>, rotation: &RotaryEmbedding, bias: Tensor<4>) -> Tensor<3> {
        let [batch, length, _] = x.dims();
        let heads = |t: Tensor<3>| {
            let count = t.dims()[2] / self.head_dim;
            t.reshape([batch, length, count, self.head_dim]).swap_dims(1, 2) // [batch, heads, tokens, head_dim]
        };
        let query = kernels::rotate(heads(self.query.forward_to_f32(x.clone())), rotation.tables());
        let key = kernels::rotate(heads(self.key.forward_to_f32(x.clone())), rotation.tables());
        let value = heads(self.value.forward_to_f32(x));
        let scale = 1.0 / (self.head_dim as f64).sqrt();
        let attended = kernels::attention(query, key, value, Some(&bias), scale);
        // Merge heads.
        let [_, count, ..] = attended.dims();
        let attended = attended.swap_dims(1, 2).reshape([batch, length, count * self.head_dim]); // [batch, tokens, heads * head_dim]
        self.output.forward(attended)
    }
}

/// A decoder layer.
#[derive(Module, Debug)]
struct Layer {
    attention_norm: RmsNorm,
    attention: Attention,
    feed_forward_norm: RmsNorm,
    feed_forward: nn::SwiGlu,
}

/// The Qwen2 decoder.
#[derive(Module, Debug)]
pub struct Qwen2 {
    embedding: Embedding,
    layers: Vec<Layer>,
    norm: RmsNorm,
    #[module(skip)]
    rope: RopeConfig,
}

/// Sizes of the rotary embedding.
#[derive(Clone, Debug)]
struct RopeConfig {
    head_dim: usize,
    theta: f64,
}

impl Qwen2 {
    /// Creates the decoder with weights that are yet to be loaded.
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
            rope: RopeConfig { head_dim: config.head_dim, theta: config.rope_theta },
        }
    }

    /// Estimates the multiply-adds of one row, for progress.
    pub(crate) fn work(&self, length: usize) -> f64 {
        let per_layer: usize = self.layers.first().map_or(0, |l| l.attention.num_params() + l.feed_forward.num_params());
        (per_layer * self.layers.len() * length) as f64
    }

    /// Encodes token rows. Padding is encoded too, because HART attends to it.
    ///
    /// # Shapes
    ///
    /// - tokens: B rows of T ids, and the ids of a system prompt
    /// - output: `[B, T, D]`, without the system prompt
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
        let bias = causal_bias(tokens, &device);
        let positions: Vec<f32> = (0..length).map(|p| p as f32).collect();
        let rotation = RotaryEmbedding::sequence(&[positions], self.rope.head_dim, self.rope.theta, &device);

        let mut x = kernels::to_f32(self.embedding.forward(ids)); // [batch, tokens, channels]
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

/// Returns the score bias `[B, 1, L, L]` that masks later tokens and padding: 0 for a visible key, the most negative float for any
/// other. A query without visible keys (left padding without a system prompt) averages all L values, as in the published encoder.
fn causal_bias(tokens: &Tokens, device: &Device) -> Tensor<4> {
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use safetensors::tensor::{Dtype, TensorView};

    use super::*;
    use crate::device::Precision;
    use crate::weights::{Checkpoint, Loader, TEXT, names_and_shapes};

    const HIDDEN: usize = 1024;
    /// Channels of the planted outliers.
    const OUTLIERS: [usize; 3] = [5, 77, 500];

    fn config() -> TextConfig {
        TextConfig {
            hidden_size: HIDDEN,
            intermediate_size: 2048,
            num_layers: 2,
            num_heads: 16,
            num_kv_heads: 2,
            head_dim: 64,
            vocab_size: 100,
            rms_norm_eps: 1e-6,
            rope_theta: 1e6,
        }
    }

    /// Returns normal values with this standard deviation.
    fn normals(count: usize, deviation: f32, state: &mut u64) -> Vec<f32> {
        let mut uniform = || {
            *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (*state >> 40) as f32 / (1 << 24) as f32 - 0.5
        };
        (0..count).map(|_| (0..12).map(|_| uniform()).sum::<f32>() * deviation).collect()
    }

    /// Returns a checkpoint of random weights. With `outliers`, the norms before the linear layers enlarge some channels a hundred
    /// times. The weights of these channels are small, as in trained models.
    fn checkpoint(config: &TextConfig, outliers: bool) -> Checkpoint {
        let mut state = 1;
        let tensors = names_and_shapes(&Qwen2::init(config, &Device::flex()), &TEXT, "", |names| names.into_iter().next());
        let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
            .into_iter()
            .map(|(name, shape)| {
                let count = shape.iter().product();
                let mut values = match shape[..] {
                    _ if name.contains("norm") => vec![1.0; count],
                    [_, inputs] if !name.contains("embed") => normals(count, (inputs as f32).sqrt().recip(), &mut state),
                    _ => normals(count, 1.0, &mut state),
                };
                let reads_norm = ["q_proj.weight", "k_proj.weight", "v_proj.weight", "gate_proj.weight", "up_proj.weight"];
                for channel in OUTLIERS.into_iter().filter(|_| outliers) {
                    if name.contains("layernorm") {
                        values[channel] = 100.0;
                    } else if reads_norm.iter().any(|end| name.ends_with(end)) {
                        values.chunks_mut(HIDDEN).for_each(|row| row[channel] *= 0.2);
                    }
                }
                (name, shape, values.into_iter().flat_map(f32::to_le_bytes).collect())
            })
            .collect();
        let views = tensors.iter().map(|(name, shape, bytes)| (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
        Checkpoint::from_safetensors(Path::new("random"), safetensors::serialize(views, None).unwrap()).unwrap()
    }

    /// Returns the hidden states of one row of tokens, `[tokens][HIDDEN]`.
    fn encode(checkpoint: &Checkpoint, config: &TextConfig, precision: Precision) -> Vec<f32> {
        let mut loader = Loader::new(checkpoint, &TEXT).with_precision(precision);
        let encoder = loader.load(Qwen2::init(config, &Device::flex()), "", &Device::flex()).unwrap();
        loader.finish(true).unwrap();
        let ids = vec![(0..24).map(|i| i * 37 % 100).collect::<Vec<u32>>()];
        let tokens = Tokens {
            mask: vec![vec![true; ids[0].len()]],
            positions: vec![(0..ids[0].len() as i64).collect()],
            ids,
            system: vec![],
            truncated: vec![],
        };
        kernels::values(encoder.forward(&tokens, &mut Progress::silent()).unwrap().hidden)
    }

    /// Compares the two hidden states of every token and returns the smallest cosine.
    fn least_cosine(got: &[f32], want: &[f32]) -> f64 {
        let cosine = |(a, b): (&[f32], &[f32])| {
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
            dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
        };
        got.chunks(HIDDEN).zip(want.chunks(HIDDEN)).map(cosine).fold(f64::INFINITY, f64::min)
    }

    #[test]
    fn low_precision_is_close_with_very_large_activations_too() {
        let config = config();
        for outliers in [false, true] {
            let checkpoint = checkpoint(&config, outliers);
            let want = encode(&checkpoint, &config, Precision::F32);
            // The outliers magnify the rounding of their own weights, which are small compared with the others of their row.
            let int8 = if outliers { 0.998 } else { 0.9995 };
            for (precision, least) in [(Precision::Bf16, 0.9999), (Precision::Int8, int8)] {
                let cosine = least_cosine(&encode(&checkpoint, &config, precision), &want);
                assert!(cosine >= least, "{precision}, outliers {outliers}: {cosine}");
            }
        }
    }
}
