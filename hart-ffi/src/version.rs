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

const CUDA: bool = cfg!(any(feature = "cuda", feature = "cuda-nvrtc"));
const WGPU: bool = cfg!(any(feature = "wgpu", feature = "vulkan"));

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

/// What is built in, as one line of JSON: version, abi, backends (such as ["cpu", "cuda"]; `hart_device_list_new` says what there is of
/// them), target, commit (or "unknown"). The text is constant.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_build_info() -> *const c_char {
    macro_rules! with_backends {
        ($backends:literal) => {
            concat!(
                r#"{"version":""#,
                env!("CARGO_PKG_VERSION"),
                r#"","abi":1,"backends":["#,
                $backends,
                r#"],"target":""#,
                env!("HART_TARGET"),
                r#"","commit":""#,
                env!("HART_COMMIT"),
                "\"}\0"
            )
        };
    }
    let text = match (CUDA, WGPU) {
        (false, false) => with_backends!(r#""cpu""#),
        (true, false) => with_backends!(r#""cpu","cuda""#),
        (false, true) => with_backends!(r#""cpu","wgpu""#),
        (true, true) => with_backends!(r#""cpu","cuda","wgpu""#),
    };
    text.as_ptr().cast()
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
        // A GPU that there is is of a backend that is built in.
        let backends: Vec<String> = [("cpu", true), ("cuda", CUDA), ("wgpu", WGPU)]
            .into_iter()
            .filter(|(_, built_in)| *built_in)
            .map(|(name, _)| format!("{name:?}"))
            .collect();
        assert!(info.contains(&format!("\"backends\":[{}],", backends.join(","))), "{info}");
        let built_in = |name: &str| backends.iter().any(|backend| name.starts_with(backend.trim_matches('"')));
        assert!(hart_core::devices().iter().all(|device| built_in(&device.name)), "{info}");
    }
}
