//! The threads of a model: rayon's current pool, or its own; and how images that are generated at once share them.

mod events;
mod pool;
mod relay;
mod shares;
mod side_by_side;

pub(crate) use events::Finished;
pub(crate) use side_by_side::SideBySide;

use std::panic::resume_unwind;
use std::sync::Arc;

use rayon::{Scope, ThreadPool};

use crate::error::{Error, Result};
use crate::kernels::{is_stack_short, set_default_float_state, thread_builder, with_default_float_state, with_enough_stack};
use crate::process::Call;
use crate::progress::{CancelToken, Observer};
use pool::OwnPool;
use relay::in_observer;
use shares::Shares;

/// Whether the library can start threads. WebAssembly has none, or only those of a global pool that the host has started.
pub(crate) const CAN_START: bool = !cfg!(target_family = "wasm");
/// Maximum number of threads of a model.
const MAX_THREADS: usize = 1024;

/// The threads of a model.
#[derive(Clone, Debug)]
pub(crate) struct Threads {
    /// A model's own threads, or `None` for rayon's current pool.
    own: Option<Arc<Own>>,
    shares: Arc<Shares>,
}

#[derive(Debug)]
struct Own {
    count: usize,
    pool: OwnPool,
}

/// Where work runs.
enum Place {
    /// On the current thread, with rayon's current pool.
    Here,
    /// In rayon's global pool, so that its threads don't wait for the current one before every operation.
    Global,
    /// In a pool.
    Pool(Arc<ThreadPool>),
    /// On a new thread with enough stack, with rayon's global pool.
    Thread,
}

/// Checks that rayon's current pool works, for work that stays on the current thread.
///
/// # Errors
///
/// [`Error::Threads`] if it cannot be started, [`Error::State`] if this is not possible any more.
pub(crate) fn require_current_pool() -> Result<()> {
    match pool::shared()? {
        None => Ok(()),
        Some(_) => Err(Error::State {
            problem:
                "rayon's global pool has no threads in this process, since it could not start them or was forked: do this inside \
                      another pool (rayon::ThreadPool::install) or in a new program"
                    .into(),
        }),
    }
}

impl Threads {
    /// Starts `count` threads, if there is a count, for a model that generates `parallel` images at once, if there is a number.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] if a number is out of range, [`Error::Threads`] if the threads cannot be started.
    pub(crate) fn new(count: Option<usize>, parallel: Option<usize>) -> Result<Self> {
        let threads = Self::start(count)?;
        if let Some(parallel) = parallel {
            let most = if CAN_START { threads.count()? } else { 1 };
            if !(1..=most).contains(&parallel) {
                let reason = if CAN_START { "the number of threads" } else { "the most in WebAssembly" };
                let problem = format!("{parallel}, expected 1 to {most}, {reason}; leave it out to choose it automatically");
                return Err(Error::request("parallel", problem));
            }
        }
        Ok(threads)
    }

    fn start(count: Option<usize>) -> Result<Self> {
        let of = |own: Option<Own>| Self { own: own.map(Arc::new), shares: Arc::new(Shares::new(1)) };
        let Some(count) = count else { return Ok(of(None)) };
        if !(1..=MAX_THREADS).contains(&count) {
            return Err(Error::request("threads", format!("{count}, expected 1 to {MAX_THREADS}; leave it out for all cores")));
        }
        if !CAN_START && count == rayon::current_num_threads() {
            return Ok(of(None));
        }
        let own = Own { count, pool: OwnPool::new() };
        own.pool.get(Some(count))?;
        Ok(of(Some(own)))
    }

    /// Returns these threads for a model that generates up to `parallel` images at once.
    pub(crate) fn shared_by(self, parallel: usize) -> Self {
        Self { shares: Arc::new(Shares::new(parallel)), ..self }
    }

    /// Returns the maximum number of images at once.
    pub(crate) fn parallel(&self) -> usize {
        self.shares.parallel()
    }

    /// Returns the number of threads.
    ///
    /// # Errors
    ///
    /// [`Error::Threads`] if the threads cannot be started.
    pub(crate) fn count(&self) -> Result<usize> {
        let pool = self.pool()?;
        Ok(pool.map_or_else(rayon::current_num_threads, |pool| pool.current_num_threads()))
    }

    /// Returns the pool, or `None` for rayon's current one.
    fn pool(&self) -> Result<Option<Arc<ThreadPool>>> {
        match &self.own {
            Some(own) => own.pool.get(Some(own.count)).map(Some),
            None => pool::shared(),
        }
    }

    /// Returns the shares of images that the current thread asks for, or `None` if they are generated one by one: if the model
    /// generates one image at a time, in the model's threads or those of the current pool, and in an observer, since the image that
    /// waits for the observer may be the last one that the model can generate at once.
    fn shares(&self) -> Result<Option<&Shares>> {
        if self.parallel() == 1 || in_observer() {
            return Ok(None);
        }
        let is_inside = match self.pool()? {
            Some(pool) => pool.current_thread_index().is_some(),
            None => rayon::current_thread_index().is_some(),
        };
        Ok(if is_inside { None } else { Some(&self.shares) })
    }

    /// Returns whether images that the current thread asks for may be generated side by side.
    ///
    /// # Errors
    ///
    /// [`Error::Threads`] if the threads cannot be started.
    pub(crate) fn can_share(&self) -> Result<bool> {
        Ok(self.shares()?.is_some())
    }

    /// Returns where work runs that the current thread asks for.
    fn place(&self) -> Result<Place> {
        self.place_of(in_observer())
    }

    /// Like [`Self::place`]. `is_waited_for` says that a thread of the pool may be waiting for the current one.
    fn place_of(&self, is_waited_for: bool) -> Result<Place> {
        Ok(match self.pool()? {
            Some(pool) if pool.current_thread_index().is_some() => Place::Here,
            // The thread that waits for the observer may be the only one of the pool.
            Some(pool) if is_waited_for => Place::Pool(pool::start(Some(pool.current_num_threads()))?),
            Some(pool) => Place::Pool(pool),
            // Work of a pool stays in that pool.
            None if rayon::current_thread_index().is_none() && is_stack_short() => Place::Thread,
            // The number starts the pool, which may then be the current thread itself, as in WebAssembly without threads.
            None if rayon::current_num_threads() > 1 && rayon::current_thread_index().is_none() && !is_waited_for => Place::Global,
            None => Place::Here,
        })
    }

    /// Runs work in its place, in the default floating-point state.
    ///
    /// # Errors
    ///
    /// [`Error::Threads`] if the threads cannot be started, [`Error::State`] if this process was forked during a call.
    pub(crate) fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> Result<R> {
        let _call = Call::begin()?;
        with_default_float_state(|| run_at(self.place()?, work))
    }

    /// Like [`Self::run`], but for calls within an observer when no thread of the pool waits for it.
    fn run_free<R: Send>(&self, work: impl FnOnce() -> R + Send) -> Result<R> {
        with_default_float_state(|| run_at(self.place_of(false)?, work))
    }

    /// Like [`Self::run`], but calls the observer on the calling thread.
    ///
    /// # Errors
    ///
    /// The error of the work, or one like that of [`Self::run`].
    pub(crate) fn observe<R: Send>(
        &self,
        observer: &mut dyn Observer,
        work: impl FnOnce(&mut dyn Observer) -> Result<R> + Send,
    ) -> Result<R> {
        let _call = Call::begin()?;
        with_default_float_state(|| match self.place()? {
            Place::Here => work(observer),
            Place::Global => observe_in_pool(None, observer, work),
            Place::Pool(pool) => observe_in_pool(Some(&pool), observer, work),
            Place::Thread => observe_on_thread(observer, work),
        })
    }

    /// Like [`Self::observe`], but for work that generates an image, on its share of the threads. Waits until the image can begin.
    ///
    /// # Errors
    ///
    /// Like [`Self::observe`], or [`Error::Cancelled`] by the token.
    pub(crate) fn observe_image<R: Send>(
        &self,
        observer: &mut dyn Observer,
        cancel: Option<&CancelToken>,
        work: impl FnOnce(&mut dyn Observer) -> Result<R> + Send,
    ) -> Result<R> {
        let _call = Call::begin()?;
        let Some(shares) = self.shares()? else { return self.observe(observer, work) };
        let is_cancelled = || cancel.is_some_and(CancelToken::is_cancelled);
        let share = shares.enter(self.count()?, 1, is_cancelled).ok_or(Error::Cancelled)?;
        match share.pool() {
            Some(pool) => with_default_float_state(|| observe_in_pool(Some(pool), observer, work)),
            None => self.observe(observer, work),
        }
    }
}

/// Runs work in a place.
fn run_at<R: Send>(place: Place, work: impl FnOnce() -> R + Send) -> Result<R> {
    match place {
        Place::Here => Ok(work()),
        Place::Global => rayon::scope(|_| with_enough_stack(|| with_default_float_state(work))),
        Place::Pool(pool) => Ok(pool.install(work)),
        Place::Thread => with_enough_stack(work),
    }
}

/// Runs work in a pool, or in rayon's global one, while the observer is called on the calling thread.
fn observe_in_pool<R: Send>(
    pool: Option<&ThreadPool>,
    observer: &mut dyn Observer,
    work: impl FnOnce(&mut dyn Observer) -> Result<R> + Send,
) -> Result<R> {
    let mut result = None;
    let output = &mut result;
    match pool {
        Some(pool) => pool.in_place_scope(move |scope| spawn_observed(scope, observer, work, output)),
        None => rayon::in_place_scope(move |scope| spawn_observed(scope, observer, work, output)),
    }
    result.expect("the scope waits for the work and propagates its panic")
}

/// Spawns work, and calls the observer on the current thread until the work ends.
fn spawn_observed<'scope, R: Send>(
    scope: &Scope<'scope>,
    observer: &mut dyn Observer,
    work: impl FnOnce(&mut dyn Observer) -> Result<R> + Send + 'scope,
    output: &'scope mut Option<Result<R>>,
) {
    let (mut relay, reports) = relay::connect();
    // A program may have given the threads of rayon's global pool another state, and little stack.
    scope.spawn(move |_| *output = Some(with_enough_stack(move || with_default_float_state(|| work(&mut relay))).flatten()));
    reports.deliver(observer);
}

/// Runs work on a new thread with enough stack while the observer is called on the calling thread.
fn observe_on_thread<R: Send>(observer: &mut dyn Observer, work: impl FnOnce(&mut dyn Observer) -> Result<R> + Send) -> Result<R> {
    let (mut relay, reports) = relay::connect();
    std::thread::scope(move |scope| {
        let start = move || {
            set_default_float_state();
            work(&mut relay)
        };
        let worker = thread_builder().spawn_scoped(scope, start).map_err(|e| Error::Threads { problem: e.to_string() })?;
        reports.deliver(observer);
        worker.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}
