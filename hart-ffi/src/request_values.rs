//! The values that a program has set on a request.

use std::ffi::{CStr, c_char, c_void};
use std::ptr;

use hart_core::Keep;

use crate::cancel::hart_cancel;
use crate::context::hart_context;
use crate::event::{hart_observer, write_watcher};
use crate::guard::guard;
use crate::handle::{get, number_of};
use crate::image::hart_image;
use crate::out::{self, Out};
use crate::request::hart_request;
use crate::request_image::{HART_KEEP_LATENT, HART_KEEP_PIXELS, hart_keep};
use crate::request_parts::{Parts, Start, StartKind};
use crate::status::{Failure, hart_status};

/// Reads a number of a request.
unsafe fn number<T: Default>(
    request: *const hart_request,
    value: *mut T,
    name: &str,
    is_set: *mut i32,
    default: T,
    read: impl FnOnce(&Parts) -> Option<T>,
) -> hart_status {
    out::setting(value, name, is_set, default, || Ok(get(request, "request")?.read(read)))
}

/// Reads a text of a request.
unsafe fn text(
    request: *const hart_request,
    value: *mut *const c_char,
    name: &str,
    read: impl FnOnce(&Parts) -> Option<&CStr>,
) -> hart_status {
    out::text_setting(value, name, || Ok(get(request, "request")?.read(|parts| read(parts).map_or(ptr::null(), CStr::as_ptr))))
}

/// Returns the number of prompts that are set, or come from a context. Returns 0 if `request` is NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_get_prompt_count(request: *const hart_request) -> usize {
    number_of(request, "request", |request| request.read(|parts| parts.prompts.len()))
}

/// Returns prompt `index`, counted from 0. It is valid until the request is changed or freed. Returns
/// `HART_ERR_ARGUMENT` if there is no such prompt.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_get_prompt(
    request: *const hart_request,
    index: usize,
    prompt: *mut *const c_char,
) -> hart_status {
    out::text_setting(prompt, "prompt", || {
        get(request, "request")?.read(|parts| {
            let (count, found) = (parts.prompts.len(), parts.prompts.get(index));
            let none = || Failure::argument(format!("`index` is {index}, but the request has {count} prompts"));
            found.map(|prompt| prompt.as_ptr()).ok_or_else(none)
        })
    })
}

/// Returns the number of images of each prompt; 1 if it is not set. `is_set`, if not NULL, receives 1 if the program has
/// set it, otherwise 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_get_images_per_prompt(
    request: *const hart_request,
    count: *mut u32,
    is_set: *mut i32,
) -> hart_status {
    number(request, count, "count", is_set, 1, |parts| parts.images_per_prompt)
}

/// Returns the seed; 0 if it is not set. `is_set`, if not NULL, receives 1 if the program has set it, otherwise 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_get_seed(request: *const hart_request, seed: *mut u64, is_set: *mut i32) -> hart_status {
    number(request, seed, "seed", is_set, 0, |parts| parts.seed)
}

/// Returns the strength of guidance; 0 if it is not set, so that the model decides. `is_set`, if not NULL, receives 1 if
/// the program has set it, otherwise 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_get_guidance(
    request: *const hart_request,
    guidance: *mut f64,
    is_set: *mut i32,
) -> hart_status {
    number(request, guidance, "guidance", is_set, 0.0, |parts| parts.guidance)
}

/// Returns 1 for smoothing, otherwise 0; 0 if it is not set, so that the model decides. `is_set`, if not NULL, receives 1
/// if the program has set it, otherwise 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_get_smoothing(
    request: *const hart_request,
    smoothing: *mut i32,
    is_set: *mut i32,
) -> hart_status {
    number(request, smoothing, "smoothing", is_set, 0, |parts| parts.smoothing.map(i32::from))
}

/// Returns how many codes a token is sampled from; 0 if it is not set, so that the model decides. `is_set`, if not NULL,
/// receives 1 if the program has set it, otherwise 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_get_top_k(request: *const hart_request, top_k: *mut u32, is_set: *mut i32) -> hart_status {
    number(request, top_k, "top_k", is_set, 0, |parts| parts.top_k)
}

/// Returns the probability of top-p sampling; 0 if it is not set, so that the model decides. `is_set`, if not NULL,
/// receives 1 if the program has set it, otherwise 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_get_top_p(request: *const hart_request, top_p: *mut f64, is_set: *mut i32) -> hart_status {
    number(request, top_p, "top_p", is_set, 0.0, |parts| parts.top_p)
}

/// Returns the steps of the residual diffusion, or NULL if they are not set. The text is valid until the request is
/// changed or freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_get_steps(request: *const hart_request, steps: *mut *const c_char) -> hart_status {
    text(request, steps, "steps", |parts| parts.steps.as_ref().map(|(_, text)| text.as_c_str()))
}

/// Returns the shares of tokens that the last scales leave out, or NULL if all tokens are computed. The text is valid until
/// the request is changed or freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_get_prune(request: *const hart_request, ratios: *mut *const c_char) -> hart_status {
    text(request, ratios, "ratios", |parts| parts.pruning.as_ref().map(|(_, text)| text.as_c_str()))
}

/// Returns the marks that the files of the images get, or NULL if they are not set, which is all. The text is valid until
/// the request is changed or freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_get_marks(request: *const hart_request, names: *mut *const c_char) -> hart_status {
    text(request, names, "names", |parts| parts.marks.as_ref().map(|(_, text)| text.as_c_str()))
}

/// Returns the text before each prompt: "" for no text, NULL if it is not set or is the model's own. The text is valid
/// until the request is changed or freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_get_system_prompt(request: *const hart_request, prompt: *mut *const c_char) -> hart_status {
    text(request, prompt, "prompt", |parts| parts.system_prompt.as_deref())
}

/// Returns the context as another handle, or NULL if there is none. Free it with `hart_context_free`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_get_context(request: *const hart_request, context: *mut *mut hart_context) -> hart_status {
    guard(|| {
        let context = Out::<hart_context>::new(context, "context")?;
        context.write_optional(get(request, "request")?.read(|parts| parts.context.clone()));
        Ok(())
    })
}

/// Returns the image, the mask and the kept scales that `hart_request_set_inpaint` has set, or NULL and 0. The images are
/// other handles: free both with `hart_image_free`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_get_inpaint(
    request: *const hart_request,
    image: *mut *mut hart_image,
    mask: *mut *mut hart_image,
    kept_scales: *mut u32,
) -> hart_status {
    guard(|| {
        let (image, mask) = (Out::<hart_image>::new(image, "image")?, Out::<hart_image>::new(mask, "mask")?);
        out::set(kept_scales, 0, "kept_scales")?;
        let start = get(request, "request")?.read(|parts| parts.start.clone());
        if let Some(Start { image: source, kind: StartKind::Inpaint { mask: white, kept_scales: kept }, .. }) = start {
            image.write(source);
            mask.write(white);
            out::set(kept_scales, kept, "kept_scales")?;
        }
        Ok(())
    })
}

/// Returns the image and its place that `hart_request_set_outpaint` has set, or NULL and 0. The image is another handle:
/// free it with `hart_image_free`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_get_outpaint(
    request: *const hart_request,
    image: *mut *mut hart_image,
    left: *mut u32,
    top: *mut u32,
) -> hart_status {
    guard(|| {
        let image = Out::<hart_image>::new(image, "image")?;
        out::set(left, 0, "left")?;
        out::set(top, 0, "top")?;
        let start = get(request, "request")?.read(|parts| parts.start.clone());
        if let Some(Start { image: source, kind: StartKind::Outpaint { left: x, top: y }, .. }) = start {
            image.write(source);
            out::set(left, x, "left")?;
            out::set(top, y, "top")?;
        }
        Ok(())
    })
}

/// Returns the image and the kept scales that `hart_request_set_variation` has set, or NULL and 0. The image is another
/// handle: free it with `hart_image_free`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_get_variation(
    request: *const hart_request,
    image: *mut *mut hart_image,
    kept_scales: *mut u32,
) -> hart_status {
    guard(|| {
        let image = Out::<hart_image>::new(image, "image")?;
        out::set(kept_scales, 0, "kept_scales")?;
        let start = get(request, "request")?.read(|parts| parts.start.clone());
        if let Some(Start { image: source, kind: StartKind::Variation { kept_scales: kept }, .. }) = start {
            image.write(source);
            out::set(kept_scales, kept, "kept_scales")?;
        }
        Ok(())
    })
}

/// Returns what inpainting and outpainting keep; `HART_KEEP_PIXELS` if it is not set. `is_set`, if not NULL, receives 1
/// if the program has set it, otherwise 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_get_keep(
    request: *const hart_request,
    keep: *mut hart_keep,
    is_set: *mut i32,
) -> hart_status {
    number(request, keep, "keep", is_set, HART_KEEP_PIXELS, |parts| {
        parts.keep.map(|keep| if keep == Keep::Latent { HART_KEEP_LATENT } else { HART_KEEP_PIXELS })
    })
}

/// Returns the observer and, if `user_data` is not NULL, its user data; NULL if there is no observer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_get_observer(
    request: *const hart_request,
    observer: *mut hart_observer,
    user_data: *mut *mut c_void,
) -> hart_status {
    write_watcher(observer, user_data, || Ok(get(request, "request")?.read(|parts| parts.watcher.clone())))
}

/// Returns the token as another handle, or NULL if there is none. Free it with `hart_cancel_free`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_get_cancel(request: *const hart_request, cancel: *mut *mut hart_cancel) -> hart_status {
    guard(|| {
        let cancel = Out::<hart_cancel>::new(cancel, "cancel")?;
        cancel.write_optional(get(request, "request")?.read(|parts| parts.cancel.clone()));
        Ok(())
    })
}
