//! Opaque handles: what C holds is a pointer to a box that says of what kind it is.

use std::ptr;

use crate::guard::{guard_quietly, guard_value};
use crate::status::Failure;

/// A kind of object that C holds a pointer to.
pub(crate) trait Handle {
    /// What is behind the pointer. Threads may share it, so whatever changes in it has a lock.
    type Value: Send + Sync;
    /// The C name.
    const NAME: &'static str;
}

#[repr(C)]
struct Boxed<V> {
    /// Tells kinds apart, and from freed memory.
    tag: u64,
    value: V,
}

/// A number for a name, FNV-1a.
const fn tag(name: &str) -> u64 {
    let (bytes, mut hash, mut i) = (name.as_bytes(), 0xcbf2_9ce4_8422_2325_u64, 0);
    while i < bytes.len() {
        hash = (hash ^ bytes[i] as u64).wrapping_mul(0x100_0000_01b3);
        i += 1;
    }
    hash
}

/// Gives an object to C, which must give it back to [`free`].
pub(crate) fn give<H: Handle>(value: H::Value) -> *mut H {
    Box::into_raw(Box::new(Boxed { tag: tag(H::NAME), value })).cast()
}

/// The object behind a pointer; `name` is the argument's.
///
/// # Safety
///
/// The pointer is NULL or one that [`give`] made, of any kind, not freed for as long as the reference lives.
pub(crate) unsafe fn get<'a, H: Handle>(handle: *const H, name: &str) -> Result<&'a H::Value, Failure> {
    if handle.is_null() {
        return Err(Failure::null(name));
    }
    let boxed = handle.cast::<Boxed<H::Value>>();
    // Every kind's box is aligned for its tag at least and begins with it.
    if !handle.cast::<u64>().is_aligned() || ptr::addr_of!((*boxed).tag).read_volatile() != tag(H::NAME) {
        return Err(Failure::argument(format!("`{name}` is no {}, or was freed", H::NAME)));
    }
    Ok(&(*boxed).value)
}

/// As [`get`], where NULL means none.
///
/// # Safety
///
/// As [`get`].
pub(crate) unsafe fn get_optional<'a, H: Handle>(handle: *const H, name: &str) -> Result<Option<&'a H::Value>, Failure> {
    if handle.is_null() { Ok(None) } else { get(handle, name).map(Some) }
}

/// A number that an object holds; 0 for NULL, which is no error.
///
/// # Safety
///
/// As [`get`].
pub(crate) unsafe fn number_of<H: Handle, N: Default>(handle: *const H, name: &str, read: impl FnOnce(&H::Value) -> N) -> N {
    guard_value(N::default(), || Ok(get_optional(handle, name)?.map(read).unwrap_or_default()))
}

/// Takes an object back and drops it; NULL is nothing. The last error stays, so that clean-up comes before its reading.
///
/// # Safety
///
/// As [`get`], and nobody uses it any more.
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
