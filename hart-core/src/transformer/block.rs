//! A transformer block (spec section 3).

use burn::module::{Initializer, Module, Param};
use burn::nn::{RmsNorm, RmsNormConfig};
use burn::prelude::*;

use super::attention::Attention;
use crate::config::{ModulationKind, Pooling, TransformerConfig};
use crate::kernels::{self, KvAppend, KvStore, Modulation, RowGroup};
use crate::nn::{self, Linear, LinearConfig, RotaryEmbedding, SwiGlu};

/// What modulates a block: its six vectors in the checkpoint's order gamma1, gamma2, scale1, scale2, shift1, shift2.
#[derive(Module, Debug)]
pub(crate) enum Modulator {
    /// A linear layer of the pooled context.
    Linear(Linear),
    /// A table `[6, C]`, added to the averaged context.
    Table(Table),
}

#[derive(Module, Debug)]
pub(crate) struct Table {
    rows: Param<Tensor<2>>,
}

/// One branch's norm modulation and its gate.
#[derive(Clone, Debug)]
pub(super) struct Branch {
    norm: Modulation,
    gate: Tensor<3>,
}

impl Branch {
    /// The same for tokens of the given rows, `[1, N, C]`.
    pub(super) fn of_tokens(&self, rows: &Tensor<1, Int>) -> Self {
        let of = |x: &Tensor<3>| x.clone().swap_dims(0, 1).select(1, rows.clone());
        let Modulation { scale, shift } = &self.norm;
        Self { norm: Modulation { scale: of(scale), shift: of(shift) }, gate: of(&self.gate) }
    }
}

/// Attention's and the feed-forward layer's branch, where the model is modulated.
pub(super) type BlockModulation = Option<[Branch; 2]>;

/// `x += attention(norm(x)); x += feed_forward(norm(x))`, each branch modulated and gated where the model says so.
#[derive(Module, Debug)]
pub(crate) struct Block {
    /// One norm for both branches, as in the published code (where it is called `ln_wo_grad`, and does hold a weight).
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

    /// What the embedded context `[R, T, C]` does to this block; the same for all scales of a run.
    pub(super) fn modulation(&self, context: &Tensor<3>, mask: &[Vec<bool>]) -> BlockModulation {
        let modulator = self.modulator.as_ref()?;
        let pooled = match self.pooling {
            Pooling::Max => context.clone().max_dim(1), // [rows, 1, channels]
            Pooling::Average => masked_average(context.clone(), mask),
        };
        let six = match modulator {
            Modulator::Linear(linear) => linear.forward(kernels::silu(pooled)),
            Modulator::Table(table) => {
                let [rows, _, width] = pooled.dims();
                let six = table.rows.val().unsqueeze::<3>() + pooled;
                six.reshape([rows, 1, 6 * width])
            }
        };
        let width = six.dims()[2] / 6;
        let part = |index: usize| six.clone().narrow(2, index * width, width); // [rows, 1, channels]
        let branch = |i: usize| Branch { gate: part(i), norm: Modulation { scale: part(2 + i), shift: part(4 + i) } };
        Some([branch(0), branch(1)])
    }

    /// # Shapes
    ///
    /// - x, output: `[R, L, C]`, or `[1, N, C]`: the tokens of all groups
    /// - bias: broadcast to `[R, H, L, keys]`
    pub(super) fn forward(
        &self,
        x: Tensor<3>,
        rotation: &RotaryEmbedding,
        groups: &[RowGroup],
        modulation: &BlockModulation,
        cache: KvAppend<'_>,
        bias: Option<&Tensor<4>>,
    ) -> Tensor<3> {
        let [first, second] = match modulation {
            Some([first, second]) => [Some(first), Some(second)],
            None => [None, None],
        };
        let normed = nn::rms_norm(x.clone(), &self.norm, first.map(|b| &b.norm));
        let y = self.attention.forward(normed, rotation, groups, cache, bias);
        let between = first.zip(second).map(|(first, second)| (&first.gate, &second.norm));
        let (x, normed) = nn::add_norm(x, y, &self.norm, between);
        let y = self.feed_forward.forward(normed);
        kernels::add_gated(x, y, second.map(|b| &b.gate))
    }
}

/// Average over the places that hold text, `[R, 1, C]`; zero where there are none.
fn masked_average(context: Tensor<3>, mask: &[Vec<bool>]) -> Tensor<3> {
    let (rows, length) = (mask.len(), mask[0].len());
    let shares = mask.iter().flat_map(|row| {
        let count = row.iter().filter(|&&text| text).count().max(1);
        row.iter().map(move |&text| if text { 1.0 / count as f32 } else { 0.0 })
    });
    let shares = kernels::tensor(shares.collect(), [rows, length, 1], &context.device());
    (context * shares).sum_dim(1)
}
