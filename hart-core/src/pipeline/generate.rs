//! A request to its pictures.

use super::Hart;
use crate::device::{catch_backend_panic, is_cpu};
use crate::error::{Error, Result};
use crate::image::{Image, Provenance};
use crate::memory;
use crate::progress::{Observer, Progress, Stage, Step, Timings};
use crate::request::{Request, SystemPrompt};
use crate::rng::Philox;
use crate::sampling::SamplingParams;
use crate::scales::Scale;
use crate::text::{Tokens, Truncation};

/// Guidance of the published tools.
const PUBLISHED_GUIDANCE: f64 = 4.5;

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

impl Hart {
    /// Makes pictures. The observer hears what happens, on this thread, and can stop it; `&mut ()` hears nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Request`], [`Error::Refused`] and [`Error::Memory`] before any work; [`Error::Cancelled`] with the pictures that were finished; [`Error::Overflow`]; [`Error::Device`] if a GPU fails in the run.
    pub fn generate(&self, request: &Request, observer: &mut dyn Observer) -> Result<Generation> {
        request.validate()?;
        request.filter.as_ref().map_or(Ok(()), |filter| filter.check(&request.prompts))?;
        memory::allow("this request", self.max_memory, || self.memory(request).peak())?;
        self.threads.observe(observer, |observer| catch_backend_panic(self.kind, || self.generate_here(request, observer)))
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
            let (encoded, drawn) = (self.visual.resolution(), self.config.resolution());
            if encoded != drawn {
                let problem = format!(
                    "can't be used: this model's tokenizer reads {encoded} x {encoded} pixels (`v_patch_nums`) and its transformer \
                     draws {drawn} x {drawn} (`patch_nums`)"
                );
                return Err(Error::request("picture to start from", problem));
            }
            from.check(encoded, self.scales.len())?;
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
        let known = request.from_image.as_ref().map(|from| self.visual.known_tokens(from)).transpose()?;
        for (prompt, text) in request.prompts.iter().enumerate() {
            progress.enter(Stage::Text);
            let context = self.text.encode(&tokens.row(prompt), progress)?;
            for index in 0..request.images_per_prompt {
                let seed = request.seed.wrapping_add(index as u64);
                let latent = self.sample_from(known.as_ref(), context.clone(), &sampling, &Philox::new(vec![seed]), progress)?;
                progress.enter(Stage::Decode);
                let provenance = Provenance { prompt: text.clone(), seed, settings: self.settings(request, &sampling) };
                let made = self.visual.decode_images(&latent, progress)?;
                for image in made.into_iter().map(|image| image.with_provenance(provenance.clone())) {
                    progress.image(&image);
                    images.push(image);
                }
                let step = Step::Images { finished: images.len(), total: request.total_images() };
                self.report_preview(step, &latent, images.last(), progress)?;
            }
        }
        Ok(())
    }

    /// A request's settings, filled in with the model's own, and those with the published tools'.
    pub fn sampling(&self, request: &Request) -> SamplingParams {
        let own = &self.config.generation;
        SamplingParams {
            guidance: request.guidance.or(own.guidance).unwrap_or(PUBLISHED_GUIDANCE),
            smoothing: request.smoothing.or(own.smoothing).unwrap_or(true),
            top_k: request.top_k.or(own.top_k),
            top_p: request.top_p.or(own.top_p).unwrap_or(0.0),
            steps: request.steps.clone().unwrap_or_else(|| self.config.residual.steps.clone()),
        }
    }

    /// The system prompt of a request.
    pub(super) fn system_prompt<'a>(&'a self, request: &'a Request) -> Option<&'a str> {
        let text = match &request.system_prompt {
            SystemPrompt::Checkpoint => self.system_prompt.as_deref(),
            SystemPrompt::Off => None,
            SystemPrompt::Text(text) => Some(text.as_str()),
        };
        text.filter(|t| !t.is_empty())
    }

    /// The settings as they are written into a picture's file.
    fn settings(&self, request: &Request, sampling: &SamplingParams) -> String {
        let top_k = sampling.top_k.map_or_else(|| "model".to_string(), |k| k.to_string());
        let system = match (self.system_prompt(request), &request.system_prompt) {
            (None, _) => "none",
            (Some(_), SystemPrompt::Text(_)) => "custom",
            (Some(_), _) => "checkpoint",
        };
        let start = request.from_image.as_ref().map_or_else(String::new, |from| format!(", {} of a picture", from.name()));
        format!(
            "guidance {}, smoothing {}, top-k {top_k}, top-p {}, steps {}, system prompt {system}{start}",
            sampling.guidance, sampling.smoothing, sampling.top_p, sampling.steps
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
