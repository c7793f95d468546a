//! What this library is.

use std::ffi::c_char;

/// Version of the header, major part.
pub const HART_VERSION_MAJOR: u32 = 0;
/// Version of the header, minor part.
pub const HART_VERSION_MINOR: u32 = 1;
/// Version of the header, patch part.
pub const HART_VERSION_PATCH: u32 = 0;
/// Version of the header in one number: major * 1000000 + minor * 1000 + patch.
pub const HART_VERSION: u32 = 1000;
/// Number of the ABI: it grows when functions are added; programs compiled for a lower number go on working with a library of a higher
/// one.
pub const HART_ABI_VERSION: u32 = 1;

/// Version of the library that runs, as HART_VERSION.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_version() -> u32 {
    HART_VERSION
}

/// Version of the library that runs, as text, such as "0.1.0". The text is constant.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_version_text() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// ABI number of the library that runs, as HART_ABI_VERSION.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_abi_version() -> u32 {
    HART_ABI_VERSION
}

/// What is built in, as one line of JSON: version, abi, backends (a list of device names), target, commit (or "unknown"). The text is
/// constant.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_build_info() -> *const c_char {
    concat!(
        r#"{"version":""#,
        env!("CARGO_PKG_VERSION"),
        r#"","abi":1,"backends":["cpu"],"target":""#,
        env!("HART_TARGET"),
        r#"","commit":""#,
        env!("HART_COMMIT"),
        "\"}\0"
    )
    .as_ptr()
    .cast()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_numbers_are_the_packages() {
        assert_eq!(format!("{HART_VERSION_MAJOR}.{HART_VERSION_MINOR}.{HART_VERSION_PATCH}"), env!("CARGO_PKG_VERSION"));
        assert_eq!(HART_VERSION, HART_VERSION_MAJOR * 1_000_000 + HART_VERSION_MINOR * 1000 + HART_VERSION_PATCH);
        // SAFETY: the text is constant.
        let info = unsafe { std::ffi::CStr::from_ptr(hart_build_info()) }.to_str().unwrap();
        assert!(info.contains(&format!("\"abi\":{HART_ABI_VERSION},")), "{info}");
        let names: Vec<String> = hart_core::devices().into_iter().map(|d| format!("{:?}", d.name)).collect();
        assert!(info.contains(&format!("\"backends\":[{}]", names.join(","))), "{info}");
    }
}
