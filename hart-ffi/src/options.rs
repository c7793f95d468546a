//! How a model is opened.

use std::ffi::c_char;
use std::sync::Mutex;

use hart_core::{OpenOptions, WeightSet};

use crate::guard::guard;
use crate::handle::{Handle, free, get};
use crate::out::Out;
use crate::status::{Failure, hart_status};
use crate::text;

/// How a model is opened. Whatever is not set has a sane default, and where a function takes options, NULL is all defaults.
pub struct hart_options(());

impl Handle for hart_options {
    type Value = Mutex<OpenOptions>;
    const NAME: &'static str = "hart_options";
}

/// Options with their defaults. Free them with `hart_options_free`; models that were opened with them go on.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_options_new(options: *mut *mut hart_options) -> hart_status {
    guard(|| {
        Out::<hart_options>::new(options, "options")?.give(Mutex::default());
        Ok(())
    })
}

/// Frees the options; NULL is nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_options_free(options: *mut hart_options) {
    free(options);
}

/// Changes options; `change` has checked its value.
unsafe fn set(options: *mut hart_options, change: impl FnOnce(OpenOptions) -> Result<OpenOptions, Failure>) -> hart_status {
    guard(|| {
        let mut options = crate::guard::lock(get(options, "options")?);
        *options = change(options.clone())?;
        Ok(())
    })
}

/// Where the model computes: "auto" (default, the best that there is), "cpu", "cuda:0", "wgpu:0" or another name from
/// `hart_device_list_get`. GPUs are there if the library was built with them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_options_set_device(options: *mut hart_options, device: *const c_char) -> hart_status {
    set(options, |options| Ok(options.device(text::get(device, "device")?.parse()?)))
}

/// The numbers that it computes with: "auto" (default: f32 on the CPU, f16 on a GPU, or those that a converted model is stored in),
/// "f32", or faster and a little less exact "bf16" or "int8" on the CPU, "f16" on a GPU.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_options_set_precision(options: *mut hart_options, precision: *const c_char) -> hart_status {
    set(options, |options| {
        let name = text::get(precision, "precision")?;
        let precision = name
            .parse()
            .map_err(|_| Failure::argument(format!("`precision` is \"{name}\", expected auto, f32, f16, bf16 or int8")))?;
        Ok(options.precision(precision))
    })
}

/// Folder of the text model; default `text` in the model's folder, or `Qwen2-VL-1.5B-Instruct` there or beside it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_options_set_text_model(options: *mut hart_options, path: *const c_char) -> hart_status {
    set(options, |options| Ok(options.text_model(text::get(path, "path")?)))
}

/// Which weights: "auto" (default: EMA weights if there are some, else the plain ones), "ema" or "plain".
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_options_set_weights(options: *mut hart_options, weights: *const c_char) -> hart_status {
    set(options, |options| {
        let weights = match text::get(weights, "weights")? {
            "auto" => WeightSet::PreferEma,
            "ema" => WeightSet::Ema,
            "plain" => WeightSet::Plain,
            other => return Err(Failure::argument(format!("`weights` is \"{other}\", expected auto, ema or plain"))),
        };
        Ok(options.weight_set(weights))
    })
}

/// Whether safetensors files are mapped (not 0; default) or read into memory (0). Mapped files must not change while the model is open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_options_set_memory_map(options: *mut hart_options, memory_map: i32) -> hart_status {
    set(options, |options| Ok(options.memory_map(memory_map != 0)))
}

/// Whether tensors that nothing uses are an error (not 0; default) or overlooked (0).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_options_set_strict(options: *mut hart_options, strict: i32) -> hart_status {
    set(options, |options| Ok(options.strict(strict != 0)))
}

/// How many threads of its own the model works on, 1 to 1024; 0 (default) shares one set of threads, as many as there are cores, with
/// all models of the program. The picture is the same with any number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_options_set_threads(options: *mut hart_options, threads: u32) -> hart_status {
    set(options, |options| match threads {
        0 => Ok(options.shared_threads()),
        1..=1024 => Ok(options.threads(threads as usize)),
        _ => Err(Failure::argument(format!("`threads` is {threads}, expected 0 to 1024"))),
    })
}

/// Most bytes of memory that the model may be expected to take; 0 (default) is no limit. What is estimated to need more, opening it or
/// a run, answers `HART_ERR_MEMORY` before any work.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_options_set_max_memory(options: *mut hart_options, bytes: u64) -> hart_status {
    set(options, |options| Ok(options.max_memory(if bytes == 0 { u64::MAX } else { bytes })))
}
