//! The autoregressive transformer: one pass for each scale, from the context and the latent so far to hidden states and logits (spec
//! sections 2 and 3).
//!
//! Letters in shapes: R rows of a batch, conditional rows first; L tokens of a scale; T context tokens; C channels; H heads; Z channels
//! of the latent; V rows of the codebook; S scales. N counts the tokens of all rows together.

pub(crate) mod attention;
pub(crate) mod block;
mod head;
mod level;
mod pruning;
mod rope;
mod row_groups;
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
use crate::pruning::Pruning;
use crate::scales::{Scale, plan_of};
use crate::text::Context;
use block::Block;
use head::Head;
use level::LevelEmbedding;
use pruning::{BlockTokens, PrunedRun, Selection};
use row_groups::RowGroups;

/// Hidden states: the output of the last block for one scale, `[R, L, C]`.
#[derive(Clone, Debug)]
pub struct Hidden(pub Tensor<3>);

impl Hidden {
    /// Returns the last `tokens` tokens of every row.
    pub fn last(self, tokens: usize) -> Self {
        let length = self.0.dims()[1];
        Self(self.0.narrow(1, length - tokens, tokens))
    }
}

/// The autoregressive transformer.
#[derive(Module, Debug)]
pub struct Transformer {
    context_norm: Option<RmsNorm>,
    context_embed: Linear,
    /// Projection of a token's features, `[Z, C]`.
    token_embed: Linear,
    level_embed: LevelEmbedding,
    pub(crate) blocks: Vec<Block>,
    head: Head,
    /// Norm of the condition of the residual diffusion.
    residual_norm: RmsNorm,
    #[module(skip)]
    config: TransformerConfig,
    /// Level embeddings of all scales, `[1, S, C]`, if they are [precomputed](Self::frozen).
    #[module(skip)]
    levels: Option<Tensor<3>>,
}

impl Transformer {
    /// Creates the transformer with weights that are yet to be loaded.
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

    /// Precomputes everything that depends on the weights alone. The weights must not change afterwards.
    pub(crate) fn frozen(self) -> Self {
        let levels = (0..self.config.sides.len()).map(|scale| self.level_embed.forward(scale)).collect();
        Self { levels: Some(Tensor::cat(levels, 1)), ..self }
    }

    /// Returns the level embedding of a scale, `[1, 1, C]`.
    fn level(&self, scale: usize) -> Tensor<3> {
        match &self.levels {
            Some(levels) => levels.clone().narrow(1, scale, 1),
            None => self.level_embed.forward(scale),
        }
    }

    /// Estimates the multiply-adds of one token, for progress.
    pub(crate) fn work_per_token(&self) -> f64 {
        self.blocks.iter().map(Module::num_params).sum::<usize>() as f64
    }

    /// Embeds the context and computes everything that depends on it alone. Classifier-free guidance needs unconditional rows; add them
    /// with [`Context::with_unconditional`].
    pub fn condition(&self, context: &Context) -> Conditioning {
        let groups = RowGroups::of_context(context);
        let hidden = groups.deduplicate(context.hidden.clone());
        let hidden = match &self.context_norm {
            Some(norm) => nn::rms_norm(hidden, norm, None),
            None => hidden,
        };
        let embedded = groups.expand(self.context_embed.forward(hidden)); // [rows, context tokens, channels]
        Conditioning {
            modulations: self.blocks.iter().map(|block| block.modulation(&embedded, &context.mask)).collect(),
            head: self.head.modulation(&embedded),
            positions: context.positions.clone(),
            embedded,
            groups,
        }
    }

    /// Creates the state before the first scale. The last scales are pruned if there is a plan for them.
    ///
    /// # Errors
    ///
    /// [`Error::Request`](crate::Error::Request) if the plan does not fit the model's scales.
    pub fn begin(&self, conditioning: Conditioning, pruning: Option<&Pruning>) -> Result<State> {
        let sides = &self.config.sides;
        pruning.map_or(Ok(()), |plan| plan.check(sides))?;
        // A later scale attends to the context and to the image tokens of the scales between the first, whose tokens are the context,
        // and the last, which is not cached.
        let scales = plan_of(sides);
        let computed = |scale: &Scale| pruning.map_or(scale.tokens(), |plan| plan.kept(scale));
        let capacity = conditioning.groups.tokens() + scales[1..scales.len() - 1].iter().map(computed).sum::<usize>();
        let cache = KvCache::new(self.blocks.iter().map(|block| block.kv_store(capacity)).collect());
        let pruned = pruning.map(|plan| PrunedRun::new(plan.clone(), self.blocks.len()));
        Ok(State { conditioning, cache, pruned })
    }

    /// Returns the input of the first scale: the context tokens.
    ///
    /// # Shapes
    ///
    /// - output: `[R, T, C]`
    pub fn first_input(&self, conditioning: &Conditioning) -> Tensor<3> {
        conditioning.embedded.clone() + self.level(0)
    }

    /// Returns the input of a later scale, from the features of the latent so far.
    ///
    /// # Shapes
    ///
    /// - features: `[R, side^2, Z]`
    /// - output: `[R, side^2, C]`
    pub fn next_input(&self, features: Tensor<3>, scale: &Scale) -> Tensor<3> {
        self.token_embed.forward(features) + self.level(scale.index)
    }

    /// Runs the tokens of one scale through the blocks and appends their keys and values to the cache. There is no mask: tokens of a scale
    /// attend to each other in both directions, and to padding, as in the published code. A pruned scale computes and caches a part of its
    /// tokens; its output has all of them.
    ///
    /// # Shapes
    ///
    /// - input, output: `[R, L, C]`
    ///
    /// # Errors
    ///
    /// [`Error::Cancelled`](crate::Error::Cancelled).
    pub fn forward(&self, input: Tensor<3>, scale: &Scale, state: &mut State, progress: &mut Progress<'_>) -> Result<Hidden> {
        let groups = row_groups(&input, scale, state);
        let tokens = match &state.pruned {
            Some(pruned) if scale.index > 0 => groups.with_tokens(pruned.kept(scale)).total(),
            _ => groups.total(),
        };
        let work = tokens as f64 * self.work_per_token() / self.blocks.len() as f64;
        self.run(input, scale, state, |block, _, _| {
            let step = Step::Block { scale: scale.index + 1, scales: scale.count, block: block + 1, blocks: self.blocks.len() };
            progress.report(step, work)
        })
    }

    /// Like [`Self::forward`], but calls `each` with the index and the output `[R, L, C]` of every block.
    ///
    /// # Errors
    ///
    /// The first error that `each` returns.
    pub fn forward_each(
        &self,
        input: Tensor<3>,
        scale: &Scale,
        state: &mut State,
        mut each: impl FnMut(usize, &Tensor<3>) -> Result<()>,
    ) -> Result<Hidden> {
        self.run(input, scale, state, |index, x, groups| each(index, &groups.expand(x.clone())))
    }

    fn run(
        &self,
        input: Tensor<3>,
        scale: &Scale,
        state: &mut State,
        mut each: impl FnMut(usize, &Tensor<3>, &RowGroups) -> Result<()>,
    ) -> Result<Hidden> {
        let device = input.device();
        let groups = row_groups(&input, scale, state);
        let State { conditioning, cache, pruned } = state;
        let positions = groups.deduplicate_list(&conditioning.positions);
        let rotation = rope::scale_rotation(&self.config, scale, &positions, &device);
        let tokens = BlockTokens { rotation, groups: groups.groups.clone() };
        let mut x = groups.deduplicate(input);
        for (index, block) in self.blocks.iter().enumerate() {
            let modulation = groups.modulation(&conditioning.modulations[index], &device);
            let kv = cache.block(index, scale.is_last());
            let selection = match pruned {
                Some(pruned) => pruned.selection(index, scale, block.attention.precision()),
                None => Selection::All,
            };
            x = block.forward(x, &tokens, &modulation, kv, None, selection);
            each(index, &x, &groups)?;
        }
        Ok(Hidden(groups.expand(x)))
    }

    /// Computes the logits of every token over the codebook.
    ///
    /// # Shapes
    ///
    /// - hidden: `[R, L, C]`
    /// - output: `[R, L, V]`
    pub fn logits(&self, hidden: &Hidden, conditioning: &Conditioning) -> Tensor<3> {
        self.head.forward(hidden.0.clone(), &conditioning.head)
    }

    /// Computes the condition of the residual diffusion from the last scale's hidden states and sampled codes.
    ///
    /// # Shapes
    ///
    /// - codes: `[R, L, Z]`, codebook rows of the sampled codes
    /// - output: `[R, L, C]`
    pub fn residual_condition(&self, hidden: &Hidden, codes: Tensor<3>) -> Tensor<3> {
        nn::rms_norm(hidden.0.clone() + self.token_embed.forward(codes), &self.residual_norm, None)
    }
}

/// Returns the groups of a scale's tokens.
fn row_groups(input: &Tensor<3>, scale: &Scale, state: &State) -> RowGroups {
    let context = &state.conditioning.groups;
    if scale.index == 0 { context.clone() } else { context.with_tokens(input.dims()[1]) }
}
