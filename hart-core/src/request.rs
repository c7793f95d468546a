//! Requests: a builder whose values are checked before any work begins.

use crate::config::MAX_GUIDANCE;
use crate::error::{Error, Result};
use crate::filter::{Filter, PromptFilter};
use crate::from_image::FromImage;
use crate::image::{Image, MAX_TEXT_BYTES, Marks};
use crate::progress::CancelToken;
use crate::pruning::Pruning;
use crate::schedule::Respacing;
use crate::text::{PromptContext, SystemPrompt};
use crate::weights::shortened;

/// Maximum number of images of one request.
pub const MAX_IMAGES: usize = 1024;
/// Maximum length of one prompt in bytes: the limit for texts in PNG files. Models truncate prompts to far fewer.
pub const MAX_PROMPT_BYTES: usize = MAX_TEXT_BYTES;

/// A generation request.
///
/// Setters of optional values take a value or an `Option`. `None` selects the model's default: the value in its
/// `llm/generation_config.json`, or that of the published tools if the file does not set it.
///
/// ```
/// use hart_core::Request;
/// let request = Request::new("a red heart on a yellow background").seed(7).images_per_prompt(4).guidance(2.0).top_k(None);
/// assert_eq!(request.total_images(), 4);
/// ```
#[derive(Clone, Debug)]
#[must_use = "a request does nothing until it is passed to Hart::generate"]
pub struct Request {
    pub(crate) prompts: Vec<String>,
    pub(crate) images_per_prompt: usize,
    pub(crate) seed: u64,
    pub(crate) guidance: Option<f64>,
    pub(crate) smoothing: Option<bool>,
    pub(crate) top_k: Option<usize>,
    pub(crate) top_p: Option<f64>,
    pub(crate) system_prompt: SystemPrompt,
    pub(crate) context: Option<PromptContext>,
    pub(crate) steps: Option<Respacing>,
    pub(crate) pruning: Option<Pruning>,
    pub(crate) from_image: Option<FromImage>,
    pub(crate) cancel: Option<CancelToken>,
    pub(crate) filter: Option<Filter>,
    pub(crate) marks: Marks,
}

impl Request {
    /// Creates a request for one image of one prompt, with the model's defaults.
    pub fn new(prompt: impl Into<String>) -> Self {
        Self::batch([prompt])
    }

    /// Creates a request for one image of each prompt, with the model's defaults.
    pub fn batch<S: Into<String>>(prompts: impl IntoIterator<Item = S>) -> Self {
        Self {
            prompts: prompts.into_iter().map(Into::into).collect(),
            images_per_prompt: 1,
            seed: 0,
            guidance: None,
            smoothing: None,
            top_k: None,
            top_p: None,
            system_prompt: SystemPrompt::default(),
            context: None,
            steps: None,
            pruning: None,
            from_image: None,
            cancel: None,
            filter: None,
            marks: Marks::ALL,
        }
    }

    /// Creates the request that generated an image, from the settings in its file. The image is the same to the last bit if the model,
    /// its precision and the kind of the device are the same, and the version of hart. Compare them with
    /// [`Provenance::generation`](crate::Provenance::generation). The prompt is empty if it was left out of the file.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] if the image has no settings or not all of them, or is an edit of another image.
    pub fn again(image: &Image) -> Result<Self> {
        let invalid = |problem: &str| Error::request("image to generate again", problem);
        let provenance = image
            .provenance
            .as_ref()
            .ok_or_else(|| invalid("has no settings of hart: they were left out or removed, or another program wrote the file"))?;
        let settings = provenance.generation.as_ref().ok_or_else(|| {
            let (prompt, seed, line) = (shortened(&provenance.prompt), provenance.seed, &provenance.settings);
            let problem =
                format!("an earlier version of hart stored only some settings; set them: \"{prompt}\", seed {seed}, {line}");
            Error::request("image to generate again", problem)
        })?;
        if let Some(edit) = &settings.edit {
            return Err(Error::request(
                "image to generate again",
                format!("the file lacks the image that it was edited from ({edit}): edit that image again"),
            ));
        }
        if settings.system_prompt_omitted {
            return Err(invalid("its system prompt was left out of the file: set all settings"));
        }
        let system_prompt = match &settings.system_prompt {
            None => SystemPrompt::Checkpoint,
            Some(text) if text.is_empty() => SystemPrompt::Off,
            Some(text) => SystemPrompt::Text(text.clone()),
        };
        let request = Self::new(&provenance.prompt).seed(provenance.seed).guidance(settings.guidance);
        let request =
            request.smoothing(settings.smoothing).top_k(settings.top_k).top_p(settings.top_p).system_prompt(system_prompt);
        let pruning: Option<Pruning> = settings.prune.as_deref().map(str::parse).transpose()?;
        Ok(request.steps(settings.steps.parse::<Respacing>()?).prune(pruning))
    }

    /// Sets the marks that the files of the images get, see [`Image::marks`]. Defaults to all.
    pub fn marks(mut self, marks: Marks) -> Self {
        self.marks = marks;
        self
    }

    /// Replaces the prompts.
    pub fn prompts<S: Into<String>>(mut self, prompts: impl IntoIterator<Item = S>) -> Self {
        self.prompts = prompts.into_iter().map(Into::into).collect();
        self
    }

    /// Sets the number of images of each prompt. Defaults to 1. Image `i` of a prompt has the seed `seed + i`.
    pub fn images_per_prompt(mut self, count: usize) -> Self {
        self.images_per_prompt = count;
        self
    }

    /// Sets the seed of each prompt's first image. Defaults to 0.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Sets the strength of classifier-free guidance, which increases from 0 on the first scale. 0 disables it. `None` is the model's
    /// default, usually 4.5.
    pub fn guidance(mut self, guidance: impl Into<Option<f64>>) -> Self {
        self.guidance = guidance.into();
        self
    }

    /// Sets whether a token is a weighted mix of codebook rows (Gumbel-softmax smoothing) or a single row. `None` is the model's default,
    /// usually a mix.
    pub fn smoothing(mut self, smoothing: impl Into<Option<bool>>) -> Self {
        self.smoothing = smoothing.into();
        self
    }

    /// Sets the number of most likely codes from which a token is sampled. `None` is the model's default, usually 600 on the first seven
    /// scales and 300 on the others.
    pub fn top_k(mut self, top_k: impl Into<Option<usize>>) -> Self {
        self.top_k = top_k.into();
        self
    }

    /// Sets the total probability of the most likely codes from which a token is sampled. 0 keeps all codes. `None` is the model's
    /// default, usually 0.
    pub fn top_p(mut self, top_p: impl Into<Option<f64>>) -> Self {
        self.top_p = top_p.into();
        self
    }

    /// Sets the text before the prompts. Defaults to [`SystemPrompt::Checkpoint`].
    pub fn system_prompt(mut self, system_prompt: SystemPrompt) -> Self {
        self.system_prompt = system_prompt;
        self
    }

    /// Sets encoded prompts from [`Hart::encode`](crate::Hart::encode), so that a run skips the text stage. The images are the same, to
    /// the last bit. `None`, the default, encodes the prompts in every run.
    ///
    /// This replaces the prompts and the system prompt by those of the context. Prompts or a system prompt that are set later must be
    /// the same, or the request is invalid. All other settings are independent of the context. `None` leaves the prompts as they are.
    ///
    /// A context works only with the model that encoded it, and its clones.
    pub fn context(mut self, context: impl Into<Option<PromptContext>>) -> Self {
        self.context = context.into();
        if let Some(context) = &self.context {
            self.prompts = context.prompts().to_vec();
            self.system_prompt = context.system_prompt().clone();
        }
        self
    }

    /// Sets the steps of the residual diffusion. `None` is the model's default, usually 8.
    pub fn steps(mut self, steps: impl Into<Option<Respacing>>) -> Self {
        self.steps = steps.into();
        self
    }

    /// Sets the shares of tokens that the transformer leaves out of its last scales, which is faster and needs less memory, but changes the
    /// images. `None`, the default, computes all tokens. [`Pruning::default`] is the published plan.
    ///
    /// Published results are for models of 1024 pixels. Small images lose their shapes.
    pub fn prune(mut self, pruning: impl Into<Option<Pruning>>) -> Self {
        self.pruning = pruning.into();
        self
    }

    /// Sets an image to start from: a part of it is regenerated, or it is extended or varied. `None`, the default, generates whole
    /// images.
    ///
    /// ```
    /// use hart_core::{FromImage, Image, Mask, Request};
    /// # let photo = Image::from_rgb(32, 32, vec![0; 3 * 32 * 32])?;
    /// let sky = Mask::rectangle((32, 32), 0, 0, 32, 12);
    /// let request = Request::new("a house at night").from_image(FromImage::inpaint(photo, sky));
    /// # Ok::<(), hart_core::Error>(())
    /// ```
    pub fn from_image(mut self, from: impl Into<Option<FromImage>>) -> Self {
        self.from_image = from.into();
        self
    }

    /// Sets a token that can cancel the run from any thread. Defaults to `None`.
    pub fn cancel_token(mut self, token: impl Into<Option<CancelToken>>) -> Self {
        self.cancel = token.into();
        self
    }

    /// Sets a filter that may refuse prompts. There is none by default. Clones of the request share it.
    pub fn filter(mut self, filter: impl PromptFilter + 'static) -> Self {
        self.filter = Some(Filter::new(filter));
        self
    }

    /// Returns the number of images of all prompts.
    #[must_use]
    pub fn total_images(&self) -> usize {
        self.prompts.len().saturating_mul(self.images_per_prompt)
    }

    /// Checks every value. [`Hart::generate`](crate::Hart::generate) calls this first.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] naming the first invalid value.
    pub fn validate(&self) -> Result<()> {
        let check = |valid: bool, field, problem: String| if valid { Ok(()) } else { Err(Error::request(field, problem)) };
        check(!self.prompts.is_empty(), "prompt", "missing: expected at least one".into())?;
        for (i, prompt) in self.prompts.iter().enumerate() {
            check(!prompt.trim().is_empty(), "prompt", format!("number {} is empty: describe an image", i + 1))?;
            let bytes = prompt.len();
            check(
                bytes <= MAX_PROMPT_BYTES,
                "prompt",
                format!("number {} has {bytes} bytes, at most {MAX_PROMPT_BYTES} are read", i + 1),
            )?;
        }
        if let SystemPrompt::Text(text) = &self.system_prompt {
            let bytes = text.len();
            check(bytes <= MAX_PROMPT_BYTES, "system prompt", format!("has {bytes} bytes, at most {MAX_PROMPT_BYTES} are read"))?;
        }
        self.check_context()?;
        check(self.images_per_prompt >= 1, "images per prompt", "0, expected at least one".into())?;
        let (total, guidance, top_p) = (self.total_images(), self.guidance.unwrap_or(0.0), self.top_p.unwrap_or(0.0));
        check(total <= MAX_IMAGES, "images", format!("{total} in all, at most {MAX_IMAGES} in one request: split it"))?;
        check(
            (-MAX_GUIDANCE..=MAX_GUIDANCE).contains(&guidance),
            "guidance",
            format!("{guidance}, expected a number from -{MAX_GUIDANCE} to {MAX_GUIDANCE}; 4.5 is usual"),
        )?;
        check(self.top_k != Some(0), "top-k", "0 keeps no code: expected at least 1, or no value for the model's default".into())?;
        check((0.0..=1.0).contains(&top_p), "top-p", format!("{top_p}, expected a number from 0 (off) to 1"))?;
        self.pruning.as_ref().map_or(Ok(()), Pruning::check_ratios)
    }

    /// Checks that the prompts and the system prompt are those of the context, if there is one.
    fn check_context(&self) -> Result<()> {
        const REMEDY: &str = "encode the prompts again, or remove the context";
        let Some(context) = &self.context else { return Ok(()) };
        let (own, encoded) = (&self.prompts, context.prompts());
        if own.len() != encoded.len() {
            let problem = format!("{} in all, but the context encodes {}: {REMEDY}", own.len(), encoded.len());
            return Err(Error::request("prompts", problem));
        }
        if let Some(i) = (0..own.len()).find(|&i| own[i] != encoded[i]) {
            let (number, own, encoded) = (i + 1, shortened(&own[i]), shortened(&encoded[i]));
            let problem = format!("number {number} is \"{own}\", but the context encodes \"{encoded}\": {REMEDY}");
            return Err(Error::request("prompts", problem));
        }
        let (own, encoded) = (&self.system_prompt, context.system_prompt());
        if own != encoded && !(own.is_empty() && encoded.is_empty()) {
            let describe = |system_prompt: &SystemPrompt| match system_prompt {
                SystemPrompt::Checkpoint => "the model's".to_string(),
                SystemPrompt::Text(text) if !text.is_empty() => format!("\"{}\"", shortened(text)),
                SystemPrompt::Off | SystemPrompt::Text(_) => "none".to_string(),
            };
            let problem = format!("{}, but the context was encoded with {}: {REMEDY}", describe(own), describe(encoded));
            return Err(Error::request("system prompt", problem));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(request: Request) -> String {
        request.validate().unwrap_err().to_string()
    }

    #[test]
    fn every_value_is_checked() {
        assert!(Request::new("a parrot").validate().is_ok());
        assert!(problem(Request::batch(Vec::<String>::new())).contains("at least one"));
        assert!(problem(Request::new(" \n")).contains("number 1 is empty"));
        assert!(problem(Request::batch(["a", ""])).contains("number 2 is empty"));
        assert!(problem(Request::new("x".repeat(MAX_PROMPT_BYTES + 1))).contains("bytes"));
        assert!(problem(Request::new("a").images_per_prompt(0)).contains("at least one"));
        assert!(problem(Request::new("a").images_per_prompt(usize::MAX)).contains("at most 1024"));
        assert!(problem(Request::batch(["a", "b"]).images_per_prompt(usize::MAX)).contains("at most 1024"));
        for guidance in [f64::NAN, f64::INFINITY, -1e300, 101.0] {
            assert!(problem(Request::new("a").guidance(guidance)).contains("guidance"));
        }
        for top_p in [f64::NAN, -0.1, 1.1] {
            assert!(problem(Request::new("a").top_p(top_p)).contains("top-p"));
        }
        assert!(problem(Request::new("a").top_k(0)).contains("top-k"));
        assert!(problem(Request::new("a").prune(Pruning::new([0.5, 1.0]))).contains("pruning: ratio 2 is 1"));
        assert!(Request::new("a").seed(u64::MAX).images_per_prompt(3).validate().is_ok());
    }
}
