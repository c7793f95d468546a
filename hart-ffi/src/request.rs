//! Requests.

use std::ffi::{CString, c_char, c_void};
use std::mem::replace;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use hart_core::{CancelToken, FromImage, Keep, Mask, Request, Respacing, SystemPrompt};

use crate::cancel::hart_cancel;
use crate::context::{Encoded, hart_context};
use crate::event::{Callback, Watcher, hart_observer};
use crate::guard::{guard, lock};
use crate::handle::{Handle, free, get, get_optional};
use crate::image::{CImage, hart_image};
use crate::out::Out;
use crate::status::{Failure, HART_ERR_STATE, hart_status};
use crate::text::{Text, to_c};
use crate::user_data::{UserData, hart_destroy};

/// A request: prompts, settings, an observer and a cancel token. It may be used for any number of runs, by one thread
/// at a time.
pub struct hart_request(());

impl Handle for hart_request {
    type Value = SharedRequest;
    const NAME: &'static str = "hart_request";
}

/// A request that C builds step by step.
#[derive(Default)]
pub(crate) struct SharedRequest {
    parts: Mutex<Parts>,
    running: Arc<AtomicBool>,
}

/// What C has set, as it has set it.
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
    pub(crate) system_prompt: Option<CString>,
    /// Determines the prompts and the system prompt.
    pub(crate) context: Option<Arc<Encoded>>,
    pub(crate) start: Option<Start>,
    pub(crate) keep: Option<Keep>,
    pub(crate) watcher: Option<Arc<Watcher>>,
    pub(crate) cancel: Option<CancelToken>,
}

/// An image to start from.
#[derive(Clone)]
pub(crate) struct Start {
    from: FromImage,
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
            .context(self.context.as_ref().map(|encoded| encoded.context.clone()))
            .system_prompt(system_prompt)
            .cancel_token(self.cancel.clone())
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
    fn change(&self, change: impl FnOnce(&mut Parts) -> Result<(), Failure>) -> Result<Parts, Failure> {
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

/// Creates a request without prompts and with the default settings of the model. Free it with `hart_request_free`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_new(request: *mut *mut hart_request) -> hart_status {
    guard(|| {
        Out::<hart_request>::new(request, "request")?.write(SharedRequest::default());
        Ok(())
    })
}

/// Frees the request. Does nothing if `request` is NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_free(request: *mut hart_request) {
    free(request);
}

/// Creates an independent copy of a request: with the same prompts, settings, context and images, and the same token and
/// observer. Both requests pass the same `user_data` to the observer; it is destroyed when neither needs it. Free the copy
/// with `hart_request_free`. The request may be running.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_clone(request: *const hart_request, clone: *mut *mut hart_request) -> hart_status {
    guard(|| {
        let clone = Out::<hart_request>::new(clone, "clone")?;
        let parts = get(request, "request")?.read(Parts::clone);
        clone.write(SharedRequest { parts: Mutex::new(parts), running: Arc::default() });
        Ok(())
    })
}

/// Changes a request if it is valid afterwards.
unsafe fn set(request: *mut hart_request, set: impl FnOnce(&mut Parts) -> Result<(), Failure>) -> hart_status {
    guard(|| {
        drop(get(request, "request")?.change(set)?);
        Ok(())
    })
}

/// Sets the only prompt and removes all others. Returns `HART_ERR_REQUEST` if the prompt is empty, too long, or
/// different from that of the request's context.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_set_prompt(request: *mut hart_request, prompt: *const c_char) -> hart_status {
    set_prompt(request, Text::Terminated(prompt))
}

/// Like `hart_request_set_prompt`, for a text of `prompt_size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_set_prompt_n(
    request: *mut hart_request,
    prompt: *const c_char,
    prompt_size: usize,
) -> hart_status {
    set_prompt(request, Text::Sized(prompt, prompt_size))
}

unsafe fn set_prompt(request: *mut hart_request, prompt: Text) -> hart_status {
    set(request, |parts| {
        parts.prompts = vec![to_c(prompt.get("prompt")?)];
        Ok(())
    })
}

/// Adds a prompt. Returns `HART_ERR_REQUEST` if the prompt is empty or too long, or if the request has a context.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_add_prompt(request: *mut hart_request, prompt: *const c_char) -> hart_status {
    add_prompt(request, Text::Terminated(prompt))
}

/// Like `hart_request_add_prompt`, for a text of `prompt_size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_add_prompt_n(
    request: *mut hart_request,
    prompt: *const c_char,
    prompt_size: usize,
) -> hart_status {
    add_prompt(request, Text::Sized(prompt, prompt_size))
}

unsafe fn add_prompt(request: *mut hart_request, prompt: Text) -> hart_status {
    set(request, |parts| {
        parts.prompts.push(to_c(prompt.get("prompt")?));
        Ok(())
    })
}

/// Sets the number of images of each prompt; the default is 1. Image i of a prompt, counted from 0, has the seed `seed
/// + i`. Returns `HART_ERR_REQUEST` if the number is 0 or too large.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_set_images_per_prompt(request: *mut hart_request, count: u32) -> hart_status {
    set(request, |parts| {
        parts.images_per_prompt = Some(count);
        Ok(())
    })
}

/// Sets the seed of the first image of each prompt; the default is 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_set_seed(request: *mut hart_request, seed: u64) -> hart_status {
    set(request, |parts| {
        parts.seed = Some(seed);
        Ok(())
    })
}

/// Sets the strength of classifier-free guidance, from -100 to 100. 0 is no guidance; the default is the model's,
/// usually 4.5. Returns `HART_ERR_REQUEST` if the value is out of range.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_set_guidance(request: *mut hart_request, guidance: f64) -> hart_status {
    set(request, |parts| {
        parts.guidance = Some(guidance);
        Ok(())
    })
}

/// Sets Gumbel-softmax smoothing: whether the embedding of a token is a weighted mix of codes (nonzero) or a single
/// code (0). The default is the model's, usually 1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_set_smoothing(request: *mut hart_request, smoothing: i32) -> hart_status {
    set(request, |parts| {
        parts.smoothing = Some(smoothing != 0);
        Ok(())
    })
}

/// Sets how many of the most likely codes a token is sampled from, at least 1. The default is the model's, usually 600
/// on the first seven scales and 300 on the others. Returns `HART_ERR_REQUEST` if the number is 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_set_top_k(request: *mut hart_request, top_k: u32) -> hart_status {
    set(request, |parts| {
        parts.top_k = Some(top_k);
        Ok(())
    })
}

/// Sets top-p sampling: a token is sampled from the most likely codes that together have this probability, from 0 to 1.
/// 0 turns it off; the default is the model's, usually 0. Returns `HART_ERR_REQUEST` if the value is out of range.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_set_top_p(request: *mut hart_request, top_p: f64) -> hart_status {
    set(request, |parts| {
        parts.top_p = Some(top_p);
        Ok(())
    })
}

/// Sets the steps of the residual diffusion, such as "8", "10,5" or "ddim25". The default is the model's, usually "8".
/// Returns `HART_ERR_REQUEST` if the text is malformed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_set_steps(request: *mut hart_request, steps: *const c_char) -> hart_status {
    set_steps(request, Text::Terminated(steps))
}

/// Like `hart_request_set_steps`, for a text of `steps_size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_set_steps_n(
    request: *mut hart_request,
    steps: *const c_char,
    steps_size: usize,
) -> hart_status {
    set_steps(request, Text::Sized(steps, steps_size))
}

unsafe fn set_steps(request: *mut hart_request, steps: Text) -> hart_status {
    set(request, |parts| {
        let steps = steps.get("steps")?;
        parts.steps = Some((steps.parse()?, to_c(steps)));
        Ok(())
    })
}

/// Sets the text before each prompt. "" is no text; NULL is the model's own text, the default. Returns
/// `HART_ERR_REQUEST` if the text is too long or different from that of the request's context.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_set_system_prompt(request: *mut hart_request, prompt: *const c_char) -> hart_status {
    set_system_prompt(request, Text::Terminated(prompt))
}

/// Like `hart_request_set_system_prompt`, for a text of `prompt_size` bytes. NULL with a size of 0 is the model's own
/// text, any other pointer with a size of 0 is no text.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_set_system_prompt_n(
    request: *mut hart_request,
    prompt: *const c_char,
    prompt_size: usize,
) -> hart_status {
    set_system_prompt(request, Text::Sized(prompt, prompt_size))
}

unsafe fn set_system_prompt(request: *mut hart_request, prompt: Text) -> hart_status {
    set(request, |parts| {
        parts.system_prompt = prompt.get_optional("prompt")?.map(to_c);
        Ok(())
    })
}

/// Sets encoded prompts, so that runs skip the text encoder. The images are the same, to the last bit. This replaces
/// the prompts and the system prompt by those of the context. Setting other ones later returns `HART_ERR_REQUEST`; all
/// other settings are independent of the context. Only the model that encoded the context, and handles that share it,
/// can run the request. The context may be freed before the request. NULL removes the context and keeps the prompts and
/// the system prompt. Returns `HART_ERR_REQUEST` if the request would then have too many images.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_set_context(request: *mut hart_request, context: *const hart_context) -> hart_status {
    set(request, |parts| {
        parts.context = get_optional(context, "context")?.cloned();
        if let Some(encoded) = &parts.context {
            parts.prompts = encoded.context.prompts().iter().map(|prompt| to_c(prompt)).collect();
            parts.system_prompt = match encoded.context.system_prompt() {
                SystemPrompt::Checkpoint => None,
                SystemPrompt::Text(text) => Some(to_c(text)),
                _ => Some(CString::default()),
            };
        }
        Ok(())
    })
}

/// The part of an image that an edit keeps outside the region it regenerates. Later versions may add values.
pub type hart_keep = i32;

/// The pixels are exactly those of the image. A soft edge within the regenerated region, 1/64 of the model's width,
/// blends into the generated pixels. The default.
pub const HART_KEEP_PIXELS: hart_keep = 0;
/// The latent of patches without a regenerated pixel is exactly that of the image. The decoder computes every pixel
/// from the whole latent, so pixels outside the region change too, especially near it.
pub const HART_KEEP_LATENT: hart_keep = 1;

/// Sets inpainting: regenerates the region of `image` where `mask` is white. A pixel of the mask is white if the mean
/// of its channels times its alpha is at least half of the maximum, so white on a transparent layer works as a mask.
/// For a mask whose transparent part is regenerated, use `hart_image_transparency`. The image must have the width and
/// height of the model. The mask must have the same proportions, at any resolution. All other pixels stay exactly the
/// same, unless `hart_request_set_keep` says otherwise. The coarsest `kept_scales` scales are kept everywhere, so that
/// the new content follows the layout of the old one; 0 keeps none. The request keeps references to the images. NULL
/// for `image` and `mask` removes the image from the request.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_set_inpaint(
    request: *mut hart_request,
    image: *const hart_image,
    mask: *const hart_image,
    kept_scales: u32,
) -> hart_status {
    if image.is_null() && !mask.is_null() {
        return guard(|| Err(Failure::null("image")));
    }
    start_from(request, image, |image| {
        let mask = get(mask, "mask")?;
        let from = FromImage::inpaint(image.image.clone(), Mask::from_image(&mask.image)).keep_scales(kept_scales as usize);
        Ok((from, StartKind::Inpaint { mask: mask.clone(), kept_scales }))
    })
}

/// Sets outpainting: generates the surroundings of an image that is smaller than the model's images. Its top left
/// corner is at (`left`, `top`) of the new image, in pixels. The pixels of the given image stay exactly the same,
/// unless `hart_request_set_keep` says otherwise. NULL for `image` removes the image from the request.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_set_outpaint(
    request: *mut hart_request,
    image: *const hart_image,
    left: u32,
    top: u32,
) -> hart_status {
    start_from(request, image, |image| {
        let from = FromImage::outpaint(image.image.clone(), left as usize, top as usize);
        Ok((from, StartKind::Outpaint { left, top }))
    })
}

/// Sets a variation: keeps the coarsest `kept_scales` scales of an image, from 1 to all but the last, and regenerates
/// the finer ones. NULL for `image` removes the image from the request.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_set_variation(
    request: *mut hart_request,
    image: *const hart_image,
    kept_scales: u32,
) -> hart_status {
    start_from(request, image, |image| {
        Ok((FromImage::vary(image.image.clone(), kept_scales as usize), StartKind::Variation { kept_scales }))
    })
}

/// Sets what inpainting and outpainting keep outside the region that they regenerate: `HART_KEEP_PIXELS`, the default,
/// or `HART_KEEP_LATENT`. It can be set before or after the image. Returns `HART_ERR_ARGUMENT` for other values.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_set_keep(request: *mut hart_request, keep: hart_keep) -> hart_status {
    set(request, |parts| {
        parts.keep = Some(match keep {
            HART_KEEP_PIXELS => Keep::Pixels,
            HART_KEEP_LATENT => Keep::Latent,
            _ => {
                return Err(Failure::argument(format!("`keep` is {keep}, expected HART_KEEP_PIXELS (0) or HART_KEEP_LATENT (1)")));
            }
        });
        Ok(())
    })
}

/// Sets or removes the image that a request starts from.
unsafe fn start_from(
    request: *mut hart_request,
    image: *const hart_image,
    start: impl FnOnce(&CImage) -> Result<(FromImage, StartKind), Failure>,
) -> hart_status {
    set(request, |parts| {
        parts.start = match get_optional(image, "image")? {
            None => None,
            Some(image) => {
                let (from, kind) = start(image)?;
                Some(Start { from, image: image.clone(), kind })
            }
        };
        Ok(())
    })
}

/// Sets the callback that receives the events of the runs, with the `user_data` that it receives. NULL removes it.
/// `destroy` may be NULL; otherwise hart calls it once when it no longer needs `user_data`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_set_observer(
    request: *mut hart_request,
    observer: hart_observer,
    user_data: *mut c_void,
    destroy: hart_destroy,
) -> hart_status {
    // Kept until the lock on the request is released: destroying the user data calls the program.
    let watcher = Watcher::new(observer, UserData::new(user_data, destroy));
    set(request, |parts| {
        parts.watcher = watcher.clone();
        Ok(())
    })
}

/// Sets the token that cancels the runs. NULL removes it. The token may be freed before the request.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_set_cancel(request: *mut hart_request, cancel: *const hart_cancel) -> hart_status {
    set(request, |parts| {
        parts.cancel = get_optional(cancel, "cancel")?.cloned();
        Ok(())
    })
}
