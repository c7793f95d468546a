//! Training of the visual tokenizer. The decoder reconstructs some images of a batch from continuous latents, the others from
//! quantized ones.

use std::path::Path;

use burn::module::{Module, Param};
use burn::optim::GradientsParams;
use burn::prelude::*;

use super::codebook::{CodeAssignments, CodebookEma, QuantizedFeatures, quantize_features};
use super::init;
use super::loss::reconstruction_loss;
use super::optimizer::{ModuleOptimizer, OptimizerOptions};
use super::random::StepRng;
use super::ranges::{self, DECAY, UNIT, WEIGHT};
use super::shards::{Shards, read_scalars};
use crate::config::VisualConfig;
use crate::error::{Error, Result};
use crate::image::Image;
use crate::kernels;
use crate::progress::Progress;
use crate::visual::{DecoderMemory, Latent, VisualTokenizer};
use crate::weights::{Checkpoint, NamedTensor, StorageDtype, save_tensors};

/// Options of [`TokenizerTrainer`].
#[derive(Clone, Copy, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenizerOptions {
    /// Options of the optimizer.
    pub optimizer: OptimizerOptions,
    /// Weight of the image gradients in the reconstruction loss.
    pub edges: f64,
    /// Weight of the quantizer's loss.
    pub quantizer: f64,
    /// Weight of the commitment loss within the quantizer's loss; 0.25 in the published configuration.
    pub commitment: f64,
    /// Decay of the codebook's exponential moving averages.
    pub codebook_decay: f32,
    /// Share of the images that are decoded from continuous latents. The others are decoded from their codes.
    #[serde(default = "default_hybrid_share")]
    pub hybrid_share: f64,
    /// `true` if only the decoder is trained. An image's codes and residuals then stay the same, so a generator trained on them stays
    /// valid.
    #[serde(default)]
    pub decoder_only: bool,
    /// Number of shards of a batch that run in parallel.
    #[serde(skip)]
    pub shards: usize,
    /// Seed of all random numbers.
    #[serde(skip)]
    pub seed: u64,
}

fn default_hybrid_share() -> f64 {
    0.5
}

impl TokenizerOptions {
    /// Checks that every option is in its range. [`TokenizerTrainer::new`] checks this as well.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] naming the first option that is invalid.
    pub fn validate(&self) -> Result<()> {
        let options = [
            ("edges", self.edges, WEIGHT),
            ("quantizer", self.quantizer, WEIGHT),
            ("commitment", self.commitment, WEIGHT),
            ("codebook_decay", f64::from(self.codebook_decay), DECAY),
            ("hybrid_share", self.hybrid_share, UNIT),
        ];
        ranges::check(self.optimizer.ranges().into_iter().chain(options))
    }
}

/// Losses of a training step.
#[derive(Clone, Copy, Debug, Default)]
pub struct TokenizerLosses {
    /// Reconstruction loss of images decoded from continuous latents.
    pub hybrid: f32,
    /// Reconstruction loss of images decoded from their codes.
    pub discrete: f32,
    /// Loss of the quantizer; see [`quantizer_loss`](crate::train::quantizer_loss).
    pub quantizer: f32,
    /// Codebook usage: the share of rows that are the code of at least one token of the batch.
    pub used_rows: f32,
    /// Global norm of the gradients before clipping.
    pub gradient_norm: f32,
}

/// A visual tokenizer in training, with the state of its optimizer and codebook.
pub struct TokenizerTrainer {
    model: VisualTokenizer,
    optimizer: ModuleOptimizer,
    codebook_ema: CodebookEma,
    shards: Shards,
    options: TokenizerOptions,
    device: Device,
    step: u64,
}

impl TokenizerTrainer {
    /// Creates a tokenizer with random weights.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] if an option is invalid, or if `decoder_only` is true, which requires [`Self::from_model`].
    pub fn new(config: &VisualConfig, options: TokenizerOptions, device: &Device) -> Result<Self> {
        if options.decoder_only {
            return Err(Error::request("decoder_only", "is true, expected a trained model: its encoder is not trained"));
        }
        Self::init(config, options, device)
    }

    fn init(config: &VisualConfig, options: TokenizerOptions, device: &Device) -> Result<Self> {
        options.validate()?;
        let device = device.clone().autodiff();
        device.seed(options.seed);
        let model = init::visual_tokenizer(config, &device);
        let optimizer = ModuleOptimizer::new(&model, options.optimizer);
        let codebook_ema = CodebookEma::new(config.vocab_size, config.z_channels, options.codebook_decay);
        Ok(Self { model, optimizer, codebook_ema, shards: Shards::new(options.shards)?, options, device, step: 0 })
    }

    /// Creates a tokenizer with the weights of another one, to continue its training.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] if an option is invalid.
    pub fn from_model(tokenizer: &VisualTokenizer, options: TokenizerOptions, device: &Device) -> Result<Self> {
        let mut trainer = Self::init(&tokenizer.config, options, device)?;
        trainer.model = trainer.optimizer.adopt(trainer.model.clone(), tokenizer)?;
        let table = kernels::values(tokenizer.codebook.embedding.weight.val());
        let channels = tokenizer.config.z_channels;
        trainer.codebook_ema = CodebookEma::from_rows(table.clone(), channels, options.codebook_decay);
        trainer.model = trainer.set_codebook(trainer.model.clone(), table);
        Ok(trainer)
    }

    /// Returns the number of steps taken.
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// Sets the total number of steps of the learning rate schedule. Takes effect from the next step.
    pub fn set_steps(&mut self, steps: u64) {
        self.optimizer.set_steps(steps);
    }

    /// Takes one training step on a batch. In each shard, the first images are decoded from their continuous latents and the others from
    /// their codes, so that the decoder learns both.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] if the batch has fewer images than shards or an image has the wrong size; [`Error::Overflow`] if a loss is
    /// not finite.
    pub fn step(&mut self, images: &[Image]) -> Result<TokenizerLosses> {
        let side = self.model.resolution();
        if let Some(other) = images.iter().find(|image| (image.width(), image.height()) != (side, side)) {
            let problem = format!("has {} x {} pixels, expected {side} x {side}", other.width(), other.height());
            return Err(Error::request("image", problem));
        }
        let shards = self.shards.map(images, |_, images| self.shard(images))?;
        let mut assignments = CodeAssignments::default();
        let (mut losses, mut gradients) = (TokenizerLosses::default(), Vec::new());
        let share = 1.0 / shards.len() as f32;
        for shard in shards {
            losses.hybrid += shard.losses.hybrid * share;
            losses.discrete += shard.losses.discrete * share;
            losses.quantizer += shard.losses.quantizer * share;
            assignments.append(shard.assignments);
            gradients.push(shard.gradients);
        }
        if !(losses.hybrid + losses.discrete + losses.quantizer).is_finite() {
            return Err(Error::Overflow { what: format!("the losses of step {}", self.step) });
        }
        let (model, norm) = self.optimizer.update(self.model.clone(), gradients, self.step);
        losses.gradient_norm = norm;
        losses.used_rows = assignments.codebook_usage(model.config.vocab_size);
        self.model = model;
        if !self.options.decoder_only {
            let rng = StepRng { seed: self.options.seed, step: self.step, shard: 0 };
            let table = self.codebook_ema.update(&assignments, rng);
            self.model = self.set_codebook(self.model.clone(), table);
        }
        self.step += 1;
        Ok(losses)
    }

    /// Sets the rows of the codebook, `[rows, Z]`, in the module and in the optimizer.
    fn set_codebook(&mut self, mut model: VisualTokenizer, table: Vec<f32>) -> VisualTokenizer {
        let shape = [model.config.vocab_size, model.config.z_channels];
        let device = self.device.clone().inner();
        let id = model.codebook.embedding.weight.id;
        self.optimizer.set(id, kernels::tensor(table.clone(), [table.len()], &device));
        model.codebook.embedding.weight = Param::initialized(id, kernels::tensor(table, shape, &self.device));
        model
    }

    /// Computes losses and gradients of one shard.
    fn shard(&self, images: &[Image]) -> Result<ShardResult> {
        let model = self.optimizer.current(self.model.clone());
        let side = model.resolution();
        let count = images.len();
        let values = Image::planes_of(images);
        let pixels = kernels::tensor(values, [count, 3, side, side], &self.device);
        let (features, quantized) = self.encode(&model, pixels.clone());
        let (first_discrete, continuous) = split_shard(count, self.options.hybrid_share);
        let discrete = count - first_discrete;
        let latents = vec![features.narrow(0, 0, continuous), quantized.latent.narrow(0, first_discrete, discrete)];
        let decoded = model.decode_unclamped(DecoderMemory::Full, &Latent(Tensor::cat(latents, 0)), &mut Progress::silent())?;
        let loss = |start: usize, length: usize, want: Tensor<4>| {
            reconstruction_loss(decoded.clone().narrow(0, start, length), want, self.options.edges)
        };
        let hybrid_loss = loss(0, continuous, pixels.clone().narrow(0, 0, continuous));
        let discrete_loss = loss(continuous, discrete, pixels.narrow(0, first_discrete, discrete));
        let share = self.options.hybrid_share;
        let reconstruction = hybrid_loss.clone() * share + discrete_loss.clone() * (1.0 - share);
        let total = if self.options.decoder_only {
            reconstruction
        } else {
            reconstruction + quantized.loss.clone() * self.options.quantizer
        };
        let gradients = GradientsParams::from_grads(total.backward(), &model);
        let losses = read_scalars(vec![hybrid_loss, discrete_loss, quantized.loss]);
        let [hybrid, discrete, quantizer]: [f32; 3] = losses.try_into().expect("three losses");
        let losses = TokenizerLosses { hybrid, discrete, quantizer, ..TokenizerLosses::default() };
        Ok(ShardResult { losses, gradients, assignments: quantized.assignments })
    }

    /// Encodes and quantizes images; without gradients if only the decoder is trained.
    ///
    /// # Shapes
    ///
    /// - pixels: `[B, 3, H, W]`
    /// - features: `[B, Z, h, w]`
    fn encode(&self, model: &VisualTokenizer, pixels: Tensor<4>) -> (Tensor<4>, QuantizedFeatures) {
        let encode = |model: &VisualTokenizer, pixels| {
            let features = model.encode(pixels);
            let quantized = quantize_features(model.codebook(), features.clone(), &model.config.sides, self.options.commitment);
            (features, quantized)
        };
        if !self.options.decoder_only {
            return encode(model, pixels);
        }
        let (features, QuantizedFeatures { latent, loss, assignments }) = encode(&model.clone().valid(), pixels.inner());
        let [features, latent] = [features, latent].map(Tensor::from_inner);
        (features, QuantizedFeatures { latent, loss: Tensor::from_inner(loss), assignments })
    }

    /// Returns the tokenizer with averaged weights, on the device without autodiff.
    pub fn averaged(&self) -> VisualTokenizer {
        self.optimizer.averaged(self.model.clone().valid())
    }

    /// Saves everything that the next step depends on. The file is written atomically.
    ///
    /// # Errors
    ///
    /// [`Error::NotFinite`] if a weight is not finite; [`Error::Io`] if the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut tensors = self.optimizer.state();
        let mut push = |name: &str, values: &[f32]| {
            tensors.push(NamedTensor { name: name.into(), shape: vec![values.len()], values: values.to_vec() });
        };
        push("codebook.counts", &self.codebook_ema.counts);
        push("codebook.sums", &self.codebook_ema.sums);
        push("codebook.idle", &self.codebook_ema.idle);
        push("step", &[self.step as f32]);
        save_tensors(path, &tensors, StorageDtype::F32)
    }

    /// Restores a saved state.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the file cannot be read; [`Error::Checkpoint`] if it is damaged or belongs to another recipe.
    pub fn restore(&mut self, path: &Path) -> Result<()> {
        let state = Checkpoint::open_file(path, false)?;
        let read = |name: &str, length: usize| {
            let values = state.values(name)?;
            let has_length = values.len() == length;
            has_length
                .then_some(values)
                .ok_or_else(|| Error::checkpoint(path, format!("tensor `{name}` belongs to another recipe")))
        };
        let (rows, channels) = (self.model.config.vocab_size, self.model.config.z_channels);
        let step = read_step(&state)?;
        let (counts, sums, idle) =
            (read("codebook.counts", rows)?, read("codebook.sums", rows * channels)?, read("codebook.idle", rows)?);
        self.model = self.optimizer.restore(self.model.clone(), &state, step)?;
        (self.step, self.codebook_ema.counts, self.codebook_ema.sums, self.codebook_ema.idle) = (step, counts, sums, idle);
        let table = kernels::values(self.model.codebook.embedding.weight.val());
        self.model = self.set_codebook(self.model.clone(), table);
        Ok(())
    }
}

/// Returns the index of the first image that is decoded from its codes, and the number of images that are decoded from continuous
/// latents. There is at least one of each; a single image is decoded both ways.
fn split_shard(count: usize, hybrid_share: f64) -> (usize, usize) {
    if count == 1 {
        return (0, 1);
    }
    let continuous = ((count as f64 * hybrid_share) as usize).clamp(1, count - 1);
    (continuous, continuous)
}

/// Results of one shard of a step.
struct ShardResult {
    losses: TokenizerLosses,
    gradients: GradientsParams,
    assignments: CodeAssignments,
}

/// Reads the step number of a saved state. It is stored as f32, which is exact up to 2^24.
pub(super) fn read_step(state: &Checkpoint) -> Result<u64> {
    let values = state.values("step")?;
    values.first().map(|&step| step as u64).ok_or_else(|| Error::checkpoint(state.path(), "tensor `step` is empty"))
}

/// Returns a quantile, 0 to 1, of the absolute values of the images' residuals, which are the targets of the residual diffusion.
///
/// # Errors
///
/// Like [`VisualTokenizer::tokenize_images`].
pub fn residual_quantile(tokenizer: &VisualTokenizer, images: &[Image], quantile: f64) -> Result<f64> {
    let tokens = tokenizer.tokenize_images(images)?;
    let last = tokens.codes.last().expect("a plan has scales");
    let mut magnitudes = kernels::values((tokens.continuous - tokenizer.codebook().embed(last)).abs());
    magnitudes.sort_unstable_by(f32::total_cmp);
    let index = ((magnitudes.len() - 1) as f64 * quantile.clamp(0.0, 1.0)) as usize;
    Ok(f64::from(magnitudes[index]))
}
