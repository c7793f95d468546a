//! The thread pool, whose threads are workers that JavaScript has started.
//!
//! A worker that is created while its creator waits in `Atomics.wait` does not begin to run, so the workers come first: each of them
//! instantiates the module, calls [`run_thread`] and waits there for its part. Then the pool is built.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, PoisonError};

use rayon::{ThreadBuilder, ThreadPoolBuilder};
use wasm_bindgen::prelude::*;

use crate::failure::Failure;

/// Threads of the pool that no worker runs yet.
static WAITING: Mutex<VecDeque<ThreadBuilder>> = Mutex::new(VecDeque::new());
static ADDED: Condvar = Condvar::new();

/// Runs a thread of the pool on the current worker, once the pool is built. Does not return.
#[wasm_bindgen(js_name = runThread)]
pub fn run_thread() {
    let mut waiting = WAITING.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        if let Some(thread) = waiting.pop_front() {
            drop(waiting);
            return thread.run();
        }
        waiting = ADDED.wait(waiting).unwrap_or_else(PoisonError::into_inner);
    }
}

/// Builds the global pool of `count` threads, for which as many workers wait in [`run_thread`].
///
/// # Errors
///
/// `device` if there is a pool already.
#[wasm_bindgen(js_name = buildPool)]
pub fn build_pool(count: usize) -> Result<(), JsValue> {
    let hand_over = |thread| {
        WAITING.lock().unwrap_or_else(PoisonError::into_inner).push_back(thread);
        ADDED.notify_one();
        Ok(())
    };
    let built = ThreadPoolBuilder::new().num_threads(count).spawn_handler(hand_over).build_global();
    Ok(built.map_err(|error| Failure::new("device", format!("device `cpu`: {count} threads: {error}")))?)
}
