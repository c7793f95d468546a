//! Stopping a run.

use hart_core::CancelToken;

use crate::guard::{guard, guard_quietly};
use crate::handle::{Handle, free, get, number_of};
use crate::out::Out;
use crate::status::{HART_ERR_NULL, hart_status};

/// Stops the runs of the requests that hold it.
pub struct hart_cancel(());

impl Handle for hart_cancel {
    type Value = CancelToken;
    const NAME: &'static str = "hart_cancel";
}

/// A token that has not been used. Free it with `hart_cancel_free`; requests that hold it go on holding what is behind it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_cancel_new(cancel: *mut *mut hart_cancel) -> hart_status {
    guard(|| {
        Out::<hart_cancel>::new(cancel, "cancel")?.give(CancelToken::new());
        Ok(())
    })
}

/// Frees the token; NULL is nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_cancel_free(cancel: *mut hart_cancel) {
    free(cancel);
}

/// Asks every run that holds the token to stop, also one that begins later. From any thread, in a callback, and, alone of all
/// functions, in a signal handler: it is one atomic store, and leaves the last error alone.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_cancel_request(cancel: *const hart_cancel) -> hart_status {
    // A handler may be there before its token is: no message, which would need memory.
    if cancel.is_null() {
        return HART_ERR_NULL;
    }
    guard_quietly(|| {
        get(cancel, "cancel")?.cancel();
        Ok(())
    })
}

/// Makes the token usable again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_cancel_reset(cancel: *const hart_cancel) -> hart_status {
    guard(|| {
        get(cancel, "cancel")?.reset();
        Ok(())
    })
}

/// 1 if the token was used, else 0; 0 for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_cancel_is_requested(cancel: *const hart_cancel) -> i32 {
    number_of(cancel, "cancel", |cancel| cancel.is_cancelled().into())
}
