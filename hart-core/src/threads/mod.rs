//! The threads of a model: rayon's current pool, or its own.

mod pool;
mod relay;

use std::sync::Arc;
use std::sync::mpsc::channel;

use rayon::ThreadPool;

use crate::error::{Error, Result};
use crate::kernels::with_default_float_state;
use crate::process::Call;
use crate::progress::Observer;
use pool::OwnPool;
use relay::{Relay, Reply, in_observer};

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

    /// Returns the pool that work is moved to, or `None` if it stays on the current thread.
    fn pool(&self) -> Result<Option<Arc<ThreadPool>>> {
        let pool = match &self.0 {
            Some(own) => Some(own.pool.get(Some(own.count))?),
            None => pool::shared()?,
        };
        Ok(match pool {
            Some(pool) if pool.current_thread_index().is_some() => None,
            // The thread that waits for the observer may be the only one of the pool.
            Some(pool) if in_observer() => Some(pool::start(Some(pool.current_num_threads()))?),
            pool => pool,
        })
    }

    /// Runs work on the pool.
    ///
    /// # Errors
    ///
    /// [`Error::Threads`] if the threads cannot be started, [`Error::State`] if this process was forked during a call.
    pub(crate) fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> Result<R> {
        let _call = Call::begin()?;
        with_default_float_state(|| {
            Ok(match self.pool()? {
                Some(pool) => pool.install(work),
                None => work(),
            })
        })
    }

    /// Runs work on the pool while the observer is called on the calling thread.
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
        with_default_float_state(|| self.observe_in_default_state(observer, work))
    }

    fn observe_in_default_state<R: Send>(
        &self,
        observer: &mut dyn Observer,
        work: impl FnOnce(&mut dyn Observer) -> Result<R> + Send,
    ) -> Result<R> {
        let Some(pool) = self.pool()? else { return work(observer) };
        let ((reports, received), (answers, replies), (decoded, previews)) = (channel(), channel(), channel());
        let relay = Relay { reports, replies, decoded };
        let mut result = None;
        let output = &mut result;
        // The closure owns this thread's ends of the channels. If the observer panics, they close and the relay cancels the run.
        pool.in_place_scope(move |scope| {
            scope.spawn(move |_| {
                let mut relay = relay;
                *output = Some(work(&mut relay));
            });
            // The loop ends when the work ends and drops the relay.
            for report in received {
                let control = report.deliver(observer, &answers, &previews);
                if answers.send(Reply::Control(control)).is_err() {
                    break;
                }
            }
        });
        result.expect("the scope waits for the work and propagates its panic")
    }
}
