//! The state of a request: what it holds, when it is valid, and when it runs.

use std::ffi::CString;
use std::mem::replace;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use hart_core::{CancelToken, FromImage, Image, Keep, Marks, Provenance, Pruning, Request, Respacing, SystemPrompt};

use crate::context::Encoded;
use crate::event::{Callback, Watcher};
use crate::guard::lock;
use crate::image::CImage;
use crate::status::{Failure, HART_ERR_STATE};
use crate::text::to_c;

/// A request that C builds step by step.
#[derive(Default)]
pub(crate) struct SharedRequest {
    parts: Mutex<Parts>,
    running: Arc<AtomicBool>,
}

/// The prompts and settings, in the form in which C has set them.
#[derive(Clone, Default)]
pub(crate) struct Parts {
    pub(crate) prompts: Vec<CString>,
    pub(crate) images_per_prompt: Option<u32>,
    pub(crate) seed: Option<u64>,
    pub(crate) guidance: Option<f64>,
    pub(crate) smoothing: Option<bool>,
    pub(crate) top_k: Option<u32>,
    pub(crate) top_p: Option<f64>,
    pub(crate) steps: Option<(Respacing, CString)>,
    pub(crate) pruning: Option<(Pruning, CString)>,
    pub(crate) system_prompt: Option<CString>,
    /// Determines the prompts and the system prompt.
    pub(crate) context: Option<Arc<Encoded>>,
    pub(crate) start: Option<Start>,
    pub(crate) keep: Option<Keep>,
    pub(crate) watcher: Option<Arc<Watcher>>,
    pub(crate) cancel: Option<CancelToken>,
    pub(crate) marks: Option<(Marks, CString)>,
}

/// An image to start from.
#[derive(Clone)]
pub(crate) struct Start {
    pub(crate) from: FromImage,
    pub(crate) image: Arc<CImage>,
    pub(crate) kind: StartKind,
}

#[derive(Clone)]
pub(crate) enum StartKind {
    Inpaint { mask: Arc<CImage>, kept_scales: u32 },
    Outpaint { left: u32, top: u32 },
    Variation { kept_scales: u32 },
}

/// A run of a request. The request can't be changed while it exists.
pub(crate) struct Run {
    pub(crate) request: Request,
    pub(crate) callback: Callback,
    running: Arc<AtomicBool>,
}

impl Drop for Run {
    fn drop(&mut self) {
        self.running.store(false, Ordering::Release);
    }
}

impl Parts {
    /// Returns everything except the prompts and the image to start from.
    fn settings(&self) -> Request {
        let system_prompt = match self.system_prompt.as_ref().map(text) {
            None => SystemPrompt::Checkpoint,
            Some("") => SystemPrompt::Off,
            Some(text) => SystemPrompt::Text(text.to_string()),
        };
        Request::batch(Vec::<String>::new())
            .images_per_prompt(self.images_per_prompt.unwrap_or(1) as usize)
            .seed(self.seed.unwrap_or(0))
            .guidance(self.guidance)
            .smoothing(self.smoothing)
            .top_k(self.top_k.map(|top_k| top_k as usize))
            .top_p(self.top_p)
            .steps(self.steps.as_ref().map(|(steps, _)| steps.clone()))
            .prune(self.pruning.as_ref().map(|(pruning, _)| pruning.clone()))
            .context(self.context.as_ref().map(|encoded| encoded.context.clone()))
            .system_prompt(system_prompt)
            .cancel_token(self.cancel.clone())
            .marks(self.marks.as_ref().map_or(Marks::ALL, |(marks, _)| *marks))
    }

    /// Returns the request that generated an image.
    pub(crate) fn again(image: &Image) -> Result<Self, Failure> {
        // This checks the settings.
        drop(Request::again(image)?);
        let Some(Provenance { prompt, seed, generation: Some(settings), .. }) = &image.provenance else {
            return Ok(Self::default());
        };
        Ok(Self {
            prompts: Some(to_c(prompt)).filter(|prompt| !prompt.is_empty()).into_iter().collect(),
            seed: Some(*seed),
            guidance: Some(settings.guidance),
            smoothing: Some(settings.smoothing),
            top_k: settings.top_k.map(|top_k| u32::try_from(top_k).unwrap_or(u32::MAX)),
            top_p: Some(settings.top_p),
            steps: Some((settings.steps.parse()?, to_c(&settings.steps))),
            pruning: settings.prune.as_ref().map(|ratios| Ok::<_, Failure>((ratios.parse()?, to_c(ratios)))).transpose()?,
            system_prompt: settings.system_prompt.as_deref().map(to_c),
            ..Self::default()
        })
    }

    fn request(&self) -> Request {
        let from_image = self.start.as_ref().map(|start| start.from.clone().keep(self.keep.unwrap_or_default()));
        self.settings().prompts(self.prompts.iter().map(text)).from_image(from_image)
    }

    fn validate(&self) -> Result<(), Failure> {
        if self.context.is_some() {
            return Ok(self.request().validate()?);
        }
        // The prompts may be missing yet, and may be set in any order with the number of images.
        self.settings().prompts(["any"]).validate()?;
        if self.prompts.is_empty() { Ok(()) } else { Ok(Request::batch(self.prompts.iter().map(text)).validate()?) }
    }
}

/// Returns a text that [`Text::get`] has accepted.
fn text(text: &CString) -> &str {
    text.to_str().unwrap_or_default()
}

impl SharedRequest {
    pub(crate) fn new(parts: Parts) -> Self {
        Self { parts: Mutex::new(parts), running: Arc::default() }
    }

    /// Returns the request with its current prompts and settings.
    pub(crate) fn request(&self) -> Request {
        lock(&self.parts).request()
    }

    /// Begins a run. Fails if the request is already running.
    pub(crate) fn run(&self) -> Result<Run, Failure> {
        if self.running.swap(true, Ordering::Acquire) {
            return Err(running());
        }
        let parts = lock(&self.parts);
        Ok(Run { request: parts.request(), callback: Callback::new(parts.watcher.clone()), running: self.running.clone() })
    }

    /// Reads a value that C has set.
    pub(crate) fn read<T>(&self, read: impl FnOnce(&Parts) -> T) -> T {
        read(&lock(&self.parts))
    }

    /// Changes the parts if they are valid afterwards. Returns the former ones, whose user data must not be destroyed under the lock:
    /// that calls the program, which may use the request.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Parts) -> Result<(), Failure>) -> Result<Parts, Failure> {
        if self.running.load(Ordering::Acquire) {
            return Err(running());
        }
        let mut parts = lock(&self.parts);
        let mut changed = parts.clone();
        change(&mut changed)?;
        changed.validate()?;
        Ok(replace(&mut *parts, changed))
    }
}

fn running() -> Failure {
    Failure::new(HART_ERR_STATE, "`request` is running: wait for its run to end, or use another request")
}
