//! Opaque handles: C holds a pointer to a box that begins with a tag for its type.

use std::ptr;

use crate::guard::{guard, guard_quietly, guard_value};
use crate::out::Out;
use crate::status::{Failure, hart_status};

/// A type of object that C holds pointers to.
pub(crate) trait Handle {
    /// The Rust value behind the pointer. Threads may share it, so every field that changes has a lock.
    type Value: Send + Sync;
    /// The name of the C type.
    const NAME: &'static str;
}

#[repr(C)]
struct Boxed<V> {
    /// Identifies the type, and is 0 in a freed box.
    tag: u64,
    value: V,
}

/// Returns the FNV-1a hash of a type name.
const fn tag(name: &str) -> u64 {
    let (bytes, mut hash, mut i) = (name.as_bytes(), 0xcbf2_9ce4_8422_2325_u64, 0);
    while i < bytes.len() {
        hash = (hash ^ bytes[i] as u64).wrapping_mul(0x100_0000_01b3);
        i += 1;
    }
    hash
}

/// Moves a value to the heap and returns the handle. C returns it to [`free`].
pub(crate) fn into_raw<H: Handle>(value: H::Value) -> *mut H {
    Box::into_raw(Box::new(Boxed { tag: tag(H::NAME), value })).cast()
}

/// Returns the value behind a handle. `name` is the name of the parameter, for the error message.
///
/// # Safety
///
/// The pointer is NULL or comes from [`into_raw`], for any type, and is not freed while the reference lives.
pub(crate) unsafe fn get<'a, H: Handle>(handle: *const H, name: &str) -> Result<&'a H::Value, Failure> {
    if handle.is_null() {
        return Err(Failure::null(name));
    }
    let boxed = handle.cast::<Boxed<H::Value>>();
    // Every box begins with its tag, whatever its type, and is at least aligned for it.
    if !handle.cast::<u64>().is_aligned() || ptr::addr_of!((*boxed).tag).read_volatile() != tag(H::NAME) {
        return Err(Failure::argument(format!("`{name}` is not a {}, or was freed", H::NAME)));
    }
    Ok(&(*boxed).value)
}

/// Like [`get`], but returns `None` for NULL.
///
/// # Safety
///
/// The same as for [`get`].
pub(crate) unsafe fn get_optional<'a, H: Handle>(handle: *const H, name: &str) -> Result<Option<&'a H::Value>, Failure> {
    if handle.is_null() { Ok(None) } else { get(handle, name).map(Some) }
}

/// Returns a number that `read` takes from the value. Returns 0 for NULL, which is not an error.
///
/// # Safety
///
/// The same as for [`get`].
pub(crate) unsafe fn number_of<H: Handle, N: Default>(handle: *const H, name: &str, read: impl FnOnce(&H::Value) -> N) -> N {
    guard_value(N::default(), || Ok(get_optional(handle, name)?.map(read).unwrap_or_default()))
}

/// Creates another handle of the same value. C frees both.
///
/// # Safety
///
/// The same as for [`get`]; `shared` is NULL or valid for writes.
pub(crate) unsafe fn share<H: Handle<Value: Clone>>(handle: *const H, name: &str, shared: *mut *mut H) -> hart_status {
    guard(|| {
        let shared = Out::new(shared, "shared")?;
        shared.write(get(handle, name)?.clone());
        Ok(())
    })
}

/// Takes a handle back from C and drops its value. Does nothing for NULL. Leaves the last error unchanged, so that a
/// program can free its objects first and report the error afterwards.
///
/// # Safety
///
/// The same as for [`get`], and the handle is not used again.
pub(crate) unsafe fn free<H: Handle>(handle: *mut H) {
    guard_quietly(|| {
        if get_optional(handle, H::NAME)?.is_some() {
            let boxed = handle.cast::<Boxed<H::Value>>();
            ptr::addr_of_mut!((*boxed).tag).write_volatile(0);
            drop(Box::from_raw(boxed));
        }
        Ok(())
    });
}
