//! Many pictures at once.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use hart_core::{CancelToken, Control, Error, Event, Hart, Image, Request, Step};
use indicatif::{ProgressBar, ProgressStyle};
use rayon::ThreadPoolBuilder;

/// Most memory that a picture may take for several to be drawn at once; a model whose pictures take more keeps all cores busy alone.
const MOST_MEMORY_AT_ONCE: u64 = 512 << 20;

/// A picture, and what it was before the residual.
#[derive(Clone, Debug)]
pub struct Drawn {
    /// The finished picture.
    pub image: Image,
    /// The picture of the discrete codes alone, if it was asked for.
    pub discrete: Option<Image>,
}

/// Draws many prompts on all cores: several pictures at once, each on one core, which wastes none on waiting. A picture is the same
/// on any number of cores.
pub struct Artist<'a> {
    hart: &'a Hart,
    cancel: CancelToken,
    threads: usize,
    quiet: bool,
}

impl<'a> Artist<'a> {
    /// Draws with a model that was opened without threads of its own.
    pub fn new(hart: &'a Hart, cancel: CancelToken, threads: Option<usize>, quiet: bool) -> Self {
        let all = || thread::available_parallelism().map_or(1, usize::from);
        Self { hart, cancel, threads: threads.unwrap_or_else(all), quiet }
    }

    /// The model.
    pub fn hart(&self) -> &'a Hart {
        self.hart
    }

    /// Whether Ctrl-C has stopped it.
    pub fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }

    /// Does `count` pieces of work, as many at once as there are threads, each on one thread. None where it was stopped before.
    ///
    /// # Errors
    ///
    /// The first one.
    pub fn each<T: Send>(
        &self,
        what: &'static str,
        count: usize,
        work: impl Fn(usize) -> Result<T, Error> + Sync,
    ) -> Result<Vec<Option<T>>, Error> {
        self.spread(what, count, self.threads.min(count), work)
    }

    fn spread<T: Send>(
        &self,
        what: &'static str,
        count: usize,
        at_once: usize,
        work: impl Fn(usize) -> Result<T, Error> + Sync,
    ) -> Result<Vec<Option<T>>, Error> {
        let bar = bar(what, count, self.quiet);
        let (next, failed) = (AtomicUsize::new(0), Mutex::new(None));
        let made: Mutex<Vec<Option<T>>> = Mutex::new((0..count).map(|_| None).collect());
        let worker = || loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count || self.is_cancelled() || failed.lock().is_ok_and(|failed| failed.is_some()) {
                return;
            }
            let result = work(index);
            match (result, made.lock(), failed.lock()) {
                (Ok(result), Ok(mut made), _) => made[index] = Some(result),
                // What was begun when it was stopped is left out.
                (Err(error), _, Ok(mut failed)) if !error.is_cancelled() => *failed = Some(error),
                _ => return,
            }
            bar.inc(1);
        };
        thread::scope(|scope| -> Result<(), Error> {
            for _ in 0..at_once {
                let pool = ThreadPoolBuilder::new().num_threads((self.threads / at_once).max(1)).build();
                let pool = pool.map_err(|e| Error::Device { name: "cpu".into(), problem: e.to_string() })?;
                scope.spawn(move || pool.install(worker));
            }
            Ok(())
        })?;
        bar.finish_and_clear();
        match failed.into_inner() {
            Ok(Some(error)) => Err(error),
            _ => Ok(made.into_inner().unwrap_or_default()),
        }
    }

    /// The picture of each request, which asks for one. None where it was stopped before.
    ///
    /// # Errors
    ///
    /// The first one.
    pub fn draw(&self, what: &'static str, requests: &[Request], discrete: bool) -> Result<Vec<Option<Drawn>>, Error> {
        let Some(first) = requests.first() else { return Ok(vec![]) };
        let fits = self.hart.memory(first).working <= MOST_MEMORY_AT_ONCE;
        let at_once = if fits { self.threads.min(requests.len()) } else { 1 };
        self.spread(what, requests.len(), at_once, |index| self.one(&requests[index], discrete))
    }

    fn one(&self, request: &Request, discrete: bool) -> Result<Drawn, Error> {
        let mut before = None;
        // After the last scale, the picture so far is that of the discrete codes.
        let mut keep = |event: &Event<'_>| {
            if discrete && matches!(event.step, Step::ScaleDone { scale, scales, .. } if scale == scales) {
                before = event.preview(usize::MAX);
            }
            Control::Continue
        };
        let request = request.clone().cancel_token(self.cancel.clone());
        let mut made = self.hart.generate_with(&request, &mut keep)?;
        Ok(Drawn { image: made.images.swap_remove(0), discrete: before.transpose()? })
    }
}

/// A bar that says how long it will take yet. Where standard error is no terminal, nothing is shown.
fn bar(what: &'static str, count: usize, quiet: bool) -> ProgressBar {
    let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::new(count as u64) };
    let style = ProgressStyle::with_template("{msg:28} {bar:32} {pos:>4}/{len} {elapsed:>4}, {eta} left");
    bar.set_style(style.expect("the template is valid").progress_chars("━╸ "));
    bar.set_message(what);
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}
