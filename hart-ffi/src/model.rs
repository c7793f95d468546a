//! An opened model.

use std::ffi::{CString, c_char};
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hart_core::{Hart, OpenOptions, Request};

use crate::files::hart_files;
use crate::guard::{caught, guard, lock};
use crate::handle::{Handle, free, get, get_optional};
use crate::options::hart_options;
use crate::out::{self, Out, Struct};
use crate::request::hart_request;
use crate::status::{Failure, HART_ERR_ABI, HART_ERR_PANIC, HART_ERR_POISONED, hart_status};
use crate::text;
use crate::version::HART_ABI_VERSION;

/// An opened model: weights that never change. Any number of threads may use it at once.
pub struct hart_model(());

impl Handle for hart_model {
    type Value = Arc<Model>;
    const NAME: &'static str = "hart_model";
}

pub(crate) struct Model {
    pub(crate) hart: Hart,
    poisoned: AtomicBool,
    device: CString,
    precision: CString,
}

/// What a model is. Set `struct_size` to `sizeof(hart_model_info)` before the call.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct hart_model_info {
    /// `sizeof(hart_model_info)`.
    pub struct_size: u32,
    /// Pixels in a row of its pictures.
    pub width: u32,
    /// Rows of its pictures.
    pub height: u32,
    /// Scales of a picture, coarse to fine.
    pub scales: u32,
    /// Tokens of a prompt that it reads.
    pub context_tokens: u32,
    /// Codes that an image token is drawn from.
    pub codes: u32,
    /// Parameters, text encoder and visual tokenizer included.
    pub parameters: u64,
    /// Where it computes, such as "cpu" or "cuda:0"; valid until the model is freed.
    pub device: *const c_char,
    /// The numbers that it computes with, such as "f32"; valid until the model is freed.
    pub precision: *const c_char,
}

// SAFETY: repr(C), struct_size first, zeros are numbers and NULL pointers.
unsafe impl Struct for hart_model_info {}

/// Opens a model's folder, which holds `llm` and `tokenizer`. `options` may be NULL. Pass HART_ABI_VERSION as `abi_version`: a library
/// that is older than the program's header answers `HART_ERR_ABI`. Free the model with `hart_model_free`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_model_open(
    path: *const c_char,
    options: *const hart_options,
    abi_version: u32,
    model: *mut *mut hart_model,
) -> hart_status {
    open(options, abi_version, model, |options| {
        let path = Path::new(text::get(path, "path")?);
        Ok(Hart::open(path, options)?)
    })
}

/// Opens a model whose files are in memory. As `hart_model_open`; `files` may be freed afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_model_open_files(
    files: *const hart_files,
    options: *const hart_options,
    abi_version: u32,
    model: *mut *mut hart_model,
) -> hart_status {
    open(options, abi_version, model, |options| {
        let files = lock(get(files, "files")?).clone();
        Ok(Hart::from_files(files, options)?)
    })
}

unsafe fn open(
    options: *const hart_options,
    abi_version: u32,
    model: *mut *mut hart_model,
    open: impl FnOnce(OpenOptions) -> Result<Hart, Failure>,
) -> hart_status {
    guard(|| {
        let model = Out::<hart_model>::new(model, "model")?;
        if abi_version > HART_ABI_VERSION {
            let message = format!(
                "the program was compiled for ABI {abi_version}, this library has {HART_ABI_VERSION}: install a newer hart"
            );
            return Err(Failure::new(HART_ERR_ABI, message));
        }
        let options = get_optional(options, "options")?.map_or_else(OpenOptions::new, |options| lock(options).clone());
        let hart = open(options)?;
        let text = |text: &str| CString::new(text).unwrap_or_default();
        let (device, precision) = (text(&hart.device_kind().to_string()), text(&hart.precision().to_string()));
        model.give(Arc::new(Model { hart, poisoned: AtomicBool::new(false), device, precision }));
        Ok(())
    })
}

/// A second handle of the same model, for a part of the program that frees its own. The weights are shared and go with the last handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_model_share(model: *const hart_model, shared: *mut *mut hart_model) -> hart_status {
    guard(|| {
        let shared = Out::<hart_model>::new(shared, "shared")?;
        shared.give(get(model, "model")?.clone());
        Ok(())
    })
}

/// Frees the model; NULL is nothing. A run that is under way in a callback of which this is called goes on to its end.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_model_free(model: *mut hart_model) {
    free(model);
}

/// Describes the model.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_model_describe(model: *const hart_model, info: *mut hart_model_info) -> hart_status {
    guard(|| {
        let model = get(model, "model")?;
        let config = model.hart.config();
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let value = hart_model_info {
            struct_size: 0,
            width: number(config.resolution()),
            height: number(config.resolution()),
            scales: number(config.transformer.sides.len()),
            context_tokens: number(config.transformer.context_tokens),
            codes: number(config.visual.vocab_size),
            parameters: model.hart.reports().iter().map(|report| report.parameters).sum(),
            device: model.device.as_ptr(),
            precision: model.precision.as_ptr(),
        };
        out::fill(info, value, "info")
    })
}

/// Makes a picture that nobody sees, so that the first one that counts doesn't wait: on a GPU kernels are compiled when they are first
/// needed, and kept on disk for the next program. On the CPU there is nothing to do.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_model_warm_up(model: *const hart_model) -> hart_status {
    guard(|| {
        using(model, |model| Ok(model.hart.warm_up(&mut ())?))?;
        Ok(())
    })
}

/// Estimates memory in bytes before anything is made: `weights` is what the model holds, `peak` is that and what a run of the request
/// needs at its height. Every further run at the same time adds `peak - weights`. `request` may be NULL for one picture; `weights` and
/// `peak` may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_model_memory(
    model: *const hart_model,
    request: *const hart_request,
    weights: *mut u64,
    peak: *mut u64,
) -> hart_status {
    guard(|| {
        out::set_optional(weights, 0);
        out::set_optional(peak, 0);
        let request = match get_optional(request, "request")? {
            Some(request) => request.settings(),
            None => Request::new("any"),
        };
        using(model, |model| {
            let memory = model.hart.memory(&request);
            out::set_optional(weights, memory.weights);
            out::set_optional(peak, memory.peak());
            Ok(())
        })
    })
}

/// Panics inside the model on purpose, so that a program can try how it recovers: answers `HART_ERR_PANIC`, and the model answers
/// `HART_ERR_POISONED` from now on.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_model_test_panic(model: *const hart_model) -> hart_status {
    // Without the message that a real panic prints.
    guard(|| using(model, |_| resume_unwind(Box::new("a panic that was asked for"))))
}

/// Does work with a model that has not panicked. If it panics now, it has.
pub(crate) unsafe fn using<T>(
    model: *const hart_model,
    work: impl FnOnce(&Arc<Model>) -> Result<T, Failure>,
) -> Result<T, Failure> {
    // The work may free the handle, in a callback.
    let model = get(model, "model")?.clone();
    if model.poisoned.load(Ordering::Relaxed) {
        return Err(Failure::new(HART_ERR_POISONED, "`model` has panicked before: free it and open it again"));
    }
    let outcome = caught(|| work(&model));
    if outcome.as_ref().is_err_and(|failure| failure.status == HART_ERR_PANIC) {
        model.poisoned.store(true, Ordering::Relaxed);
    }
    outcome
}
