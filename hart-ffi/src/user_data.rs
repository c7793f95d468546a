//! Data of the program that hart passes to its callbacks.

use std::ffi::c_void;

use hart_core::with_default_float_state;

/// Callback that destroys the `user_data` that was passed with it. hart calls it exactly once, when it no longer needs
/// the data: when the last object that holds the data is freed or gets other data, when the last run that uses it has
/// ended, or before the call returns if that fails or does not keep the data. hart calls it on the thread that gave up
/// the data last, which may be one of hart's own. NULL does nothing. It must return normally: no C++ exception, no longjmp,
/// no thread exit.
pub type hart_destroy = Option<unsafe extern "C" fn(user_data: *mut c_void)>;

/// A pointer of the program, which hart passes to a callback. Dropping it destroys the data.
pub(crate) struct UserData {
    pointer: *mut c_void,
    destroy: hart_destroy,
}

// SAFETY: hart never dereferences the pointer. The header says on which threads it is passed to callbacks.
unsafe impl Send for UserData {}
// SAFETY: as above.
unsafe impl Sync for UserData {}

impl UserData {
    /// Takes the pointer. Every function that is passed user data calls this first, so that the data is destroyed if it fails.
    pub(crate) fn new(pointer: *mut c_void, destroy: hart_destroy) -> Self {
        Self { pointer, destroy }
    }

    /// Returns the pointer.
    pub(crate) fn pointer(&self) -> *mut c_void {
        self.pointer
    }
}

impl Drop for UserData {
    fn drop(&mut self) {
        if let Some(destroy) = self.destroy {
            // Restores the default floating-point state if the function changes it.
            // SAFETY: the program has passed the function for this pointer, and nothing uses the pointer any more.
            with_default_float_state(|| unsafe { destroy(self.pointer) });
        }
    }
}
