//! The panic boundary: nothing unwinds into the caller's program.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::status::{Failure, HART_ERR_PANIC, HART_OK, hart_status, remember};

/// Does the work and turns its outcome into a status; a failure's message is kept for `hart_last_error`.
pub(crate) fn guard(work: impl FnOnce() -> Result<(), Failure>) -> hart_status {
    match caught(work) {
        Ok(()) => HART_OK,
        Err(Failure { status, message }) => {
            remember(message);
            status
        }
    }
}

/// As [`guard`], leaving the last error as it is.
pub(crate) fn guard_quietly(work: impl FnOnce() -> Result<(), Failure>) -> hart_status {
    caught(work).map_or_else(|failure| failure.status, |()| HART_OK)
}

/// As [`guard`] for what answers with a value; `otherwise` after a failure.
pub(crate) fn guard_value<T>(otherwise: T, work: impl FnOnce() -> Result<T, Failure>) -> T {
    caught(work).unwrap_or_else(|Failure { message, .. }| {
        remember(message);
        otherwise
    })
}

/// Locks; what is behind is whole even if a thread panicked meanwhile, since values are replaced, never half-changed.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Does the work; a panic is a failure.
pub(crate) fn caught<T>(work: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|payload| Err(panicked(&*payload)))
}

fn panicked(payload: &(dyn Any + Send)) -> Failure {
    let text = payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let message = format!("a defect in hart, please report it: {}", text.unwrap_or("a panic without a message"));
    Failure::new(HART_ERR_PANIC, message)
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
