//! Self-attention of a block (spec section 3).

use burn::module::{Initializer, Module, Param};
use burn::prelude::*;

use super::pruning::BlockTokens;
use crate::config::TransformerConfig;
use crate::device::Precision;
use crate::kernels::{self, AttentionParams, KvAppend, KvStore};
use crate::nn::{Linear, LinearConfig};

/// Factor that the published code applies to the scores, in addition to `1 / sqrt(head_dim)`, if queries and keys are not
/// normalised.
pub(crate) const SOFTMAX_FACTOR: f64 = 0.25;
/// Upper limit of a head's learned scale.
const MAX_SCALE: f32 = 100.0;

/// Multi-head self-attention. One product gives queries, keys and values; keys have no bias.
#[derive(Module, Debug)]
pub(crate) struct Attention {
    /// `[C, 3 C]`: queries, keys, values.
    pub(crate) qkv: Linear,
    query_bias: Param<Tensor<1>>,
    value_bias: Param<Tensor<1>>,
    /// Logarithm of each head's learned scale, `[1, H, 1, 1]`; `None` if queries and keys are not normalised.
    pub(crate) log_scale: Option<Param<Tensor<4>>>,
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

    /// Creates an empty store of keys and values; later scales attend to at most `capacity` tokens of a row.
    pub(super) fn kv_store(&self, capacity: usize) -> KvStore {
        KvStore::new(self.precision(), capacity)
    }

    /// Returns the precision in which the values of tokens are stored from scale to scale.
    pub(super) fn precision(&self) -> Precision {
        self.qkv.precision()
    }

    /// Computes the attention of new tokens to themselves and to the cached ones. `bias` is added to the scores.
    ///
    /// # Shapes
    ///
    /// - x, output: `[R, L, C]`, or the tokens of all groups `[1, N, C]`
    /// - bias: broadcast to `[R, H, L, keys]`
    pub(super) fn forward(&self, x: Tensor<3>, tokens: &BlockTokens, kv: KvAppend<'_>, bias: Option<&Tensor<4>>) -> Tensor<3> {
        let head_dim = x.dims()[2] / self.num_heads;
        let norms = self.log_scale.as_ref().map(|log_scale| kernels::exp(log_scale.val().clamp_max(MAX_SCALE.ln())));
        let params = AttentionParams {
            heads: self.num_heads,
            query_bias: self.query_bias.val(),
            value_bias: self.value_bias.val(),
            scale: if norms.is_some() { 1.0 } else { SOFTMAX_FACTOR / (head_dim as f64).sqrt() },
            norms,
        };
        let attended = kernels::self_attention(self.qkv.forward(x), &params, tokens.rotation.tables(), &tokens.groups, kv, bias);
        self.output.forward(attended)
    }
}
