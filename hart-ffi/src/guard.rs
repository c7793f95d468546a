//! The boundary to the calling program: no panic unwinds into it, and its floating-point state does not change results.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard, PoisonError};

use hart_core::with_default_float_state;

use crate::last_error;
use crate::log::Call;
use crate::status::{Failure, HART_ERR_PANIC, HART_OK, hart_status};

/// Runs `work` and returns its status. Keeps the message of a failure for `hart_last_error`.
pub(crate) fn guard(work: impl FnOnce() -> Result<(), Failure>) -> hart_status {
    match catch_panic(work) {
        Ok(()) => HART_OK,
        Err(Failure { status, message }) => {
            last_error::set(message);
            status
        }
    }
}

/// Like [`guard`], but leaves the last error unchanged.
pub(crate) fn guard_quietly(work: impl FnOnce() -> Result<(), Failure>) -> hart_status {
    catch_panic(work).map_or_else(|failure| failure.status, |()| HART_OK)
}

/// Like [`guard`], for functions that return a value. Returns `default` after a failure.
pub(crate) fn guard_value<T>(default: T, work: impl FnOnce() -> Result<T, Failure>) -> T {
    catch_panic(work).unwrap_or_else(|Failure { message, .. }| {
        last_error::set(message);
        default
    })
}

/// Locks a mutex, even after a thread panicked while it held the lock. The value is intact: it is only ever replaced as
/// a whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `work` in the floating-point state that Rust assumes, and turns a panic into a failure.
pub(crate) fn catch_panic<T>(work: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    let _call = Call::begin();
    with_default_float_state(|| {
        catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|payload| {
            Err(Failure::new(HART_ERR_PANIC, format!("a defect in hart, please report it: {}", panic_text(&*payload))))
        })
    })
}

/// Returns the message of a panic.
pub(crate) fn panic_text(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_a_status() {
        let quiet = |message: &'static str| guard(|| std::panic::resume_unwind(Box::new(message)));
        assert_eq!(quiet("oh"), HART_ERR_PANIC);
        assert_eq!(guard(|| Ok(())), HART_OK);
        assert_eq!(guard_value(7, || std::panic::resume_unwind(Box::new(1.5))), 7);
    }
}
