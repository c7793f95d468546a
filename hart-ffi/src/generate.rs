//! Making pictures, and what a run made.

use std::ffi::{CString, c_char};
use std::sync::Arc;

use hart_core::{Error, Image, Stage, Timings, Truncation};

use crate::guard::guard;
use crate::handle::{Handle, free, get, number_of};
use crate::image::{Picture, hart_image};
use crate::model::{hart_model, using};
use crate::out::{self, Out, Struct};
use crate::request::{Run, hart_request};
use crate::status::{Failure, HART_CANCELLED, hart_status};

/// What a run made.
pub struct hart_result(());

impl Handle for hart_result {
    type Value = Made;
    const NAME: &'static str = "hart_result";
}

#[derive(Default)]
pub(crate) struct Made {
    images: Vec<Arc<Image>>,
    timings: Timings,
    truncated: Vec<(Truncation, CString)>,
}

/// Seconds that a run spent in each stage. Set `struct_size` to `sizeof(hart_timings)` before the call.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct hart_timings {
    /// `sizeof(hart_timings)`.
    pub struct_size: u32,
    /// 0.
    pub reserved: u32,
    /// Prompt to context.
    pub text: f64,
    /// The transformer.
    pub transformer: f64,
    /// Logits to codes, codes to the latent.
    pub sampling: f64,
    /// The residual diffusion.
    pub residual: f64,
    /// Latent to pixels.
    pub decode: f64,
    /// The whole run.
    pub total: f64,
}

// SAFETY: repr(C), struct_size first, zeros are numbers.
unsafe impl Struct for hart_timings {}

/// A prompt that was longer than the model reads. Set `struct_size` to `sizeof(hart_truncation)` before the call.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct hart_truncation {
    /// `sizeof(hart_truncation)`.
    pub struct_size: u32,
    /// Which prompt of the request, from 0; -1 is the system prompt.
    pub prompt: i32,
    /// Tokens of the whole text.
    pub tokens: u32,
    /// Tokens that were read.
    pub kept: u32,
    /// The text that was not read; valid until the result is freed.
    pub cut: *const c_char,
}

// SAFETY: repr(C), struct_size first, zeros are numbers and a NULL pointer.
unsafe impl Struct for hart_truncation {}

/// Makes the request's pictures and returns when they are finished. Free the result with `hart_result_free`. After `HART_CANCELLED` there is a
/// result too, with the pictures that were finished before; after an error it is NULL. Any number of threads may generate with one
/// model at once, each with a request of its own.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_generate(
    model: *const hart_model,
    request: *const hart_request,
    result: *mut *mut hart_result,
) -> hart_status {
    guard(|| {
        let result = Out::<hart_result>::new(result, "result")?;
        let mut run: Run = get(request, "request")?.run()?;
        match using(model, |model| Ok(model.hart.generate(&run.request, &mut run.callback)))? {
            Ok(made) => {
                let cut = |t: Truncation| {
                    let text = CString::new(t.cut.replace('\0', "\u{fffd}")).unwrap_or_default();
                    (t, text)
                };
                result.give(Made {
                    images: made.images.into_iter().map(Arc::new).collect(),
                    timings: made.timings,
                    truncated: made.truncated.into_iter().map(cut).collect(),
                });
                Ok(())
            }
            Err(Error::Cancelled { completed }) => {
                let message = format!("cancelled; {} of {} pictures were finished", completed.len(), run.request.total_images());
                let images = completed.into_iter().map(Arc::new).collect();
                result.give(Made { images, ..Made::default() });
                Err(Failure::new(HART_CANCELLED, message))
            }
            Err(error) => Err(error.into()),
        }
    })
}

/// Frees the result; NULL is nothing. Images that were taken from it stay.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_result_free(result: *mut hart_result) {
    free(result);
}

/// How many pictures were finished: all of the first prompt, then all of the second, and so on; 0 for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_result_count(result: *const hart_result) -> usize {
    number_of(result, "result", |made| made.images.len())
}

/// Picture `index`, from 0, as an image of its own, which shares the pixels. Free it with `hart_image_free`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_result_image(result: *const hart_result, index: usize, image: *mut *mut hart_image) -> hart_status {
    guard(|| {
        let image = Out::<hart_image>::new(image, "image")?;
        let images = &get(result, "result")?.images;
        let picture = images
            .get(index)
            .ok_or_else(|| Failure::argument(format!("`index` is {index}, the result has {} pictures", images.len())))?;
        image.give(Picture::new(picture.clone()));
        Ok(())
    })
}

/// Where the time went; zeros after a cancelled run.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_result_timings(result: *const hart_result, timings: *mut hart_timings) -> hart_status {
    guard(|| {
        let made = get(result, "result")?;
        let of = |stage| made.timings.of(stage).as_secs_f64();
        let value = hart_timings {
            struct_size: 0,
            reserved: 0,
            text: of(Stage::Text),
            transformer: of(Stage::Transformer),
            sampling: of(Stage::Sampling),
            residual: of(Stage::Residual),
            decode: of(Stage::Decode),
            total: made.timings.total.as_secs_f64(),
        };
        out::fill(timings, value, "timings")
    })
}

/// How many prompts, the system prompt included, were cut because the model reads no more; 0 for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_result_truncation_count(result: *const hart_result) -> usize {
    number_of(result, "result", |made| made.truncated.len())
}

/// What was cut, `index` from 0.
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
            .ok_or_else(|| Failure::argument(format!("`index` is {index}, {} prompts were cut", truncated.len())))?;
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
