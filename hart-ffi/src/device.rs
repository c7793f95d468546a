//! Devices on which a model can be opened.

use std::ffi::{CString, c_char};

use hart_core::with_enough_stack;

use crate::guard::guard;
use crate::handle::{Handle, free, get, number_of};
use crate::out::{self, Out, Struct};
use crate::status::{Failure, hart_status};
use crate::text::to_c;

/// Devices that are compiled in and present, the best first.
pub struct hart_device_list(());

impl Handle for hart_device_list {
    type Value = Vec<Device>;
    const NAME: &'static str = "hart_device_list";
}

/// Strings of one device.
pub(crate) struct Device {
    name: CString,
    description: CString,
}

/// One device. Set `struct_size` to `sizeof(hart_device_info)` before the call.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct hart_device_info {
    /// `sizeof(hart_device_info)`.
    pub struct_size: u32,
    /// Always 0.
    pub reserved: u32,
    /// Name for `hart_options_set_device`. Valid until the list is freed.
    pub name: *const c_char,
    /// Human-readable description. Valid until the list is freed.
    pub description: *const c_char,
}

// SAFETY: repr(C), struct_size first, all bits zero is valid.
unsafe impl Struct for hart_device_info {}

/// Lists the devices. Free the list with `hart_device_list_free`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_device_list_new(list: *mut *mut hart_device_list) -> hart_status {
    guard(|| {
        let list = Out::new(list, "list")?;
        let devices = with_enough_stack(hart_core::devices)?.into_iter();
        list.write(devices.map(|d| Device { name: to_c(&d.name), description: to_c(&d.description) }).collect());
        Ok(())
    })
}

/// Frees the list. Does nothing if `list` is NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_device_list_free(list: *mut hart_device_list) {
    free(list);
}

/// Returns the number of devices. Returns 0 if `list` is NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_device_list_count(list: *const hart_device_list) -> usize {
    number_of(list, "list", Vec::len)
}

/// Describes device `index`, counted from 0. Returns `HART_ERR_ARGUMENT` if there is no such device.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_device_list_get(
    list: *const hart_device_list,
    index: usize,
    info: *mut hart_device_info,
) -> hart_status {
    guard(|| {
        let list = get(list, "list")?;
        let Device { name, description } = list
            .get(index)
            .ok_or_else(|| Failure::argument(format!("`index` is {index}, but the list has {} devices", list.len())))?;
        let value = hart_device_info { struct_size: 0, reserved: 0, name: name.as_ptr(), description: description.as_ptr() };
        out::fill(info, value, "info")
    })
}
