//! The autoregressive transformer: context in, one pass a scale, hidden states and logits out (spec sections 2 and 3).

mod attention;
mod block;
mod head;
mod level;
mod rope;
mod state;

pub use state::{Conditioning, State};

use burn::module::Module;
use burn::nn::{RmsNorm, RmsNormConfig};
use burn::prelude::*;

use crate::config::{Config, TransformerConfig};
use crate::error::Result;
use crate::kernels::{self, KvAppend, RowGroup};
use crate::nn::{self, KvCache, Linear, LinearConfig, RotaryEmbedding};
use crate::progress::{Progress, Step};
use crate::scales::{Scale, plan};
use crate::text::Context;
use block::Block;
use head::Head;
use level::LevelEmbedding;
use state::Batch;

/// Output of the block stack for one scale, `[R, L, C]`: R rows (conditional, then unconditional), L tokens.
#[derive(Clone, Debug)]
pub struct Hidden(pub Tensor<3>);

impl Hidden {
    /// The last `tokens` tokens of every row.
    pub fn last(self, tokens: usize) -> Self {
        let length = self.0.dims()[1];
        Self(self.0.narrow(1, length - tokens, tokens))
    }
}

/// The whole transformer.
#[derive(Module, Debug)]
pub struct Transformer {
    context_norm: Option<RmsNorm>,
    context_embed: Linear,
    /// Latent features of a token to the transformer's width.
    token_embed: Linear,
    level_embed: LevelEmbedding,
    blocks: Vec<Block>,
    head: Head,
    /// Norm of what the residual diffusion is conditioned on.
    residual_norm: RmsNorm,
    #[module(skip)]
    config: TransformerConfig,
    /// All scales' level embeddings `[1, S, C]`, once the weights are final.
    #[module(skip)]
    levels: Option<Tensor<3>>,
}

impl Transformer {
    /// The transformer with weights that are yet to be loaded.
    pub fn init(config: &Config, device: &Device) -> Self {
        let c = &config.transformer;
        let norm = |width| RmsNormConfig::new(width).with_epsilon(c.norm_eps).init(device);
        Self {
            context_norm: c.context_norm.then(|| norm(c.context_dim)),
            context_embed: LinearConfig::new(c.context_dim, c.embed_dim).init(device),
            token_embed: LinearConfig::new(config.visual.z_channels, c.embed_dim).init(device),
            level_embed: LevelEmbedding::init(c, device),
            blocks: (0..c.depth).map(|_| Block::init(c, device)).collect(),
            head: Head::init(c, config.visual.vocab_size, device),
            residual_norm: norm(c.embed_dim),
            config: c.clone(),
            levels: None,
        }
    }

    /// Weights to begin training with: without a query-key norm, the published softmax scale is a quarter of the usual one, and
    /// queries and keys twice as long make up for it.
    #[cfg(feature = "train")]
    pub(crate) fn for_training(mut self) -> Self {
        self.blocks = self.blocks.into_iter().map(Block::for_training).collect();
        self
    }

    /// The same with weights that don't change from now on: what follows from them alone is computed once.
    pub(crate) fn frozen(self) -> Self {
        let levels = (0..self.config.sides.len()).map(|scale| self.level_embed.forward(scale)).collect();
        Self { levels: Some(Tensor::cat(levels, 1)), ..self }
    }

    /// Embedding of a scale's number, `[1, 1, C]`.
    fn level(&self, scale: usize) -> Tensor<3> {
        match &self.levels {
            Some(levels) => levels.clone().narrow(1, scale, 1),
            None => self.level_embed.forward(scale),
        }
    }

    /// Cost of one token of one row, in multiply-adds of the linear layers; for progress.
    pub(crate) fn work_per_token(&self) -> f64 {
        self.blocks.iter().map(Module::num_params).sum::<usize>() as f64
    }

    /// Embeds the context and computes what it decides for the whole run. Rows are taken as they are: call
    /// [`Context::with_unconditional`] before for guidance.
    pub fn condition(&self, context: &Context) -> Conditioning {
        let first = Batch::of_context(context);
        let hidden = first.pack(context.hidden.clone());
        let hidden = match &self.context_norm {
            Some(norm) => nn::rms_norm(hidden, norm, None),
            None => hidden,
        };
        let embedded = first.unpack(self.context_embed.forward(hidden)); // [rows, context tokens, channels]
        let capacity = context.mask.first().map_or(0, Vec::len) + self.tokens_between();
        Conditioning {
            modulations: self.blocks.iter().map(|b| b.modulation(&embedded, &context.mask)).collect(),
            head: self.head.modulation(&embedded),
            positions: context.positions.clone(),
            embedded,
            first,
            cache: KvCache::new(self.blocks.iter().map(|block| block.kv_store(capacity)).collect()),
        }
    }

    /// Tokens of the scales between the first and the last one.
    fn tokens_between(&self) -> usize {
        let sides = &self.config.sides;
        sides[1..sides.len() - 1].iter().map(|side| side * side).sum()
    }

    /// The first scale's input: the context tokens.
    ///
    /// # Shapes
    ///
    /// - output: `[R, T, C]`
    pub fn first_input(&self, conditioning: &Conditioning) -> Tensor<3> {
        conditioning.embedded.clone() + self.level(0)
    }

    /// A later scale's input: the features that the finished scales predict for it.
    ///
    /// # Shapes
    ///
    /// - features: `[R, side^2, Z]`
    /// - output: `[R, side^2, C]`
    pub fn next_input(&self, features: Tensor<3>, scale: &Scale) -> Tensor<3> {
        self.token_embed.forward(features) + self.level(scale.index)
    }

    /// Runs one scale's tokens through the blocks, appending to the cache. Queries see the whole cache without a mask: the scale is
    /// bidirectional, and padding is attended to, as the published code does.
    ///
    /// # Shapes
    ///
    /// - input: `[R, L, C]`
    /// - output: `[R, L, C]`
    ///
    /// # Errors
    ///
    /// [`Error::Cancelled`](crate::Error::Cancelled).
    pub fn forward(&self, input: Tensor<3>, scale: &Scale, state: &mut State, progress: &mut Progress<'_>) -> Result<Hidden> {
        let tokens = batch_of(&input, scale, state).total();
        let work = tokens as f64 * self.work_per_token() / self.blocks.len() as f64;
        self.run(input, scale, state, |block, _, _| {
            let step = Step::Block { scale: scale.index + 1, scales: scale.count, block: block + 1, blocks: self.blocks.len() };
            progress.report(step, work)
        })
    }

    /// As [`Self::forward`], showing every block's number, from 0, and its output.
    ///
    /// # Errors
    ///
    /// What `each` returns.
    pub fn forward_each(
        &self,
        input: Tensor<3>,
        scale: &Scale,
        state: &mut State,
        mut each: impl FnMut(usize, &Tensor<3>) -> Result<()>,
    ) -> Result<Hidden> {
        self.run(input, scale, state, |index, x, batch| each(index, &batch.unpack(x.clone())))
    }

    fn run(
        &self,
        input: Tensor<3>,
        scale: &Scale,
        state: &mut State,
        mut each: impl FnMut(usize, &Tensor<3>, &Batch) -> Result<()>,
    ) -> Result<Hidden> {
        let device = input.device();
        let batch = batch_of(&input, scale, state);
        let State { conditioning, cache } = state;
        let rotation = rope::of_scale(&self.config, scale, &batch.pack_list(&conditioning.positions), &device);
        let mut x = batch.pack(input);
        for (index, block) in self.blocks.iter().enumerate() {
            let modulation = batch.modulation(&conditioning.modulations[index], &device);
            let kv = cache.block(index, scale.is_last());
            x = block.forward(x, &rotation, &batch.groups, &modulation, kv, None);
            each(index, &x, &batch)?;
        }
        Ok(Hidden(batch.unpack(x)))
    }

    /// Runs all scales in one pass under the block-causal mask, as in training: a token attends to its own and earlier scales.
    /// `last_scale_tokens` selects the tokens of the last scale that are computed, at their own positions; `None` computes all.
    /// Training selects a part, which saves most of the work of that scale.
    ///
    /// # Shapes
    ///
    /// - inputs: `[R, sum of side^2 over scales 1.., Z]`, `inputs` of a tokenized image
    /// - output: `[R, T + that, C]`, with the selected tokens of the last scale
    pub fn teacher_forcing(&self, inputs: Tensor<3>, last_scale_tokens: Option<&[usize]>, conditioning: &Conditioning) -> Hidden {
        let device = inputs.device();
        let scales = plan(&self.config);
        let mut parts = vec![self.first_input(conditioning)];
        let mut from = 0;
        for scale in &scales[1..] {
            let features = inputs.clone().narrow(1, from, scale.tokens());
            let features = match last_scale_tokens {
                Some(tokens) if scale.is_last() => features.select(1, kernels::indices(tokens, &device)),
                _ => features,
            };
            parts.push(self.next_input(features, scale));
            from += scale.tokens();
        }
        let lengths: Vec<usize> = parts.iter().map(|p| p.dims()[1]).collect();
        let bias = block_causal(&lengths, &device);
        let rotations = scales.iter().map(|scale| {
            let rotation = rope::of_scale(&self.config, scale, &conditioning.positions, &device);
            match last_scale_tokens {
                Some(tokens) if scale.is_last() => rotation.select(kernels::indices(tokens, &device)),
                _ => rotation,
            }
        });
        let rotation = RotaryEmbedding::concat(rotations.collect());
        let mut x = Tensor::cat(parts, 1);
        let [rows, tokens, _] = x.dims();
        let groups = [RowGroup { rows, tokens, multiplicity: 1 }];
        for (block, modulation) in self.blocks.iter().zip(&conditioning.modulations) {
            x = block.forward(x, &rotation, &groups, modulation, KvAppend::none(), Some(&bias));
        }
        Hidden(x)
    }

    /// Scores of every codebook row for every token.
    ///
    /// # Shapes
    ///
    /// - hidden: `[R, L, C]`
    /// - output: `[R, L, V]`
    pub fn logits(&self, hidden: &Hidden, conditioning: &Conditioning) -> Tensor<3> {
        self.head.forward(hidden.0.clone(), &conditioning.head)
    }

    /// What the residual diffusion of the last scale is conditioned on.
    ///
    /// # Shapes
    ///
    /// - codes: `[R, L, Z]`, embeddings of the drawn codes
    /// - output: `[R, L, C]`
    pub fn residual_condition(&self, hidden: &Hidden, codes: Tensor<3>) -> Tensor<3> {
        nn::rms_norm(hidden.0.clone() + self.token_embed.forward(codes), &self.residual_norm, None)
    }
}

/// How a scale's tokens lie.
fn batch_of(input: &Tensor<3>, scale: &Scale, state: &State) -> Batch {
    let first = &state.conditioning.first;
    if scale.index == 0 { first.clone() } else { first.of_scale(input.dims()[1]) }
}

/// Score bias `[1, 1, L, L]` over groups of the given lengths: 0 within a group and towards earlier ones, else minus infinity.
fn block_causal(lengths: &[usize], device: &Device) -> Tensor<4> {
    let total: usize = lengths.iter().sum();
    let mut bias = vec![f32::NEG_INFINITY; total * total];
    let mut seen = 0;
    let mut rows = bias.chunks_mut(total);
    for &length in lengths {
        seen += length;
        rows.by_ref().take(length).for_each(|row| row[..seen].fill(0.0));
    }
    kernels::tensor(bias, [1, 1, total, total], device)
}
