//! Sets the name of the shared library for the loader, and the build facts that `hart_build_info` returns.

use std::env;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=HART_COMMIT");
    println!("cargo:rustc-env=HART_TARGET={}", env::var("TARGET").unwrap_or_default());
    println!("cargo:rustc-env=HART_COMMIT={}", env::var("HART_COMMIT").unwrap_or_else(|_| "unknown".into()));
    // The number in the loader name changes only with a release that breaks programs compiled before; see
    // docs/c-abi.md.
    match env::var("CARGO_CFG_TARGET_OS").as_deref() {
        Ok("linux" | "android" | "freebsd" | "netbsd" | "openbsd") => {
            println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libhart.so.0")
        }
        Ok("macos") => println!("cargo:rustc-cdylib-link-arg=-Wl,-install_name,@rpath/libhart.0.dylib"),
        _ => {}
    }
}
