//! Many independent tasks on all cores, above all the generation of many images.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use hart_core::{CancelToken, Control, Error, Event, Hart, Image, Request, Step};
use indicatif::ProgressBar;
use rayon::ThreadPoolBuilder;

use crate::cli::progress::bar_style;

/// Maximum memory per image for generating several at once. A model that takes more keeps all cores busy with one image.
const MAX_MEMORY_PER_IMAGE: u64 = 512 << 20;

/// A generated image, with and without the residual.
#[derive(Clone, Debug)]
pub struct Generated {
    /// The final image.
    pub image: Image,
    /// The image of the discrete codes alone, if requested.
    pub discrete: Option<Image>,
}

/// Runs tasks in parallel, each on one core, which wastes no time on synchronisation. The number of cores doesn't change the
/// images.
pub struct Runner<'a> {
    hart: &'a Hart,
    cancel: CancelToken,
    threads: usize,
    quiet: bool,
}

impl<'a> Runner<'a> {
    /// Creates a runner for a model that was opened without a number of threads. `threads` defaults to the number of cores.
    pub fn new(hart: &'a Hart, cancel: CancelToken, threads: Option<usize>, quiet: bool) -> Self {
        let all = || thread::available_parallelism().map_or(1, usize::from);
        Self { hart, cancel, threads: threads.unwrap_or_else(all), quiet }
    }

    /// Returns the model.
    pub fn hart(&self) -> &'a Hart {
        self.hart
    }

    /// Returns whether the run was cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }

    /// Runs `count` tasks, each on one thread. The result is `None` for tasks that were not finished before a cancellation.
    ///
    /// # Errors
    ///
    /// Returns the first error of a task.
    pub fn run<T: Send>(
        &self,
        message: &'static str,
        count: usize,
        task: impl Fn(usize) -> Result<T, Error> + Sync,
    ) -> Result<Vec<Option<T>>, Error> {
        self.run_parallel(message, count, self.threads.min(count), task)
    }

    /// Like [`Self::run`], but with `parallel` tasks at a time, which share the threads.
    fn run_parallel<T: Send>(
        &self,
        message: &'static str,
        count: usize,
        parallel: usize,
        task: impl Fn(usize) -> Result<T, Error> + Sync,
    ) -> Result<Vec<Option<T>>, Error> {
        let bar = progress_bar(message, count, self.quiet);
        let (next, failure) = (AtomicUsize::new(0), Mutex::new(None));
        let results: Mutex<Vec<Option<T>>> = Mutex::new((0..count).map(|_| None).collect());
        let worker = || loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count || self.is_cancelled() || failure.lock().is_ok_and(|failure| failure.is_some()) {
                return;
            }
            let result = task(index);
            match (result, results.lock(), failure.lock()) {
                (Ok(result), Ok(mut results), _) => results[index] = Some(result),
                // A task interrupted by a cancellation is not an error.
                (Err(error), _, Ok(mut failure)) if !error.is_cancelled() => *failure = Some(error),
                _ => return,
            }
            bar.inc(1);
        };
        thread::scope(|scope| -> Result<(), Error> {
            for _ in 0..parallel {
                let pool = ThreadPoolBuilder::new().num_threads((self.threads / parallel).max(1)).build();
                let pool = pool.map_err(|e| Error::Device { name: "cpu".into(), problem: e.to_string() })?;
                scope.spawn(move || pool.install(worker));
            }
            Ok(())
        })?;
        bar.finish_and_clear();
        match failure.into_inner() {
            Ok(Some(error)) => Err(error),
            _ => Ok(results.into_inner().unwrap_or_default()),
        }
    }

    /// Generates the image of each request. Each request must ask for one image. With `discrete`, also decodes the discrete codes
    /// alone. The result is `None` for images that were not finished before a cancellation.
    ///
    /// # Errors
    ///
    /// Returns the first error of a request.
    pub fn generate(&self, message: &'static str, requests: &[Request], discrete: bool) -> Result<Vec<Option<Generated>>, Error> {
        let Some(first) = requests.first() else { return Ok(vec![]) };
        let fits = self.hart.memory(first).working <= MAX_MEMORY_PER_IMAGE;
        let parallel = if fits { self.threads.min(requests.len()) } else { 1 };
        self.run_parallel(message, requests.len(), parallel, |index| self.generate_one(&requests[index], discrete))
    }

    fn generate_one(&self, request: &Request, discrete: bool) -> Result<Generated, Error> {
        let mut preview = None;
        // A preview after the last scale shows the discrete codes without the residual.
        let mut observer = |event: &Event<'_>| {
            if discrete && matches!(event.step, Step::ScaleDone { scale, scales, .. } if scale == scales) {
                preview = event.preview(usize::MAX);
            }
            Control::Continue
        };
        let request = request.clone().cancel_token(self.cancel.clone());
        let mut generation = self.hart.generate_with(&request, &mut observer)?;
        Ok(Generated { image: generation.images.swap_remove(0), discrete: preview.transpose()? })
    }
}

/// Creates a progress bar with an estimate of the remaining time. It is hidden if standard error is not a terminal.
fn progress_bar(message: &'static str, count: usize, quiet: bool) -> ProgressBar {
    let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::new(count as u64) };
    bar.set_style(bar_style("{msg:28} {bar:32} {pos:>4}/{len} {elapsed:>4}, {eta} left"));
    bar.set_message(message);
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}
