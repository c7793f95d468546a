//! What to make.

use std::ffi::{c_char, c_void};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use hart_core::{FromImage, Image, Mask, Request, SystemPrompt};

use crate::cancel::hart_cancel;
use crate::event::{Callback, hart_observer};
use crate::guard::{guard, lock};
use crate::handle::{Handle, free, get, get_optional};
use crate::image::hart_image;
use crate::out::Out;
use crate::status::{Failure, HART_ERR_STATE, hart_status};
use crate::text;

/// What to make: prompts and settings, who hears of it, what stops it. May be used again and again. One thread at a time.
pub struct hart_request(());

impl Handle for hart_request {
    type Value = Wanted;
    const NAME: &'static str = "hart_request";
}

/// A request as C builds it.
#[derive(Default)]
pub(crate) struct Wanted {
    inner: Mutex<Inner>,
    running: Arc<AtomicBool>,
}

struct Inner {
    prompts: Vec<String>,
    /// All but the prompts.
    settings: Request,
    observer: hart_observer,
    user_data: UserData,
}

impl Default for Inner {
    fn default() -> Self {
        let settings = Request::batch(Vec::<String>::new());
        Self { prompts: Vec::new(), settings, observer: None, user_data: UserData(std::ptr::null_mut()) }
    }
}

/// The caller's pointer, which hart only hands back.
struct UserData(*mut c_void);

// SAFETY: hart never looks behind it; the caller gets it on the thread that calls hart_generate.
unsafe impl Send for UserData {}

/// A request's run; while there is one the request can't be changed.
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

impl Wanted {
    /// The settings as they stand.
    pub(crate) fn settings(&self) -> Request {
        let inner = lock(&self.inner);
        inner.settings.clone().prompts(inner.prompts.iter())
    }

    /// Begins a run.
    pub(crate) fn run(&self) -> Result<Run, Failure> {
        if self.running.swap(true, Ordering::Acquire) {
            return Err(running());
        }
        let request = self.settings();
        let inner = lock(&self.inner);
        let callback = Callback { observer: inner.observer, user_data: inner.user_data.0, place: (0, 0, 0) };
        Ok(Run { request, callback, running: self.running.clone() })
    }

    fn change(&self, change: impl FnOnce(&mut Inner) -> Result<(), Failure>) -> Result<(), Failure> {
        if self.running.load(Ordering::Acquire) {
            return Err(running());
        }
        change(&mut lock(&self.inner))
    }
}

fn running() -> Failure {
    Failure::new(HART_ERR_STATE, "`request` is running: wait for hart_generate to return, or make another request")
}

/// A request without a prompt and with the model's own settings. Free it with `hart_request_free`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_new(request: *mut *mut hart_request) -> hart_status {
    guard(|| {
        Out::<hart_request>::new(request, "request")?.give(Wanted::default());
        Ok(())
    })
}

/// Frees the request; NULL is nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_free(request: *mut hart_request) {
    free(request);
}

unsafe fn change(request: *mut hart_request, change: impl FnOnce(&mut Inner) -> Result<(), Failure>) -> hart_status {
    guard(|| get(request, "request")?.change(change))
}

/// Changes a setting, if it will do.
unsafe fn set(request: *mut hart_request, set: impl FnOnce(Request) -> Result<Request, Failure>) -> hart_status {
    change(request, |inner| {
        let settings = set(inner.settings.clone())?;
        settings.clone().prompts(["any"]).validate()?;
        inner.settings = settings;
        Ok(())
    })
}

/// One prompt, in place of those that were there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_set_prompt(request: *mut hart_request, prompt: *const c_char) -> hart_status {
    change(request, |inner| set_prompts(inner, vec![text::get(prompt, "prompt")?.to_string()]))
}

/// One more prompt.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_add_prompt(request: *mut hart_request, prompt: *const c_char) -> hart_status {
    change(request, |inner| {
        let mut prompts = inner.prompts.clone();
        prompts.push(text::get(prompt, "prompt")?.to_string());
        set_prompts(inner, prompts)
    })
}

fn set_prompts(inner: &mut Inner, prompts: Vec<String>) -> Result<(), Failure> {
    Request::batch(prompts.iter()).validate()?;
    inner.prompts = prompts;
    Ok(())
}

/// Pictures of each prompt; default 1. Picture i of a prompt, from 0, has the seed `seed + i`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_set_images_per_prompt(request: *mut hart_request, count: u32) -> hart_status {
    set(request, |settings| Ok(settings.images_per_prompt(count as usize)))
}

/// Seed of each prompt's first picture; default 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_set_seed(request: *mut hart_request, seed: u64) -> hart_status {
    set(request, |settings| Ok(settings.seed(seed)))
}

/// Strength of classifier-free guidance, -100 to 100, 0 is none; default the model's own, usually 4.5.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_set_guidance(request: *mut hart_request, guidance: f64) -> hart_status {
    set(request, |settings| Ok(settings.guidance(guidance)))
}

/// Whether a token is a mix of codes (not 0) or one code (0); default the model's own, usually 1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_set_soft_sampling(request: *mut hart_request, soft: i32) -> hart_status {
    set(request, |settings| Ok(settings.smoothing(soft != 0)))
}

/// Codes kept in drawing a token, at least 1; default the model's own, usually 600 on the first seven scales and 300 after.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_set_top_k(request: *mut hart_request, top_k: u32) -> hart_status {
    set(request, |settings| Ok(settings.top_k(top_k as usize)))
}

/// Keeps the likeliest codes that together have this probability, 0 is off; default the model's own, usually 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_set_top_p(request: *mut hart_request, top_p: f64) -> hart_status {
    set(request, |settings| Ok(settings.top_p(top_p)))
}

/// Steps of the residual diffusion, such as "8", "10,5" or "ddim25"; default the model's own, usually "8".
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_set_steps(request: *mut hart_request, steps: *const c_char) -> hart_status {
    set(request, |settings| Ok(settings.steps(text::get(steps, "steps")?.parse()?)))
}

/// Text that goes before the prompts; "" for none, NULL for the model's own, which is the default.
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

/// Draws a part of a picture anew: what is white in `mask`. Both have the model's width and height. The latent of the rest stays
/// exactly as the picture's own. The coarsest `kept_scales` scales are kept everywhere, so that what was there shines through; 0 is none.
/// The request holds the images; NULL for both starts from nothing again, and so does a NULL `image` in the two functions below.
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
    start(request, image, |image| {
        let mask = Mask::from_image(&get(mask, "mask")?.image);
        Ok(FromImage::inpaint(image, mask).keep_scales(kept_scales as usize))
    })
}

/// Draws around a picture that is smaller than the model's, with its left top corner at (`left`, `top`) of the canvas.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_set_outpaint(
    request: *mut hart_request,
    image: *const hart_image,
    left: u32,
    top: u32,
) -> hart_status {
    start(request, image, |image| Ok(FromImage::outpaint(image, left as usize, top as usize)))
}

/// Keeps a picture's coarsest `kept_scales` scales, 1 to all but the last, and draws the finer ones anew.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_set_variation(
    request: *mut hart_request,
    image: *const hart_image,
    kept_scales: u32,
) -> hart_status {
    start(request, image, |image| Ok(FromImage::vary(image, kept_scales as usize)))
}

unsafe fn start(
    request: *mut hart_request,
    image: *const hart_image,
    from: impl FnOnce(Image) -> Result<FromImage, Failure>,
) -> hart_status {
    change(request, |inner| {
        let settings = inner.settings.clone();
        inner.settings = match get_optional(image, "image")? {
            Some(picture) => settings.from_image(from(Image::clone(&picture.image))?),
            None => settings.from_nothing(),
        };
        Ok(())
    })
}

/// Who hears the events of its runs, with the pointer that it gets; NULL is nobody.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_set_observer(
    request: *mut hart_request,
    observer: hart_observer,
    user_data: *mut c_void,
) -> hart_status {
    change(request, |inner| {
        (inner.observer, inner.user_data) = (observer, UserData(user_data));
        Ok(())
    })
}

/// The token that stops its runs; NULL is none. The token may be freed before the request.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_set_cancel(request: *mut hart_request, cancel: *const hart_cancel) -> hart_status {
    change(request, |inner| {
        let settings = inner.settings.clone();
        inner.settings = match get_optional(cancel, "cancel")? {
            Some(token) => settings.cancel_token(token.clone()),
            None => settings.without_cancel_token(),
        };
        Ok(())
    })
}
