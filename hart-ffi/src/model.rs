//! Models.

use std::ffi::{CString, c_char};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hart_core::{Hart, Observer, OpenOptions, Request, with_enough_stack};

use crate::event::Callback;
use crate::files::hart_files;
use crate::guard::{catch_panic, guard, lock};
use crate::handle::{Handle, free, get, get_optional, share};
use crate::options::{Options, hart_options};
use crate::out::{self, Out, Struct};
use crate::request::hart_request;
use crate::status::{Failure, HART_ERR_ABI, HART_ERR_PANIC, HART_ERR_POISONED, hart_status};
use crate::text::{Text, to_c};
use crate::version::HART_ABI_VERSION;

/// An open model. Its weights never change, so any number of threads may use it at once.
pub struct hart_model(());

impl Handle for hart_model {
    type Value = Model;
    const NAME: &'static str = "hart_model";
}

/// The model behind a handle. Handles of the same model share its weights and its poisoned flag.
#[derive(Clone)]
pub(crate) struct Model {
    hart: Hart,
    poisoned: Arc<AtomicBool>,
    device: CString,
    precision: CString,
    fingerprint: CString,
}

/// Properties of a model. Set `struct_size` to `sizeof(hart_model_info)` before the call.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct hart_model_info {
    /// `sizeof(hart_model_info)`.
    pub struct_size: u32,
    /// Width of its images in pixels.
    pub width: u32,
    /// Height of its images in pixels.
    pub height: u32,
    /// Number of scales of an image.
    pub scales: u32,
    /// Maximum number of tokens of a prompt. Longer prompts are cut.
    pub context_tokens: u32,
    /// Number of codes in its codebook.
    pub codes: u32,
    /// Number of parameters, including the text encoder and the visual tokenizer.
    pub parameters: u64,
    /// Device, such as "cpu" or "cuda:0". Valid until the model is freed.
    pub device: *const c_char,
    /// Numeric precision, such as "f32". Valid until the model is freed.
    pub precision: *const c_char,
    /// Fingerprint of the model: 64 hexadecimal digits, the same for a folder and for its files in memory. It covers the
    /// configuration, the names and shapes of all tensors, and a sample of their data. Valid until the model is freed.
    pub fingerprint: *const c_char,
}

// SAFETY: repr(C), struct_size first, all bits zero is valid.
unsafe impl Struct for hart_model_info {}

/// Opens the model in a folder, which holds `llm` and `tokenizer`. `options` may be NULL. Pass `HART_ABI_VERSION` as
/// `abi_version`. Free the model with `hart_model_free`.
///
/// Returns `HART_ERR_ABI` if the library is older than the header of the program, `HART_ERR_CHECKPOINT`,
/// `HART_ERR_CONFIG`, `HART_ERR_WEIGHTS` or `HART_ERR_NOT_FINITE` if the files are not a valid model, `HART_ERR_DEVICE`
/// if the device is not available, `HART_ERR_MEMORY` if the model needs more memory than the options allow, and
/// `HART_CANCELLED` if the options' observer or token has cancelled opening.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_model_open(
    path: *const c_char,
    options: *const hart_options,
    abi_version: u32,
    model: *mut *mut hart_model,
) -> hart_status {
    open_folder(Text::Terminated(path), options, abi_version, model)
}

/// Like `hart_model_open`, for a path of `path_size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_model_open_n(
    path: *const c_char,
    path_size: usize,
    options: *const hart_options,
    abi_version: u32,
    model: *mut *mut hart_model,
) -> hart_status {
    open_folder(Text::Sized(path, path_size), options, abi_version, model)
}

unsafe fn open_folder(path: Text, options: *const hart_options, abi_version: u32, model: *mut *mut hart_model) -> hart_status {
    open(options, abi_version, model, |options, observer| {
        let path = Path::new(path.get("path")?);
        Ok(Hart::open_with(path, options, observer)?)
    })
}

/// Opens a model from files in memory, otherwise like `hart_model_open`. `files` may be freed afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_model_open_files(
    files: *const hart_files,
    options: *const hart_options,
    abi_version: u32,
    model: *mut *mut hart_model,
) -> hart_status {
    open(options, abi_version, model, |options, observer| {
        let files = lock(get(files, "files")?).clone();
        Ok(Hart::from_files_with(files, options, observer)?)
    })
}

unsafe fn open(
    options: *const hart_options,
    abi_version: u32,
    model: *mut *mut hart_model,
    open: impl FnOnce(OpenOptions, &mut dyn Observer) -> Result<Hart, Failure>,
) -> hart_status {
    guard(|| {
        let model = Out::<hart_model>::new(model, "model")?;
        if abi_version == 0 {
            return Err(Failure::argument("`abi_version` is 0: pass HART_ABI_VERSION"));
        }
        if abi_version > HART_ABI_VERSION {
            let message = format!(
                "the program was compiled for ABI {abi_version}, this library has {HART_ABI_VERSION}: install a newer hart"
            );
            return Err(Failure::new(HART_ERR_ABI, message));
        }
        // A copy: the observer may change or free the options.
        let options = get_optional(options, "options")?.map_or_else(Options::default, |options| lock(options).clone());
        let hart = open(options.options, &mut Callback::new(options.watcher))?;
        let (device, precision) = (to_c(&hart.device_kind().to_string()), to_c(&hart.precision().to_string()));
        let fingerprint = to_c(hart.fingerprint());
        model.write(Model { hart, poisoned: Arc::default(), device, precision, fingerprint });
        Ok(())
    })
}

/// Creates another handle of the same model, which is freed separately. The handles share the weights; freeing the last
/// one releases them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_model_share(model: *const hart_model, shared: *mut *mut hart_model) -> hart_status {
    share(model, "model", shared)
}

/// Frees the model. Does nothing if `model` is NULL. If a callback frees the model of its own run, the run still
/// completes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_model_free(model: *mut hart_model) {
    free(model);
}

/// Writes the properties of the model to `info`.
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
            fingerprint: model.fingerprint.as_ptr(),
        };
        out::fill(info, value, "info")
    })
}

/// Compiles the kernels of a GPU by generating an image and discarding it, so that the first real image takes no longer
/// than the others. Compiled kernels are cached on disk. Does nothing on the CPU.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_model_warm_up(model: *const hart_model) -> hart_status {
    guard(|| {
        with_model(model, |hart| Ok(hart.warm_up()?))?;
        Ok(())
    })
}

/// Estimates the memory of a run in bytes, without running it. `weights` receives the size of the model, `peak` the
/// size of the model and the run at its peak, with all images that are generated at once. Every further run at the same time adds `peak - weights`. `request` may
/// be NULL for one image; `weights` and `peak` may be NULL.
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
            Some(request) => request.request(),
            None => Request::new("any"),
        };
        with_model(model, |hart| {
            let memory = with_enough_stack(|| hart.memory(&request))?;
            out::set_optional(weights, memory.weights);
            out::set_optional(peak, memory.peak());
            Ok(())
        })
    })
}

/// Returns the maximum number of images that the model generates at once, as `hart_options_set_parallel` has set or
/// hart has chosen it: the images of a request, and those of runs on several threads.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_model_parallel(model: *const hart_model, parallel: *mut u32) -> hart_status {
    guard(|| {
        out::set(parallel, 0, "parallel")?;
        let model = get(model, "model")?;
        out::set(parallel, u32::try_from(model.hart.parallel()).unwrap_or(u32::MAX), "parallel")?;
        Ok(())
    })
}

/// Panics inside the model on purpose, so that a program can test how it recovers. Returns `HART_ERR_PANIC`, and the log
/// receives the text of the panic; the model returns `HART_ERR_POISONED` from then on.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_model_test_panic(model: *const hart_model) -> hart_status {
    guard(|| with_model(model, |_| panic!("a test panic")))
}

/// Runs `work` with a model that has not panicked before. Marks the model as poisoned if `work` panics.
pub(crate) unsafe fn with_model<T>(model: *const hart_model, work: impl FnOnce(&Hart) -> Result<T, Failure>) -> Result<T, Failure> {
    // A callback in `work` may free the handle, so the model is held here.
    let Model { hart, poisoned, .. } = get(model, "model")?;
    let (hart, poisoned) = (hart.clone(), poisoned.clone());
    if poisoned.load(Ordering::Relaxed) {
        return Err(Failure::new(HART_ERR_POISONED, "`model` has panicked before: free it and open it again"));
    }
    let outcome = catch_panic(|| work(&hart));
    if outcome.as_ref().is_err_and(|failure| failure.status == HART_ERR_PANIC) {
        poisoned.store(true, Ordering::Relaxed);
    }
    outcome
}
