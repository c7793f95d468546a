//! [`OpenOptions`].

use std::path::PathBuf;

use crate::device::{DeviceKind, Precision};
use crate::files::Storage;
use crate::progress::CancelToken;
use crate::weights::WeightSet;

/// Options for opening a checkpoint.
///
/// Setters of optional values take a value or an `Option`; `None` is the default.
#[derive(Clone, Debug)]
#[must_use = "options do nothing until they are passed to Hart::open"]
pub struct OpenOptions {
    pub(crate) device: DeviceKind,
    pub(crate) precision: Precision,
    pub(crate) text_model: Option<PathBuf>,
    pub(crate) weight_set: WeightSet,
    pub(crate) memory_map: bool,
    pub(crate) strict: bool,
    pub(crate) threads: Option<usize>,
    pub(crate) parallel: Option<usize>,
    pub(crate) max_memory: Option<u64>,
    pub(crate) keep_text_model: bool,
    pub(crate) cancel: Option<CancelToken>,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            device: DeviceKind::Auto,
            precision: Precision::Auto,
            text_model: None,
            weight_set: WeightSet::PreferEma,
            memory_map: true,
            strict: true,
            threads: None,
            parallel: None,
            max_memory: None,
            keep_text_model: false,
            cancel: None,
        }
    }
}

impl OpenOptions {
    /// Creates the default options: the best device, EMA weights if there are any, memory-mapped files, and an error for unused tensors.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the device. Defaults to [`DeviceKind::Auto`].
    pub fn device(mut self, device: DeviceKind) -> Self {
        self.device = device;
        self
    }

    /// Sets the precision of weights and activations. Defaults to [`Precision::Auto`].
    pub fn precision(mut self, precision: Precision) -> Self {
        self.precision = precision;
        self
    }

    /// Sets the folder of the text model. `None` looks for `text` or `Qwen2-VL-1.5B-Instruct`, in the checkpoint's root or next to it.
    pub fn text_model(mut self, folder: impl Into<Option<PathBuf>>) -> Self {
        self.text_model = folder.into();
        self
    }

    /// Sets which weights of the transformer are loaded. Defaults to [`WeightSet::PreferEma`].
    pub fn weight_set(mut self, weight_set: WeightSet) -> Self {
        self.weight_set = weight_set;
        self
    }

    /// Sets whether safetensors files are mapped, the default, or read into memory. A mapped file must not be changed or shortened while
    /// the model is open.
    pub fn memory_map(mut self, memory_map: bool) -> Self {
        self.memory_map = memory_map;
        self
    }

    /// Sets whether unused tensors are an error, the default, or only reported.
    pub fn strict(mut self, strict: bool) -> Self {
        self.strict = strict;
        self
    }

    /// Sets the number of threads of the model's own pool. `None` uses rayon's current pool, which has a thread per core unless the
    /// program has configured it. Images do not depend on the number of threads.
    pub fn threads(mut self, threads: impl Into<Option<usize>>) -> Self {
        self.threads = threads.into();
        self
    }

    /// Sets how many images are generated at once, each on its share of the threads: the images of a request, and those of calls of
    /// [`Hart::generate`](crate::Hart::generate) from several threads. At least 1, and at most the number of threads. Images do not
    /// depend on it.
    ///
    /// An image that is alone uses all threads. Further calls wait until one of the images is finished, except that with 1, calls from
    /// several threads share the model's threads without waiting. A call on a thread of a rayon pool in which the model works, or within an
    /// [`Observer`](crate::Observer), generates its images one by one.
    ///
    /// `None`, the default, chooses the number from the size of the model and the number of threads, as long as
    /// [`Self::max_memory`] allows: one image for each thread if the model is so small that more threads make no image faster, 2 for a larger one
    /// whose images take little memory, and otherwise 1, as on a GPU. [`Hart::parallel`](crate::Hart::parallel) returns it. In WebAssembly, it is always 1.
    pub fn parallel(mut self, images: impl Into<Option<usize>>) -> Self {
        self.parallel = images.into();
        self
    }

    /// Sets a limit in bytes for the estimated memory. Opening a model and generating fail before any work if the estimate exceeds it;
    /// the error names an option that would fit, if there is one. With a limit, the transformer's memory-mapped weights are released
    /// before an image is decoded. `None`, the default, is no limit.
    ///
    /// On the CPU, the decoder uses less memory if an image would exceed the limit otherwise. It then computes a part of its
    /// convolutions twice. In f32 the image is the same to the bit. In bf16 and int8 it is nearly the same, so a limit that only
    /// some requests reach can change their images a little.
    pub fn max_memory(mut self, bytes: impl Into<Option<u64>>) -> Self {
        self.max_memory = bytes.into();
        self
    }

    /// Sets whether the weights of the text model stay in memory after prompts are encoded. By default, pages of mapped files are
    /// released, and read again from the system's cache for the next prompt, which takes about 0.1 s for a text model of 1.5 B
    /// parameters. Weights that were converted on opening (bf16 or int8 from published files) are dropped and converted again, which
    /// takes 1 to 2 s. A server that encodes all the time may keep them.
    pub fn keep_text_model(mut self, keep: bool) -> Self {
        self.keep_text_model = keep;
        self
    }

    /// Sets a token that can cancel opening from any thread. Defaults to `None`. Runs do not use it; see
    /// [`Request::cancel_token`](crate::Request::cancel_token).
    pub fn cancel_token(mut self, token: impl Into<Option<CancelToken>>) -> Self {
        self.cancel = token.into();
        self
    }
}

impl OpenOptions {
    /// Returns the file system as the storage of a checkpoint.
    pub(crate) fn disk(&self) -> Storage {
        Storage::Disk { memory_map: self.memory_map }
    }
}
