//! hart for browsers and Node: the engine that `worker.js` runs. `hart.js` is the interface for programs.
//!
//! Structured values cross the border to JavaScript as JSON, and pixels as bytes. Errors are thrown as JSON too, by the module `failure`.
#![cfg(all(target_arch = "wasm32", target_os = "unknown"))]

mod events;
mod failure;
mod files;
mod model;
#[cfg(target_feature = "atomics")]
mod threads;

use wasm_bindgen::prelude::*;

#[wasm_bindgen]
extern "C" {
    /// Receives the message of a panic, after which the instance traps and must not be used again.
    #[wasm_bindgen(js_namespace = globalThis, js_name = hartPanicked)]
    fn report_panic(message: &str);
}

/// Reports panics to JavaScript.
#[wasm_bindgen(start)]
fn start() {
    std::panic::set_hook(Box::new(|panic| report_panic(&panic.to_string())));
}
