//! What a run tells while it works.

use std::cell::Cell;
use std::ffi::c_void;
use std::ptr;

use hart_core::{Control, Event, Observer, Stage, Step};

use crate::guard::guard;
use crate::image::{Picture, hart_image};
use crate::out::Out;
use crate::status::{Failure, HART_ERR_STATE, hart_status};

/// Stage of an event: prompt to context.
pub const HART_STAGE_TEXT: i32 = 0;
/// Stage of an event: the transformer, scale by scale.
pub const HART_STAGE_TRANSFORMER: i32 = 1;
/// Stage of an event: logits to codes, codes to the latent.
pub const HART_STAGE_SAMPLING: i32 = 2;
/// Stage of an event: the residual diffusion of the last scale.
pub const HART_STAGE_RESIDUAL: i32 = 3;
/// Stage of an event: latent to pixels.
pub const HART_STAGE_DECODE: i32 = 4;

/// Step of an event: `index` of `count` layers of the text encoder are done.
pub const HART_STEP_TEXT_LAYER: i32 = 0;
/// Step of an event: scale `index` of `count` begins.
pub const HART_STEP_SCALE: i32 = 1;
/// Step of an event: `index` of `count` transformer blocks of the scale are done.
pub const HART_STEP_BLOCK: i32 = 2;
/// Step of an event: scale `index` of `count` is done, and there is a preview.
pub const HART_STEP_SCALE_DONE: i32 = 3;
/// Step of an event: `index` of `count` steps of the residual diffusion are done.
pub const HART_STEP_DIFFUSION: i32 = 4;
/// Step of an event: `index` of `count` blocks of the decoder are done.
pub const HART_STEP_DECODER: i32 = 5;
/// Step of an event: `index` of `count` pictures are finished; the preview is the last of them.
pub const HART_STEP_IMAGES: i32 = 6;
/// Step of an event: one that this version of the header has no name for.
pub const HART_STEP_OTHER: i32 = 99;

/// One report from a run. Made by hart; valid during the callback only. `struct_size` is how many bytes of it the library has filled:
/// a field is there if it ends within them.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct hart_event {
    /// Bytes that the library has filled.
    pub struct_size: u32,
    /// One of HART_STAGE_*.
    pub stage: i32,
    /// One of HART_STEP_*: what has just been reached.
    pub step: i32,
    /// Which one of the step's `count`, from 1.
    pub index: u32,
    /// How many there are.
    pub count: u32,
    /// The current scale k, from 1; 0 before the first of a picture.
    pub scale: u32,
    /// How many scales there are, S; 0 before the first of a picture.
    pub scales: u32,
    /// Side of the current scale in latent positions; 0 before the first of a picture.
    pub side: u32,
    /// Estimated share of the whole run that is done, 0 to 1; never falls.
    pub fraction: f32,
    /// 1 if `hart_event_preview` has something to show, else 0.
    pub has_preview: i32,
    /// Seconds since the run began.
    pub elapsed: f64,
}

/// Hears a run's events. Called on the thread that called `hart_generate`, one call at a time, often: be quick. Return 0 to go on, anything
/// else to cancel. It may call any hart function, but can't generate with the request that is running, nor change it. It must return: no
/// C++ exception, no longjmp, no end of the thread.
pub type hart_observer = Option<unsafe extern "C" fn(event: *const hart_event, user_data: *mut c_void) -> i32>;

thread_local! {
    /// The event whose callback is running on this thread.
    static CURRENT: Cell<*const Event<'static>> = const { Cell::new(ptr::null()) };
}

/// The picture as it stands, decoded now: with sides of at most `max_side` pixels but at least those of one latent position (16 in
/// published models), 0 for the full size. A small one costs little. It never changes the final picture. Only in a callback whose
/// event has a preview, else `HART_ERR_STATE`; `HART_CANCELLED` if the run's token is used meanwhile. Free the image with `hart_image_free`; it may be kept.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_event_preview(event: *const hart_event, max_side: u32, image: *mut *mut hart_image) -> hart_status {
    guard(|| {
        let image = Out::<hart_image>::new(image, "image")?;
        if event.is_null() {
            return Err(Failure::null("event"));
        }
        // The caller's event may be a copy, or old. The one that counts is the one whose callback is running here.
        let Some(current) = CURRENT.get().as_ref() else {
            return Err(Failure::new(HART_ERR_STATE, "there is no callback running on this thread"));
        };
        let max_side = if max_side == 0 { usize::MAX } else { max_side as usize };
        let Some(picture) = current.preview(max_side) else {
            return Err(Failure::new(HART_ERR_STATE, "this event has no preview: look at has_preview"));
        };
        image.give(Picture::new(picture?));
        Ok(())
    })
}

/// A caller's observer, as hart-core hears it.
pub(crate) struct Callback {
    pub(crate) observer: hart_observer,
    pub(crate) user_data: *mut c_void,
    /// Scale, scales and side.
    pub(crate) place: (usize, usize, usize),
}

impl Observer for Callback {
    fn event(&mut self, event: &Event<'_>) -> Control {
        let (step, index, count) = self.reached(event.step);
        let Some(observer) = self.observer else { return Control::Continue };
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let (scale, scales, side) = self.place;
        let report = hart_event {
            struct_size: size_of::<hart_event>() as u32,
            stage: match event.stage {
                Stage::Text => HART_STAGE_TEXT,
                Stage::Transformer => HART_STAGE_TRANSFORMER,
                Stage::Sampling => HART_STAGE_SAMPLING,
                Stage::Residual => HART_STAGE_RESIDUAL,
                _ => HART_STAGE_DECODE,
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
        };
        let current = Current::set(event);
        // SAFETY: the caller's function, called as the header says.
        let answer = unsafe { observer(&report, self.user_data) };
        drop(current);
        if answer == 0 { Control::Continue } else { Control::Cancel }
    }
}

impl Callback {
    /// The step's number, index and count; keeps where the picture stands.
    fn reached(&mut self, step: Step) -> (i32, usize, usize) {
        match step {
            Step::TextLayer { layer, layers } => {
                self.place = (0, 0, 0);
                (HART_STEP_TEXT_LAYER, layer, layers)
            }
            Step::Scale { scale, scales, side } => {
                self.place = (scale, scales, side);
                (HART_STEP_SCALE, scale, scales)
            }
            Step::Block { block, blocks, .. } => (HART_STEP_BLOCK, block, blocks),
            Step::ScaleDone { scale, scales, .. } => (HART_STEP_SCALE_DONE, scale, scales),
            Step::Diffusion { step, steps } => (HART_STEP_DIFFUSION, step, steps),
            Step::Decoder { block, blocks } => (HART_STEP_DECODER, block, blocks),
            Step::Images { finished, total } => (HART_STEP_IMAGES, finished, total),
            _ => (HART_STEP_OTHER, 0, 0),
        }
    }
}

/// Makes an event this thread's current one, and the one before it again when dropped.
struct Current(*const Event<'static>);

impl Current {
    fn set(event: &Event<'_>) -> Self {
        // The lifetime is forgotten here and kept by hand: `drop` takes the pointer away before the event goes.
        Self(CURRENT.replace(ptr::from_ref(event).cast()))
    }
}

impl Drop for Current {
    fn drop(&mut self) {
        CURRENT.set(self.0);
    }
}
