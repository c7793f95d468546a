//! The message of the last call that failed, one for each thread.

use std::cell::RefCell;
use std::ffi::{CString, c_char};

use crate::guard::guard_quietly;
use crate::out;
use crate::status::hart_status;
use crate::text::to_c;

thread_local! {
    static MESSAGE: RefCell<CString> = RefCell::default();
}

/// Sets the message that `hart_last_error` returns on this thread.
pub(crate) fn set(message: String) {
    // The message may quote its subject.
    let message = to_c(&message);
    // While a thread ends, its message is already gone.
    let _ = MESSAGE.try_with(|last| *last.borrow_mut() = message);
}

/// Returns the message of the last call on this thread that failed: what was wrong, where, and what was expected. Never
/// NULL; "" before the first failure. The string is valid until the next call on this thread fails: copy it to keep it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_last_error() -> *const c_char {
    MESSAGE.try_with(|last| last.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}

/// Copies the message of `hart_last_error`, with its NUL, into a buffer of `capacity` bytes. A message that does not
/// fit is cut between characters. `needed`, if not NULL, receives the size of the whole message with its NUL. `buffer`
/// may be NULL if `capacity` is 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_last_error_copy(buffer: *mut c_char, capacity: usize, needed: *mut usize) -> hart_status {
    guard_quietly(|| {
        let message = MESSAGE.try_with(|last| last.borrow().clone()).unwrap_or_default();
        out::text(message.as_c_str(), buffer, capacity, needed)
    })
}
