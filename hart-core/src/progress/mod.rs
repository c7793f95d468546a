//! Progress reports, cancellation and the timing of stages.

mod event;

pub(crate) use event::OwnedPreview;
pub use event::{Control, Event, Observer, Stage, Step};

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use web_time::Instant;

use crate::device::OpenDevice;
use crate::error::{Error, Result};
use crate::image::Image;

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

/// Time spent in each stage of a run. If images are generated at once, the time that they spend is divided by their number, so that
/// the stages never add up to more than the whole run.
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

    /// Adds the time spent in the stages, divided by the number of images that spend it at once. Leaves the total.
    pub(crate) fn add_stages(&mut self, other: &Self, at_once: usize) {
        let at_once = u32::try_from(at_once).unwrap_or(u32::MAX).max(1);
        self.stages.iter_mut().zip(other.stages).for_each(|(sum, time)| *sum += time / at_once);
    }
}

impl std::ops::AddAssign for Timings {
    fn add_assign(&mut self, other: Self) {
        self.add_stages(&other, 1);
        self.total += other.total;
    }
}

/// The clock of a run and its finished work, over all images that are generated at once.
#[derive(Debug)]
pub(crate) struct Work {
    start: Instant,
    done: Mutex<f64>,
    total: f64,
}

impl Work {
    /// Creates the clock of a run that began at `start` and whose estimated cost is `total`.
    pub(crate) fn since(start: Instant, total: f64) -> Arc<Self> {
        Arc::new(Self { start, done: Mutex::new(0.0), total: total.max(1.0) })
    }

    /// Returns the time since the run began.
    pub(crate) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Adds finished work. Returns the fraction that is done.
    pub(crate) fn add(&self, work: f64) -> f32 {
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        *done += work;
        (*done / self.total).min(1.0) as f32
    }
}

/// The observer, cancel token and clock of a run.
pub struct Progress<'a> {
    observer: &'a mut dyn Observer,
    cancel: Option<&'a CancelToken>,
    /// The device whose pending work belongs to the current stage.
    device: Option<OpenDevice>,
    work: Arc<Work>,
    /// Index of the current image.
    image: usize,
    /// The current stage, and when it was entered.
    current: (Stage, Instant),
    timings: Timings,
}

impl<'a> Progress<'a> {
    /// Creates the progress of a run and starts its clock. `work` is the estimated cost of the whole run, in the unit of [`Self::report`].
    pub fn new(observer: &'a mut dyn Observer, cancel: Option<&'a CancelToken>, work: f64) -> Self {
        Self::of_image(0, &Work::since(Instant::now(), work), observer, cancel)
    }

    /// Creates the progress of one image of a run.
    pub(crate) fn of_image(
        image: usize,
        work: &Arc<Work>,
        observer: &'a mut dyn Observer,
        cancel: Option<&'a CancelToken>,
    ) -> Self {
        let (work, current) = (work.clone(), (Stage::Text, Instant::now()));
        Self { observer, cancel, device: None, work, image, current, timings: Timings::default() }
    }

    /// Sets the index of the image that the following events are about.
    pub(crate) fn begin_image(&mut self, image: usize) {
        self.image = image;
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
        self.notify(step, work, None, None)
    }

    /// Reports a step with a preview. `preview` decodes it, given the maximum side in pixels.
    ///
    /// # Errors
    ///
    /// Like [`Self::report`].
    pub fn report_preview(&mut self, step: Step, preview: &dyn Fn(usize) -> Result<Image>) -> Result<()> {
        self.notify(step, 0.0, Some(preview), None)
    }

    /// Like [`Self::report_preview`]. `owned` returns a preview for a use after the report.
    pub(crate) fn report_owned_preview(
        &mut self,
        step: Step,
        preview: &dyn Fn(usize) -> Result<Image>,
        owned: &dyn Fn() -> OwnedPreview,
    ) -> Result<()> {
        self.notify(step, 0.0, Some(preview), Some(owned))
    }

    fn notify(
        &mut self,
        step: Step,
        work: f64,
        preview: Option<&dyn Fn(usize) -> Result<Image>>,
        owned_preview: Option<&dyn Fn() -> OwnedPreview>,
    ) -> Result<()> {
        let (fraction, elapsed) = (self.work.add(work), self.work.elapsed());
        let event = Event { stage: self.current.0, step, elapsed, fraction, image_index: self.image, preview, owned_preview };
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

    /// Adds time that a stage took before.
    pub(crate) fn add_time(&mut self, stage: Stage, time: Duration) {
        self.timings.stages[stage as usize] += time;
    }

    /// Returns the time spent so far.
    pub fn timings(&mut self) -> Timings {
        self.enter(self.current.0);
        self.timings.total = self.work.elapsed();
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
