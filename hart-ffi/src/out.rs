//! Output parameters: handles, numbers, strings in buffers, and structs that may grow.

use std::ffi::{CStr, c_char};
use std::ptr;

use crate::guard::guard;
use crate::handle::{Handle, into_raw};
use crate::status::{Failure, hart_status};
use crate::text;

/// Maximum `struct_size`. A larger one means that the caller has not set the field.
const MAX_STRUCT: u32 = 4096;

/// An output parameter for a handle. It holds NULL until [`Out::write`].
pub(crate) struct Out<H: Handle>(*mut *mut H);

impl<H: Handle> Out<H> {
    /// Checks the pointer and writes NULL through it.
    ///
    /// # Safety
    ///
    /// The pointer is NULL or valid for writes.
    pub(crate) unsafe fn new(pointer: *mut *mut H, name: &str) -> Result<Self, Failure> {
        set(pointer, ptr::null_mut(), name)?;
        Ok(Self(pointer))
    }

    /// Writes the handle of a new object.
    pub(crate) fn write(self, value: H::Value) {
        // SAFETY: `new` has written through the same pointer.
        unsafe { self.0.write(into_raw(value)) }
    }

    /// Writes the handle of a new object, if there is one.
    pub(crate) fn write_optional(self, value: Option<H::Value>) {
        if let Some(value) = value {
            self.write(value);
        }
    }
}

/// Writes a value through a pointer that must not be NULL.
///
/// # Safety
///
/// The pointer is NULL or valid for writes.
pub(crate) unsafe fn set<T>(pointer: *mut T, value: T, name: &str) -> Result<(), Failure> {
    if pointer.is_null() {
        return Err(Failure::null(name));
    }
    pointer.write(value);
    Ok(())
}

/// Writes a value through a pointer that may be NULL.
///
/// # Safety
///
/// The same as for [`set`].
pub(crate) unsafe fn set_optional<T>(pointer: *mut T, value: T) {
    if !pointer.is_null() {
        pointer.write(value);
    }
}

/// Writes the value of a setting and, if `is_set` is not NULL, whether the program has set it.
///
/// # Safety
///
/// The pointers are NULL or valid for writes.
pub(crate) unsafe fn setting<T: Default>(
    pointer: *mut T,
    name: &str,
    is_set: *mut i32,
    default: T,
    read: impl FnOnce() -> Result<Option<T>, Failure>,
) -> hart_status {
    guard(|| {
        set(pointer, T::default(), name)?;
        set_optional(is_set, 0);
        let value = read()?;
        set_optional(is_set, value.is_some().into());
        set(pointer, value.unwrap_or(default), name)
    })
}

/// Writes a text that hart owns, or NULL if there is none.
///
/// # Safety
///
/// The pointer is NULL or valid for writes.
pub(crate) unsafe fn text_setting(
    pointer: *mut *const c_char,
    name: &str,
    read: impl FnOnce() -> Result<*const c_char, Failure>,
) -> hart_status {
    guard(|| {
        set(pointer, ptr::null(), name)?;
        set(pointer, read()?, name)
    })
}

/// A C struct that begins with `uint32_t struct_size`. Later versions only append fields.
///
/// # Safety
///
/// The type is `repr(C)` and begins with that field, and all bits zero is a valid value.
pub(crate) unsafe trait Struct: Copy {}

/// Fills the caller's struct up to its `struct_size`. Fields that this version does not know become 0.
///
/// # Safety
///
/// The pointer is NULL, or its struct has as many bytes as its `struct_size` says.
pub(crate) unsafe fn fill<T: Struct>(pointer: *mut T, value: T, name: &str) -> Result<(), Failure> {
    if pointer.is_null() {
        return Err(Failure::null(name));
    }
    let known = size_of::<T>();
    let size = pointer.cast::<u32>().read();
    if !(size_of::<u64>() as u32..=MAX_STRUCT).contains(&size) {
        return Err(Failure::argument(format!("`{name}` has the struct_size {size}: set it to sizeof(*{name}) before the call")));
    }
    let size = size as usize;
    pointer.cast::<u8>().write_bytes(0, size);
    ptr::copy_nonoverlapping(ptr::from_ref(&value).cast::<u8>(), pointer.cast::<u8>(), known.min(size));
    pointer.cast::<u32>().write(size as u32);
    Ok(())
}

/// Returns a buffer of the caller. The pointer may be NULL if `size` is 0.
///
/// # Safety
///
/// The pointer is NULL or valid for reads and writes of `size` bytes, which nothing else uses while the reference lives. They may
/// be uninitialised: only writes are made through the reference.
pub(crate) unsafe fn bytes<'a>(buffer: *mut u8, size: usize, name: &str) -> Result<&'a mut [u8], Failure> {
    text::bytes(buffer, size, name)?;
    if size == 0 { Ok(&mut []) } else { Ok(std::slice::from_raw_parts_mut(buffer, size)) }
}

/// Copies a string into a buffer and cuts it between characters if it does not fit.
///
/// # Safety
///
/// `buffer` is NULL or valid for writes of `capacity` bytes; `needed` is NULL or valid for writes.
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
