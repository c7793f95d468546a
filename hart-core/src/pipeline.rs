//! Prompt to picture: the staircase.

use std::path::Path;

use burn::prelude::{Device, Tensor};

use crate::config::Config;
use crate::device::{self, DeviceKind, Precision, is_cpu, survive, wait};
use crate::error::{Error, Result};
use crate::files::{Files, Storage};
use crate::image::{Image, Provenance};
use crate::memory::{self, Memory};
use crate::open::{Layout, OpenOptions};
use crate::progress::{Observer, Progress, Stage, Step, Timings};
use crate::request::{Request, SystemPrompt};
use crate::residual::{Noise, ResidualDiffusion};
use crate::rng::{Draws, Seeded};
use crate::sampling::{self, CodebookRows, Codes, Rule, Soft};
use crate::scales::{self, Scale};
use crate::schedule::Respacing;
use crate::text::{Context, TextEncoder, Tokens, Truncation};
use crate::threads::Threads;
use crate::transformer::{Hidden, State, Transformer};
use crate::visual::{Kept, Latent, VisualTokenizer};
use crate::weights::{Checkpoint, Loader, Report, TRANSFORMER, WeightSet};

/// Guidance of the published tools.
const PUBLISHED_GUIDANCE: f64 = 4.5;

/// An opened model: shared, immutable weights. Any number of threads may generate with it at once; what a run changes lives in that
/// run.
pub struct Hart {
    config: Config,
    kind: DeviceKind,
    device: Device,
    text: TextEncoder,
    transformer: Transformer,
    residual: ResidualDiffusion,
    visual: VisualTokenizer,
    codebook: CodebookRows,
    scales: Vec<Scale>,
    system_prompt: Option<String>,
    precision: Precision,
    /// Bytes that packed weights take less than in f32.
    saved_bytes: u64,
    threads: Threads,
    max_memory: Option<u64>,
    reports: Vec<Report>,
}

/// `Hart` is shared between threads.
const _: fn() = || {
    fn shared<T: Send + Sync>() {}
    shared::<Hart>();
};

impl std::fmt::Debug for Hart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hart").field("config", &self.config).field("device", &self.device).finish_non_exhaustive()
    }
}

/// What a run made.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Generation {
    /// The pictures: all of the first prompt, then all of the second, and so on.
    pub images: Vec<Image>,
    /// Time spent in each stage.
    pub timings: Timings,
    /// Prompts, and the system prompt, that were longer than the checkpoint reads.
    pub truncated: Vec<Truncation>,
}

/// How a picture is sampled.
#[derive(Clone, Debug)]
pub struct Sampling {
    /// Strength of classifier-free guidance.
    pub guidance: f64,
    /// Whether a token is a mix of codes.
    pub soft: bool,
    /// Codes kept in sampling; none: the model's own number.
    pub top_k: Option<usize>,
    /// Probability of the codes kept; 0 is off.
    pub top_p: f64,
    /// Steps of the residual diffusion.
    pub steps: Respacing,
}

impl Sampling {
    /// The rule for one scale's tokens.
    pub fn rule(&self, scale: &Scale) -> Rule {
        Rule { top_k: self.top_k.unwrap_or(scale.top_k()), top_p: self.top_p, soft: self.soft.then(|| Soft::of(scale)) }
    }
}

impl Hart {
    /// Opens a checkpoint's root folder, which holds `llm` and `tokenizer`.
    ///
    /// # Errors
    ///
    /// [`Error::Checkpoint`], [`Error::Config`], [`Error::Weights`], [`Error::NotFinite`] or [`Error::Io`], each naming the file;
    /// [`Error::Device`]; [`Error::Memory`]; [`Error::Request`] if an option won't do.
    pub fn open(path: impl AsRef<Path>, options: OpenOptions) -> Result<Self> {
        Self::open_in(&options.disk(), path.as_ref(), &options)
    }

    /// Opens a checkpoint whose files are in memory. Tensors of f32 stay where they are.
    ///
    /// # Errors
    ///
    /// As [`Self::open`]; and torch's `.bin` files are not read from memory.
    pub fn from_files(files: Files, options: OpenOptions) -> Result<Self> {
        Self::open_in(&Storage::Memory(files), Path::new(""), &options)
    }

    fn open_in(storage: &Storage, root: &Path, options: &OpenOptions) -> Result<Self> {
        let threads = Threads::new(options.threads)?;
        let (kind, device) = options.device.find()?;
        let layout = Layout::find(storage, root, options.text_model.as_deref())?;
        memory::allow("opening this model", options.max_memory, || {
            let stored = transformer_weights(storage, &layout.transformer, options.weight_set);
            memory::weights(&layout.config, &device).saturating_sub(stored.map_or(0, |stored| stored.saved_bytes()))
        })?;
        threads.install(|| survive(kind, || Self::load(storage, layout, options, &device))).map(|hart| Self {
            threads,
            kind,
            ..hart
        })
    }

    fn load(storage: &Storage, layout: Layout, options: &OpenOptions, device: &Device) -> Result<Self> {
        let config = layout.config;
        let (text, text_report) = TextEncoder::open_in(storage, &layout.text, &config.text, options, device)?;
        let (visual, visual_report) = VisualTokenizer::open_in(storage, &layout.visual, &config.visual, options, device)?;
        let checkpoint = transformer_weights(storage, &layout.transformer, options.weight_set)?;
        let mut loader = Loader::new(&checkpoint, &TRANSFORMER);
        let mut transformer = loader.load(Transformer::init(&config, device), "transformer", device)?;
        let mut residual = loader.load(ResidualDiffusion::init(&config, device), "residual", device)?;
        let stored = [loader.unpack("transformer", transformer.packable())?, loader.unpack("residual", residual.packable())?];
        let reports = vec![text_report, loader.finish(options.strict)?, visual_report];
        let precision = choose(options.precision, stored, &layout.transformer, device)?;
        let text = text.with_precision(precision);
        let (mut transformer, mut residual) = (transformer.with_precision(precision), residual.with_precision(precision));
        let visual = visual.with_precision(precision);
        let layers = transformer.packable().into_iter().chain(residual.packable());
        let saved_bytes = layers.map(|(_, layer)| layer.saved_bytes()).sum();
        Ok(Self {
            codebook: visual.codebook().rows(),
            scales: scales::plan(&config.transformer),
            system_prompt: layout.system_prompt,
            max_memory: options.max_memory,
            precision,
            saved_bytes,
            threads: Threads::none(),
            kind: DeviceKind::Auto,
            config,
            device: device.clone(),
            text,
            transformer,
            residual,
            visual,
            reports,
        })
    }

    /// The checkpoint's sizes and options.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// How the weights fitted: text model, transformer, visual tokenizer.
    pub fn reports(&self) -> &[Report] {
        &self.reports
    }

    /// The text tokenizer and encoder.
    pub fn text(&self) -> &TextEncoder {
        &self.text
    }

    /// The transformer.
    pub fn transformer(&self) -> &Transformer {
        &self.transformer
    }

    /// The residual diffusion.
    pub fn residual(&self) -> &ResidualDiffusion {
        &self.residual
    }

    /// The visual tokenizer and decoder.
    pub fn visual(&self) -> &VisualTokenizer {
        &self.visual
    }

    /// The device that it runs on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Which device that is; never [`DeviceKind::Auto`].
    pub fn device_kind(&self) -> DeviceKind {
        self.kind
    }

    /// The numbers that it computes with; never [`Precision::Auto`].
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Estimates the memory that a request takes, before it is made.
    pub fn memory(&self, request: &Request) -> Memory {
        let tokenize =
            |system_prompt| self.text.tokenizer().tokenize(&[""], Some(system_prompt), self.config.transformer.context_tokens);
        let system_prompt =
            self.system_prompt(request).and_then(|text| tokenize(text).ok()).map_or(0, |tokens| tokens.system.len());
        let floats: u64 = self.reports.iter().map(|report| report.parameters * size_of::<f32>() as u64).sum();
        let weights = floats.saturating_sub(self.saved_bytes);
        Memory {
            weights,
            working: memory::working(&self.config, self.transformer.precision(), request.total_images(), system_prompt),
        }
    }

    /// Does work with the stages on the model's own threads, if it has some.
    pub fn install<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.threads.install(work)
    }

    /// Makes pictures. The observer hears what happens, on this thread, and can stop it; `&mut ()` hears nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Request`], [`Error::Refused`] and [`Error::Memory`] before any work; [`Error::Cancelled`] with the pictures that were finished; [`Error::Overflow`].
    pub fn generate(&self, request: &Request, observer: &mut dyn Observer) -> Result<Generation> {
        request.validate()?;
        request.filter.as_ref().map_or(Ok(()), |filter| filter.check(&request.prompts))?;
        memory::allow("this request", self.max_memory, || self.memory(request).peak())?;
        self.threads.observe(observer, |observer| survive(self.kind, || self.generate_here(request, observer)))
    }

    /// Makes a picture and throws it away, so that the first one that counts doesn't wait. On a GPU kernels are compiled when
    /// they are first needed, and kept on disk for the next time. On the CPU there is nothing to do.
    ///
    /// # Errors
    ///
    /// As [`Self::generate`].
    pub fn warm_up(&self, observer: &mut dyn Observer) -> Result<Timings> {
        if is_cpu(&self.device) {
            return Ok(Timings::default());
        }
        Ok(self.generate(&Request::new("a picture"), observer)?.timings)
    }

    fn generate_here(&self, request: &Request, observer: &mut dyn Observer) -> Result<Generation> {
        if let Some(from) = &request.from_image {
            from.check(self.visual.resolution(), self.scales.len())?;
        }
        let system_prompt = self.system_prompt(request);
        let tokens = self.text.tokenizer().tokenize(&request.prompts, system_prompt, self.config.transformer.context_tokens)?;
        let mut progress = Progress::new(observer, request.cancel.as_ref(), self.work(request, tokens.system.len()));
        let mut images = Vec::with_capacity(request.total_images());
        match self.make_all(request, &tokens, &mut images, &mut progress) {
            Err(Error::Cancelled { .. }) if images.len() < request.total_images() => Err(Error::Cancelled { completed: images }),
            // Cancelling after the last picture changes nothing any more.
            Ok(()) | Err(Error::Cancelled { .. }) => {
                Ok(Generation { images, timings: progress.timings(), truncated: tokens.truncated })
            }
            Err(error) => Err(error),
        }
    }

    /// Every picture of the request, one by one: made alone, a picture is the same to the last bit whatever else is asked for.
    fn make_all(&self, request: &Request, tokens: &Tokens, images: &mut Vec<Image>, progress: &mut Progress<'_>) -> Result<()> {
        let sampling = self.sampling(request);
        progress.enter(Stage::Decode);
        let kept = request.from_image.as_ref().map(|from| self.visual.keep(from)).transpose()?;
        for (prompt, text) in request.prompts.iter().enumerate() {
            progress.enter(Stage::Text);
            let context = self.text.encode(&tokens.row(prompt), progress)?;
            for index in 0..request.images_per_prompt {
                let seed = request.seed.wrapping_add(index as u64);
                let latent = self.sample_from(kept.as_ref(), context.clone(), &sampling, &Seeded::new(vec![seed]), progress)?;
                progress.enter(Stage::Decode);
                let provenance = Provenance { prompt: text.clone(), seed, settings: self.settings(request, &sampling) };
                let made = self.visual.decode_images(&latent, progress)?;
                for image in made.into_iter().map(|image| image.with_provenance(provenance.clone())) {
                    progress.picture(&image);
                    images.push(image);
                }
                let step = Step::Images { finished: images.len(), total: request.total_images() };
                self.offer(step, &latent, images.last(), progress)?;
            }
        }
        Ok(())
    }

    /// Context to latent: all scales, and the residual diffusion of the last one. One row of context makes one picture.
    ///
    /// # Errors
    ///
    /// [`Error::Cancelled`], or [`Error::Overflow`] if logits are not finite.
    pub fn sample(&self, context: Context, sampling: &Sampling, draws: &dyn Draws, progress: &mut Progress<'_>) -> Result<Latent> {
        self.sample_from(None, context, sampling, draws, progress)
    }

    /// As [`Self::sample`], starting from what is kept of a picture.
    ///
    /// # Errors
    ///
    /// As [`Self::sample`].
    pub fn sample_from(
        &self,
        kept: Option<&Kept>,
        context: Context,
        sampling: &Sampling,
        draws: &dyn Draws,
        progress: &mut Progress<'_>,
    ) -> Result<Latent> {
        let given = |codes: Codes, latent: &Latent, scale: &Scale| match kept {
            Some(kept) => kept.give(codes, latent, self.visual.codebook(), scale),
            None => codes,
        };
        let (batch, channels) = (context.rows(), self.config.visual.z_channels);
        let codebook = self.visual.codebook();
        progress.enter(Stage::Transformer);
        let mut state = State::new(self.transformer.condition(&context.with_unconditional()));
        let mut input = self.transformer.first_input(state.conditioning());
        let mut latent = Latent::zeros(batch, channels, self.config.transformer.last_side(), &self.device);
        for (scale, next) in self.scales.iter().zip(&self.scales[1..]) {
            let (_, codes) = self.predict(input, scale, &mut state, sampling, draws, progress)?;
            let codes = given(codes, &latent, scale);
            latent = codebook.accumulate(latent, codes.features, scale);
            wait(self.kind, &self.device)?;
            self.offer(scale_done(scale), &latent, None, progress)?;
            // Both halves of the guided batch go on from the same latent.
            input = self.transformer.next_input(codebook.next_features(&latent, next), next).repeat_dim(0, 2);
        }
        let last = &self.scales[self.scales.len() - 1];
        let (hidden, codes) = self.predict(input, last, &mut state, sampling, draws, progress)?;
        let codes = given(codes, &latent, last);
        latent = codebook.accumulate(latent, codes.features, last);
        // So that each stage's time is its own.
        wait(self.kind, &self.device)?;
        self.offer(scale_done(last), &latent, None, progress)?;
        progress.enter(Stage::Residual);
        let drawn = codebook.rows_of(codes.indices.repeat_dim(0, 2));
        let condition = self.transformer.residual_condition(&hidden, drawn);
        let noise = Noise { draws, scale: last.index };
        let t = last.guidance(sampling.guidance);
        let residual = self.residual.sample(condition, t, &sampling.steps, &noise, progress)?;
        let latent = latent.plus_rows(residual.0);
        wait(self.kind, &self.device)?;
        Ok(match kept {
            Some(kept) => kept.finish(latent),
            None => latent,
        })
    }

    /// Reports a step after which there is a picture to see: the finished one, or what the latent holds so far.
    fn offer(&self, step: Step, latent: &Latent, finished: Option<&Image>, progress: &mut Progress<'_>) -> Result<()> {
        let cancel = progress.cancel_token();
        let decode = |max_side: usize| match finished {
            Some(image) if image.width().max(image.height()) <= max_side => Ok(image.clone()),
            _ => self.visual.preview(latent, max_side, &mut Progress::new(&mut (), cancel, 1.0)),
        };
        progress.offer(step, &decode)
    }

    /// One scale: its tokens through the transformer, guided logits, codes.
    fn predict(
        &self,
        input: Tensor<3>,
        scale: &Scale,
        state: &mut State,
        sampling: &Sampling,
        draws: &dyn Draws,
        progress: &mut Progress<'_>,
    ) -> Result<(Hidden, Codes)> {
        progress.enter(Stage::Transformer);
        progress.done(Step::Scale { scale: scale.index + 1, scales: scale.count, side: scale.side }, 0.0)?;
        // All context tokens go in at the first scale, and the last of them predicts its one image token.
        let hidden = self.transformer.forward(input, scale, state, progress)?.last(scale.tokens());
        let logits = sampling::guide(self.transformer.logits(&hidden, state.conditioning()), scale.guidance(sampling.guidance));
        if is_cpu(&self.device) {
            // A GPU is waited for once a scale, and what it took is the transformer's.
            progress.enter(Stage::Sampling);
        }
        let codes = sampling::sample(logits, &sampling.rule(scale), &self.codebook, scale, draws)?;
        Ok((hidden, codes))
    }

    /// A request's settings, filled in with the model's own, and those with the published tools'.
    pub fn sampling(&self, request: &Request) -> Sampling {
        let own = &self.config.generation;
        Sampling {
            guidance: request.guidance.or(own.guidance).unwrap_or(PUBLISHED_GUIDANCE),
            soft: request.soft.or(own.soft).unwrap_or(true),
            top_k: request.top_k.or(own.top_k),
            top_p: request.top_p.or(own.top_p).unwrap_or(0.0),
            steps: request.steps.clone().unwrap_or_else(|| self.config.residual.steps.clone()),
        }
    }

    /// The system prompt of a request.
    fn system_prompt<'a>(&'a self, request: &'a Request) -> Option<&'a str> {
        let text = match &request.system_prompt {
            SystemPrompt::Checkpoint => self.system_prompt.as_deref(),
            SystemPrompt::Off => None,
            SystemPrompt::Text(text) => Some(text.as_str()),
        };
        text.filter(|t| !t.is_empty())
    }

    /// The settings as they are written into a picture's file.
    fn settings(&self, request: &Request, sampling: &Sampling) -> String {
        let top_k = sampling.top_k.map_or_else(|| "model".to_string(), |k| k.to_string());
        let system = match (self.system_prompt(request), &request.system_prompt) {
            (None, _) => "none",
            (Some(_), SystemPrompt::Text(_)) => "custom",
            (Some(_), _) => "checkpoint",
        };
        let start = request.from_image.as_ref().map_or_else(String::new, |from| format!(", {} of a picture", from.name()));
        format!(
            "guidance {}, soft sampling {}, top-k {top_k}, top-p {}, steps {}, system prompt {system}{start}",
            sampling.guidance, sampling.soft, sampling.top_p, sampling.steps
        )
    }

    /// Estimated multiply-adds of a request.
    fn work(&self, request: &Request, system_prompt: usize) -> f64 {
        let sampling = self.sampling(request);
        let context = self.config.transformer.context_tokens;
        let image_tokens: usize = self.scales[1..].iter().map(Scale::tokens).sum();
        let last = self.config.transformer.last_side();
        // One unconditional context token stands for all.
        let image = (context + 1 + 2 * image_tokens) as f64 * self.transformer.work_per_token()
            + 2.0 * (last * last) as f64 * self.residual.work_per_token(sampling.steps.kept().len())
            + self.visual.decode_work(last);
        request.prompts.len() as f64 * self.text.work(system_prompt + context) + request.total_images() as f64 * image
    }
}

fn scale_done(scale: &Scale) -> Step {
    Step::ScaleDone { scale: scale.index + 1, scales: scale.count, side: scale.side }
}

/// The precision that is asked for, or that of stored packed weights, which can be computed with in no other.
fn choose(asked: Precision, stored: [Option<Precision>; 2], folder: &Path, device: &Device) -> Result<Precision> {
    let stored = stored.into_iter().flatten().next();
    match (asked, stored) {
        (Precision::Auto, None) => Ok(device::best_precision(device)),
        (_, Some(stored)) if !is_cpu(device) => Err(Error::checkpoint(
            folder,
            format!("holds {stored} weights packed for the CPU: open it there, or the model that it was converted from here"),
        )),
        (Precision::Auto, Some(stored)) => Ok(stored),
        (asked, None) => device::check_precision(asked, device),
        (asked, Some(stored)) if asked != stored => Err(Error::checkpoint(
            folder,
            format!("holds {stored} weights: open it with the precision {stored} or auto, not {asked}"),
        )),
        (asked, Some(_)) => Ok(asked),
    }
}

pub(crate) fn transformer_weights(storage: &Storage, folder: &Path, set: WeightSet) -> Result<Checkpoint> {
    let plain = || Checkpoint::open_in(storage, folder);
    let ema = || Checkpoint::open_ema_in(storage, folder);
    match set {
        WeightSet::Plain => plain(),
        WeightSet::PreferEma => ema()?.map_or_else(plain, Ok),
        WeightSet::Ema => ema()?.ok_or_else(|| {
            Error::checkpoint(
                folder,
                "holds no EMA weights: expected ema_model.safetensors or ema_model.bin; the plain weights may do",
            )
        }),
    }
}
