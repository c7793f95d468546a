//! Learning text encoder, transformer and residual diffusion together, from tokens of captioned pictures (spec section 7).

use std::path::Path;

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::prelude::*;

use super::loss::{cross_entropy, diffusion_loss};
use super::optimizer::{Learner, OptimizerOptions};
use super::random::{Purpose, StepRandom};
use super::ranges::{self, UNIT, WEIGHT};
use super::shards::{Shards, numbers};
use super::targets;
use super::tokenizer::read_step;
use crate::config::Config;
use crate::device::Precision;
use crate::error::{Error, Result};
use crate::image::Image;
use crate::pipeline::Hart;
use crate::progress::Progress;
use crate::residual::ResidualDiffusion;
use crate::schedule::FULL_STEPS;
use crate::text::{Qwen2, TextTokenizer};
use crate::transformer::Transformer;
use crate::visual::VisualTokenizer;
use crate::weights::{Checkpoint, NamedTensor, StoredAs, save_tensors};

/// Everything that is learned in this half.
#[derive(Module, Debug)]
pub struct Generator {
    /// The text encoder.
    pub text: Qwen2,
    /// The transformer.
    pub transformer: Transformer,
    /// The residual diffusion.
    pub residual: ResidualDiffusion,
}

impl Generator {
    /// Random weights. The residual diffusion begins by predicting nothing, and queries and keys are longer by what the published
    /// softmax scale takes away.
    pub fn init(config: &Config, device: &Device) -> Self {
        Self {
            text: Qwen2::init(&config.text, device),
            transformer: Transformer::init(config, device).for_training(),
            residual: ResidualDiffusion::init(config, device).for_training(),
        }
    }
}

impl Generator {
    /// The weights of an open model.
    pub fn of(hart: &Hart) -> Self {
        let text = hart.text().encoder().clone();
        Self { text, transformer: hart.transformer().clone(), residual: hart.residual().clone() }
    }
}

/// How they are trained.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GeneratorOptions {
    /// AdamW and its learning rate.
    pub optimizer: OptimizerOptions,
    /// Probability that a caption is taken away, for guidance.
    pub context_drop: f64,
    /// Share of the last scale's tokens that a step works on; the rest saves its cost.
    pub last_scale_share: f64,
    /// Weight of each scale's mean cross-entropy, coarse to fine. The first scales carry the text and are few tokens: a plain mean
    /// over all tokens would leave them unlearned.
    pub scale_weights: Vec<f64>,
    /// Weight of the residual diffusion's loss.
    pub diffusion: f64,
    /// How often each residual is taken, with another step and noise each time; the published `diffusion_batch_mul`.
    pub diffusion_repeats: usize,
    /// Share of the last scale's tokens whose residual is taken from a code that the model draws, instead of the nearest one: when
    /// it generates, it has no other.
    pub sampled_codes: f64,
    /// Parts of a batch that are worked on side by side.
    #[serde(skip)]
    pub shards: usize,
    /// Seed of everything random.
    #[serde(skip)]
    pub seed: u64,
}

/// Most times that a residual is taken in a step: memory grows with them.
const MOST_REPEATS: f64 = 128.0;

impl GeneratorOptions {
    /// Checks every value but the number of `scale_weights`, which is the model's; [`GeneratorTrainer::new`] checks all before any
    /// work.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] naming the first value that won't do.
    pub fn validate(&self) -> Result<()> {
        let own = [
            ("context_drop", self.context_drop, UNIT),
            ("last_scale_share", self.last_scale_share, UNIT),
            ("diffusion", self.diffusion, WEIGHT),
            ("diffusion_repeats", self.diffusion_repeats as f64, 1.0..=MOST_REPEATS),
            ("sampled_codes", self.sampled_codes, UNIT),
        ];
        let weights = self.scale_weights.iter().map(|&weight| ("scale_weights", weight, WEIGHT));
        ranges::check(self.optimizer.ranges().into_iter().chain(own).chain(weights))
    }
}

/// A picture and what it shows.
#[derive(Clone, Debug)]
pub struct Captioned {
    /// The picture, of the tokenizer's resolution.
    pub image: Image,
    /// What it shows.
    pub caption: String,
}

/// What a step found.
#[derive(Clone, Debug, Default)]
pub struct GeneratorLosses {
    /// Mean cross-entropy of each scale's codes, in nats.
    pub scales: Vec<f32>,
    /// The residual diffusion's, noise and variance together.
    pub diffusion: f32,
    /// Norm of all gradients, before clipping; 0 where nothing was learned.
    pub gradient_norm: f32,
}

/// A generator under training.
pub struct GeneratorTrainer {
    model: Generator,
    learner: Learner,
    shards: Shards,
    options: GeneratorOptions,
    config: Config,
    device: Device,
    tokenizer: TextTokenizer,
    visual: VisualTokenizer,
    step: u64,
}

impl GeneratorTrainer {
    /// A generator with random weights for a tokenizer of texts and a trained one of pictures.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] if an option won't do.
    pub fn new(
        config: &Config,
        options: GeneratorOptions,
        tokenizer: TextTokenizer,
        visual: VisualTokenizer,
        device: &Device,
    ) -> Result<Self> {
        options.validate()?;
        let scales = config.transformer.sides.len();
        if options.scale_weights.len() != scales {
            let problem = format!("has {} numbers, expected {scales}, one a scale", options.scale_weights.len());
            return Err(Error::request("scale_weights", problem));
        }
        let device = device.clone().autodiff();
        device.seed(options.seed);
        let model = Generator::init(config, &device);
        let learner = Learner::new(&model, options.optimizer);
        let shards = Shards::new(options.shards)?;
        Ok(Self { model, learner, shards, options, config: config.clone(), device, tokenizer, visual, step: 0 })
    }

    /// Goes on from the weights of a model, opened in f32, of the same configuration.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] if the model's precision or architecture is another.
    pub fn adopt(&mut self, hart: &Hart) -> Result<()> {
        if hart.precision() != Precision::F32 {
            return Err(Error::request("model", format!("is open in {}, expected f32", hart.precision())));
        }
        self.model = self.learner.adopt(self.model.clone(), &Generator::of(hart))?;
        Ok(())
    }

    /// Steps that are done.
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// Changes how many steps the learning rate falls over, from the next one on.
    pub fn set_steps(&mut self, steps: u64) {
        self.learner.set_steps(steps);
    }

    /// One step on a batch.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] if the batch has too few pictures, one has the wrong size or a caption can't be read; [`Error::Overflow`]
    /// if a loss is not finite.
    pub fn step(&mut self, batch: &[Captioned]) -> Result<GeneratorLosses> {
        let options = &self.options;
        let parts = self.shards.each(batch, |shard, batch| {
            let random = StepRandom { seed: options.seed, step: self.step, shard };
            let model = self.learner.current(self.model.clone());
            let loss = self.loss(&model, batch, options.context_drop, random)?;
            let gradients = GradientsParams::from_grads(loss.total.backward(), &model);
            Ok((read(loss.parts), gradients))
        })?;
        let (losses, gradients): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
        let mut losses = mean(losses);
        if !(losses.scales.iter().sum::<f32>() + losses.diffusion).is_finite() {
            return Err(Error::Overflow { what: format!("the losses of step {}", self.step) });
        }
        let (model, norm) = self.learner.update(self.model.clone(), gradients, self.step);
        losses.gradient_norm = norm;
        self.model = model;
        self.step += 1;
        Ok(losses)
    }

    /// The losses of a batch without learning from it. All captions are read; the random numbers are those of step `number`, so that
    /// the same pictures with other captions can be compared.
    ///
    /// # Errors
    ///
    /// As [`Self::step`].
    pub fn losses(&self, batch: &[Captioned], number: u64) -> Result<GeneratorLosses> {
        let parts = self.shards.each(batch, |shard, batch| {
            let random = StepRandom { seed: self.options.seed, step: number, shard };
            Ok(read(self.loss(&self.learner.current(self.model.clone()), batch, 0.0, random)?.parts))
        })?;
        Ok(mean(parts))
    }

    fn loss(&self, model: &Generator, batch: &[Captioned], context_drop: f64, random: StepRandom) -> Result<Loss> {
        let options = &self.options;
        let captions: Vec<&str> = batch.iter().map(|item| item.caption.as_str()).collect();
        let tokens = self.tokenizer.tokenize(&captions, None, self.config.transformer.context_tokens)?;
        let images: Vec<Image> = batch.iter().map(|item| item.image.clone()).collect();
        let picture = self.visual.tokenize_images(&images)?;
        let last = picture.codes.len() - 1;
        let last_tokens = picture.codes[last][0].len();

        let context = model.text.forward(&tokens, &mut Progress::silent())?;
        let dropped: Vec<bool> = random.uniforms(Purpose::ContextDrop, batch.len()).iter().map(|&u| u < context_drop).collect();
        let conditioning = model.transformer.condition(&targets::without(context, &dropped));

        let wanted = (last_tokens as f64 * options.last_scale_share).ceil() as usize;
        let kept = random.subset(Purpose::LastScale, last_tokens, wanted.clamp(1, last_tokens));
        let inputs = targets::tracked(picture.inputs.clone());
        let hidden = model.transformer.teacher_forcing(inputs, Some(&kept), &conditioning);
        // The last context row predicts the first scale's one token.
        let predicted = hidden.0.dims()[1] - self.config.transformer.context_tokens + 1;
        let hidden = hidden.last(predicted);
        let logits = model.transformer.logits(&hidden, &conditioning);

        let chosen = |codes: &Vec<u32>| kept.iter().map(|&place| codes[place]).collect::<Vec<u32>>();
        let mut total: Option<Tensor<1>> = None;
        let mut parts = Vec::new();
        let mut from = 0;
        for (scale, codes) in picture.codes.iter().enumerate() {
            let codes = if scale == last { codes.iter().map(chosen).collect() } else { codes.clone() };
            let length = codes[0].len();
            let loss = cross_entropy(logits.clone().narrow(1, from, length), &codes).mean();
            from += length;
            parts.push(loss.clone());
            let weighted = loss * options.scale_weights[scale];
            total = Some(total.map_or(weighted.clone(), |sum| sum + weighted));
        }

        let last_logits = logits.narrow(1, from - kept.len(), kept.len());
        let drawn = targets::codes(&picture, &kept, last_logits, options.sampled_codes, random);
        let (codes, target) = targets::residuals(&picture, &kept, self.visual.codebook().embed(&drawn));
        let condition = model.transformer.residual_condition(&hidden.last(kept.len()), codes);
        let repeated = |x: Tensor<3>| {
            let [batch, length, channels] = x.dims();
            x.reshape([1, batch * length, channels]).repeat_dim(1, options.diffusion_repeats)
        };
        let (target, condition) = (repeated(target), repeated(condition));
        let steps = random.below(Purpose::DiffusionStep, FULL_STEPS, target.dims()[1]);
        let noise = random.normals(Purpose::DiffusionNoise, target.dims(), &self.device);
        let diffusion = diffusion_loss(model.residual.mlp(), target, condition, &steps, noise).mean();
        parts.push(diffusion.clone());
        Ok(Loss { total: total.expect("a plan has scales") + diffusion * options.diffusion, parts })
    }

    /// The weights' running average, on the plain device.
    pub fn averaged(&self) -> Generator {
        self.learner.averaged(self.model.clone().valid())
    }

    /// Writes everything that the next step depends on, whole or not at all.
    ///
    /// # Errors
    ///
    /// The file can't be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut tensors = self.learner.state();
        tensors.push(NamedTensor { name: "step".into(), shape: vec![1], values: vec![self.step as f32] });
        save_tensors(path, &tensors, StoredAs::F32)
    }

    /// Goes on from a saved state.
    ///
    /// # Errors
    ///
    /// The file can't be read, or is another recipe's.
    pub fn restore(&mut self, path: &Path) -> Result<()> {
        let state = Checkpoint::open_file(path, false)?;
        let step = read_step(&state)?;
        self.model = self.learner.restore(self.model.clone(), &state, step)?;
        self.step = step;
        Ok(())
    }
}

/// What is minimised, and what it is made of: the loss of each scale, and that of the diffusion.
struct Loss {
    total: Tensor<1>,
    parts: Vec<Tensor<1>>,
}

fn read(parts: Vec<Tensor<1>>) -> GeneratorLosses {
    let mut scales = numbers(parts);
    let diffusion = scales.pop().expect("the last one is the diffusion's");
    GeneratorLosses { scales, diffusion, gradient_norm: 0.0 }
}

fn mean(parts: Vec<GeneratorLosses>) -> GeneratorLosses {
    let share = 1.0 / parts.len() as f32;
    let mut all = GeneratorLosses::default();
    for part in parts {
        all.scales.resize(part.scales.len(), 0.0);
        all.scales.iter_mut().zip(&part.scales).for_each(|(sum, loss)| *sum += loss * share);
        all.diffusion += part.diffusion * share;
    }
    all
}
