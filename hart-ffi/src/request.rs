//! Requests.

use std::ffi::{CString, c_char, c_void};

use hart_core::SystemPrompt;

use crate::cancel::hart_cancel;
use crate::context::hart_context;
use crate::event::{Watcher, hart_observer};
use crate::guard::guard;
use crate::handle::{Handle, free, get, get_optional};
use crate::image::hart_image;
use crate::out::Out;
use crate::request_parts::{Parts, SharedRequest};
use crate::status::{Failure, hart_status};
use crate::text::{Text, to_c};
use crate::user_data::{UserData, hart_destroy};

/// A request: prompts, settings, an observer and a cancel token. It may be used for any number of runs, by one thread
/// at a time.
pub struct hart_request(());

impl Handle for hart_request {
    type Value = SharedRequest;
    const NAME: &'static str = "hart_request";
}

/// Creates a request without prompts and with the default settings of the model. Free it with `hart_request_free`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_new(request: *mut *mut hart_request) -> hart_status {
    guard(|| {
        Out::<hart_request>::new(request, "request")?.write(SharedRequest::default());
        Ok(())
    })
}

/// Creates the request that generated an image, from the settings in its file. The image is the same to the last bit with
/// the same model in the same precision on the same kind of device. The prompt is missing if it was left out of the file:
/// add it. Free the request with `hart_request_free`. Returns `HART_ERR_REQUEST` if the image has no settings or not all of
/// them, or is an edit of another image.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_again(image: *const hart_image, request: *mut *mut hart_request) -> hart_status {
    guard(|| {
        let request = Out::<hart_request>::new(request, "request")?;
        let parts = Parts::again(&get(image, "image")?.image)?;
        let again = SharedRequest::default();
        drop(again.change(|empty| {
            *empty = parts.clone();
            Ok(())
        })?);
        request.write(again);
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
        clone.write(SharedRequest::new(parts));
        Ok(())
    })
}

/// Changes a request if it is valid afterwards.
pub(crate) unsafe fn set(request: *mut hart_request, set: impl FnOnce(&mut Parts) -> Result<(), Failure>) -> hart_status {
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

/// Sets the shares of tokens that the transformer leaves out of its last scales, coarse to fine, each from 0 to less than
/// 1: "0.5,0.75" is the published plan. This is faster and needs less memory, but changes the images. NULL, the default,
/// computes all tokens. Returns `HART_ERR_REQUEST` if the text is malformed. A run returns it if the plan does not fit the
/// model.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_set_prune(request: *mut hart_request, ratios: *const c_char) -> hart_status {
    set_prune(request, Text::Terminated(ratios))
}

/// Like `hart_request_set_prune`, for a text of `ratios_size` bytes. NULL with a size of 0 computes all tokens.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_set_prune_n(
    request: *mut hart_request,
    ratios: *const c_char,
    ratios_size: usize,
) -> hart_status {
    set_prune(request, Text::Sized(ratios, ratios_size))
}

unsafe fn set_prune(request: *mut hart_request, ratios: Text) -> hart_status {
    set(request, |parts| {
        parts.pruning = match ratios.get_optional("ratios")? {
            Some(ratios) => Some((ratios.parse()?, to_c(ratios))),
            None => None,
        };
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

/// Sets the marks that the files of the images get: names of "prompt", "parameters" (the text of A1111's web UI),
/// "settings" (those of hart, for `hart_request_again`) and "source" (XMP that says that AI generated the image) with
/// commas, "all" or "none". "parameters,settings,source" keeps the prompt out of the files. NULL, the default, is all.
/// Returns `HART_ERR_REQUEST` if a name is unknown.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_set_marks(request: *mut hart_request, names: *const c_char) -> hart_status {
    set_marks(request, Text::Terminated(names))
}

/// Like `hart_request_set_marks`, for a text of `names_size` bytes. NULL with a size of 0 is all marks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_set_marks_n(
    request: *mut hart_request,
    names: *const c_char,
    names_size: usize,
) -> hart_status {
    set_marks(request, Text::Sized(names, names_size))
}

unsafe fn set_marks(request: *mut hart_request, names: Text) -> hart_status {
    set(request, |parts| {
        parts.marks = match names.get_optional("names")? {
            Some(names) => Some((names.parse()?, to_c(names))),
            None => None,
        };
        Ok(())
    })
}
