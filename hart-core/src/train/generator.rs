//! Training of text encoder, transformer and residual diffusion, jointly, on the tokens of captioned images (spec section 7).

use std::path::Path;

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::prelude::*;

use super::init;
use super::loss::{cross_entropy, diffusion_loss};
use super::optimizer::{ModuleOptimizer, OptimizerOptions};
use super::random::{Purpose, StepRng};
use super::ranges::{self, UNIT, WEIGHT};
use super::shards::{Shards, read_scalars};
use super::targets;
use super::tokenizer::read_step;
use crate::config::Config;
use crate::device::Precision;
use crate::error::{Error, Result};
use crate::image::Image;
use crate::pipeline::Hart;
use crate::precision::widened;
use crate::progress::Progress;
use crate::residual::ResidualDiffusion;
use crate::schedule::FULL_STEPS;
use crate::text::{Qwen2, TextTokenizer};
use crate::transformer::Transformer;
use crate::visual::VisualTokenizer;
use crate::weights::{Checkpoint, NamedTensor, StorageDtype, save_tensors};

/// The modules that are trained together.
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
    /// Returns a generator with random weights. The residual diffusion's output is zero at first, and queries and keys are scaled up
    /// to compensate for the published softmax scale.
    pub fn init(config: &Config, device: &Device) -> Self {
        Self {
            text: Qwen2::init(&config.text, device),
            transformer: init::transformer(config, device),
            residual: init::residual(config, device),
        }
    }

    /// Returns a generator with the weights of an open model.
    ///
    /// # Errors
    ///
    /// The text model's weights were dropped after a prompt, and their file cannot be read again.
    pub fn of(hart: &Hart) -> Result<Self> {
        Ok(Self {
            text: widened((*hart.text().encoder()?).clone()),
            transformer: widened(hart.transformer().clone()),
            residual: widened(hart.residual().clone()),
        })
    }
}

/// Options of [`GeneratorTrainer`].
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GeneratorOptions {
    /// Options of the optimizer.
    pub optimizer: OptimizerOptions,
    /// Probability that a caption is dropped, for classifier-free guidance.
    pub context_drop: f64,
    /// Share of the last scale's tokens that a step trains on. The last scale has the most tokens, so a small share saves most of the
    /// cost.
    pub last_scale_share: f64,
    /// Weight of each scale's mean cross-entropy, coarse to fine. The first scales depend most on the text and have few tokens, so
    /// they would count too little in a mean over all tokens.
    pub scale_weights: Vec<f64>,
    /// Weight of the diffusion loss.
    pub diffusion: f64,
    /// Number of diffusion steps and noises drawn for each residual; the published `diffusion_batch_mul`.
    pub diffusion_repeats: usize,
    /// Share of the last scale's tokens whose residual is relative to a code sampled from the model, instead of the nearest code. In
    /// generation, all codes are sampled.
    pub sampled_codes: f64,
    /// Number of shards of a batch that run in parallel.
    #[serde(skip)]
    pub shards: usize,
    /// Seed of all random numbers.
    #[serde(skip)]
    pub seed: u64,
}

/// Maximum of `diffusion_repeats`, since memory grows with it.
const MAX_REPEATS: f64 = 128.0;

impl GeneratorOptions {
    /// Checks that every option is in its range. [`GeneratorTrainer::new`] checks this as well, and that `scale_weights` has one weight
    /// for each scale of the model.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] naming the first option that is invalid.
    pub fn validate(&self) -> Result<()> {
        let options = [
            ("context_drop", self.context_drop, UNIT),
            ("last_scale_share", self.last_scale_share, UNIT),
            ("diffusion", self.diffusion, WEIGHT),
            ("diffusion_repeats", self.diffusion_repeats as f64, 1.0..=MAX_REPEATS),
            ("sampled_codes", self.sampled_codes, UNIT),
        ];
        let weights = self.scale_weights.iter().map(|&weight| ("scale_weights", weight, WEIGHT));
        ranges::check(self.optimizer.ranges().into_iter().chain(options).chain(weights))
    }
}

/// A training image with its caption.
#[derive(Clone, Debug)]
pub struct CaptionedImage {
    /// The image, in the visual tokenizer's resolution.
    pub image: Image,
    /// The caption.
    pub caption: String,
}

/// Losses of a training step.
#[derive(Clone, Debug, Default)]
pub struct GeneratorLosses {
    /// Mean cross-entropy of each scale's codes, in nats.
    pub scales: Vec<f32>,
    /// Mean diffusion loss; see [`diffusion_loss`].
    pub diffusion: f32,
    /// Global norm of the gradients before clipping; 0 from [`GeneratorTrainer::losses`].
    pub gradient_norm: f32,
}

/// A generator in training, with the state of its optimizer.
pub struct GeneratorTrainer {
    model: Generator,
    optimizer: ModuleOptimizer,
    shards: Shards,
    options: GeneratorOptions,
    config: Config,
    device: Device,
    tokenizer: TextTokenizer,
    visual: VisualTokenizer,
    step: u64,
}

impl GeneratorTrainer {
    /// Creates a generator with random weights. `visual` is a trained visual tokenizer, which stays unchanged.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] if an option is invalid.
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
            let problem = format!("has {} weights, expected {scales}, one for each scale", options.scale_weights.len());
            return Err(Error::request("scale_weights", problem));
        }
        let device = device.clone().autodiff();
        device.seed(options.seed);
        let model = Generator::init(config, &device);
        let optimizer = ModuleOptimizer::new(&model, options.optimizer);
        let shards = Shards::new(options.shards)?;
        Ok(Self { model, optimizer, shards, options, config: config.clone(), device, tokenizer, visual, step: 0 })
    }

    /// Replaces the weights by those of a model of the same configuration, opened in f32. Resets the optimizer's state.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] if the model has another precision or architecture.
    pub fn adopt(&mut self, hart: &Hart) -> Result<()> {
        if hart.precision() != Precision::F32 {
            return Err(Error::request("model", format!("is open in {}, expected f32", hart.precision())));
        }
        self.model = self.optimizer.adopt(self.model.clone(), &Generator::of(hart)?)?;
        Ok(())
    }

    /// Returns the number of steps taken.
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// Sets the total number of steps of the learning rate schedule. Takes effect from the next step.
    pub fn set_steps(&mut self, steps: u64) {
        self.optimizer.set_steps(steps);
    }

    /// Takes one training step on a batch.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] if the batch has fewer images than shards, an image has the wrong size, or a caption cannot be tokenized;
    /// [`Error::Overflow`] if a loss is not finite.
    pub fn step(&mut self, batch: &[CaptionedImage]) -> Result<GeneratorLosses> {
        let options = &self.options;
        let shards = self.shards.map(batch, |shard, batch| {
            let rng = StepRng { seed: options.seed, step: self.step, shard };
            let model = self.optimizer.current(self.model.clone());
            let loss = self.loss(&model, batch, options.context_drop, rng)?;
            let gradients = GradientsParams::from_grads(loss.total.backward(), &model);
            Ok((read_losses(loss.terms), gradients))
        })?;
        let (losses, gradients): (Vec<_>, Vec<_>) = shards.into_iter().unzip();
        let mut losses = mean_losses(losses);
        if !(losses.scales.iter().sum::<f32>() + losses.diffusion).is_finite() {
            return Err(Error::Overflow { what: format!("the losses of step {}", self.step) });
        }
        let (model, norm) = self.optimizer.update(self.model.clone(), gradients, self.step);
        losses.gradient_norm = norm;
        self.model = model;
        self.step += 1;
        Ok(losses)
    }

    /// Returns the losses of a batch without training on it. No captions are dropped. The random numbers are those of step `number`,
    /// so the same images can be compared under different captions.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] like [`Self::step`].
    pub fn losses(&self, batch: &[CaptionedImage], number: u64) -> Result<GeneratorLosses> {
        let losses = self.shards.map(batch, |shard, batch| {
            let rng = StepRng { seed: self.options.seed, step: number, shard };
            Ok(read_losses(self.loss(&self.optimizer.current(self.model.clone()), batch, 0.0, rng)?.terms))
        })?;
        Ok(mean_losses(losses))
    }

    fn loss(&self, model: &Generator, batch: &[CaptionedImage], context_drop: f64, rng: StepRng) -> Result<Loss> {
        let options = &self.options;
        let captions: Vec<&str> = batch.iter().map(|item| item.caption.as_str()).collect();
        let text_tokens = self.tokenizer.tokenize(&captions, None, self.config.transformer.context_tokens)?;
        let images: Vec<Image> = batch.iter().map(|item| item.image.clone()).collect();
        let image_tokens = self.visual.tokenize_images(&images)?;
        let last = image_tokens.codes.len() - 1;
        let last_length = image_tokens.codes[last][0].len();

        // Encode the captions and drop some of them for classifier-free guidance.
        let context = model.text.forward(&text_tokens, &mut Progress::silent())?;
        let dropped: Vec<bool> = rng.uniforms(Purpose::ContextDrop, batch.len()).iter().map(|&u| u < context_drop).collect();
        let conditioning = model.transformer.condition(&targets::drop_context(context, &dropped));

        // Run the transformer on all scales by teacher forcing, with a random subset of the last scale's tokens.
        let count = (last_length as f64 * options.last_scale_share).ceil() as usize;
        let last_tokens = rng.subset(Purpose::LastScale, last_length, count.clamp(1, last_length));
        let inputs = targets::to_autodiff(image_tokens.inputs.clone());
        let hidden = model.transformer.teacher_forcing(inputs, Some(&last_tokens), &conditioning);
        // The last context token predicts the first scale, which is one token.
        let predicted = hidden.0.dims()[1] - self.config.transformer.context_tokens + 1;
        let hidden = hidden.last(predicted);
        let logits = model.transformer.logits(&hidden, &conditioning);

        // Cross-entropy of each scale.
        let subset = |codes: &Vec<u32>| last_tokens.iter().map(|&token| codes[token]).collect::<Vec<u32>>();
        let mut total: Option<Tensor<1>> = None;
        let mut terms = Vec::new();
        let mut offset = 0;
        for (scale, codes) in image_tokens.codes.iter().enumerate() {
            let codes = if scale == last { codes.iter().map(subset).collect() } else { codes.clone() };
            let length = codes[0].len();
            let loss = cross_entropy(logits.clone().narrow(1, offset, length), &codes).mean();
            offset += length;
            terms.push(loss.clone());
            let weighted = loss * options.scale_weights[scale];
            total = Some(total.map_or(weighted.clone(), |sum| sum + weighted));
        }

        // Diffusion loss of the last scale's residuals.
        let last_logits = logits.narrow(1, offset - last_tokens.len(), last_tokens.len());
        let codes = targets::mixed_codes(&image_tokens, &last_tokens, last_logits, options.sampled_codes, rng);
        let (codes, residuals) = targets::residual_targets(&image_tokens, &last_tokens, self.visual.codebook().embed(&codes));
        let condition = model.transformer.residual_condition(&hidden.last(last_tokens.len()), codes);
        let repeated = |x: Tensor<3>| {
            let [batch, length, channels] = x.dims();
            let x = x.reshape([1, batch * length, channels]); // [1, B * L, C]
            x.repeat_dim(1, options.diffusion_repeats) // [1, repeats * B * L, C]
        };
        let (target, condition) = (repeated(residuals), repeated(condition));
        let steps = rng.integers(Purpose::DiffusionStep, FULL_STEPS, target.dims()[1]);
        let noise = rng.normals(Purpose::DiffusionNoise, target.dims(), &self.device);
        let diffusion = diffusion_loss(model.residual.mlp(), target, condition, &steps, noise).mean();
        terms.push(diffusion.clone());
        Ok(Loss { total: total.expect("a plan has scales") + diffusion * options.diffusion, terms })
    }

    /// Returns the generator with averaged weights, on the device without autodiff.
    pub fn averaged(&self) -> Generator {
        self.optimizer.averaged(self.model.clone().valid())
    }

    /// Saves everything that the next step depends on. The file is written atomically.
    ///
    /// # Errors
    ///
    /// [`Error::NotFinite`] if a weight is not finite; [`Error::Io`] if the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut tensors = self.optimizer.state();
        tensors.push(NamedTensor { name: "step".into(), shape: vec![1], values: vec![self.step as f32] });
        save_tensors(path, &tensors, StorageDtype::F32)
    }

    /// Restores a saved state.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the file cannot be read; [`Error::Checkpoint`] if it is damaged or belongs to another recipe.
    pub fn restore(&mut self, path: &Path) -> Result<()> {
        let state = Checkpoint::open_file(path, false)?;
        let step = read_step(&state)?;
        self.model = self.optimizer.restore(self.model.clone(), &state, step)?;
        self.step = step;
        Ok(())
    }
}

/// The loss of a shard.
struct Loss {
    /// Weighted sum of the terms, `[1]`.
    total: Tensor<1>,
    /// Losses of the scales, then the diffusion loss; `[1]` each.
    terms: Vec<Tensor<1>>,
}

fn read_losses(terms: Vec<Tensor<1>>) -> GeneratorLosses {
    let mut scales = read_scalars(terms);
    let diffusion = scales.pop().expect("the last term is the diffusion loss");
    GeneratorLosses { scales, diffusion, gradient_norm: 0.0 }
}

/// Returns the mean of the shards' losses.
fn mean_losses(shards: Vec<GeneratorLosses>) -> GeneratorLosses {
    let share = 1.0 / shards.len() as f32;
    let mut mean = GeneratorLosses::default();
    for shard in shards {
        mean.scales.resize(shard.scales.len(), 0.0);
        mean.scales.iter_mut().zip(&shard.scales).for_each(|(sum, loss)| *sum += loss * share);
        mean.diffusion += shard.diffusion * share;
    }
    mean
}
