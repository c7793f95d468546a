//! Input parameters: strings and byte buffers.

use std::ffi::{CStr, c_char};

use crate::status::{Failure, HART_ERR_UTF8};

/// Returns a string of the caller. `name` is the name of the parameter, for the error message.
///
/// # Safety
///
/// The pointer is NULL, or points to a string that ends in NUL and does not change while the reference lives.
pub(crate) unsafe fn get<'a>(text: *const c_char, name: &str) -> Result<&'a str, Failure> {
    if text.is_null() {
        return Err(Failure::null(name));
    }
    let bytes = CStr::from_ptr(text);
    bytes.to_str().map_err(|e| Failure::new(HART_ERR_UTF8, format!("`{name}` is not UTF-8 from byte {} on", e.valid_up_to())))
}

/// Returns bytes of the caller. The pointer may be NULL if `size` is 0.
///
/// # Safety
///
/// The pointer is NULL, or points to `size` bytes that do not change while the reference lives.
pub(crate) unsafe fn bytes<'a>(data: *const u8, size: usize, name: &str) -> Result<&'a [u8], Failure> {
    match (data.is_null(), size) {
        (_, 0) => Ok(&[]),
        (true, _) => Err(Failure::null(name)),
        (false, size) if isize::try_from(size).is_err() => {
            Err(Failure::argument(format!("`{name}` has {size} bytes, which is more than memory can hold")))
        }
        (false, size) => Ok(std::slice::from_raw_parts(data, size)),
    }
}
