//! Status codes.

use std::ffi::{CStr, c_char};

use hart_core::Error;

/// Outcome of a call: `HART_OK` (0), `HART_CANCELLED` (1) or an error. The hundreds digit gives the cause: 1xx the
/// call, 2xx a file, 3xx the device, 9xx hart. A value never changes its meaning. Later versions may add values: treat
/// an unknown one as an error.
pub type hart_status = i32;

/// The call succeeded.
pub const HART_OK: hart_status = 0;
/// The run, or opening the model, was cancelled. This is not an error: the result of a run holds the images that were
/// finished before.
pub const HART_CANCELLED: hart_status = 1;

/// A pointer that must not be NULL is NULL.
pub const HART_ERR_NULL: hart_status = 100;
/// A string is not UTF-8.
pub const HART_ERR_UTF8: hart_status = 101;
/// An argument is invalid: an object of another type, an index out of range, an unknown name or value of an option, or
/// a `struct_size` that is not set.
pub const HART_ERR_ARGUMENT: hart_status = 102;
/// The request can't be carried out: a setting, size or name is out of range, or does not fit the model or the device.
pub const HART_ERR_REQUEST: hart_status = 103;
/// The call is not allowed now: the request is running, no callback of an event with a preview is running, or the process
/// was forked during a call or after its parent used a GPU.
pub const HART_ERR_STATE: hart_status = 104;
/// The program was compiled for a newer ABI than the library has.
pub const HART_ERR_ABI: hart_status = 105;
/// The prompt filter refused the prompt. Prompt filters exist in Rust only, so C programs do not receive this status.
pub const HART_ERR_REFUSED: hart_status = 106;

/// A file or folder can't be read or written.
pub const HART_ERR_IO: hart_status = 200;
/// A file of the checkpoint is missing or malformed.
pub const HART_ERR_CHECKPOINT: hart_status = 201;
/// A value in a configuration file is invalid.
pub const HART_ERR_CONFIG: hart_status = 202;
/// The tensors of the checkpoint do not match its configuration.
pub const HART_ERR_WEIGHTS: hart_status = 203;
/// A tensor of the checkpoint contains NaN or infinity.
pub const HART_ERR_NOT_FINITE: hart_status = 204;
/// An image file is malformed.
pub const HART_ERR_IMAGE: hart_status = 205;

/// The device is not compiled in, not present, or has failed.
pub const HART_ERR_DEVICE: hart_status = 300;
/// More memory is needed than is available, or than `hart_options_set_max_memory` allows.
pub const HART_ERR_MEMORY: hart_status = 301;
/// A run produced NaN or infinity.
pub const HART_ERR_OVERFLOW: hart_status = 302;
/// The system does not start the threads that hart needs. The next call tries again.
pub const HART_ERR_THREADS: hart_status = 303;

/// hart panicked because of a defect in hart. The program can continue; the model returns `HART_ERR_POISONED` from now on.
pub const HART_ERR_PANIC: hart_status = 900;
/// The model has panicked before. Free it and open it again.
pub const HART_ERR_POISONED: hart_status = 901;
/// An error that has no constant in this version of the C API.
pub const HART_ERR_OTHER: hart_status = 902;

/// The text of every status.
const STATUSES: [(hart_status, &CStr); 22] = [
    (HART_OK, c"done"),
    (HART_CANCELLED, c"cancelled"),
    (HART_ERR_NULL, c"a pointer is NULL"),
    (HART_ERR_UTF8, c"a string is not UTF-8"),
    (HART_ERR_ARGUMENT, c"an argument is invalid"),
    (HART_ERR_REQUEST, c"the request can't be carried out"),
    (HART_ERR_STATE, c"not allowed now"),
    (HART_ERR_ABI, c"the program was compiled for a newer ABI"),
    (HART_ERR_REFUSED, c"the prompt filter refused the prompt"),
    (HART_ERR_IO, c"a file can't be read or written"),
    (HART_ERR_CHECKPOINT, c"a file of the checkpoint is missing or malformed"),
    (HART_ERR_CONFIG, c"a configuration value is invalid"),
    (HART_ERR_WEIGHTS, c"the tensors do not match the configuration"),
    (HART_ERR_NOT_FINITE, c"a tensor contains NaN or infinity"),
    (HART_ERR_IMAGE, c"an image file is malformed"),
    (HART_ERR_DEVICE, c"the device is not present or has failed"),
    (HART_ERR_MEMORY, c"not enough memory"),
    (HART_ERR_OVERFLOW, c"the run produced NaN or infinity"),
    (HART_ERR_THREADS, c"no threads could be started"),
    (HART_ERR_PANIC, c"a defect in hart"),
    (HART_ERR_POISONED, c"the model has panicked before"),
    (HART_ERR_OTHER, c"another error"),
];

/// Failure of a call: its status, and the message for `hart_last_error`.
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
            Error::Image { .. } => HART_ERR_IMAGE,
            Error::Config { .. } => HART_ERR_CONFIG,
            Error::Weights(_) => HART_ERR_WEIGHTS,
            Error::NotFinite { .. } => HART_ERR_NOT_FINITE,
            Error::Request { .. } => HART_ERR_REQUEST,
            Error::Refused { .. } => HART_ERR_REFUSED,
            Error::Device { .. } => HART_ERR_DEVICE,
            Error::Memory { .. } => HART_ERR_MEMORY,
            Error::Cancelled => HART_CANCELLED,
            Error::Overflow { .. } => HART_ERR_OVERFLOW,
            Error::Threads { .. } => HART_ERR_THREADS,
            Error::State { .. } => HART_ERR_STATE,
            _ => HART_ERR_OTHER,
        };
        Self::new(status, error.to_string())
    }
}

/// Returns a short English description of a status. Never NULL, even for unknown numbers. The string is static.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_status_text(status: hart_status) -> *const c_char {
    STATUSES.iter().find(|(number, _)| *number == status).map_or(c"an unknown status", |(_, text)| text).as_ptr()
}
