//! Forked processes. A child has none of its parent's threads, and a lock that one of them held stays locked.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::error::{Error, Result};

/// The process that began the last call of the library in the upper half, and its number of running calls in the lower half.
static CALLS: AtomicU64 = AtomicU64::new(0);

/// The process that uses GPUs, or 0. Its children can use neither them nor their drivers.
static GPU_USER: AtomicU32 = AtomicU32::new(0);

/// Returns the number of this process.
pub(crate) fn id() -> u32 {
    // WebAssembly has no processes.
    if cfg!(target_family = "wasm") { 0 } else { std::process::id() }
}

/// Marks a call of the library as running, until it is dropped. Calls may be nested.
#[derive(Debug)]
pub(crate) struct Call {
    process: u32,
}

impl Call {
    /// Begins a call that may use threads or locks.
    ///
    /// # Errors
    ///
    /// [`Error::State`] if this process was forked during a call: what that call has locked stays locked in this process.
    pub(crate) fn begin() -> Result<Self> {
        let process = id();
        let begun = CALLS.try_update(Ordering::AcqRel, Ordering::Acquire, |calls| begun(calls, process));
        begun.map(|_| Self { process }).map_err(|_| Error::State { problem: FORKED_DURING_A_CALL.into() })
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        // A call that a forked child inherited is not one of its own.
        if self.process == id() {
            CALLS.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// The problem of a process that cannot use the library.
const FORKED_DURING_A_CALL: &str = "this process was forked while a call of hart was running, and cannot use hart: fork when no call is \
                                    running, or start a new program (spawn, exec)";

/// Returns the value of [`CALLS`] after a process began a call, or `None` if its parent had running calls when it was forked.
fn begun(calls: u64, process: u32) -> Option<u64> {
    let (owner, running) = ((calls >> 32) as u32, calls as u32);
    match running {
        _ if owner == process => Some(calls + 1),
        0 => Some((u64::from(process) << 32) + 1),
        _ => None,
    }
}

/// Makes this process the one that uses GPUs. Returns whether it was not before.
///
/// # Errors
///
/// [`Error::State`] if this process was forked by one that uses them.
pub(crate) fn claim_gpus() -> Result<bool> {
    match GPU_USER.compare_exchange(0, id(), Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => Ok(true),
        Err(user) if user == id() => Ok(false),
        Err(_) => Err(Error::State {
            problem: "this process was forked by one that uses a GPU, and cannot use GPUs: choose the device cpu, open the model after the \
                      fork only, or start a new program (spawn, exec)"
                .into(),
        }),
    }
}

/// Undoes [`claim_gpus`] if there are none.
#[cfg(any(feature = "cuda", feature = "wgpu"))]
pub(crate) fn release_gpus() {
    GPU_USER.store(0, Ordering::Release);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_of_a_process_with_running_calls_begins_none() {
        let calls = |process: u64, running: u64| (process << 32) + running;
        assert_eq!(begun(0, 7), Some(calls(7, 1)));
        assert_eq!(begun(calls(7, 1), 7), Some(calls(7, 2)));
        assert_eq!(begun(calls(7, 0), 8), Some(calls(8, 1)));
        assert_eq!(begun(calls(7, 1), 8), None);
    }
}
