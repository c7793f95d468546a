//! Generation of images, and its result.

use std::ffi::{CString, c_char};
use std::sync::Arc;

use hart_core::{Error, Stage, Timings, Truncation};

use crate::guard::guard;
use crate::handle::{Handle, free, get, number_of, share};
use crate::image::{CImage, hart_image};
use crate::model::{hart_model, with_model};
use crate::out::{self, Out, Struct};
use crate::request::hart_request;
use crate::request_parts::Run;
use crate::status::{Failure, HART_CANCELLED, hart_status};
use crate::text::to_c;

/// Result of a run.
pub struct hart_result(());

impl Handle for hart_result {
    type Value = Arc<RunOutput>;
    const NAME: &'static str = "hart_result";
}

#[derive(Default)]
pub(crate) struct RunOutput {
    /// Each image is one object, however often it is returned.
    images: Vec<Arc<CImage>>,
    timings: Timings,
    truncated: Vec<(Truncation, CString)>,
}

/// Time that a run spent in each stage, in seconds. Set `struct_size` to `sizeof(hart_timings)` before the call.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct hart_timings {
    /// `sizeof(hart_timings)`.
    pub struct_size: u32,
    /// Always 0.
    pub reserved: u32,
    /// The text encoder: prompt to context.
    pub text: f64,
    /// The transformer.
    pub transformer: f64,
    /// Sampling: logits to codes, codes to the latent.
    pub sampling: f64,
    /// The residual diffusion.
    pub residual: f64,
    /// The visual decoder: latent to pixels.
    pub decode: f64,
    /// The whole run.
    pub total: f64,
}

// SAFETY: repr(C), struct_size first, all bits zero is valid.
unsafe impl Struct for hart_timings {}

/// A prompt that was cut because it has more tokens than the model reads. Set `struct_size` to
/// `sizeof(hart_truncation)` before the call.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct hart_truncation {
    /// `sizeof(hart_truncation)`.
    pub struct_size: u32,
    /// Index of the prompt in the request, from 0; -1 for the system prompt.
    pub prompt: i32,
    /// Number of tokens of the whole prompt.
    pub tokens: u32,
    /// Number of tokens that were read.
    pub kept: u32,
    /// The part of the prompt that was not read. Valid until the result is freed.
    pub cut: *const c_char,
}

// SAFETY: repr(C), struct_size first, all bits zero is valid.
unsafe impl Struct for hart_truncation {}

/// Generates the images of a request and returns when all are finished. Free the result with `hart_result_free`. Any
/// number of threads may generate with one model at the same time, each with its own request.
///
/// Returns `HART_CANCELLED` if the run was cancelled; the result then holds the images that were finished before. After
/// an error the result is NULL. Returns `HART_ERR_REQUEST` if the request has no prompt or does not fit the model,
/// `HART_ERR_STATE` if the request is already running, `HART_ERR_MEMORY` if the run needs more memory than allowed,
/// `HART_ERR_OVERFLOW` if it produces NaN or infinity, and `HART_ERR_DEVICE` if a GPU fails.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_generate(
    model: *const hart_model,
    request: *const hart_request,
    result: *mut *mut hart_result,
) -> hart_status {
    guard(|| {
        let result = Out::<hart_result>::new(result, "result")?;
        let mut run: Run = get(request, "request")?.run()?;
        match with_model(model, |hart| Ok(hart.generate_with(&run.request, &mut run.callback)))? {
            Ok(generation) => {
                let with_text = |truncation: Truncation| {
                    let text = to_c(&truncation.cut);
                    (truncation, text)
                };
                result.write(Arc::new(RunOutput {
                    images: generation.images.into_iter().map(CImage::new).collect(),
                    timings: generation.timings,
                    truncated: generation.truncated.into_iter().map(with_text).collect(),
                }));
                Ok(())
            }
            Err(Error::Cancelled) => {
                let images: Vec<_> = std::mem::take(&mut run.callback.finished).into_iter().map(CImage::new).collect();
                let message = format!("cancelled; {} of {} images were finished", images.len(), run.request.total_images());
                result.write(Arc::new(RunOutput { images, ..RunOutput::default() }));
                Err(Failure::new(HART_CANCELLED, message))
            }
            Err(error) => Err(error.into()),
        }
    })
}

/// Creates another handle of the same result, which is freed separately.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_result_share(result: *const hart_result, shared: *mut *mut hart_result) -> hart_status {
    share(result, "result", shared)
}

/// Frees the result. Does nothing if `result` is NULL. Images returned by `hart_result_image` stay valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_result_free(result: *mut hart_result) {
    free(result);
}

/// Returns the number of finished images. Returns 0 if `result` is NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_result_count(result: *const hart_result) -> usize {
    number_of(result, "result", |output| output.images.len())
}

/// Returns image `index`, counted from 0: all images of the first prompt, then all of the second, and so on. Free it
/// with `hart_image_free`; it stays valid when the result is freed. Returns `HART_ERR_ARGUMENT` if there is no such
/// image.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_result_image(result: *const hart_result, index: usize, image: *mut *mut hart_image) -> hart_status {
    guard(|| {
        let image = Out::<hart_image>::new(image, "image")?;
        let images = &get(result, "result")?.images;
        let found = images
            .get(index)
            .ok_or_else(|| Failure::argument(format!("`index` is {index}, but the result has {} images", images.len())))?;
        image.write(found.clone());
        Ok(())
    })
}

/// Writes the timings of the run to `timings`. They are 0 after a cancelled run.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_result_timings(result: *const hart_result, timings: *mut hart_timings) -> hart_status {
    guard(|| {
        let timings_of_run = &get(result, "result")?.timings;
        let of = |stage| timings_of_run.of(stage).as_secs_f64();
        let value = hart_timings {
            struct_size: 0,
            reserved: 0,
            text: of(Stage::Text),
            transformer: of(Stage::Transformer),
            sampling: of(Stage::Sampling),
            residual: of(Stage::Residual),
            decode: of(Stage::Decode),
            total: timings_of_run.total.as_secs_f64(),
        };
        out::fill(timings, value, "timings")
    })
}

/// Returns the number of prompts that were cut, including the system prompt. Returns 0 if `result` is NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_result_truncation_count(result: *const hart_result) -> usize {
    number_of(result, "result", |output| output.truncated.len())
}

/// Describes cut prompt `index`, counted from 0. Returns `HART_ERR_ARGUMENT` if there is no such prompt.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_result_truncation(
    result: *const hart_result,
    index: usize,
    truncation: *mut hart_truncation,
) -> hart_status {
    guard(|| {
        let truncated = &get(result, "result")?.truncated;
        let (cut, text) = truncated
            .get(index)
            .ok_or_else(|| Failure::argument(format!("`index` is {index}, but {} prompts were cut", truncated.len())))?;
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let value = hart_truncation {
            struct_size: 0,
            prompt: cut.prompt.map_or(-1, |prompt| i32::try_from(prompt).unwrap_or(i32::MAX)),
            tokens: number(cut.tokens),
            kept: number(cut.kept),
            cut: text.as_ptr(),
        };
        out::fill(truncation, value, "truncation")
    })
}
