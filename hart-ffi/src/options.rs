//! Options for opening a model.

use std::ffi::{CStr, CString, c_char, c_void};
use std::mem::replace;
use std::path::PathBuf;
use std::ptr;
use std::sync::{Arc, Mutex};

use hart_core::{CancelToken, OpenOptions, WeightSet};

use crate::cancel::hart_cancel;
use crate::event::{Watcher, hart_observer, write_watcher};
use crate::guard::{guard, lock};
use crate::handle::{Handle, free, get, get_optional};
use crate::out::{self, Out};
use crate::status::{Failure, hart_status};
use crate::text::{Text, to_c};
use crate::user_data::{UserData, hart_destroy};

/// Options for opening a model. Every option has a default. A function that takes options accepts NULL for the
/// defaults.
pub struct hart_options(());

impl Handle for hart_options {
    type Value = Mutex<Options>;
    const NAME: &'static str = "hart_options";
}

/// Options, and what C has set, as it has set it.
#[derive(Clone, Default)]
pub(crate) struct Options {
    pub(crate) options: OpenOptions,
    device: Option<CString>,
    precision: Option<CString>,
    text_model: Option<CString>,
    weights: Option<CString>,
    memory_map: Option<bool>,
    strict: Option<bool>,
    threads: Option<u32>,
    parallel: Option<u32>,
    max_memory: Option<u64>,
    keep_text_model: Option<bool>,
    pub(crate) watcher: Option<Arc<Watcher>>,
    cancel: Option<CancelToken>,
}

impl Options {
    /// Replaces the options with what `change` returns.
    fn change(&mut self, change: impl FnOnce(OpenOptions) -> OpenOptions) {
        self.options = change(self.options.clone());
    }
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

/// Creates an independent copy of options, with the same token and observer. Both pass the same `user_data` to the
/// observer; it is destroyed when neither needs it. Free the copy with `hart_options_free`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_options_clone(options: *const hart_options, clone: *mut *mut hart_options) -> hart_status {
    guard(|| {
        let clone = Out::<hart_options>::new(clone, "clone")?;
        clone.write(Mutex::new(lock(get(options, "options")?).clone()));
        Ok(())
    })
}

/// Changes options. An error leaves them unchanged.
unsafe fn set(options: *mut hart_options, change: impl FnOnce(&mut Options) -> Result<(), Failure>) -> hart_status {
    guard(|| {
        let options = get(options, "options")?;
        let mut changed = lock(options).clone();
        change(&mut changed)?;
        let former = replace(&mut *lock(options), changed);
        // Without the lock: destroying user data calls the program.
        drop(former);
        Ok(())
    })
}

/// Sets the device: "auto" (default, the best device present), "cpu", "cuda:0", "wgpu:0" or another name from
/// `hart_device_list_get`. GPUs need a library that was built for them. Returns `HART_ERR_DEVICE` if the name is
/// unknown.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_options_set_device(options: *mut hart_options, device: *const c_char) -> hart_status {
    set_device(options, Text::Terminated(device))
}

/// Like `hart_options_set_device`, for a text of `device_size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_options_set_device_n(
    options: *mut hart_options,
    device: *const c_char,
    device_size: usize,
) -> hart_status {
    set_device(options, Text::Sized(device, device_size))
}

unsafe fn set_device(options: *mut hart_options, device: Text) -> hart_status {
    set(options, |options| {
        let name = device.get("device")?;
        let device = name.parse()?;
        options.change(|options| options.device(device));
        options.device = Some(to_c(name));
        Ok(())
    })
}

/// Sets the numeric precision of the computation: "auto" (default), "f32", "f16" (GPU only), "bf16" or "int8" (CPU
/// only). "auto" is the precision in which a converted model is stored, otherwise f32 on the CPU and f16 on a GPU. The
/// others are faster than f32 and slightly less exact. Returns `HART_ERR_ARGUMENT` if the name is unknown.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_options_set_precision(options: *mut hart_options, precision: *const c_char) -> hart_status {
    set_precision(options, Text::Terminated(precision))
}

/// Like `hart_options_set_precision`, for a text of `precision_size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_options_set_precision_n(
    options: *mut hart_options,
    precision: *const c_char,
    precision_size: usize,
) -> hart_status {
    set_precision(options, Text::Sized(precision, precision_size))
}

unsafe fn set_precision(options: *mut hart_options, precision: Text) -> hart_status {
    set(options, |options| {
        let name = precision.get("precision")?;
        let precision = name
            .parse()
            .map_err(|_| Failure::argument(format!("`precision` is \"{name}\", expected auto, f32, f16, bf16 or int8")))?;
        options.change(|options| options.precision(precision));
        options.precision = Some(to_c(name));
        Ok(())
    })
}

/// Sets the folder of the text model. The default is `text` in the model's folder, or `Qwen2-VL-1.5B-Instruct` there or
/// next to it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_options_set_text_model(options: *mut hart_options, path: *const c_char) -> hart_status {
    set_text_model(options, Text::Terminated(path))
}

/// Like `hart_options_set_text_model`, for a text of `path_size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_options_set_text_model_n(
    options: *mut hart_options,
    path: *const c_char,
    path_size: usize,
) -> hart_status {
    set_text_model(options, Text::Sized(path, path_size))
}

unsafe fn set_text_model(options: *mut hart_options, path: Text) -> hart_status {
    set(options, |options| {
        let path = path.get("path")?;
        options.change(|options| options.text_model(PathBuf::from(path)));
        options.text_model = Some(to_c(path));
        Ok(())
    })
}

/// Sets which weights are loaded: "auto" (default: EMA weights if present, otherwise the plain ones), "ema" or "plain".
/// Returns `HART_ERR_ARGUMENT` if the name is unknown.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_options_set_weights(options: *mut hart_options, weights: *const c_char) -> hart_status {
    set_weights(options, Text::Terminated(weights))
}

/// Like `hart_options_set_weights`, for a text of `weights_size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_options_set_weights_n(
    options: *mut hart_options,
    weights: *const c_char,
    weights_size: usize,
) -> hart_status {
    set_weights(options, Text::Sized(weights, weights_size))
}

unsafe fn set_weights(options: *mut hart_options, weights: Text) -> hart_status {
    set(options, |options| {
        let name = weights.get("weights")?;
        let weights = match name {
            "auto" => WeightSet::PreferEma,
            "ema" => WeightSet::Ema,
            "plain" => WeightSet::Plain,
            other => return Err(Failure::argument(format!("`weights` is \"{other}\", expected auto, ema or plain"))),
        };
        options.change(|options| options.weight_set(weights));
        options.weights = Some(to_c(name));
        Ok(())
    })
}

/// Sets whether safetensors files are memory-mapped (nonzero, the default) or read into memory (0). Mapped files must
/// not change while the model is open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_options_set_memory_map(options: *mut hart_options, memory_map: i32) -> hart_status {
    set(options, |options| {
        options.change(|options| options.memory_map(memory_map != 0));
        options.memory_map = Some(memory_map != 0);
        Ok(())
    })
}

/// Sets whether unused tensors are an error (nonzero, the default) or ignored (0).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_options_set_strict(options: *mut hart_options, strict: i32) -> hart_status {
    set(options, |options| {
        options.change(|options| options.strict(strict != 0));
        options.strict = Some(strict != 0);
        Ok(())
    })
}

/// Sets the number of threads that belong to this model, 1 to 1024. With 0 (default), all models of the program share
/// one thread pool with a thread per core. The number does not change the image. Returns `HART_ERR_ARGUMENT` if the
/// number is too large.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_options_set_threads(options: *mut hart_options, threads: u32) -> hart_status {
    set(options, |options| {
        if threads > 1024 {
            return Err(Failure::argument(format!("`threads` is {threads}, expected 0 to 1024")));
        }
        options.change(|options| options.threads((threads > 0).then_some(threads as usize)));
        options.threads = Some(threads);
        Ok(())
    })
}

/// Sets how many images are generated at once, each on its share of the threads: the images of a request, and those of
/// runs on several threads. At least 1, and at most the number of threads, or opening the model returns
/// `HART_ERR_REQUEST`. With 0 (default), hart chooses it: 1 for a large model and on a GPU, more for a small one.
/// `hart_model_parallel` returns it. The number does not change the images.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_options_set_parallel(options: *mut hart_options, parallel: u32) -> hart_status {
    set(options, |options| {
        options.change(|options| options.parallel((parallel > 0).then_some(parallel as usize)));
        options.parallel = Some(parallel);
        Ok(())
    })
}

/// Sets a limit in bytes for the estimated memory; 0 (default) is no limit. Opening the model or generating with it
/// returns `HART_ERR_MEMORY` before any work if the estimate is higher. On the CPU, if an image would not fit
/// otherwise, the decoder uses less memory and takes longer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_options_set_max_memory(options: *mut hart_options, bytes: u64) -> hart_status {
    set(options, |options| {
        options.change(|options| options.max_memory((bytes > 0).then_some(bytes)));
        options.max_memory = Some(bytes);
        Ok(())
    })
}

/// Sets whether the text model's weights stay in memory after prompts are encoded (nonzero) or are released (0, the
/// default). Mapped weights are then read again from the system's cache for the next prompt, and weights that were
/// converted on opening are converted again. A server that encodes all the time may keep them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_options_set_keep_text_model(options: *mut hart_options, keep: i32) -> hart_status {
    set(options, |options| {
        options.change(|options| options.keep_text_model(keep != 0));
        options.keep_text_model = Some(keep != 0);
        Ok(())
    })
}

/// Sets the callback that receives the progress of opening a model, with the `user_data` that it receives. NULL removes
/// it. Each event has the step `HART_STEP_TENSOR`; its stage is the one whose weights are loaded. The callback is called
/// on the thread that opens the model. If it returns a value other than 0, opening returns `HART_CANCELLED`. `destroy`
/// may be NULL; otherwise hart calls it once when it no longer needs `user_data`. Models do not keep the callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_options_set_observer(
    options: *mut hart_options,
    observer: hart_observer,
    user_data: *mut c_void,
    destroy: hart_destroy,
) -> hart_status {
    let watcher = Watcher::new(observer, UserData::new(user_data, destroy));
    set(options, |options| {
        options.watcher = watcher.clone();
        Ok(())
    })
}

/// Sets the token that cancels opening a model: it then returns `HART_CANCELLED`. NULL removes it. The token may be
/// freed before the options. Runs of the model do not use it; see `hart_request_set_cancel`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_options_set_cancel(options: *mut hart_options, cancel: *const hart_cancel) -> hart_status {
    set(options, |options| {
        options.cancel = get_optional(cancel, "cancel")?.cloned();
        let token = options.cancel.clone();
        options.change(|options| options.cancel_token(token));
        Ok(())
    })
}

/// Reads a number of options.
unsafe fn number<T: Default>(
    options: *const hart_options,
    value: *mut T,
    name: &str,
    is_set: *mut i32,
    default: T,
    read: impl FnOnce(&Options) -> Option<T>,
) -> hart_status {
    out::setting(value, name, is_set, default, || Ok(read(&lock(get(options, "options")?))))
}

/// Reads a text of options.
unsafe fn text(
    options: *const hart_options,
    value: *mut *const c_char,
    name: &str,
    read: impl FnOnce(&Options) -> Option<&CStr>,
) -> hart_status {
    out::text_setting(value, name, || Ok(read(&lock(get(options, "options")?)).map_or(ptr::null(), CStr::as_ptr)))
}

/// Returns the device, or NULL if it is not set. The text is valid until the options are changed or freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_options_get_device(options: *const hart_options, device: *mut *const c_char) -> hart_status {
    text(options, device, "device", |options| options.device.as_deref())
}

/// Returns the precision, or NULL if it is not set. The text is valid until the options are changed or freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_options_get_precision(options: *const hart_options, precision: *mut *const c_char) -> hart_status {
    text(options, precision, "precision", |options| options.precision.as_deref())
}

/// Returns the folder of the text model, or NULL if it is not set. The text is valid until the options are changed or
/// freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_options_get_text_model(options: *const hart_options, path: *mut *const c_char) -> hart_status {
    text(options, path, "path", |options| options.text_model.as_deref())
}

/// Returns which weights are loaded, or NULL if it is not set. The text is valid until the options are changed or freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_options_get_weights(options: *const hart_options, weights: *mut *const c_char) -> hart_status {
    text(options, weights, "weights", |options| options.weights.as_deref())
}

/// Returns 1 if files are memory-mapped, otherwise 0; 1 if it is not set. `is_set`, if not NULL, receives 1 if the
/// program has set it, otherwise 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_options_get_memory_map(
    options: *const hart_options,
    memory_map: *mut i32,
    is_set: *mut i32,
) -> hart_status {
    number(options, memory_map, "memory_map", is_set, 1, |options| options.memory_map.map(i32::from))
}

/// Returns 1 if unused tensors are an error, otherwise 0; 1 if it is not set. `is_set`, if not NULL, receives 1 if the
/// program has set it, otherwise 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_options_get_strict(options: *const hart_options, strict: *mut i32, is_set: *mut i32) -> hart_status {
    number(options, strict, "strict", is_set, 1, |options| options.strict.map(i32::from))
}

/// Returns the number of threads that belong to the model; 0 if it is not set. `is_set`, if not NULL, receives 1 if the
/// program has set it, otherwise 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_options_get_threads(
    options: *const hart_options,
    threads: *mut u32,
    is_set: *mut i32,
) -> hart_status {
    number(options, threads, "threads", is_set, 0, |options| options.threads)
}

/// Returns how many images are generated at once; 0 if it is not set. `is_set`, if not NULL, receives 1 if the program
/// has set it, otherwise 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_options_get_parallel(
    options: *const hart_options,
    parallel: *mut u32,
    is_set: *mut i32,
) -> hart_status {
    number(options, parallel, "parallel", is_set, 0, |options| options.parallel)
}

/// Returns the limit in bytes for the estimated memory; 0 if it is not set. `is_set`, if not NULL, receives 1 if the
/// program has set it, otherwise 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_options_get_max_memory(
    options: *const hart_options,
    bytes: *mut u64,
    is_set: *mut i32,
) -> hart_status {
    number(options, bytes, "bytes", is_set, 0, |options| options.max_memory)
}

/// Returns 1 if the text model's weights stay in memory, otherwise 0; 0 if it is not set. `is_set`, if not NULL, receives
/// 1 if the program has set it, otherwise 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_options_get_keep_text_model(
    options: *const hart_options,
    keep: *mut i32,
    is_set: *mut i32,
) -> hart_status {
    number(options, keep, "keep", is_set, 0, |options| options.keep_text_model.map(i32::from))
}

/// Returns the observer and, if `user_data` is not NULL, its user data; NULL if there is no observer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_options_get_observer(
    options: *const hart_options,
    observer: *mut hart_observer,
    user_data: *mut *mut c_void,
) -> hart_status {
    write_watcher(observer, user_data, || Ok(lock(get(options, "options")?).watcher.clone()))
}

/// Returns the token as another handle, or NULL if there is none. Free it with `hart_cancel_free`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_options_get_cancel(options: *const hart_options, cancel: *mut *mut hart_cancel) -> hart_status {
    guard(|| {
        let cancel = Out::<hart_cancel>::new(cancel, "cancel")?;
        cancel.write_optional(lock(get(options, "options")?).cancel.clone());
        Ok(())
    })
}
