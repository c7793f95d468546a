//! Versions of the header and of the library.

use std::ffi::c_char;

/// Major version of this header.
pub const HART_VERSION_MAJOR: u32 = 0;
/// Minor version of this header.
pub const HART_VERSION_MINOR: u32 = 1;
/// Patch version of this header.
pub const HART_VERSION_PATCH: u32 = 0;
/// Version of this header as one number: major * 1000000 + minor * 1000 + patch.
pub const HART_VERSION: u32 = 1000;
/// ABI number of this header. It grows when functions, constants or fields are added. A program that was compiled with
/// a lower number works with a library that has a higher one.
pub const HART_ABI_VERSION: u32 = 1;

const CUDA: bool = cfg!(any(feature = "cuda", feature = "cuda-nvrtc"));
const WGPU: bool = cfg!(any(feature = "wgpu", feature = "vulkan"));

/// Returns the version of the loaded library as one number, like `HART_VERSION`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_version() -> u32 {
    HART_VERSION
}

/// Returns the version of the loaded library as a string, such as "0.1.0". The string is static.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_version_text() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// Returns the ABI number of the loaded library, like `HART_ABI_VERSION`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_abi_version() -> u32 {
    HART_ABI_VERSION
}

/// Returns one line of JSON that describes the build of the loaded library: `version`, `abi`, `backends` (such as
/// ["cpu", "cuda"]), `target` and `commit` (or "unknown"). The string is static. `hart_device_list_new` lists the
/// devices that are present.
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
    fn version_numbers_match_the_package() {
        assert_eq!(format!("{HART_VERSION_MAJOR}.{HART_VERSION_MINOR}.{HART_VERSION_PATCH}"), env!("CARGO_PKG_VERSION"));
        assert_eq!(HART_VERSION, HART_VERSION_MAJOR * 1_000_000 + HART_VERSION_MINOR * 1000 + HART_VERSION_PATCH);
        // SAFETY: the string is static.
        let info = unsafe { std::ffi::CStr::from_ptr(hart_build_info()) }.to_str().unwrap();
        assert!(info.contains(&format!("\"abi\":{HART_ABI_VERSION},")), "{info}");
        // Every device that is present belongs to a backend that is built in.
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
