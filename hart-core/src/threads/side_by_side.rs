//! Images of one run that are generated side by side, each on its share of the threads.

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::{ScopedJoinHandle, scope};

use super::Threads;
use super::events::{Events, Finished, channel};
use crate::error::{Error, Result};
use crate::image::Image;
use crate::kernels::{set_default_float_state, thread_builder, with_default_float_state};
use crate::process::Call;
use crate::progress::{CancelToken, Observer, OwnedPreview, Work};

/// A run whose images are generated side by side.
pub(crate) struct SideBySide<'a> {
    /// Number of images.
    pub(crate) images: usize,
    /// Maximum number of images at once.
    pub(crate) at_once: usize,
    pub(crate) cancel: Option<&'a CancelToken>,
    pub(crate) work: &'a Work,
}

/// Generates the image with an index, and passes its events to an observer.
type GenerateImage<'a> = dyn Fn(usize, &mut dyn Observer) -> Result<Finished> + Sync + 'a;

/// The state that the threads of a run share.
struct State<'a> {
    run: &'a SideBySide<'a>,
    threads: &'a Threads,
    /// Number of all threads.
    count: usize,
    /// Index of the next image.
    next: AtomicUsize,
    stop: AtomicBool,
    error: Mutex<Option<Error>>,
}

/// Stops a run when it is dropped in a panic.
struct StopOnPanic<'a>(&'a AtomicBool);

impl Drop for StopOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

impl State<'_> {
    /// Generates images until none is left, and passes them on.
    fn generate(&self, mut events: Events<'_>, image: &GenerateImage<'_>) {
        let _stop = StopOnPanic(&self.stop);
        set_default_float_state();
        while !self.stop.load(Ordering::Relaxed) {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            if index >= self.run.images {
                break;
            }
            match self.generate_one(index, &mut events, image) {
                Ok(finished) => events.finish(index, finished),
                Err(error) => {
                    let mut first = self.error.lock().unwrap_or_else(PoisonError::into_inner);
                    // The others are cancelled because of the first error.
                    if first.as_ref().is_none_or(Error::is_cancelled) {
                        *first = Some(error);
                    }
                    self.stop.store(true, Ordering::Relaxed);
                }
            }
        }
    }

    fn generate_one(&self, index: usize, events: &mut Events<'_>, image: &GenerateImage<'_>) -> Result<Finished> {
        let is_cancelled = || self.stop.load(Ordering::Relaxed) || self.run.cancel.is_some_and(CancelToken::is_cancelled);
        let siblings = self.run.at_once.min(self.run.images - index);
        let share = self.threads.shares.enter(self.count, siblings, is_cancelled).ok_or(Error::Cancelled)?;
        match share.pool() {
            Some(pool) => pool.install(|| image(index, events)),
            None => self.threads.run(|| image(index, events))?,
        }
    }
}

impl Threads {
    /// Generates images side by side with `image`, which takes their index and an observer for their events. The run's observer is
    /// called on the current thread. Returns the images that it received, in order, and the error that ended the run.
    ///
    /// # Errors
    ///
    /// [`Error::Threads`] if the threads cannot be started, [`Error::State`] if this process was forked during a call.
    pub(crate) fn generate(
        &self,
        run: &SideBySide<'_>,
        observer: &mut dyn Observer,
        image: &GenerateImage<'_>,
    ) -> Result<(Vec<Image>, Result<()>)> {
        let _call = Call::begin()?;
        let (next, stop, error) = (AtomicUsize::new(0), AtomicBool::new(false), Mutex::new(None));
        let state = State { run, threads: self, count: self.count()?, next, stop, error };
        let images = with_default_float_state(|| generate_all(&state, observer, image))?;
        let error = state.error.into_inner().unwrap_or_else(PoisonError::into_inner);
        let is_complete = images.len() == run.images;
        Ok((images, error.map_or(if is_complete { Ok(()) } else { Err(Error::Cancelled) }, Err)))
    }
}

/// Starts a thread for each of the images at once, and calls the observer until they end.
fn generate_all(state: &State<'_>, observer: &mut dyn Observer, image: &GenerateImage<'_>) -> Result<Vec<Image>> {
    let run = state.run;
    scope(|scope| {
        let (events, reports) = channel(run.at_once, &state.stop);
        let mut workers: Vec<ScopedJoinHandle<'_, ()>> = Vec::with_capacity(run.at_once);
        for _ in 0..run.at_once {
            let events = events.clone();
            match thread_builder().spawn_scoped(scope, move || state.generate(events, image)) {
                Ok(worker) => workers.push(worker),
                // The threads that have been started generate all images.
                Err(_) if !workers.is_empty() => break,
                Err(error) => return Err(Error::Threads { problem: error.to_string() }),
            }
        }
        drop(events);
        let decode = |preview: &OwnedPreview, max_side| state.threads.run_free(|| preview(max_side))?;
        let images = reports.deliver(observer, run.images, run.work, &state.stop, &decode);
        let panics: Vec<_> = workers.into_iter().filter_map(|worker| worker.join().err()).collect();
        panics.into_iter().next().map_or(Ok(images), |panic| resume_unwind(panic))
    })
}
