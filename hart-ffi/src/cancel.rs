//! Cancellation of a run.

use hart_core::CancelToken;

use crate::guard::guard;
use crate::handle::{Handle, free, get, number_of, share};
use crate::out::Out;
use crate::status::{HART_ERR_NULL, HART_OK, hart_status};

/// A token that cancels the runs of all requests that hold it.
pub struct hart_cancel(());

impl Handle for hart_cancel {
    type Value = CancelToken;
    const NAME: &'static str = "hart_cancel";
}

/// Creates a token that is not cancelled. Free it with `hart_cancel_free`; requests that hold it keep working.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_cancel_new(cancel: *mut *mut hart_cancel) -> hart_status {
    guard(|| {
        Out::<hart_cancel>::new(cancel, "cancel")?.write(CancelToken::new());
        Ok(())
    })
}

/// Creates another handle of the same token, which is freed separately.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_cancel_share(cancel: *const hart_cancel, shared: *mut *mut hart_cancel) -> hart_status {
    share(cancel, "cancel", shared)
}

/// Frees the token. Does nothing if `cancel` is NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_cancel_free(cancel: *mut hart_cancel) {
    free(cancel);
}

/// Cancels every run of a request that holds the token, including runs that start later. May be called from any thread
/// and in callbacks. It is the only function that may be called in a signal handler: it does one atomic store and
/// leaves the last error unchanged.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_cancel_request(cancel: *const hart_cancel) -> hart_status {
    // A signal handler may run before the token exists. No message is set, which would allocate memory, and no guard is needed:
    // nothing here panics, and the guard's thread-local variable may be allocated on first use.
    if cancel.is_null() {
        return HART_ERR_NULL;
    }
    match get(cancel, "cancel") {
        Ok(token) => {
            token.cancel();
            HART_OK
        }
        Err(failure) => failure.status,
    }
}

/// Resets the token so that it can be used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_cancel_reset(cancel: *const hart_cancel) -> hart_status {
    guard(|| {
        get(cancel, "cancel")?.reset();
        Ok(())
    })
}

/// Returns 1 if the token is cancelled, otherwise 0. Returns 0 if `cancel` is NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_cancel_is_requested(cancel: *const hart_cancel) -> i32 {
    number_of(cancel, "cancel", |cancel| cancel.is_cancelled().into())
}
