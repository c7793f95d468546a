//! Thread pools, which belong to one process each.

use std::error::Error as _;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::error::{Error, Result};
use crate::kernels::set_default_float_state;
use crate::process;

/// A pool that is started on first use, and again in a forked process.
#[derive(Debug)]
pub(super) struct OwnPool(Mutex<Option<Started>>);

impl OwnPool {
    pub(super) const fn new() -> Self {
        Self(Mutex::new(None))
    }

    /// Returns this process's pool of `count` threads, or of the default number.
    ///
    /// # Errors
    ///
    /// [`Error::Threads`] if they cannot be started. The next call tries again.
    pub(super) fn get(&self, count: Option<usize>) -> Result<Arc<ThreadPool>> {
        let mut started = lock(&self.0);
        match &*started {
            Some(Started { process, pool: Some(pool) }) if *process == process::id() => Ok(pool.clone()),
            _ => {
                let pool = start(count)?;
                *started = Some(Started { process: process::id(), pool: Some(pool.clone()) });
                Ok(pool)
            }
        }
    }
}

/// A pool and the process that has its threads.
#[derive(Debug)]
struct Started {
    process: u32,
    pool: Option<Arc<ThreadPool>>,
}

impl Drop for Started {
    fn drop(&mut self) {
        if self.process != process::id() {
            // Stopping threads that this process does not have could wait for a lock that one of them held.
            mem::forget(self.pool.take());
        }
    }
}

/// Starts a pool of `count` threads, or of the default number.
pub(super) fn start(count: Option<usize>) -> Result<Arc<ThreadPool>> {
    builder().num_threads(count.unwrap_or(0)).build().map(Arc::new).map_err(|e| Error::Threads { problem: e.to_string() })
}

fn builder() -> ThreadPoolBuilder {
    ThreadPoolBuilder::new().thread_name(|i| format!("hart-{i}")).start_handler(|_| set_default_float_state())
}

/// The threads that models without their own use.
enum Shared {
    /// Not used yet.
    Unused,
    /// Rayon's global pool, of the process with this number.
    Global(u32),
    /// [`OWN`]: rayon's global pool could not be started, or belongs to the parent of this process.
    Own,
}

static SHARED: Mutex<Shared> = Mutex::new(Shared::Unused);
static OWN: OwnPool = OwnPool::new();

/// Returns the pool of models without their own threads, or `None` for rayon's current pool.
///
/// # Errors
///
/// [`Error::Threads`] if no pool can be started. The next call tries again.
pub(super) fn shared() -> Result<Option<Arc<ThreadPool>>> {
    // A pool's threads work in that pool. WebAssembly may have no threads; rayon's global pool is then the current one.
    if rayon::current_thread_index().is_some() || cfg!(target_family = "wasm") {
        return Ok(None);
    }
    let mut shared = lock(&SHARED);
    if matches!(*shared, Shared::Unused) {
        // Rayon tries to start its global pool only once, and panics on later uses if that fails.
        let failed = builder().build_global().is_err_and(|error| error.source().is_some());
        *shared = if failed { Shared::Own } else { Shared::Global(process::id()) };
    }
    match *shared {
        Shared::Global(process) if process == process::id() => Ok(None),
        _ => {
            *shared = Shared::Own;
            OWN.get(None).map(Some)
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
