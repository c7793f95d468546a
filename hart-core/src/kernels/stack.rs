//! The stack of the current thread. Programs start threads with little of it, and run functions on stacks of their own.

use std::cell::Cell;
use std::panic::resume_unwind;
use std::thread::{Builder, scope};

use super::set_default_float_state;
use crate::error::{Error, Result};

/// Stack that opening a model and generating need, with a reserve: half a megabyte, and less than one without optimisation.
const NEEDED: usize = 5 << 18;
/// Stack of a thread that is started for work.
const OWN: usize = 4 << 20;

thread_local! {
    /// The lowest address of this thread's stack and the one above its highest, once they are known.
    static BOUNDS: Cell<Option<(usize, usize)>> = const { Cell::new(None) };
}

/// Runs work on the current thread, or on a new one if less than about a megabyte of this thread's stack is left.
///
/// Models do so when they open and generate. A program needs it for other functions, such as [`Image::open`](crate::Image::open), if it
/// calls them on threads with little stack. Where the system does not tell how much is left, work stays on the current thread.
///
/// # Errors
///
/// [`Error::Threads`] if the thread cannot be started.
pub fn with_enough_stack<R: Send>(work: impl FnOnce() -> R + Send) -> Result<R> {
    if !is_stack_short() {
        return Ok(work());
    }
    scope(|scope| {
        let start = move || {
            set_default_float_state();
            work()
        };
        let worker = thread_builder().spawn_scoped(scope, start).map_err(|e| Error::Threads { problem: e.to_string() })?;
        Ok(worker.join().unwrap_or_else(|panic| resume_unwind(panic)))
    })
}

/// Returns the builder of a thread with enough stack.
pub(crate) fn thread_builder() -> Builder {
    Builder::new().name("hart".into()).stack_size(OWN)
}

/// Returns whether the current thread has too little stack for a model.
pub(crate) fn is_stack_short() -> bool {
    let Some((lowest, end)) = BOUNDS.get().or_else(bounds) else { return false };
    BOUNDS.set(Some((lowest, end)));
    let here = std::ptr::from_ref(&lowest).addr();
    // A coroutine's stack is not that of its thread.
    let is_of_thread = (lowest..end).contains(&here);
    !is_of_thread || here - lowest < NEEDED
}

/// Returns the lowest address of the current thread's stack and the one above its highest, if the system tells.
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
fn bounds() -> Option<(usize, usize)> {
    let mut attributes = std::mem::MaybeUninit::<libc::pthread_attr_t>::uninit();
    let (mut lowest, mut size) = (std::ptr::null_mut(), 0);
    // SAFETY: the first call initialises the attributes if it succeeds. They are read and destroyed only then.
    unsafe {
        if libc::pthread_getattr_np(libc::pthread_self(), attributes.as_mut_ptr()) != 0 {
            return None;
        }
        let found = libc::pthread_attr_getstack(attributes.as_ptr(), &mut lowest, &mut size);
        libc::pthread_attr_destroy(attributes.as_mut_ptr());
        (found == 0).then(|| (lowest.addr(), lowest.addr().saturating_add(size)))
    }
}

#[cfg(target_os = "macos")]
#[allow(unsafe_code)]
fn bounds() -> Option<(usize, usize)> {
    // SAFETY: the calls only read properties of the current thread.
    let (end, size) = unsafe {
        let thread = libc::pthread_self();
        (libc::pthread_get_stackaddr_np(thread).addr(), libc::pthread_get_stacksize_np(thread))
    };
    Some((end.saturating_sub(size), end))
}

#[cfg(not(any(target_os = "linux", target_os = "macos")))]
fn bounds() -> Option<(usize, usize)> {
    None
}

#[cfg(all(test, any(target_os = "linux", target_os = "macos")))]
mod tests {
    use std::thread::{self, ThreadId};

    use super::*;

    fn on_a_thread_with<R: Send + 'static>(stack: usize, work: impl FnOnce() -> R + Send + 'static) -> R {
        Builder::new().stack_size(stack).spawn(work).unwrap().join().unwrap()
    }

    #[test]
    fn work_moves_to_a_thread_with_enough_stack() {
        fn ids() -> (ThreadId, ThreadId) {
            (thread::current().id(), with_enough_stack(|| thread::current().id()).unwrap())
        }
        let (caller, worker) = on_a_thread_with(OWN, ids);
        assert_eq!(caller, worker);
        for stack in [64 << 10, 128 << 10] {
            let (caller, worker) = on_a_thread_with(stack, ids);
            assert_ne!(caller, worker, "{stack} bytes");
        }
        assert!(!on_a_thread_with(64 << 10, || with_enough_stack(is_stack_short).unwrap()));
    }

    #[test]
    fn a_panic_of_the_work_propagates() {
        let caught = on_a_thread_with(64 << 10, || {
            std::panic::catch_unwind(|| with_enough_stack(|| resume_unwind(Box::new("the work's own"))).unwrap_or(())).unwrap_err()
        });
        assert_eq!(*caught.downcast::<&str>().unwrap(), "the work's own");
    }
}
