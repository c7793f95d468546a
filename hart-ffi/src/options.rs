//! Options for opening a model.

use std::ffi::c_char;
use std::path::PathBuf;
use std::sync::Mutex;

use hart_core::{OpenOptions, WeightSet};

use crate::guard::{guard, lock};
use crate::handle::{Handle, free, get};
use crate::out::Out;
use crate::status::{Failure, hart_status};
use crate::text;

/// Options for opening a model. Every option has a default. A function that takes options accepts NULL for the
/// defaults.
pub struct hart_options(());

impl Handle for hart_options {
    type Value = Mutex<OpenOptions>;
    const NAME: &'static str = "hart_options";
}

/// Creates options with the default values. Free them with `hart_options_free`; models opened with them keep working.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_options_new(options: *mut *mut hart_options) -> hart_status {
    guard(|| {
        Out::<hart_options>::new(options, "options")?.write(Mutex::default());
        Ok(())
    })
}

/// Frees the options. Does nothing if `options` is NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_options_free(options: *mut hart_options) {
    free(options);
}

/// Replaces the options with what `change` returns.
unsafe fn set(options: *mut hart_options, change: impl FnOnce(OpenOptions) -> Result<OpenOptions, Failure>) -> hart_status {
    guard(|| {
        let mut options = lock(get(options, "options")?);
        *options = change(options.clone())?;
        Ok(())
    })
}

/// Sets the device: "auto" (default, the best device present), "cpu", "cuda:0", "wgpu:0" or another name from
/// `hart_device_list_get`. GPUs need a library that was built for them. Returns `HART_ERR_DEVICE` if the name is
/// unknown.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_options_set_device(options: *mut hart_options, device: *const c_char) -> hart_status {
    set(options, |options| Ok(options.device(text::get(device, "device")?.parse()?)))
}

/// Sets the numeric precision of the computation: "auto" (default), "f32", "f16" (GPU only), "bf16" or "int8" (CPU
/// only). "auto" is the precision in which a converted model is stored, otherwise f32 on the CPU and f16 on a GPU. The
/// others are faster than f32 and slightly less exact. Returns `HART_ERR_ARGUMENT` if the name is unknown.
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

/// Sets the folder of the text model. The default is `text` in the model's folder, or `Qwen2-VL-1.5B-Instruct` there or
/// next to it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_options_set_text_model(options: *mut hart_options, path: *const c_char) -> hart_status {
    set(options, |options| Ok(options.text_model(PathBuf::from(text::get(path, "path")?))))
}

/// Sets which weights are loaded: "auto" (default: EMA weights if present, otherwise the plain ones), "ema" or "plain".
/// Returns `HART_ERR_ARGUMENT` if the name is unknown.
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

/// Sets whether safetensors files are memory-mapped (nonzero, the default) or read into memory (0). Mapped files must
/// not change while the model is open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_options_set_memory_map(options: *mut hart_options, memory_map: i32) -> hart_status {
    set(options, |options| Ok(options.memory_map(memory_map != 0)))
}

/// Sets whether unused tensors are an error (nonzero, the default) or ignored (0).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_options_set_strict(options: *mut hart_options, strict: i32) -> hart_status {
    set(options, |options| Ok(options.strict(strict != 0)))
}

/// Sets the number of threads that belong to this model, 1 to 1024. With 0 (default), all models of the program share
/// one thread pool with a thread per core. The number does not change the image. Returns `HART_ERR_ARGUMENT` if the
/// number is too large.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_options_set_threads(options: *mut hart_options, threads: u32) -> hart_status {
    set(options, |options| match threads {
        0..=1024 => Ok(options.threads((threads > 0).then_some(threads as usize))),
        _ => Err(Failure::argument(format!("`threads` is {threads}, expected 0 to 1024"))),
    })
}

/// Sets a limit in bytes for the estimated memory; 0 (default) is no limit. Opening the model or generating with it
/// returns `HART_ERR_MEMORY` before any work if the estimate is higher. On the CPU, if an image would not fit
/// otherwise, the decoder uses less memory and takes longer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_options_set_max_memory(options: *mut hart_options, bytes: u64) -> hart_status {
    set(options, |options| Ok(options.max_memory((bytes > 0).then_some(bytes))))
}

/// Sets whether the text model's weights stay in memory after prompts are encoded (nonzero) or are released (0, the
/// default). Mapped weights are then read again from the system's cache for the next prompt, and weights that were
/// converted on opening are converted again. A server that encodes all the time may keep them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_options_set_keep_text_model(options: *mut hart_options, keep: i32) -> hart_status {
    set(options, |options| Ok(options.keep_text_model(keep != 0)))
}
