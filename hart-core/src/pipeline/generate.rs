//! Generation of a request's images.

use super::{Hart, Model};
use crate::error::{Error, Result};
use crate::files::Mapped;
use crate::from_image::FromImage;
use crate::image::{GenerationSettings, Image, Provenance};
use crate::progress::{Observer, Progress, Stage, Step, Timings};
use crate::request::Request;
use crate::rng::Philox;
use crate::sampling::SamplingParams;
use crate::scales::Scale;
use crate::text::{Context, PromptContext, SystemPrompt, Tokens, Truncation};

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
        threads.observe(observer, |observer| {
            self.check(request)?;
            device.catch_backend_panic(|| self.run(request, observer))
        })
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

    /// Checks the values of a request, that its filter accepts its prompts, and that its image and its memory fit this model.
    fn check(&self, request: &Request) -> Result<()> {
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

    fn run(&self, request: &Request, observer: &mut dyn Observer) -> Result<Generation> {
        let prompts = match &request.context {
            Some(context) => Prompts::Encoded(context),
            None => Prompts::Tokens(self.tokens(request)?),
        };
        let mut progress = Progress::new(observer, request.cancel.as_ref(), self.work(request, &prompts));
        let mut images = Vec::with_capacity(request.total_images());
        match self.generate_all(request, &prompts, &mut images, &mut progress) {
            Err(Error::Cancelled) if images.len() < request.total_images() => Err(Error::Cancelled),
            // All images are finished: it is too late to cancel.
            Ok(()) | Err(Error::Cancelled) => {
                Ok(Generation { images, timings: progress.timings(), truncated: prompts.truncated() })
            }
            Err(error) => Err(error),
        }
    }

    /// Generates the images one by one, so that an image does not depend on the rest of the request, to the last bit.
    fn generate_all(
        &self,
        request: &Request,
        prompts: &Prompts<'_>,
        images: &mut Vec<Image>,
        progress: &mut Progress<'_>,
    ) -> Result<()> {
        let (sampling, memory) = (self.sampling(request), self.decoder_memory(request));
        progress.enter(Stage::Decode);
        let known = request.from_image.as_ref().map(|from| self.model.visual.known_tokens(from)).transpose()?;
        let mut contexts = Vec::new().into_iter();
        for (prompt, text) in request.prompts.iter().enumerate() {
            if contexts.len() == 0 {
                contexts = self.contexts(prompts, prompt, progress)?.into_iter();
            }
            let context = contexts.next().expect("at least one prompt is encoded");
            for index in 0..request.images_per_prompt {
                let seed = request.seed.wrapping_add(index as u64);
                let random = Philox::new(vec![seed]);
                let latent = self.sample_with(memory, known.as_ref(), context.clone(), &sampling, &random, progress)?;
                self.model.released_after_sampling.iter().for_each(Mapped::release);
                progress.enter(Stage::Decode);
                let provenance = self.provenance(request, &sampling, text, seed);
                let decoded = self.model.visual.decode_images_with(memory, &latent, progress)?;
                for image in decoded {
                    let image = match &known {
                        Some(known) => known.lay_over(image),
                        None => image,
                    };
                    let image = image.with_provenance(provenance.clone(), request.marks);
                    progress.image(&image);
                    images.push(image);
                }
                let step = Step::Images { finished: images.len(), total: request.total_images() };
                self.report_preview(memory, step, &latent, images.last(), progress)?;
            }
        }
        Ok(())
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
        let defaults = &self.model.config.generation;
        SamplingParams {
            guidance: request.guidance.or(defaults.guidance).unwrap_or(PUBLISHED_GUIDANCE),
            smoothing: request.smoothing.or(defaults.smoothing).unwrap_or(true),
            top_k: request.top_k.or(defaults.top_k),
            top_p: request.top_p.or(defaults.top_p).unwrap_or(0.0),
            steps: request.steps.clone().unwrap_or_else(|| self.model.config.residual.steps.clone()),
            pruning: request.pruning.clone(),
        }
    }

    /// Returns the provenance of an image.
    fn provenance(&self, request: &Request, sampling: &SamplingParams, prompt: &str, seed: u64) -> Provenance {
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
        let sampling = self.sampling(request);
        let context = self.model.config.transformer.context_tokens;
        let computed = |scale: &Scale| sampling.pruning.as_ref().map_or(scale.tokens(), |plan| plan.kept(scale));
        let image_tokens: usize = self.model.scales[1..].iter().map(computed).sum();
        let last = self.model.config.transformer.last_side();
        // All unconditional context tokens are equal, so only one is computed; without guidance, none is.
        let halves = 1 + usize::from(sampling.is_guided());
        let image = (context + halves - 1 + halves * image_tokens) as f64 * self.model.transformer.work_per_token()
            + (halves * last * last) as f64 * self.model.residual.work_per_token(sampling.steps.timesteps().len())
            + self.model.visual.decode_work(last);
        let text = match prompts {
            Prompts::Encoded(_) => 0.0,
            Prompts::Tokens(tokens) => self.text_work(tokens),
        };
        text + request.total_images() as f64 * image
    }
}
