//! Status codes, and the calling thread's last error.

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char};

use hart_core::Error;

use crate::guard::guard_quietly;
use crate::out;

/// What a call came to: `HART_OK` (0), `HART_CANCELLED` (1), or an error. Numbers are never given a second meaning; later versions may
/// add some, so treat a number that you don't know as an error. The hundreds say whose fault it is: 1xx the call, 2xx the files,
/// 3xx the device, 9xx hart.
pub type hart_status = i32;

/// Done.
pub const HART_OK: hart_status = 0;
/// The run was cancelled, which is no error. What was finished before is in the result.
pub const HART_CANCELLED: hart_status = 1;

/// A pointer is NULL that must not be.
pub const HART_ERR_NULL: hart_status = 100;
/// A text is not UTF-8.
pub const HART_ERR_UTF8: hart_status = 101;
/// An argument won't do: an object of another kind, an index that isn't there, a name or number that an option doesn't know, or a
/// struct_size that is not set.
pub const HART_ERR_ARGUMENT: hart_status = 102;
/// What is asked for can't be made: a setting, size or name is out of range, or doesn't fit the model or the device.
pub const HART_ERR_REQUEST: hart_status = 103;
/// Not now: the request is running, or there is no callback that the call could belong to.
pub const HART_ERR_STATE: hart_status = 104;
/// The caller was compiled for a newer ABI than this library has.
pub const HART_ERR_ABI: hart_status = 105;
/// The prompt filter refuses the prompt.
pub const HART_ERR_REFUSED: hart_status = 106;

/// A file or folder can't be read or written.
pub const HART_ERR_IO: hart_status = 200;
/// A checkpoint's file is missing or is not what its name promises.
pub const HART_ERR_CHECKPOINT: hart_status = 201;
/// A value in a configuration file won't do.
pub const HART_ERR_CONFIG: hart_status = 202;
/// The tensors of a checkpoint are not those that its configuration asks for.
pub const HART_ERR_WEIGHTS: hart_status = 203;
/// A tensor of a checkpoint holds NaN or an infinity.
pub const HART_ERR_NOT_FINITE: hart_status = 204;
/// A picture file is not what its name promises.
pub const HART_ERR_PICTURE: hart_status = 205;

/// The device is not compiled in, not there, or has failed.
pub const HART_ERR_DEVICE: hart_status = 300;
/// More memory is needed than there is, or than `hart_options_set_max_memory` allows.
pub const HART_ERR_MEMORY: hart_status = 301;
/// The numbers of a run are no longer finite.
pub const HART_ERR_OVERFLOW: hart_status = 302;

/// A defect in hart: it panicked. The program goes on; the model in question answers `HART_ERR_POISONED` from now on.
pub const HART_ERR_PANIC: hart_status = 900;
/// The model has panicked before: free it and open it again.
pub const HART_ERR_POISONED: hart_status = 901;
/// An error that this version of the border has no number for.
pub const HART_ERR_OTHER: hart_status = 902;

/// Name and meaning of every status.
const STATUSES: [(hart_status, &CStr); 21] = [
    (HART_OK, c"done"),
    (HART_CANCELLED, c"cancelled"),
    (HART_ERR_NULL, c"a pointer is NULL"),
    (HART_ERR_UTF8, c"a text is not UTF-8"),
    (HART_ERR_ARGUMENT, c"an argument won't do"),
    (HART_ERR_REQUEST, c"the request can't be carried out"),
    (HART_ERR_STATE, c"not now"),
    (HART_ERR_ABI, c"the caller was compiled for a newer ABI"),
    (HART_ERR_REFUSED, c"the prompt filter refuses the prompt"),
    (HART_ERR_IO, c"a file can't be read or written"),
    (HART_ERR_CHECKPOINT, c"a checkpoint's file is missing or damaged"),
    (HART_ERR_CONFIG, c"a configuration value won't do"),
    (HART_ERR_WEIGHTS, c"the tensors don't fit the configuration"),
    (HART_ERR_NOT_FINITE, c"a tensor holds NaN or an infinity"),
    (HART_ERR_PICTURE, c"a picture file is damaged"),
    (HART_ERR_DEVICE, c"the device is not there or has failed"),
    (HART_ERR_MEMORY, c"not enough memory"),
    (HART_ERR_OVERFLOW, c"the numbers of the run are not finite"),
    (HART_ERR_PANIC, c"a defect in hart"),
    (HART_ERR_POISONED, c"the model has panicked before"),
    (HART_ERR_OTHER, c"another error"),
];

/// What a call failed with.
pub(crate) struct Failure {
    pub(crate) status: hart_status,
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn new(status: hart_status, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    pub(crate) fn argument(message: impl Into<String>) -> Self {
        Self::new(HART_ERR_ARGUMENT, message)
    }

    pub(crate) fn null(name: &str) -> Self {
        Self::new(HART_ERR_NULL, format!("`{name}` is NULL"))
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let status = match &error {
            Error::Io { .. } => HART_ERR_IO,
            Error::Checkpoint { .. } => HART_ERR_CHECKPOINT,
            Error::Image { .. } => HART_ERR_PICTURE,
            Error::Config { .. } => HART_ERR_CONFIG,
            Error::Weights(_) => HART_ERR_WEIGHTS,
            Error::NotFinite { .. } => HART_ERR_NOT_FINITE,
            Error::Request { .. } => HART_ERR_REQUEST,
            Error::Refused { .. } => HART_ERR_REFUSED,
            Error::Device { .. } => HART_ERR_DEVICE,
            Error::Memory { .. } => HART_ERR_MEMORY,
            Error::Cancelled { .. } => HART_CANCELLED,
            Error::Overflow { .. } => HART_ERR_OVERFLOW,
            _ => HART_ERR_OTHER,
        };
        Self::new(status, error.to_string())
    }
}

thread_local! {
    static LAST: RefCell<CString> = RefCell::default();
}

/// Keeps the message for `hart_last_error`.
pub(crate) fn remember(message: String) {
    // A message may quote what it complains of, and C texts end at their first NUL.
    let message = CString::new(message.replace('\0', "\u{fffd}")).unwrap_or_default();
    // A thread that is ending has no last error any more.
    let _ = LAST.try_with(|last| *last.borrow_mut() = message);
}

/// What a status means, in a few English words; never NULL, also for numbers that it doesn't know. The text is constant.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_status_text(status: hart_status) -> *const c_char {
    STATUSES.iter().find(|(number, _)| *number == status).map_or(c"an unknown status", |(_, text)| text).as_ptr()
}

/// Why the last call on this thread that failed did so: what was wrong, where, what was expected. UTF-8, never NULL, "" before the first
/// failure. Valid until the next hart call on this thread that fails: copy what you keep.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_last_error() -> *const c_char {
    LAST.try_with(|last| last.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}

/// Copies the last error of this thread, with its NUL, into a buffer of `capacity` bytes; what doesn't fit is cut between characters.
/// `needed`, if not NULL, gets the bytes that the whole text takes with its NUL. `buffer` may be NULL if `capacity` is 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_last_error_copy(buffer: *mut c_char, capacity: usize, needed: *mut usize) -> hart_status {
    guard_quietly(|| {
        let text = LAST.try_with(|last| last.borrow().clone()).unwrap_or_default();
        out::text(text.as_c_str(), buffer, capacity, needed)
    })
}
