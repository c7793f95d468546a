//! The threads of a model: rayon's current pool, or its own.

mod pool;
mod relay;

use std::panic::resume_unwind;
use std::sync::Arc;

use rayon::ThreadPool;

use crate::error::{Error, Result};
use crate::kernels::{is_stack_short, set_default_float_state, thread_builder, with_default_float_state, with_enough_stack};
use crate::process::Call;
use crate::progress::Observer;
use pool::OwnPool;
use relay::in_observer;

/// Maximum number of threads of a model.
const MAX_THREADS: usize = 1024;

/// A model's own threads, or `None` for rayon's current pool.
#[derive(Clone, Debug)]
pub(crate) struct Threads(Option<Arc<Own>>);

#[derive(Debug)]
struct Own {
    count: usize,
    pool: OwnPool,
}

/// Where work runs.
enum Place {
    /// On the current thread, with rayon's current pool.
    Here,
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
    /// Starts `count` threads, if there is a count.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] if the count is out of range, [`Error::Threads`] if the threads cannot be started.
    pub(crate) fn new(count: Option<usize>) -> Result<Self> {
        let Some(count) = count else { return Ok(Self(None)) };
        if !(1..=MAX_THREADS).contains(&count) {
            return Err(Error::request("threads", format!("{count}, expected 1 to {MAX_THREADS}; leave it out for all cores")));
        }
        // WebAssembly has no threads, or only those of a global pool that the host has started.
        if cfg!(target_family = "wasm") && count == rayon::current_num_threads() {
            return Ok(Self(None));
        }
        let own = Own { count, pool: OwnPool::new() };
        own.pool.get(Some(count))?;
        Ok(Self(Some(Arc::new(own))))
    }

    /// Returns where work runs that the current thread asks for.
    fn place(&self) -> Result<Place> {
        let pool = match &self.0 {
            Some(own) => Some(own.pool.get(Some(own.count))?),
            None => pool::shared()?,
        };
        Ok(match pool {
            Some(pool) if pool.current_thread_index().is_some() => Place::Here,
            // The thread that waits for the observer may be the only one of the pool.
            Some(pool) if in_observer() => Place::Pool(pool::start(Some(pool.current_num_threads()))?),
            Some(pool) => Place::Pool(pool),
            // Work of a pool stays in that pool.
            None if rayon::current_thread_index().is_none() && is_stack_short() => Place::Thread,
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
        with_default_float_state(|| match self.place()? {
            Place::Here => Ok(work()),
            Place::Pool(pool) => Ok(pool.install(work)),
            Place::Thread => with_enough_stack(work),
        })
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
            Place::Pool(pool) => observe_in_pool(&pool, observer, work),
            Place::Thread => observe_on_thread(observer, work),
        })
    }
}

/// Runs work in a pool while the observer is called on the calling thread.
fn observe_in_pool<R: Send>(
    pool: &ThreadPool,
    observer: &mut dyn Observer,
    work: impl FnOnce(&mut dyn Observer) -> Result<R> + Send,
) -> Result<R> {
    let (mut relay, reports) = relay::connect();
    let mut result = None;
    let output = &mut result;
    pool.in_place_scope(move |scope| {
        scope.spawn(move |_| *output = Some(work(&mut relay)));
        reports.deliver(observer);
    });
    result.expect("the scope waits for the work and propagates its panic")
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
