//! Names the shared library for the system's loader, and notes what `hart_build_info` tells.

use std::env;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=HART_COMMIT");
    println!("cargo:rustc-env=HART_TARGET={}", env::var("TARGET").unwrap_or_default());
    println!("cargo:rustc-env=HART_COMMIT={}", env::var("HART_COMMIT").unwrap_or_else(|_| "unknown".into()));
    // The loader's name carries the number of the last ABI that broke programs compiled before it; see docs/c-abi.md.
    match env::var("CARGO_CFG_TARGET_OS").as_deref() {
        Ok("linux" | "android" | "freebsd" | "netbsd" | "openbsd") => {
            println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libhart.so.0")
        }
        Ok("macos") => println!("cargo:rustc-cdylib-link-arg=-Wl,-install_name,@rpath/libhart.0.dylib"),
        _ => {}
    }
}
