//! Input parameters: strings and byte buffers.

use std::ffi::{CStr, CString, c_char};

use crate::status::{Failure, HART_ERR_UTF8};

/// A string of the caller. Every function that takes one ending in NUL has a twin, with `_n` in its name, that takes one with a size.
#[derive(Clone, Copy)]
pub(crate) enum Text {
    /// Ends in NUL.
    Terminated(*const c_char),
    /// Has a size in bytes, which may be 0 if the pointer is NULL.
    Sized(*const c_char, usize),
}

impl Text {
    /// Returns the string. `name` is the name of the parameter, for the error message.
    ///
    /// # Safety
    ///
    /// The pointer is NULL, or points to a string of this kind that does not change while the reference lives.
    pub(crate) unsafe fn get<'a>(self, name: &str) -> Result<&'a str, Failure> {
        let text = match self {
            Self::Terminated(text) if text.is_null() => return Err(Failure::null(name)),
            Self::Terminated(text) => CStr::from_ptr(text).to_bytes(),
            Self::Sized(text, size) => bytes(text.cast(), size, name)?,
        };
        let text = std::str::from_utf8(text)
            .map_err(|e| Failure::new(HART_ERR_UTF8, format!("`{name}` is not UTF-8 from byte {} on", e.valid_up_to())))?;
        match text.find('\0') {
            // hart returns the string as one that ends in NUL.
            Some(at) => Err(Failure::argument(format!("`{name}` contains NUL at byte {at}, which would end it there"))),
            None => Ok(text),
        }
    }

    /// Like [`Self::get`], but returns `None` for NULL, which must have the size 0.
    ///
    /// # Safety
    ///
    /// The same as for [`Self::get`].
    pub(crate) unsafe fn get_optional<'a>(self, name: &str) -> Result<Option<&'a str>, Failure> {
        match self {
            Self::Terminated(text) | Self::Sized(text, 0) if text.is_null() => Ok(None),
            _ => self.get(name).map(Some),
        }
    }
}

/// Returns a text of hart as a C string, in which U+FFFD stands for NUL.
pub(crate) fn to_c(text: &str) -> CString {
    CString::new(text.replace('\0', "\u{fffd}")).unwrap_or_default()
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
