//! Generates an image in a WASI runtime, which must give access to the folders:
//!
//! ```sh
//! RUSTFLAGS="-C target-feature=+simd128" cargo build --profile wasm --target wasm32-wasip1 -p hart-browser --features wasi --example wasi
//! wasmtime --dir . target/wasm32-wasip1/wasm/examples/wasi.wasm examples/models/hart-emoji "a red heart" out.png
//! ```

#[cfg(target_os = "wasi")]
fn main() -> std::process::ExitCode {
    use hart_core::{Hart, OpenOptions, Request};
    use std::process::ExitCode;

    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (model, prompt, out, seed) = match arguments.as_slice() {
        [model, prompt, out] => (model, prompt, out, Ok(0)),
        [model, prompt, out, seed] => (model, prompt, out, seed.parse()),
        _ => {
            eprintln!("usage: wasi MODEL PROMPT OUT.png [SEED]");
            return ExitCode::from(2);
        }
    };
    let Ok(seed) = seed else {
        eprintln!("SEED: expected a whole number from 0 to {}", u64::MAX);
        return ExitCode::from(2);
    };
    let generate = || {
        let hart = Hart::open(model, OpenOptions::new())?;
        let generation = hart.generate(&Request::new(prompt).seed(seed))?;
        eprintln!("{} ms", generation.timings.total.as_millis());
        generation.images[0].save_png(out)
    };
    match generate() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(not(target_os = "wasi"))]
fn main() {}
