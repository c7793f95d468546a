//! Texts and buffers that come in.

use std::ffi::{CStr, c_char};

use crate::status::{Failure, HART_ERR_UTF8};

/// A text of the caller's; `name` is the argument's.
///
/// # Safety
///
/// The pointer is NULL or leads to a text that ends in NUL and stays as it is meanwhile.
pub(crate) unsafe fn get<'a>(text: *const c_char, name: &str) -> Result<&'a str, Failure> {
    if text.is_null() {
        return Err(Failure::null(name));
    }
    let bytes = CStr::from_ptr(text);
    bytes.to_str().map_err(|e| Failure::new(HART_ERR_UTF8, format!("`{name}` is not UTF-8 from byte {} on", e.valid_up_to())))
}

/// Bytes of the caller's. NULL is fine for none.
///
/// # Safety
///
/// The pointer is NULL or leads to so many bytes that stay as they are meanwhile.
pub(crate) unsafe fn bytes<'a>(data: *const u8, size: usize, name: &str) -> Result<&'a [u8], Failure> {
    match (data.is_null(), size) {
        (_, 0) => Ok(&[]),
        (true, _) => Err(Failure::null(name)),
        (false, size) if isize::try_from(size).is_err() => {
            Err(Failure::argument(format!("`{name}` has {size} bytes, which is no size")))
        }
        (false, size) => Ok(std::slice::from_raw_parts(data, size)),
    }
}
