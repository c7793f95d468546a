//! What goes out: pointers, numbers, texts into buffers, and structs that may grow.

use std::ffi::{CStr, c_char};
use std::ptr;

use crate::handle::{Handle, give};
use crate::status::Failure;

/// Largest `struct_size` that is believed: a larger one is a struct that was not set up.
const MAX_STRUCT: u32 = 4096;

/// Where a handle is to go: NULL until there is one.
pub(crate) struct Out<H: Handle>(*mut *mut H);

impl<H: Handle> Out<H> {
    /// Checks the place and writes NULL to it.
    ///
    /// # Safety
    ///
    /// It is NULL or may be written to.
    pub(crate) unsafe fn new(place: *mut *mut H, name: &str) -> Result<Self, Failure> {
        set(place, ptr::null_mut(), name)?;
        Ok(Self(place))
    }

    /// Gives the object to C.
    pub(crate) fn give(self, value: H::Value) {
        // SAFETY: `new` has written there.
        unsafe { self.0.write(give(value)) }
    }
}

/// Writes a value.
///
/// # Safety
///
/// The place is NULL or may be written to.
pub(crate) unsafe fn set<T>(place: *mut T, value: T, name: &str) -> Result<(), Failure> {
    if place.is_null() {
        return Err(Failure::null(name));
    }
    place.write(value);
    Ok(())
}

/// Writes a value where the caller wants it.
///
/// # Safety
///
/// As [`set`].
pub(crate) unsafe fn set_optional<T>(place: *mut T, value: T) {
    if !place.is_null() {
        place.write(value);
    }
}

/// A plain C struct that begins with `uint32_t struct_size`, to which later versions only append.
///
/// # Safety
///
/// It is `repr(C)`, begins with that field, and every pattern of zeros is a value of it.
pub(crate) unsafe trait Struct: Copy {}

/// Fills a caller's struct as far as the caller knows it; what this version doesn't know becomes 0.
///
/// # Safety
///
/// The place is NULL or holds as many bytes as its `struct_size` says.
pub(crate) unsafe fn fill<T: Struct>(place: *mut T, value: T, name: &str) -> Result<(), Failure> {
    if place.is_null() {
        return Err(Failure::null(name));
    }
    let known = size_of::<T>();
    let size = place.cast::<u32>().read();
    if !(size_of::<u64>() as u32..=MAX_STRUCT).contains(&size) {
        return Err(Failure::argument(format!("`{name}` has the struct_size {size}: set it to sizeof(*{name}) before the call")));
    }
    let size = size as usize;
    place.cast::<u8>().write_bytes(0, size);
    ptr::copy_nonoverlapping(ptr::from_ref(&value).cast::<u8>(), place.cast::<u8>(), known.min(size));
    place.cast::<u32>().write(size as u32);
    Ok(())
}

/// Copies a text into a buffer, cut between characters if it doesn't fit.
///
/// # Safety
///
/// The buffer is NULL or may be written to for `capacity` bytes; `needed` is NULL or may be written to.
pub(crate) unsafe fn text(text: &CStr, buffer: *mut c_char, capacity: usize, needed: *mut usize) -> Result<(), Failure> {
    let whole = text.to_string_lossy();
    set_optional(needed, whole.len() + 1);
    if capacity == 0 {
        return Ok(());
    }
    if buffer.is_null() {
        return Err(Failure::null("buffer"));
    }
    let kept = (0..=whole.len().min(capacity - 1)).rev().find(|&end| whole.is_char_boundary(end)).unwrap_or(0);
    ptr::copy_nonoverlapping(whole.as_ptr(), buffer.cast(), kept);
    buffer.add(kept).write(0);
    Ok(())
}
