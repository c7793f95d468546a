//! A transformer block (spec section 3).

use burn::module::{Initializer, Module, Param};
use burn::nn::{RmsNorm, RmsNormConfig};
use burn::prelude::*;

use super::attention::Attention;
use super::pruning::{BlockTokens, BranchKind, Selection};
use crate::config::{ModulationKind, Pooling, TransformerConfig};
use crate::kernels::{self, KvAppend, KvStore, Modulation};
use crate::nn::{self, Linear, LinearConfig, SwiGlu};

/// The source of a block's six modulation vectors, in the checkpoint's order gamma1, gamma2, scale1, scale2, shift1, shift2.
#[derive(Module, Debug)]
pub(crate) enum Modulator {
    /// A linear layer of the pooled context.
    Linear(Linear),
    /// A learned table, added to the averaged context.
    Table(Table),
}

/// The table of [`Modulator::Table`].
#[derive(Module, Debug)]
pub(crate) struct Table {
    /// `[6, C]`.
    rows: Param<Tensor<2>>,
}

/// The modulation of a residual branch.
#[derive(Clone, Debug)]
pub(super) struct Branch {
    /// Scale and shift of the norm, `[R, 1, C]` each.
    norm: Modulation,
    /// Factor of the branch's output, `[R, 1, C]`.
    gate: Tensor<3>,
}

impl Branch {
    /// Returns the modulation of each token, `[1, N, C]`, from the row that it belongs to.
    pub(super) fn per_token(&self, rows: &Tensor<1, Int>) -> Self {
        let gather = |x: &Tensor<3>| x.clone().swap_dims(0, 1).select(1, rows.clone()); // [1, tokens, channels]
        let Modulation { scale, shift } = &self.norm;
        Self { norm: Modulation { scale: gather(scale), shift: gather(shift) }, gate: gather(&self.gate) }
    }
}

/// The modulation of the attention and the feed-forward branch; `None` if the model has none.
pub(super) type BlockModulation = Option<[Branch; 2]>;

/// A block: `x += attention(norm(x)); x += feed_forward(norm(x))`. The context may modulate the norms and gate both branches.
#[derive(Module, Debug)]
pub(crate) struct Block {
    /// The norm of both branches. The published code calls it `ln_wo_grad`; it has a weight nevertheless.
    norm: RmsNorm,
    pub(crate) attention: Attention,
    feed_forward: SwiGlu,
    pub(crate) modulator: Option<Modulator>,
    #[module(skip)]
    pooling: Pooling,
}

impl Block {
    pub(super) fn init(config: &TransformerConfig, device: &Device) -> Self {
        let width = config.embed_dim;
        let (modulator, pooling) = match config.modulation {
            ModulationKind::Off => (None, Pooling::Average),
            ModulationKind::Linear(pooling) => (Some(Modulator::Linear(LinearConfig::new(width, 6 * width).init(device))), pooling),
            ModulationKind::Table => {
                let rows = Initializer::Zeros.init([6, width], device);
                (Some(Modulator::Table(Table { rows })), Pooling::Average)
            }
        };
        Self {
            norm: RmsNormConfig::new(width).with_epsilon(config.norm_eps).init(device),
            attention: Attention::init(config, device),
            feed_forward: SwiGlu::init(width, config.feed_forward_dim, device),
            modulator,
            pooling,
        }
    }

    /// Creates an empty store of the attention's keys and values; later scales attend to at most `capacity` tokens of a row.
    pub(super) fn kv_store(&self, capacity: usize) -> KvStore {
        self.attention.kv_store(capacity)
    }

    /// Computes the modulation by the embedded context, which is the same for all scales of a run.
    ///
    /// # Shapes
    ///
    /// - context: `[R, T, C]`
    /// - mask: whether a token is text, `[R][T]`
    pub(super) fn modulation(&self, context: &Tensor<3>, mask: &[Vec<bool>]) -> BlockModulation {
        let modulator = self.modulator.as_ref()?;
        let pooled = match self.pooling {
            Pooling::Max => context.clone().max_dim(1), // [rows, 1, channels]
            Pooling::Average => masked_average(context.clone(), mask),
        };
        let vectors = match modulator {
            Modulator::Linear(linear) => linear.forward(kernels::silu(pooled)), // [rows, 1, 6 channels]
            Modulator::Table(table) => {
                let [rows, _, width] = pooled.dims();
                let vectors = table.rows.val().unsqueeze::<3>() + pooled; // [rows, 6, channels]
                vectors.reshape([rows, 1, 6 * width]) // [rows, 1, 6 channels]
            }
        };
        let width = vectors.dims()[2] / 6;
        let part = |index: usize| vectors.clone().narrow(2, index * width, width); // [rows, 1, channels]
        let branch = |i: usize| Branch { gate: part(i), norm: Modulation { scale: part(2 + i), shift: part(4 + i) } };
        Some([branch(0), branch(1)])
    }

    /// Runs new tokens through the block. `bias` is added to the scores of the attention. The branches compute the selected tokens.
    ///
    /// # Shapes
    ///
    /// - x, output: `[R, L, C]`, or the tokens of all groups `[1, N, C]`
    /// - bias: broadcast to `[R, H, L, keys]`
    pub(super) fn forward(
        &self,
        x: Tensor<3>,
        tokens: &BlockTokens,
        modulation: &BlockModulation,
        kv: KvAppend<'_>,
        bias: Option<&Tensor<4>>,
        mut selection: Selection<'_>,
    ) -> Tensor<3> {
        let (attention, feed_forward) = match modulation {
            Some([attention, feed_forward]) => (Some(attention), Some(feed_forward)),
            None => (None, None),
        };
        let selected = selection.select(BranchKind::Attention, &x);
        let normed = nn::rms_norm(selected, &self.norm, attention.map(|branch| &branch.norm));
        let y = self.attention.forward(normed, &selection.tokens(tokens), kv, bias);
        let gate = attention.map(|branch| &branch.gate);
        let (x, normed) = if selection.is_all() {
            selection.store(BranchKind::Attention, &y, gate);
            nn::add_norm(x, y, &self.norm, gate.zip(feed_forward.map(|branch| &branch.norm)))
        } else {
            let x = selection.add(BranchKind::Attention, x, y, gate);
            let selected = selection.select(BranchKind::FeedForward, &x);
            let normed = nn::rms_norm(selected, &self.norm, feed_forward.map(|branch| &branch.norm));
            (x, normed)
        };
        let y = self.feed_forward.forward(normed);
        selection.add(BranchKind::FeedForward, x, y, feed_forward.map(|branch| &branch.gate))
    }
}

/// Returns the average over the text tokens of each row, `[R, 1, C]`; zero for a row without text.
fn masked_average(context: Tensor<3>, mask: &[Vec<bool>]) -> Tensor<3> {
    let (rows, length) = (mask.len(), mask[0].len());
    let weights = mask.iter().flat_map(|row| {
        let count = row.iter().filter(|&&is_text| is_text).count().max(1);
        row.iter().map(move |&is_text| if is_text { 1.0 / count as f32 } else { 0.0 })
    });
    let weights = kernels::tensor(weights.collect(), [rows, length, 1], &context.device());
    (context * weights).sum_dim(1) // [rows, 1, channels]
}
