//! Requests.

use std::ffi::{c_char, c_void};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use hart_core::{FromImage, Image, Keep, Mask, Request, Respacing, SystemPrompt};

use crate::cancel::hart_cancel;
use crate::context::hart_context;
use crate::event::{Callback, hart_observer};
use crate::guard::{guard, lock};
use crate::handle::{Handle, free, get, get_optional};
use crate::image::hart_image;
use crate::out::Out;
use crate::status::{Failure, HART_ERR_STATE, hart_status};
use crate::text;

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

struct Parts {
    prompts: Vec<String>,
    /// Everything except the prompts and the image to start from.
    settings: Request,
    from_image: Option<FromImage>,
    keep: Keep,
    /// `true` if the settings have a context, which determines the prompts and the system prompt.
    has_context: bool,
    observer: hart_observer,
    user_data: UserData,
}

impl Default for Parts {
    fn default() -> Self {
        let settings = Request::batch(Vec::<String>::new());
        Self {
            prompts: Vec::new(),
            settings,
            from_image: None,
            keep: Keep::default(),
            has_context: false,
            observer: None,
            user_data: UserData(std::ptr::null_mut()),
        }
    }
}

/// The user data of the program, which hart only passes to the observer.
struct UserData(*mut c_void);

// SAFETY: hart never dereferences the pointer and passes it to the observer on the thread that calls hart_generate.
unsafe impl Send for UserData {}

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

impl SharedRequest {
    /// Returns the request with its current prompts and settings.
    pub(crate) fn request(&self) -> Request {
        let parts = lock(&self.parts);
        let from_image = parts.from_image.clone().map(|from| from.keep(parts.keep));
        parts.settings.clone().prompts(parts.prompts.iter()).from_image(from_image)
    }

    /// Begins a run. Fails if the request is already running.
    pub(crate) fn run(&self) -> Result<Run, Failure> {
        if self.running.swap(true, Ordering::Acquire) {
            return Err(running());
        }
        let request = self.request();
        let parts = lock(&self.parts);
        let callback = Callback::new(parts.observer, parts.user_data.0);
        Ok(Run { request, callback, running: self.running.clone() })
    }

    fn change(&self, change: impl FnOnce(&mut Parts) -> Result<(), Failure>) -> Result<(), Failure> {
        if self.running.load(Ordering::Acquire) {
            return Err(running());
        }
        change(&mut lock(&self.parts))
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

unsafe fn change(request: *mut hart_request, change: impl FnOnce(&mut Parts) -> Result<(), Failure>) -> hart_status {
    guard(|| get(request, "request")?.change(change))
}

/// Replaces the settings with what `set` returns, if that is valid.
unsafe fn set(request: *mut hart_request, set: impl FnOnce(Request) -> Result<Request, Failure>) -> hart_status {
    change(request, |parts| {
        let settings = set(parts.settings.clone())?;
        // The prompts may be missing yet, and may be set in any order with the number of images.
        if parts.has_context { settings.clone().prompts(&parts.prompts) } else { settings.clone().prompts(["any"]) }.validate()?;
        parts.settings = settings;
        Ok(())
    })
}

/// Sets the only prompt and removes all others. Returns `HART_ERR_REQUEST` if the prompt is empty, too long, or
/// different from that of the request's context.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_set_prompt(request: *mut hart_request, prompt: *const c_char) -> hart_status {
    change(request, |parts| set_prompts(parts, vec![text::get(prompt, "prompt")?.to_string()]))
}

/// Adds a prompt. Returns `HART_ERR_REQUEST` if the prompt is empty or too long, or if the request has a context.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_add_prompt(request: *mut hart_request, prompt: *const c_char) -> hart_status {
    change(request, |parts| {
        let mut prompts = parts.prompts.clone();
        prompts.push(text::get(prompt, "prompt")?.to_string());
        set_prompts(parts, prompts)
    })
}

fn set_prompts(parts: &mut Parts, prompts: Vec<String>) -> Result<(), Failure> {
    if parts.has_context { parts.settings.clone().prompts(&prompts) } else { Request::batch(&prompts) }.validate()?;
    parts.prompts = prompts;
    Ok(())
}

/// Sets the number of images of each prompt; the default is 1. Image i of a prompt, counted from 0, has the seed `seed
/// + i`. Returns `HART_ERR_REQUEST` if the number is 0 or too large.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_set_images_per_prompt(request: *mut hart_request, count: u32) -> hart_status {
    set(request, |settings| Ok(settings.images_per_prompt(count as usize)))
}

/// Sets the seed of the first image of each prompt; the default is 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_set_seed(request: *mut hart_request, seed: u64) -> hart_status {
    set(request, |settings| Ok(settings.seed(seed)))
}

/// Sets the strength of classifier-free guidance, from -100 to 100. 0 is no guidance; the default is the model's,
/// usually 4.5. Returns `HART_ERR_REQUEST` if the value is out of range.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_set_guidance(request: *mut hart_request, guidance: f64) -> hart_status {
    set(request, |settings| Ok(settings.guidance(guidance)))
}

/// Sets Gumbel-softmax smoothing: whether the embedding of a token is a weighted mix of codes (nonzero) or a single
/// code (0). The default is the model's, usually 1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_set_smoothing(request: *mut hart_request, smoothing: i32) -> hart_status {
    set(request, |settings| Ok(settings.smoothing(smoothing != 0)))
}

/// Sets how many of the most likely codes a token is sampled from, at least 1. The default is the model's, usually 600
/// on the first seven scales and 300 on the others. Returns `HART_ERR_REQUEST` if the number is 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_set_top_k(request: *mut hart_request, top_k: u32) -> hart_status {
    set(request, |settings| Ok(settings.top_k(top_k as usize)))
}

/// Sets top-p sampling: a token is sampled from the most likely codes that together have this probability, from 0 to 1.
/// 0 turns it off; the default is the model's, usually 0. Returns `HART_ERR_REQUEST` if the value is out of range.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_set_top_p(request: *mut hart_request, top_p: f64) -> hart_status {
    set(request, |settings| Ok(settings.top_p(top_p)))
}

/// Sets the steps of the residual diffusion, such as "8", "10,5" or "ddim25". The default is the model's, usually "8".
/// Returns `HART_ERR_REQUEST` if the text is malformed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_set_steps(request: *mut hart_request, steps: *const c_char) -> hart_status {
    set(request, |settings| Ok(settings.steps(text::get(steps, "steps")?.parse::<Respacing>()?)))
}

/// Sets the text before each prompt. "" is no text; NULL is the model's own text, the default. Returns
/// `HART_ERR_REQUEST` if the text is too long or different from that of the request's context.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_set_system_prompt(request: *mut hart_request, prompt: *const c_char) -> hart_status {
    set(request, |settings| {
        Ok(settings.system_prompt(match prompt.is_null() {
            true => SystemPrompt::Checkpoint,
            false => match text::get(prompt, "prompt")? {
                "" => SystemPrompt::Off,
                text => SystemPrompt::Text(text.to_string()),
            },
        }))
    })
}

/// Sets encoded prompts, so that runs skip the text encoder. The images are the same, to the last bit. This replaces
/// the prompts and the system prompt by those of the context. Setting other ones later returns `HART_ERR_REQUEST`; all
/// other settings are independent of the context. Only the model that encoded the context, and handles that share it,
/// can run the request. The context may be freed before the request. NULL removes the context and keeps the prompts and
/// the system prompt. Returns `HART_ERR_REQUEST` if the request would then have too many images.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_set_context(request: *mut hart_request, context: *const hart_context) -> hart_status {
    change(request, |parts| {
        let Some(encoded) = get_optional(context, "context")? else {
            (parts.settings, parts.has_context) = (parts.settings.clone().context(None), false);
            return Ok(());
        };
        let settings = parts.settings.clone().context(encoded.context.clone());
        settings.validate()?;
        parts.prompts = encoded.context.prompts().to_vec();
        (parts.settings, parts.has_context) = (settings, true);
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
        let mask = Mask::from_image(&get(mask, "mask")?.image);
        Ok(FromImage::inpaint(image, mask).keep_scales(kept_scales as usize))
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
    start_from(request, image, |image| Ok(FromImage::outpaint(image, left as usize, top as usize)))
}

/// Sets a variation: keeps the coarsest `kept_scales` scales of an image, from 1 to all but the last, and regenerates
/// the finer ones. NULL for `image` removes the image from the request.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_set_variation(
    request: *mut hart_request,
    image: *const hart_image,
    kept_scales: u32,
) -> hart_status {
    start_from(request, image, |image| Ok(FromImage::vary(image, kept_scales as usize)))
}

/// Sets what inpainting and outpainting keep outside the region that they regenerate: `HART_KEEP_PIXELS`, the default,
/// or `HART_KEEP_LATENT`. It can be set before or after the image. Returns `HART_ERR_ARGUMENT` for other values.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_set_keep(request: *mut hart_request, keep: hart_keep) -> hart_status {
    change(request, |parts| {
        parts.keep = match keep {
            HART_KEEP_PIXELS => Keep::Pixels,
            HART_KEEP_LATENT => Keep::Latent,
            _ => {
                return Err(Failure::argument(format!("`keep` is {keep}, expected HART_KEEP_PIXELS (0) or HART_KEEP_LATENT (1)")));
            }
        };
        Ok(())
    })
}

/// Sets or removes the image that a request starts from.
unsafe fn start_from(
    request: *mut hart_request,
    image: *const hart_image,
    from: impl FnOnce(Image) -> Result<FromImage, Failure>,
) -> hart_status {
    change(request, |parts| {
        parts.from_image = get_optional(image, "image")?.map(|image| from(image.image.clone())).transpose()?;
        Ok(())
    })
}

/// Sets the callback that receives the events of the runs, with the `user_data` that it receives. NULL removes it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_set_observer(
    request: *mut hart_request,
    observer: hart_observer,
    user_data: *mut c_void,
) -> hart_status {
    change(request, |parts| {
        (parts.observer, parts.user_data) = (observer, UserData(user_data));
        Ok(())
    })
}

/// Sets the token that cancels the runs. NULL removes it. The token may be freed before the request.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_set_cancel(request: *mut hart_request, cancel: *const hart_cancel) -> hart_status {
    change(request, |parts| {
        parts.settings = parts.settings.clone().cancel_token(get_optional(cancel, "cancel")?.cloned());
        Ok(())
    })
}
