//! Stopping a run.

use hart_core::CancelToken;

use crate::guard::{guard, guard_quietly, guard_value};
use crate::handle::{free_function, get, handle};
use crate::out::Out;
use crate::status::hart_status;

handle! {
    /// Stops the runs of the requests that hold it.
    hart_cancel, CancelToken
}

/// A token that has not been used. Free it with `hart_cancel_free`; requests that hold it go on holding what is behind it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_cancel_new(cancel: *mut *mut hart_cancel) -> hart_status {
    guard(|| {
        Out::<hart_cancel>::new(cancel, "cancel")?.give(CancelToken::new());
        Ok(())
    })
}

free_function! {
    /// Frees the token; NULL is nothing.
    hart_cancel_free, hart_cancel
}

/// Asks every run that holds the token to stop, also one that begins later. From any thread, in a callback, in a signal handler: it is
/// one atomic store, and leaves the last error alone.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_cancel_request(cancel: *const hart_cancel) -> hart_status {
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
    guard_value(0, || Ok(get(cancel, "cancel")?.is_cancelled().into()))
}
