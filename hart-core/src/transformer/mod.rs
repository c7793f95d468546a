//! The autoregressive transformer: context in, one pass a scale, hidden states and logits out (spec sections 2 and 3).

pub(crate) mod attention;
pub(crate) mod block;
mod head;
mod level;
mod rope;
mod state;
mod teacher_forcing;

pub use state::{Conditioning, State};

use burn::module::Module;
use burn::nn::{RmsNorm, RmsNormConfig};
use burn::prelude::*;

use crate::config::{Config, TransformerConfig};
use crate::error::Result;
use crate::nn::{self, KvCache, Linear, LinearConfig};
use crate::progress::{Progress, Step};
use crate::scales::Scale;
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
    pub(crate) blocks: Vec<Block>,
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
