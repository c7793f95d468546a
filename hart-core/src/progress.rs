//! Progress reports, cancellation and the timing of stages.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use web_time::Instant;

use crate::device::OpenDevice;
use crate::error::{Error, Result};
use crate::image::Image;

/// The stages of a run, in the order of the data flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Stage {
    /// Prompt to context.
    Text,
    /// The autoregressive transformer, scale by scale.
    Transformer,
    /// Logits to codes, and codes to the latent.
    Sampling,
    /// The residual diffusion of the last scale.
    Residual,
    /// Latent to pixels. Encoding an image to start from also counts as this stage.
    Decode,
}

impl Stage {
    /// All stages in order.
    pub const ALL: [Self; 5] = [Self::Text, Self::Transformer, Self::Sampling, Self::Residual, Self::Decode];

    /// Returns the stage's name in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Transformer => "transformer",
            Self::Sampling => "sampling",
            Self::Residual => "residual",
            Self::Decode => "decode",
        }
    }
}

/// The step of a run, or of opening a model, that an event reports.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Step {
    /// A layer of the text encoder is finished.
    TextLayer {
        /// Number of the layer, from 1.
        layer: usize,
        /// Total number of layers.
        layers: usize,
    },
    /// A scale begins.
    Scale {
        /// Number of the scale, k, from 1.
        scale: usize,
        /// Total number of scales, S.
        scales: usize,
        /// Side of the scale in latent positions.
        side: usize,
    },
    /// The codes of a scale have been added to the latent. The event has a preview.
    ScaleDone {
        /// Number of the scale, k, from 1.
        scale: usize,
        /// Total number of scales, S.
        scales: usize,
        /// Side of the scale in latent positions.
        side: usize,
    },
    /// A transformer block of the current scale is finished.
    Block {
        /// Number of the scale, k, from 1.
        scale: usize,
        /// Total number of scales, S.
        scales: usize,
        /// Number of the block, from 1.
        block: usize,
        /// Total number of blocks.
        blocks: usize,
    },
    /// A step of the residual diffusion is finished.
    Diffusion {
        /// Number of the step, from 1.
        step: usize,
        /// Total number of steps.
        steps: usize,
    },
    /// A block of the decoder is finished.
    Decoder {
        /// Number of the block, from 1.
        block: usize,
        /// Total number of blocks.
        blocks: usize,
    },
    /// An image is finished. The event's preview is that image.
    Images {
        /// Number of finished images.
        finished: usize,
        /// Number of requested images.
        total: usize,
    },
    /// A tensor is loaded. Only events of [`Hart::open_with`](crate::Hart::open_with) have this step; their stage is the one whose
    /// weights are loaded.
    Tensor {
        /// Number of the tensor, from 1.
        tensor: usize,
        /// Total number of tensors of the model.
        tensors: usize,
    },
}

/// A progress report of a run, or of opening a model.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct Event<'a> {
    /// The current stage.
    pub stage: Stage,
    /// The step that has been completed or begun.
    pub step: Step,
    /// Time since the work began.
    pub elapsed: Duration,
    /// Estimated fraction of the whole work that is done, 0 to 1. Never decreases.
    pub fraction: f32,
    pub(crate) preview: Option<&'a dyn Fn(usize) -> Result<Image>>,
}

impl Event<'_> {
    /// Returns whether the event has a preview: after every scale, and when an image is finished.
    pub fn has_preview(&self) -> bool {
        self.preview.is_some()
    }

    /// Decodes the current state of the image, with sides of at most `max_side` pixels, but at least the side of one latent
    /// position (16 in published models). `usize::MAX` is the full size. Returns `None` if the event has no preview.
    ///
    /// The image is decoded during this call. A small one costs little. The final image does not depend on it.
    ///
    /// # Errors
    ///
    /// [`Error::Cancelled`] or [`Error::Overflow`].
    pub fn preview(&self, max_side: usize) -> Option<Result<Image>> {
        self.preview.map(|decode| decode(max_side))
    }
}

impl std::fmt::Debug for Event<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Event")
            .field("stage", &self.stage)
            .field("step", &self.step)
            .field("elapsed", &self.elapsed)
            .field("fraction", &self.fraction)
            .field("has_preview", &self.has_preview())
            .finish()
    }
}

/// Return value of an observer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// Continues the run.
    Continue,
    /// Cancels the work as soon as possible. It returns [`Error::Cancelled`].
    Cancel,
}

/// Receives the events and images of a run, or the events of opening a model, on the thread that called
/// [`Hart::generate_with`](crate::Hart::generate_with) or [`Hart::open_with`](crate::Hart::open_with).
///
/// Any `FnMut(&Event<'_>) -> Control` is an observer. `()` ignores everything.
pub trait Observer {
    /// Receives an event. Called often, so it should return quickly.
    fn event(&mut self, event: &Event<'_>) -> Control;

    /// Receives each finished image before the run continues. Does nothing by default.
    fn image(&mut self, _: &Image) {}
}

impl<F: FnMut(&Event<'_>) -> Control> Observer for F {
    fn event(&mut self, event: &Event<'_>) -> Control {
        self(event)
    }
}

impl Observer for () {
    fn event(&mut self, _: &Event<'_>) -> Control {
        Control::Continue
    }
}

/// Cancels runs and opening from any thread. Clones share their state. [`Self::cancel`] is one atomic store and may be used in a signal handler.
#[derive(Clone, Debug, Default)]
pub struct CancelToken(Arc<AtomicBool>);

impl CancelToken {
    /// Creates a token.
    pub fn new() -> Self {
        Self::default()
    }

    /// Cancels every run that uses the token, and opening a model with it, including those that begin later.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Resets the token, so that it can be used again.
    pub fn reset(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    /// Returns whether the token has been cancelled.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Time spent in each stage of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Timings {
    stages: [Duration; Stage::ALL.len()],
    /// Duration of the whole run, including the time between the stages.
    pub total: Duration,
}

impl Timings {
    /// Returns the time spent in one stage.
    pub fn of(&self, stage: Stage) -> Duration {
        self.stages[stage as usize]
    }
}

impl std::ops::AddAssign for Timings {
    fn add_assign(&mut self, other: Self) {
        self.stages.iter_mut().zip(other.stages).for_each(|(sum, time)| *sum += time);
        self.total += other.total;
    }
}

/// The observer, cancel token and clock of a run.
pub struct Progress<'a> {
    observer: &'a mut dyn Observer,
    cancel: Option<&'a CancelToken>,
    /// The device whose pending work belongs to the current stage.
    device: Option<OpenDevice>,
    start: Instant,
    /// The current stage, and when it was entered.
    current: (Stage, Instant),
    timings: Timings,
    work_done: f64,
    work_total: f64,
}

impl<'a> Progress<'a> {
    /// Creates the progress of a run and starts its clock. `work` is the estimated cost of the whole run, in the unit of [`Self::report`].
    pub fn new(observer: &'a mut dyn Observer, cancel: Option<&'a CancelToken>, work: f64) -> Self {
        let start = Instant::now();
        Self {
            observer,
            cancel,
            device: None,
            start,
            current: (Stage::Text, start),
            timings: Timings::default(),
            work_done: 0.0,
            work_total: work.max(1.0),
        }
    }

    /// Creates a progress without an observer, for running single stages.
    pub fn silent() -> Progress<'static> {
        // `()` has no size, so nothing is allocated or leaked.
        Progress::new(Box::leak(Box::new(())), None, 1.0)
    }

    /// Sets the device of the stages that follow.
    pub(crate) fn set_device(&mut self, device: &OpenDevice) {
        self.device = Some(device.clone());
    }

    /// Ends the current stage and begins another one.
    pub fn enter(&mut self, stage: Stage) {
        let now = Instant::now();
        let (previous, since) = std::mem::replace(&mut self.current, (stage, now));
        self.timings.stages[previous as usize] += now - since;
    }

    /// Like [`Self::enter`], but stays in the current stage if the device is asynchronous: its pending work belongs to the current
    /// stage, and waiting for it here would cost time.
    pub(crate) fn enter_if_synchronous(&mut self, stage: Stage) {
        if self.device.as_ref().is_none_or(OpenDevice::is_synchronous) {
            self.enter(stage);
        }
    }

    /// Waits for the device to finish its pending work, so that its time counts for the current stage.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] if some of the work failed.
    pub(crate) fn synchronize(&self) -> Result<()> {
        self.device.as_ref().map_or(Ok(()), OpenDevice::synchronize)
    }

    /// Reports a step that cost `work`.
    ///
    /// # Errors
    ///
    /// [`Error::Cancelled`] if the observer or the token has cancelled the run.
    pub fn report(&mut self, step: Step, work: f64) -> Result<()> {
        self.notify(step, work, None)
    }

    /// Reports a step with a preview. `preview` decodes it, given the maximum side in pixels.
    ///
    /// # Errors
    ///
    /// Like [`Self::report`].
    pub fn report_preview(&mut self, step: Step, preview: &dyn Fn(usize) -> Result<Image>) -> Result<()> {
        self.notify(step, 0.0, Some(preview))
    }

    fn notify(&mut self, step: Step, work: f64, preview: Option<&dyn Fn(usize) -> Result<Image>>) -> Result<()> {
        self.work_done += work;
        let fraction = (self.work_done / self.work_total).min(1.0) as f32;
        let event = Event { stage: self.current.0, step, elapsed: self.start.elapsed(), fraction, preview };
        let control = self.observer.event(&event);
        if control == Control::Cancel { Err(Error::Cancelled) } else { self.check() }
    }

    /// Returns the token that cancels the run.
    pub(crate) fn cancel_token(&self) -> Option<&'a CancelToken> {
        self.cancel
    }

    /// Passes a finished image to the observer.
    pub(crate) fn image(&mut self, image: &Image) {
        self.observer.image(image);
    }

    /// Fails if the token has been cancelled.
    ///
    /// # Errors
    ///
    /// [`Error::Cancelled`].
    pub fn check(&self) -> Result<()> {
        if self.cancel.is_some_and(CancelToken::is_cancelled) { Err(Error::Cancelled) } else { Ok(()) }
    }

    /// Returns the time spent so far.
    pub fn timings(&mut self) -> Timings {
        self.enter(self.current.0);
        self.timings.total = self.start.elapsed();
        self.timings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn observer_and_token_both_stop_a_run() {
        let step = Step::Diffusion { step: 1, steps: 8 };
        let mut refuse = |_: &Event<'_>| Control::Cancel;
        assert!(Progress::new(&mut refuse, None, 1.0).report(step, 0.5).unwrap_err().is_cancelled());
        let token = CancelToken::new();
        let mut silent = ();
        let mut progress = Progress::new(&mut silent, Some(&token), 1.0);
        progress.report(step, 0.5).unwrap();
        token.clone().cancel();
        assert!(progress.check().is_err() && progress.report(step, 0.5).is_err());
        token.reset();
        assert!(progress.check().is_ok());
    }

    #[test]
    fn fraction_rises_to_one_and_stages_share_the_time() {
        let mut seen = Vec::new();
        let mut observer = |e: &Event<'_>| {
            seen.push(e.fraction);
            Control::Continue
        };
        let mut progress = Progress::new(&mut observer, None, 4.0);
        progress.enter(Stage::Decode);
        for block in 1..=5 {
            progress.report(Step::Decoder { block, blocks: 5 }, 1.0).unwrap();
        }
        let timings = progress.timings();
        assert!(Stage::ALL.iter().map(|s| timings.of(*s)).sum::<Duration>() <= timings.total);
        let mut sum = timings;
        sum += timings;
        assert_eq!(sum.total, 2 * timings.total);
        assert_eq!(seen, [0.25, 0.5, 0.75, 1.0, 1.0]);
    }
}
