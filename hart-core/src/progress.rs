//! What a run tells while it works, and how it is stopped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::image::Image;

/// The parts of a run, in the order in which the prompt flows through them.
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
    /// Latent to pixels; also the pixels of a picture to start from to its latent.
    Decode,
}

impl Stage {
    /// All stages in order.
    pub const ALL: [Self; 5] = [Self::Text, Self::Transformer, Self::Sampling, Self::Residual, Self::Decode];

    /// Lower-case name, as in reports.
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

/// What has just been reached.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Step {
    /// A layer of the text encoder is done.
    TextLayer {
        /// Which one, from 1.
        layer: usize,
        /// How many there are.
        layers: usize,
    },
    /// A scale begins.
    Scale {
        /// Which one, k, from 1.
        scale: usize,
        /// How many there are, S.
        scales: usize,
        /// Its side in latent positions.
        side: usize,
    },
    /// A scale's codes are in the latent: the event offers a preview.
    ScaleDone {
        /// Which one, k, from 1.
        scale: usize,
        /// How many there are, S.
        scales: usize,
        /// Its side in latent positions.
        side: usize,
    },
    /// A transformer block of the current scale is done.
    Block {
        /// The scale, k, from 1.
        scale: usize,
        /// How many scales there are, S.
        scales: usize,
        /// Which block, from 1.
        block: usize,
        /// How many blocks there are.
        blocks: usize,
    },
    /// A step of the residual diffusion is done.
    Diffusion {
        /// Which one, from 1.
        step: usize,
        /// How many there are.
        steps: usize,
    },
    /// A block of the decoder is done.
    Decoder {
        /// Which one, from 1.
        block: usize,
        /// How many there are.
        blocks: usize,
    },
    /// A picture is finished: the event offers it.
    Images {
        /// How many pictures of the request are finished.
        finished: usize,
        /// How many were asked for.
        total: usize,
    },
}

/// One report from a run.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct Event<'a> {
    /// The part of the run.
    pub stage: Stage,
    /// What has just been reached in it.
    pub step: Step,
    /// Since the run began.
    pub elapsed: Duration,
    /// Estimated share of the whole run that is done, 0 to 1; never falls.
    pub fraction: f32,
    pub(crate) preview: Option<&'a dyn Fn(usize) -> Result<Image>>,
}

impl Event<'_> {
    /// Whether there is a picture to see: after every scale, and when a picture is finished.
    pub fn has_preview(&self) -> bool {
        self.preview.is_some()
    }

    /// The picture as it stands, decoded now, in the calling program's time: with sides of at most `max_side` pixels, but at least
    /// those of one latent position (16 in published models), or `usize::MAX` for the full size. A small one costs little. It never changes the final picture. None where there
    /// is nothing to see.
    ///
    /// # Errors
    ///
    /// In the result: [`Error::Cancelled`] or [`Error::Overflow`].
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

/// What the observer answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// Go on.
    Continue,
    /// Stop as soon as possible; the run returns [`Error::Cancelled`].
    Cancel,
}

/// Hears a run's events on the thread that called it. Any `FnMut(&Event<'_>) -> Control` is one; `()` hears nothing.
pub trait Observer {
    /// Called often; must be quick.
    fn event(&mut self, event: &Event<'_>) -> Control;

    /// Called with every finished picture, before the run goes on: to save it, or to show it.
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

/// Stops a run from any thread. Clones stop the same run; one atomic store, so it may be used in a signal handler.
#[derive(Clone, Debug, Default)]
pub struct CancelToken(Arc<AtomicBool>);

impl CancelToken {
    /// A token that has not been used.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks every run that holds the token to stop, also one that begins later.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Makes the token usable again.
    pub fn reset(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    /// Whether it was used.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Time spent in each stage of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Timings {
    stages: [Duration; Stage::ALL.len()],
    /// The whole run, also what lies between the stages.
    pub total: Duration,
}

impl Timings {
    /// Time spent in one stage.
    pub fn of(&self, stage: Stage) -> Duration {
        self.stages[stage as usize]
    }
}

/// Carries a run's observer, cancel token and clock through the stages.
pub struct Progress<'a> {
    observer: &'a mut dyn Observer,
    cancel: Option<&'a CancelToken>,
    start: Instant,
    entered: (Stage, Instant),
    timings: Timings,
    work: (f64, f64),
}

impl<'a> Progress<'a> {
    /// `work` is an estimate of the whole run's cost, in units of the caller's choice; stages report what they did with
    /// [`Progress::report`].
    pub fn new(observer: &'a mut dyn Observer, cancel: Option<&'a CancelToken>, work: f64) -> Self {
        let start = Instant::now();
        Self { observer, cancel, start, entered: (Stage::Text, start), timings: Timings::default(), work: (0.0, work.max(1.0)) }
    }

    /// Progress that nobody hears, for stages that are called by themselves.
    pub fn silent() -> Progress<'static> {
        // `()` has no size: nothing is allocated, so nothing leaks.
        Progress::new(Box::leak(Box::new(())), None, 1.0)
    }

    /// From here on time counts for `stage`.
    pub fn enter(&mut self, stage: Stage) {
        let now = Instant::now();
        let (before, since) = std::mem::replace(&mut self.entered, (stage, now));
        self.timings.stages[before as usize] += now - since;
    }

    /// Reports a step that cost `work`.
    ///
    /// # Errors
    ///
    /// [`Error::Cancelled`] if the observer or the token asks for it.
    pub fn report(&mut self, step: Step, work: f64) -> Result<()> {
        self.notify(step, work, None)
    }

    /// Reports a step after which there is a picture to see: `preview` decodes it with at most so many pixels a side.
    ///
    /// # Errors
    ///
    /// As [`Self::report`].
    pub fn report_preview(&mut self, step: Step, preview: &dyn Fn(usize) -> Result<Image>) -> Result<()> {
        self.notify(step, 0.0, Some(preview))
    }

    fn notify(&mut self, step: Step, work: f64, preview: Option<&dyn Fn(usize) -> Result<Image>>) -> Result<()> {
        self.work.0 += work;
        let fraction = (self.work.0 / self.work.1).min(1.0) as f32;
        let event = Event { stage: self.entered.0, step, elapsed: self.start.elapsed(), fraction, preview };
        let control = self.observer.event(&event);
        if control == Control::Cancel { Err(Error::Cancelled) } else { self.check() }
    }

    /// The token that stops the run.
    pub(crate) fn cancel_token(&self) -> Option<&'a CancelToken> {
        self.cancel
    }

    /// Hands a finished picture to the observer.
    pub(crate) fn image(&mut self, image: &Image) {
        self.observer.image(image);
    }

    /// Stops here if the token was used.
    ///
    /// # Errors
    ///
    /// [`Error::Cancelled`].
    pub fn check(&self) -> Result<()> {
        if self.cancel.is_some_and(CancelToken::is_cancelled) { Err(Error::Cancelled) } else { Ok(()) }
    }

    /// Time spent so far.
    pub fn timings(&mut self) -> Timings {
        let stage = self.entered.0;
        self.enter(stage);
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
        assert_eq!(seen, [0.25, 0.5, 0.75, 1.0, 1.0]);
    }
}
