//! Generation of a request's images.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use web_time::Instant;

use super::sample::Previews;
use super::{Hart, Model};
use crate::error::{Error, Result};
use crate::files::Mapped;
use crate::from_image::FromImage;
use crate::image::{DigitalSource, GenerationSettings, Image, Provenance};
use crate::kernels;
use crate::progress::{Observer, Progress, Stage, Step, Timings, Work};
use crate::request::Request;
use crate::rng::Philox;
use crate::sampling::SamplingParams;
use crate::scales::Scale;
use crate::text::{Context, PromptContext, SystemPrompt, Tokens, Truncation};
use crate::threads::{Finished, SideBySide};
use crate::visual::{KnownTokens, Latent};

/// Guidance of the published tools.
const PUBLISHED_GUIDANCE: f64 = 4.5;

/// Number of prompts that are encoded together if the text model's weights are loaded again for them.
const PROMPT_GROUP: usize = 16;

/// The result of a run.
#[derive(Clone, Debug)]
#[must_use]
#[non_exhaustive]
pub struct Generation {
    /// The images: all of the first prompt, then all of the second, and so on.
    pub images: Vec<Image>,
    /// Time spent in each stage.
    pub timings: Timings,
    /// The prompts that were cut because they have more tokens than the model reads, including the system prompt.
    pub truncated: Vec<Truncation>,
}

/// The prompts of a run.
enum Prompts<'a> {
    /// Prompts that were encoded before the run.
    Encoded(&'a PromptContext),
    /// Prompts that the run encodes.
    Tokens(Tokens),
}

/// The parts of a run that its images share.
struct Job<'a> {
    request: &'a Request,
    prompts: Prompts<'a>,
    sampling: SamplingParams,
    previews: Previews,
    known: Option<KnownTokens>,
    /// Time that encoding the image to start from took.
    encoding: Duration,
    work: Arc<Work>,
}

impl Job<'_> {
    /// Returns the index of an image's prompt, and the image's index among those of the prompt.
    fn position(&self, index: usize) -> (usize, usize) {
        (index / self.request.images_per_prompt, index % self.request.images_per_prompt)
    }
}

/// The encoded prompts of a run.
#[derive(Default)]
struct Contexts {
    /// Number of prompts that have been encoded.
    encoded: usize,
    /// Contexts by prompt, each with the number of images that will use it.
    unused: BTreeMap<usize, (usize, Context)>,
}

impl Prompts<'_> {
    /// Returns the prompts that were cut.
    fn truncated(&self) -> Vec<Truncation> {
        match self {
            Self::Encoded(context) => context.truncated().to_vec(),
            Self::Tokens(tokens) => tokens.truncated.clone(),
        }
    }
}

impl Hart {
    /// Generates the images of a request.
    ///
    /// # Errors
    ///
    /// - Before any work: [`Error::Request`], [`Error::Refused`], [`Error::Memory`], [`Error::Threads`], or [`Error::State`] if this process
    ///   was forked during a call.
    /// - During the run: [`Error::Cancelled`], [`Error::Overflow`], or [`Error::Device`] if a GPU fails.
    pub fn generate(&self, request: &Request) -> Result<Generation> {
        self.generate_with(request, &mut ())
    }

    /// Generates the images of a request and reports to an observer, which may cancel the run. The observer is called on the current
    /// thread.
    ///
    /// # Errors
    ///
    /// Like [`Self::generate`].
    pub fn generate_with(&self, request: &Request, observer: &mut dyn Observer) -> Result<Generation> {
        let Model { threads, device, .. } = &*self.model;
        if !threads.can_share()? {
            return threads.observe(observer, |observer| {
                self.check(request)?;
                device.catch_backend_panic(|| self.run_one_by_one(&self.prepare(request)?, observer))
            });
        }
        threads.run(|| self.check(request))??;
        match self.images_at_once(request) {
            1 => threads.observe_image(observer, request.cancel.as_ref(), |observer| {
                device.catch_backend_panic(|| self.run_one_by_one(&self.prepare(request)?, observer))
            }),
            at_once => {
                let job = threads.run(|| device.catch_backend_panic(|| self.prepare(request)))??;
                self.run_side_by_side(&job, at_once, observer)
            }
        }
    }

    /// Generates an image and discards it, so that the first request is not slower than others: a GPU's kernels are compiled on first
    /// use and cached on disk. Does nothing on the CPU.
    ///
    /// # Errors
    ///
    /// Like [`Self::generate`].
    pub fn warm_up(&self) -> Result<Timings> {
        if self.model.device.is_synchronous() {
            return Ok(Timings::default());
        }
        Ok(self.generate(&Request::new("an image"))?.timings)
    }

    /// Checks the values of a request, that its filter accepts its prompts, and that its pruning, its image and its memory fit this model.
    /// [`Self::generate`] does so before any work; a program that queues requests can check them earlier.
    ///
    /// # Errors
    ///
    /// [`Error::Request`], [`Error::Refused`] or [`Error::Memory`].
    pub fn check(&self, request: &Request) -> Result<()> {
        self.check_prompts(request)?;
        if let Some(from) = &request.from_image {
            let (encoded, generated) = (self.model.visual.resolution(), self.model.config.resolution());
            if encoded != generated {
                let problem = format!(
                    "can't be used: this model's tokenizer reads {encoded} x {encoded} pixels (`v_patch_nums`) and its transformer \
                     generates {generated} x {generated} (`patch_nums`)"
                );
                return Err(Error::request("image to start from", problem));
            }
            from.check(encoded, self.model.scales.len())?;
        }
        if let Some(pruning) = &request.pruning {
            pruning.check(&self.model.config.transformer.sides)?;
        }
        self.model.budget.allow_run("this request", &self.model.config, self.run_sizes(request))
    }

    /// Returns the parts of a run that its images share.
    fn prepare<'a>(&self, request: &'a Request) -> Result<Job<'a>> {
        let start = Instant::now();
        let prompts = match &request.context {
            Some(context) => Prompts::Encoded(context),
            None => Prompts::Tokens(self.tokens(request)?),
        };
        let before = start.elapsed();
        let known = request.from_image.as_ref().map(|from| self.model.visual.known_tokens(from)).transpose()?;
        let encoding = start.elapsed() - before;
        let (sampling, memory) = (self.sampling(request), self.decoder_memory(request));
        let source = if request.from_image.is_some() { DigitalSource::Composite } else { DigitalSource::Generated };
        let previews = Previews { memory, source, marks: request.marks };
        let work = Work::since(start, self.work(request, &prompts));
        Ok(Job { request, prompts, sampling, previews, known, encoding, work })
    }

    /// Generates the images one by one, so that an image does not depend on the rest of the request, to the last bit.
    fn run_one_by_one(&self, job: &Job<'_>, observer: &mut dyn Observer) -> Result<Generation> {
        let total = job.request.total_images();
        let mut progress = Progress::of_image(0, &job.work, observer, job.request.cancel.as_ref());
        progress.add_time(Stage::Decode, job.encoding);
        let mut images = Vec::with_capacity(total);
        let mut contexts = Contexts::default();
        let mut generate = || {
            for index in 0..total {
                progress.begin_image(index);
                let context = self.context(job, index, &mut contexts, &mut progress)?;
                let (image, latent) = self.generate_image(job, index, context, &mut progress)?;
                progress.image(&image);
                images.push(image);
                self.report_preview(
                    job.previews,
                    Step::Images { finished: index + 1, total },
                    &latent,
                    images.last(),
                    &mut progress,
                )?;
            }
            Ok(())
        };
        match generate() {
            Err(Error::Cancelled) if images.len() < total => Err(Error::Cancelled),
            // All images are finished: it is too late to cancel.
            Ok(()) | Err(Error::Cancelled) => {
                Ok(Generation { images, timings: progress.timings(), truncated: job.prompts.truncated() })
            }
            Err(error) => Err(error),
        }
    }

    /// Generates up to `at_once` of the images at once. The results are those of [`Self::run_one_by_one`], to the last bit.
    fn run_side_by_side(&self, job: &Job<'_>, at_once: usize, observer: &mut dyn Observer) -> Result<Generation> {
        let Model { threads, device, .. } = &*self.model;
        // Memory that an image leaves serves the next one, unless that could exceed a limit.
        let _reuse = self.model.budget.limit.is_none().then(kernels::reuse_memory);
        let (images, cancel) = (job.request.total_images(), job.request.cancel.as_ref());
        let (contexts, stages) = (Mutex::new(Contexts::default()), Mutex::new(Timings::default()));
        let image = |index: usize, observer: &mut dyn Observer| {
            let mut progress = Progress::of_image(index, &job.work, observer, cancel);
            let generated = device.catch_backend_panic(|| {
                let context = self.context(job, index, &mut lock(&contexts), &mut progress)?;
                self.generate_image(job, index, context, &mut progress)
            });
            lock(&stages).add_stages(&progress.timings(), at_once);
            let (image, latent) = generated?;
            Ok(Finished { image, preview: self.owned_preview(job.previews, latent, cancel) })
        };
        let (images, ended) = threads.generate(&SideBySide { images, at_once, cancel, work: &job.work }, observer, &image)?;
        ended?;
        let mut progress = Progress::of_image(0, &job.work, observer, cancel);
        progress.add_time(Stage::Decode, job.encoding);
        let mut timings = progress.timings();
        timings.add_stages(&lock(&stages), 1);
        Ok(Generation { images, timings, truncated: job.prompts.truncated() })
    }

    /// Generates an image of a run from the context of its prompt. Returns it with its latent.
    fn generate_image(
        &self,
        job: &Job<'_>,
        index: usize,
        context: Context,
        progress: &mut Progress<'_>,
    ) -> Result<(Image, Latent)> {
        let (prompt, of_prompt) = job.position(index);
        let seed = job.request.seed.wrapping_add(of_prompt as u64);
        let random = Philox::new(vec![seed]);
        let latent = self.sample_with(job.previews, job.known.as_ref(), context, &job.sampling, &random, progress)?;
        self.model.released_after_sampling.iter().for_each(Mapped::release);
        progress.enter(Stage::Decode);
        let image = self.model.visual.decode_images_with(job.previews.memory, &latent, progress)?.remove(0);
        let image = match &job.known {
            Some(known) => known.lay_over(image),
            None => image,
        };
        let provenance = self.provenance(job.request, &job.request.prompts[prompt], seed);
        Ok((image.with_provenance(provenance, job.request.marks), latent))
    }

    /// Returns the context of an image's prompt. Encodes prompts in their order, and keeps their contexts until all images that use them
    /// have begun.
    fn context(&self, job: &Job<'_>, index: usize, contexts: &mut Contexts, progress: &mut Progress<'_>) -> Result<Context> {
        let (prompt, _) = job.position(index);
        while contexts.encoded <= prompt {
            let encoded = self.contexts(&job.prompts, contexts.encoded, progress)?;
            for context in encoded {
                contexts.unused.insert(contexts.encoded, (job.request.images_per_prompt, context));
                contexts.encoded += 1;
            }
        }
        let (uses, context) = contexts.unused.get_mut(&prompt).expect("a prompt has as many images as were requested");
        *uses -= 1;
        let (is_last, context) = (*uses == 0, context.clone());
        if is_last {
            contexts.unused.remove(&prompt);
        }
        Ok(context)
    }

    /// Returns the contexts of the next prompts: of at least one, `first`.
    fn contexts(&self, prompts: &Prompts<'_>, first: usize, progress: &mut Progress<'_>) -> Result<Vec<Context>> {
        match prompts {
            Prompts::Encoded(context) => Ok(vec![context.rows()[first].clone()]),
            Prompts::Tokens(tokens) => {
                progress.enter(Stage::Text);
                let group = if self.model.text.drops_weights() { PROMPT_GROUP } else { 1 };
                self.model.encode(tokens, first..tokens.ids.len().min(first + group), progress)
            }
        }
    }

    /// Returns a request's sampling parameters. Values that it does not set are the model's defaults or, if it has none, those of the
    /// published tools.
    pub fn sampling(&self, request: &Request) -> SamplingParams {
        self.model.sampling(request)
    }

    /// Returns the provenance that an image of a request has. The seed of image `i` of a prompt is the request's plus `i`.
    pub fn provenance(&self, request: &Request, prompt: &str, seed: u64) -> Provenance {
        let sampling = &self.sampling(request);
        let side = self.model.config.resolution();
        let generation = GenerationSettings {
            guidance: sampling.guidance,
            smoothing: sampling.smoothing,
            top_k: sampling.top_k,
            top_p: sampling.top_p,
            steps: sampling.steps.to_string(),
            step_count: sampling.steps.timesteps().len(),
            prune: sampling.pruning.as_ref().map(ToString::to_string),
            system_prompt: match &request.system_prompt {
                SystemPrompt::Checkpoint => None,
                SystemPrompt::Off => Some(String::new()),
                SystemPrompt::Text(text) => Some(text.clone()),
            },
            system_prompt_omitted: false,
            precision: self.precision().to_string(),
            device: self.device_kind().to_string().split(':').next().unwrap_or_default().to_string(),
            model: self.model_name().to_string(),
            model_fingerprint: self.fingerprint().to_string(),
            width: side,
            height: side,
            edit: request.from_image.as_ref().map(FromImage::description),
            version: env!("CARGO_PKG_VERSION").to_string(),
        };
        let settings = self.settings(request, sampling);
        Provenance { prompt: prompt.into(), seed, settings, generation: Some(generation) }
    }

    /// Returns the settings line of an image's [`Provenance`].
    fn settings(&self, request: &Request, sampling: &SamplingParams) -> String {
        let top_k = sampling.top_k.map_or_else(|| "model".to_string(), |k| k.to_string());
        let system = match (self.system_prompt(request), &request.system_prompt) {
            (None, _) => "none",
            (Some(_), SystemPrompt::Text(_)) => "custom",
            (Some(_), _) => "checkpoint",
        };
        let start = request.from_image.as_ref().map_or_else(String::new, |from| format!(", {}", from.description()));
        let pruning = sampling.pruning.as_ref().map_or_else(String::new, |plan| format!(", prune {plan}"));
        format!(
            "guidance {}, smoothing {}, top-k {top_k}, top-p {}, steps {}, system prompt {system}{pruning}{start}",
            sampling.guidance, sampling.smoothing, sampling.top_p, sampling.steps
        )
    }

    /// Estimates the multiply-adds of a request.
    fn work(&self, request: &Request, prompts: &Prompts<'_>) -> f64 {
        let text = match prompts {
            Prompts::Encoded(_) => 0.0,
            Prompts::Tokens(tokens) => self.text_work(tokens),
        };
        text + request.total_images() as f64 * self.model.image_work(&self.sampling(request))
    }
}

impl Model {
    /// Returns a request's sampling parameters.
    pub(super) fn sampling(&self, request: &Request) -> SamplingParams {
        let defaults = &self.config.generation;
        SamplingParams {
            guidance: request.guidance.or(defaults.guidance).unwrap_or(PUBLISHED_GUIDANCE),
            smoothing: request.smoothing.or(defaults.smoothing).unwrap_or(true),
            top_k: request.top_k.or(defaults.top_k),
            top_p: request.top_p.or(defaults.top_p).unwrap_or(0.0),
            steps: request.steps.clone().unwrap_or_else(|| self.config.residual.steps.clone()),
            pruning: request.pruning.clone(),
        }
    }

    /// Estimates the multiply-adds of an image.
    pub(super) fn image_work(&self, sampling: &SamplingParams) -> f64 {
        let context = self.config.transformer.context_tokens;
        let computed = |scale: &Scale| sampling.pruning.as_ref().map_or(scale.tokens(), |plan| plan.kept(scale));
        let image_tokens: usize = self.scales[1..].iter().map(computed).sum();
        let last = self.config.transformer.last_side();
        // All unconditional context tokens are equal, so only one is computed; without guidance, none is.
        let halves = 1 + usize::from(sampling.is_guided());
        (context + halves - 1 + halves * image_tokens) as f64 * self.transformer.work_per_token()
            + (halves * last * last) as f64 * self.residual.work_per_token(sampling.steps.timesteps().len())
            + self.visual.decode_work(last)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
