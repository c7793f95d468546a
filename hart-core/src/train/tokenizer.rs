//! Learning the visual tokenizer: pictures through the encoder, the quantizer for half of them, and the decoder.

use std::path::Path;

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::prelude::*;

use super::codebook::{Quantized, RowAverages, Usage, quantize};
use super::loss::reconstruction_loss;
use super::optimizer::{Learner, OptimizerOptions};
use super::random::StepRandom;
use super::ranges::{self, DECAY, UNIT, WEIGHT};
use super::shards::{Shards, numbers};
use crate::config::VisualConfig;
use crate::error::{Error, Result};
use crate::image::Image;
use crate::kernels;
use crate::progress::Progress;
use crate::visual::{Latent, VisualTokenizer};
use crate::weights::{Checkpoint, NamedTensor, StoredAs, save_tensors};

/// How the visual tokenizer is trained.
#[derive(Clone, Copy, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenizerOptions {
    /// AdamW and its learning rate.
    pub optimizer: OptimizerOptions,
    /// Weight of the edges' difference.
    pub edges: f64,
    /// Weight of the quantizer's loss.
    pub quantizer: f64,
    /// How strongly features are drawn to their codes, within that loss; 0.25 in the published configuration.
    pub commitment: f64,
    /// Decay of the codebook's running averages.
    pub codebook_decay: f32,
    /// Share of a batch that is decoded from its continuous latents; the rest is decoded from its codes.
    #[serde(default = "half")]
    pub hybrid_share: f64,
    /// Whether the decoder alone learns. Codes and residuals of a picture stay what they were, and so a generator that draws them
    /// stays valid.
    #[serde(default)]
    pub decoder_only: bool,
    /// Parts of a batch that are worked on side by side.
    #[serde(skip)]
    pub shards: usize,
    /// Seed of everything random.
    #[serde(skip)]
    pub seed: u64,
}

fn half() -> f64 {
    0.5
}

impl TokenizerOptions {
    /// Checks every value; [`TokenizerTrainer::new`] does it before any work.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] naming the first value that won't do.
    pub fn validate(&self) -> Result<()> {
        let own = [
            ("edges", self.edges, WEIGHT),
            ("quantizer", self.quantizer, WEIGHT),
            ("commitment", self.commitment, WEIGHT),
            ("codebook_decay", f64::from(self.codebook_decay), DECAY),
            ("hybrid_share", self.hybrid_share, UNIT),
        ];
        ranges::check(self.optimizer.ranges().into_iter().chain(own))
    }
}

/// What a step found.
#[derive(Clone, Copy, Debug, Default)]
pub struct TokenizerLosses {
    /// Reconstruction from continuous latents.
    pub hybrid: f32,
    /// Reconstruction from codes alone.
    pub discrete: f32,
    /// The quantizer's.
    pub quantizer: f32,
    /// Share of the codebook's rows that this batch took.
    pub used_rows: f32,
    /// Norm of all gradients, before clipping.
    pub gradient_norm: f32,
}

/// A visual tokenizer under training.
pub struct TokenizerTrainer {
    model: VisualTokenizer,
    learner: Learner,
    rows: RowAverages,
    shards: Shards,
    options: TokenizerOptions,
    device: Device,
    step: u64,
}

impl TokenizerTrainer {
    /// A tokenizer with random weights.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] if an option won't do; `decoder_only` wants [`Self::from_model`].
    pub fn new(config: &VisualConfig, options: TokenizerOptions, device: &Device) -> Result<Self> {
        if options.decoder_only {
            return Err(Error::request(
                "decoder_only",
                "is true, expected a trained model to go on from: its encoder stays as it is",
            ));
        }
        Self::init(config, options, device)
    }

    fn init(config: &VisualConfig, options: TokenizerOptions, device: &Device) -> Result<Self> {
        options.validate()?;
        let device = device.clone().autodiff();
        device.seed(options.seed);
        let model = VisualTokenizer::init(config, &device).for_training();
        let learner = Learner::new(&model, options.optimizer);
        let rows = RowAverages::new(config.vocab_size, config.z_channels, options.codebook_decay);
        Ok(Self { model, learner, rows, shards: Shards::new(options.shards)?, options, device, step: 0 })
    }

    /// A tokenizer that goes on learning from the weights of another one.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] if an option won't do.
    pub fn from_model(tokenizer: &VisualTokenizer, options: TokenizerOptions, device: &Device) -> Result<Self> {
        let mut trainer = Self::init(tokenizer.config(), options, device)?;
        trainer.model = trainer.learner.adopt(trainer.model.clone(), tokenizer)?;
        let table = kernels::values(tokenizer.codebook().table().val());
        let (rows, width) = (tokenizer.config().vocab_size, tokenizer.config().z_channels);
        trainer.rows = RowAverages::of(table.clone(), width, options.codebook_decay);
        trainer.model = trainer.with_table(trainer.model.clone(), table, [rows, width]);
        Ok(trainer)
    }

    /// Steps that are done.
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// Changes how many steps the learning rate falls over, from the next one on.
    pub fn set_steps(&mut self, steps: u64) {
        self.learner.set_steps(steps);
    }

    /// One step. Of every shard the first pictures are decoded from their continuous latents and the rest from their codes, so that
    /// the decoder serves both.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] if the batch has too few pictures or one has the wrong size; [`Error::Overflow`] if a loss is not finite.
    pub fn step(&mut self, pictures: &[Image]) -> Result<TokenizerLosses> {
        let side = self.model.resolution();
        if let Some(other) = pictures.iter().find(|p| (p.width(), p.height()) != (side, side)) {
            let problem = format!("has {} x {} pixels, expected {side} x {side}", other.width(), other.height());
            return Err(Error::request("picture", problem));
        }
        let parts = self.shards.each(pictures, |_, pictures| self.shard(pictures))?;
        let mut usage = Usage::default();
        let (mut losses, mut gradients) = (TokenizerLosses::default(), Vec::new());
        let share = 1.0 / parts.len() as f32;
        for part in parts {
            losses.hybrid += part.losses.hybrid * share;
            losses.discrete += part.losses.discrete * share;
            losses.quantizer += part.losses.quantizer * share;
            usage.join(part.usage);
            gradients.push(part.gradients);
        }
        if !(losses.hybrid + losses.discrete + losses.quantizer).is_finite() {
            return Err(Error::Overflow { what: format!("the losses of step {}", self.step) });
        }
        let (model, norm) = self.learner.update(self.model.clone(), gradients, self.step);
        losses.gradient_norm = norm;
        let (rows, width) = (model.config().vocab_size, model.config().z_channels);
        losses.used_rows = usage.share(rows);
        self.model = model;
        if !self.options.decoder_only {
            let random = StepRandom { seed: self.options.seed, step: self.step, shard: 0 };
            let table = self.rows.update(&usage, random);
            self.model = self.with_table(self.model.clone(), table, [rows, width]);
        }
        self.step += 1;
        Ok(losses)
    }

    fn with_table(&mut self, model: VisualTokenizer, table: Vec<f32>, shape: [usize; 2]) -> VisualTokenizer {
        let plain = self.device.clone().inner();
        let id = model.codebook().table().id;
        self.learner.set(id, kernels::tensor(table.clone(), [shape[0] * shape[1]], &plain));
        let codebook = model.codebook().clone().with_table(kernels::tensor(table, shape, &self.device));
        model.with_codebook(codebook)
    }

    fn shard(&self, pictures: &[Image]) -> Result<Part> {
        let model = self.learner.current(self.model.clone());
        let side = model.resolution();
        let count = pictures.len();
        let values = Image::planes_of(pictures);
        let pixels = kernels::tensor(values, [count, 3, side, side], &self.device);
        let (features, quantized) = self.latents(&model, pixels.clone());
        let (from, continuous) = divided(count, self.options.hybrid_share);
        let latents = vec![features.narrow(0, 0, continuous), quantized.latent.narrow(0, from, count - from)];
        let wanted = vec![pixels.clone().narrow(0, 0, continuous), pixels.narrow(0, from, count - from)];
        let decoded = model.decode_unclamped(&Latent(Tensor::cat(latents, 0)), &mut Progress::silent())?;
        let loss = |start: usize, length: usize, want: Tensor<4>| {
            reconstruction_loss(decoded.clone().narrow(0, start, length), want, self.options.edges)
        };
        let [first, second]: [Tensor<4>; 2] = wanted.try_into().expect("two just above");
        let hybrid = loss(0, continuous, first);
        let discrete = loss(continuous, count - from, second);
        let share = self.options.hybrid_share;
        let pictures = hybrid.clone() * share + discrete.clone() * (1.0 - share);
        let total = if self.options.decoder_only { pictures } else { pictures + quantized.loss.clone() * self.options.quantizer };
        let gradients = GradientsParams::from_grads(total.backward(), &model);
        let [hybrid, discrete, quantizer]: [f32; 3] =
            numbers(vec![hybrid, discrete, quantized.loss]).try_into().expect("three just here");
        let losses = TokenizerLosses { hybrid, discrete, quantizer, ..TokenizerLosses::default() };
        Ok(Part { losses, gradients, usage: quantized.usage })
    }

    /// What the encoder and the quantizer make of pixels; without gradients if they don't learn.
    fn latents(&self, model: &VisualTokenizer, pixels: Tensor<4>) -> (Tensor<4>, Quantized) {
        let of = |model: &VisualTokenizer, pixels| {
            let features = model.encode(pixels);
            let quantized = quantize(model.codebook(), features.clone(), &model.config().sides, self.options.commitment);
            (features, quantized)
        };
        if !self.options.decoder_only {
            return of(model, pixels);
        }
        let (features, Quantized { latent, loss, usage }) = of(&model.clone().valid(), pixels.inner());
        let [features, latent] = [features, latent].map(Tensor::from_inner);
        (features, Quantized { latent, loss: Tensor::from_inner(loss), usage })
    }

    /// The tokenizer with averaged weights, on the plain device.
    pub fn averaged(&self) -> VisualTokenizer {
        self.learner.averaged(self.model.clone().valid())
    }

    /// Writes everything that the next step depends on, whole or not at all.
    ///
    /// # Errors
    ///
    /// The file can't be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut tensors = self.learner.state();
        let mut push = |name: &str, values: &[f32]| {
            tensors.push(NamedTensor { name: name.into(), shape: vec![values.len()], values: values.to_vec() });
        };
        push("codebook.counts", &self.rows.counts);
        push("codebook.sums", &self.rows.sums);
        push("codebook.idle", &self.rows.idle);
        push("step", &[self.step as f32]);
        save_tensors(path, &tensors, StoredAs::F32)
    }

    /// Goes on from a saved state.
    ///
    /// # Errors
    ///
    /// The file can't be read, or is another recipe's.
    pub fn restore(&mut self, path: &Path) -> Result<()> {
        let state = Checkpoint::open_file(path, false)?;
        let read = |name: &str, length: usize| {
            let values = state.values(name)?;
            let fits = values.len() == length;
            fits.then_some(values).ok_or_else(|| Error::checkpoint(path, format!("tensor `{name}` is another recipe's")))
        };
        let (rows, width) = (self.model.config().vocab_size, self.model.config().z_channels);
        let step = read_step(&state)?;
        let (counts, sums, idle) =
            (read("codebook.counts", rows)?, read("codebook.sums", rows * width)?, read("codebook.idle", rows)?);
        self.model = self.learner.restore(self.model.clone(), &state, step)?;
        (self.step, self.rows.counts, self.rows.sums, self.rows.idle) = (step, counts, sums, idle);
        let table = kernels::values(self.model.codebook().table().val());
        self.model = self.with_table(self.model.clone(), table, [rows, width]);
        Ok(())
    }
}

/// Of a shard's pictures, the first that is decoded from its codes, and how many are decoded from their continuous latents: at least
/// one each. A single picture is decoded from both.
fn divided(count: usize, hybrid_share: f64) -> (usize, usize) {
    if count == 1 {
        return (0, 1);
    }
    let continuous = ((count as f64 * hybrid_share) as usize).clamp(1, count - 1);
    (continuous, continuous)
}

/// What one shard found.
struct Part {
    losses: TokenizerLosses,
    gradients: GradientsParams,
    usage: Usage,
}

/// A step number in a file of floats, which are exact up to 2^24.
pub(super) fn read_step(state: &Checkpoint) -> Result<u64> {
    let number = state.values("step")?;
    number.first().map(|&step| step as u64).ok_or_else(|| Error::checkpoint(state.path(), "tensor `step` is empty"))
}

/// How large the residuals of pictures are that the diffusion is to learn: `quantile` of all their numbers lie within what is
/// returned.
///
/// # Errors
///
/// As [`VisualTokenizer::tokenize_images`].
pub fn residual_size(tokenizer: &VisualTokenizer, pictures: &[Image], quantile: f64) -> Result<f64> {
    let tokens = tokenizer.tokenize_images(pictures)?;
    let last = tokens.codes.last().expect("a plan has scales");
    let mut sizes = kernels::values((tokens.continuous - tokenizer.codebook().embed(last)).abs());
    sizes.sort_unstable_by(f32::total_cmp);
    let index = ((sizes.len() - 1) as f64 * quantile.clamp(0.0, 1.0)) as usize;
    Ok(f64::from(sizes[index]))
}
