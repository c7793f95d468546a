//! Events that a run reports while it works.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;

use hart_core::{Control, Event, Image, Observer, Stage, Step, with_default_float_state};

use crate::guard::guard;
use crate::image::{CImage, hart_image};
use crate::out::{self, Out};
use crate::status::{Failure, HART_ERR_STATE, hart_status};
use crate::user_data::UserData;

/// Stage of a run in which an event occurs, or whose weights are loaded. Later versions may add stages.
pub type hart_stage = i32;

/// The text encoder: prompt to context.
pub const HART_STAGE_TEXT: hart_stage = 0;
/// The transformer, scale by scale.
pub const HART_STAGE_TRANSFORMER: hart_stage = 1;
/// Sampling: logits to codes, codes to the latent.
pub const HART_STAGE_SAMPLING: hart_stage = 2;
/// The residual diffusion of the last scale.
pub const HART_STAGE_RESIDUAL: hart_stage = 3;
/// The visual decoder: latent to pixels. Encoding an image to start from also counts as this stage.
pub const HART_STAGE_DECODE: hart_stage = 4;
/// A stage that has no constant in this version of the C API.
pub const HART_STAGE_OTHER: hart_stage = 99;

/// Step that a run has completed or begun. Later versions may add steps.
pub type hart_step = i32;

/// `index` of `count` layers of the text encoder are done.
pub const HART_STEP_TEXT_LAYER: hart_step = 0;
/// Scale `index` of `count` begins.
pub const HART_STEP_SCALE: hart_step = 1;
/// `index` of `count` transformer blocks of the scale are done.
pub const HART_STEP_BLOCK: hart_step = 2;
/// Scale `index` of `count` is done. The event has a preview.
pub const HART_STEP_SCALE_DONE: hart_step = 3;
/// `index` of `count` steps of the residual diffusion are done.
pub const HART_STEP_DIFFUSION: hart_step = 4;
/// `index` of `count` blocks of the decoder are done.
pub const HART_STEP_DECODER: hart_step = 5;
/// `index` of `count` images are finished. The preview is the latest of them.
pub const HART_STEP_IMAGES: hart_step = 6;
/// `index` of `count` tensors of the model are loaded. Only events of opening a model have this step.
pub const HART_STEP_TENSOR: hart_step = 7;
/// A step that has no constant in this version of the C API.
pub const HART_STEP_OTHER: hart_step = 99;

/// An event of a run, or of opening a model. hart owns it, and it is valid only during the callback. `struct_size` is the number of bytes
/// that the library has filled: check it before you read a field that a later version has added.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct hart_event {
    /// Bytes that the library has filled.
    pub struct_size: u32,
    /// The stage: `HART_STAGE_*`.
    pub stage: hart_stage,
    /// The step: `HART_STEP_*`.
    pub step: hart_step,
    /// Number of the step, from 1 to `count`; 0 for `HART_STEP_OTHER`.
    pub index: u32,
    /// Total number of steps of this kind; 0 for `HART_STEP_OTHER`.
    pub count: u32,
    /// The current scale k, from 1; 0 before the first scale of an image.
    pub scale: u32,
    /// Number of scales S; 0 before the first scale of an image.
    pub scales: u32,
    /// Side of the current scale in latent positions; 0 before the first scale of an image.
    pub side: u32,
    /// Estimated fraction of the whole work that is done, 0 to 1. Never decreases.
    pub fraction: f32,
    /// 1 if `hart_event_preview` returns an image, otherwise 0.
    pub has_preview: i32,
    /// Seconds since the work began.
    pub elapsed: f64,
    /// Index of the image that the event is about, from 0 in the order of the result. Events of images that are
    /// generated at once alternate. A prompt is encoded for the first of its images; 0 when a model is opened.
    pub image_index: u32,
    /// 0.
    pub reserved: u32,
}

/// Callback that receives the events of a run, or of opening a model. Returns 0 to continue and any other value to
/// cancel. hart calls it often, one call at a time, on the thread that called `hart_generate`, `hart_encode` or
/// `hart_model_open`, so it should be fast. It may call any function of hart, but can't change or run the request that
/// is running. It must return normally: no C++ exception, no longjmp, no thread exit.
pub type hart_observer = Option<unsafe extern "C" fn(event: *const hart_event, user_data: *mut c_void) -> i32>;

thread_local! {
    /// The event whose callback is running on this thread.
    static CURRENT: Cell<*const Event<'static>> = const { Cell::new(ptr::null()) };
}

/// Decodes the current state of the run to an image. Its sides have at most `max_side` pixels, but at least those of
/// one latent position (16 in published models); 0 stands for the full size. Small previews are cheap, and previews do
/// not change the final image. Free the image with `hart_image_free`, during the callback or later. Returns
/// `HART_ERR_STATE` if this thread is not in a callback whose event has a preview, and `HART_CANCELLED` if the run was
/// cancelled meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_event_preview(event: *const hart_event, max_side: u32, image: *mut *mut hart_image) -> hart_status {
    guard(|| {
        let image = Out::<hart_image>::new(image, "image")?;
        if event.is_null() {
            return Err(Failure::null("event"));
        }
        // The event that was passed may be a copy, or old. The current one is the event whose callback is running on
        // this thread.
        let Some(current) = CURRENT.get().as_ref() else {
            return Err(Failure::new(HART_ERR_STATE, "no callback is running on this thread"));
        };
        let max_side = if max_side == 0 { usize::MAX } else { max_side as usize };
        let Some(preview) = current.preview(max_side) else {
            return Err(Failure::new(HART_ERR_STATE, "this event has no preview: check has_preview first"));
        };
        image.write(CImage::new(preview?));
        Ok(())
    })
}

/// An observer of the program with its user data, which is destroyed when the last request, options or run drops the observer.
pub(crate) struct Watcher {
    observer: unsafe extern "C" fn(event: *const hart_event, user_data: *mut c_void) -> i32,
    user_data: UserData,
}

impl Watcher {
    /// Takes an observer and its user data. Without an observer, the data is destroyed at once.
    pub(crate) fn new(observer: hart_observer, user_data: UserData) -> Option<Arc<Self>> {
        observer.map(|observer| Arc::new(Self { observer, user_data }))
    }
}

/// Writes an observer and its user data, or NULL if there is none.
///
/// # Safety
///
/// The pointers are NULL or valid for writes; `user_data` may be NULL.
pub(crate) unsafe fn write_watcher(
    observer: *mut hart_observer,
    user_data: *mut *mut c_void,
    read: impl FnOnce() -> Result<Option<Arc<Watcher>>, Failure>,
) -> hart_status {
    guard(|| {
        out::set(observer, None, "observer")?;
        out::set_optional(user_data, ptr::null_mut());
        if let Some(watcher) = read()? {
            out::set_optional(user_data, watcher.user_data.pointer());
            out::set(observer, Some(watcher.observer), "observer")?;
        }
        Ok(())
    })
}

/// The observer of a run: forwards the events to the callback of the program and collects the finished images.
pub(crate) struct Callback {
    watcher: Option<Arc<Watcher>>,
    /// The current scales of the images that are being generated, by index.
    scales: BTreeMap<usize, CurrentScale>,
    /// The images that are finished, also if the run is cancelled later.
    pub(crate) finished: Vec<Image>,
}

/// The scale that is being generated, or zeros before the first one.
#[derive(Clone, Copy, Default)]
struct CurrentScale {
    /// Number of the scale, from 1.
    scale: usize,
    scales: usize,
    /// In latent positions.
    side: usize,
}

impl Observer for Callback {
    fn event(&mut self, event: &Event<'_>) -> Control {
        let Some(watcher) = &self.watcher else { return Control::Continue };
        let (step, index, count) = numbers(event.step);
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        if let Step::Scale { scale, scales, side } = event.step {
            self.scales.insert(event.image_index, CurrentScale { scale, scales, side });
        }
        let CurrentScale { scale, scales, side } = self.scales.get(&event.image_index).copied().unwrap_or_default();
        if let Step::Images { .. } = event.step {
            self.scales.remove(&event.image_index);
        }
        let c_event = hart_event {
            struct_size: size_of::<hart_event>() as u32,
            stage: match event.stage {
                Stage::Text => HART_STAGE_TEXT,
                Stage::Transformer => HART_STAGE_TRANSFORMER,
                Stage::Sampling => HART_STAGE_SAMPLING,
                Stage::Residual => HART_STAGE_RESIDUAL,
                Stage::Decode => HART_STAGE_DECODE,
                _ => HART_STAGE_OTHER,
            },
            step,
            index: number(index),
            count: number(count),
            scale: number(scale),
            scales: number(scales),
            side: number(side),
            fraction: event.fraction,
            has_preview: event.has_preview().into(),
            elapsed: event.elapsed.as_secs_f64(),
            image_index: number(event.image_index),
            reserved: 0,
        };
        let current = Current::set(event);
        // The run continues in the default floating-point state, even if the function changes it.
        // SAFETY: the program has set this function and its user data, and `c_event` is valid during the call.
        let cancel = with_default_float_state(|| unsafe { (watcher.observer)(&c_event, watcher.user_data.pointer()) }) != 0;
        drop(current);
        if cancel { Control::Cancel } else { Control::Continue }
    }

    fn image(&mut self, image: &Image) {
        self.finished.push(image.clone());
    }
}

impl Callback {
    pub(crate) fn new(watcher: Option<Arc<Watcher>>) -> Self {
        Self { watcher, scales: BTreeMap::new(), finished: Vec::new() }
    }
}

/// Returns the number, index and count of a step.
fn numbers(step: Step) -> (hart_step, usize, usize) {
    match step {
        Step::TextLayer { layer, layers } => (HART_STEP_TEXT_LAYER, layer, layers),
        Step::Scale { scale, scales, .. } => (HART_STEP_SCALE, scale, scales),
        Step::Block { block, blocks, .. } => (HART_STEP_BLOCK, block, blocks),
        Step::ScaleDone { scale, scales, .. } => (HART_STEP_SCALE_DONE, scale, scales),
        Step::Diffusion { step, steps } => (HART_STEP_DIFFUSION, step, steps),
        Step::Decoder { block, blocks } => (HART_STEP_DECODER, block, blocks),
        Step::Images { finished, total } => (HART_STEP_IMAGES, finished, total),
        Step::Tensor { tensor, tensors } => (HART_STEP_TENSOR, tensor, tensors),
        _ => (HART_STEP_OTHER, 0, 0),
    }
}

/// Guard that makes an event the current one of this thread. Dropping it restores the previous one.
struct Current(*const Event<'static>);

impl Current {
    fn set(event: &Event<'_>) -> Self {
        // The cast drops the lifetime. `drop` removes the pointer while the event is still borrowed.
        Self(CURRENT.replace(ptr::from_ref(event).cast()))
    }
}

impl Drop for Current {
    fn drop(&mut self) {
        CURRENT.set(self.0);
    }
}
