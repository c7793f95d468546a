//! The model and its pipeline from prompt to image.

mod encode;
mod generate;
mod open;
mod parallel;
mod sample;

pub use generate::Generation;
pub(crate) use open::transformer_weights;

use std::sync::Arc;

use burn::prelude::Device;

use crate::config::Config;
use crate::device::{DeviceKind, OpenDevice, Precision};
use crate::error::Result;
use crate::files::Mapped;
use crate::memory::{Budget, Memory, Run};
use crate::request::Request;
use crate::residual::ResidualDiffusion;
use crate::sampling::CodebookRows;
use crate::scales::Scale;
use crate::text::{ModelId, TextEncoder};
use crate::threads::Threads;
use crate::transformer::Transformer;
use crate::visual::{DecoderMemory, VisualTokenizer};
use crate::weights::LoadReport;

/// An open model. The weights are immutable and shared: clones are cheap, and any number of threads may generate with them at once.
#[derive(Clone)]
pub struct Hart {
    model: Arc<Model>,
}

/// The weights and settings that clones of [`Hart`] share.
struct Model {
    id: ModelId,
    /// Name of the checkpoint's folder.
    name: String,
    fingerprint: String,
    config: Config,
    device: OpenDevice,
    text: TextEncoder,
    transformer: Transformer,
    residual: ResidualDiffusion,
    visual: VisualTokenizer,
    codebook: CodebookRows,
    scales: Vec<Scale>,
    system_prompt: Option<String>,
    precision: Precision,
    budget: Budget,
    /// The transformer's memory-mapped files, if their pages are released before an image is decoded.
    released_after_sampling: Vec<Mapped>,
    threads: Threads,
    reports: Vec<LoadReport>,
}

/// Asserts at compile time that `Hart` is `Send` and `Sync`.
const _: fn() = || {
    fn shared<T: Send + Sync>() {}
    shared::<Hart>();
};

impl std::fmt::Debug for Hart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hart").field("config", self.config()).field("device", self.device()).finish_non_exhaustive()
    }
}

impl Hart {
    /// Returns whether two handles share one model.
    #[must_use]
    pub fn is_same_model(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.model, &other.model)
    }

    /// Returns the checkpoint's configuration.
    pub fn config(&self) -> &Config {
        &self.model.config
    }

    /// Returns the loading reports of the text model, the transformer and the visual tokenizer, in this order.
    pub fn reports(&self) -> &[LoadReport] {
        &self.model.reports
    }

    /// Returns the text tokenizer and encoder.
    pub fn text(&self) -> &TextEncoder {
        &self.model.text
    }

    /// Returns the transformer.
    pub fn transformer(&self) -> &Transformer {
        &self.model.transformer
    }

    /// Returns the residual diffusion.
    pub fn residual(&self) -> &ResidualDiffusion {
        &self.model.residual
    }

    /// Returns the visual tokenizer and decoder.
    pub fn visual(&self) -> &VisualTokenizer {
        &self.model.visual
    }

    /// Returns the device.
    pub fn device(&self) -> &Device {
        &self.model.device.device
    }

    /// Returns the kind of the device, never [`DeviceKind::Auto`].
    pub fn device_kind(&self) -> DeviceKind {
        self.model.device.kind
    }

    /// Returns the name of the model: that of its folder, empty for a model from memory.
    pub fn model_name(&self) -> &str {
        &self.model.name
    }

    /// Returns the fingerprint of the model: 64 hexadecimal digits. Two checkpoints with the same fingerprint are the same model for all
    /// practical purposes. It is the same for a folder and for its files in memory.
    ///
    /// It is a SHA-256 that covers the three `config.json`, `generation_config.json` and the system prompt; the name, type and shape of
    /// each tensor and up to 256 bytes from the middle of its data; and the length and 64 blocks of 4 KiB of `tokenizer.json`. Of a torch
    /// file, it covers the length, 64 blocks, and the last 256 KiB instead of bytes of each tensor. So opening a model doesn't read all of
    /// its weights, but the fingerprint doesn't reveal a change of other bytes: it is no protection against forgery.
    pub fn fingerprint(&self) -> &str {
        &self.model.fingerprint
    }

    /// Returns the precision, never [`Precision::Auto`].
    pub fn precision(&self) -> Precision {
        self.model.precision
    }

    /// Returns the maximum number of images that the model generates at once. See [`OpenOptions::parallel`](crate::OpenOptions::parallel).
    pub fn parallel(&self) -> usize {
        self.model.threads.parallel()
    }

    /// Estimates the memory that a request needs, for all of its images that are generated at once. The estimate is lower if
    /// [`OpenOptions::max_memory`](crate::OpenOptions::max_memory) makes the decoder use less. The memory of the request's
    /// [`PromptContext`](crate::PromptContext), if it has one, is not included.
    pub fn memory(&self, request: &Request) -> Memory {
        let model = &*self.model;
        model.budget.run(&model.config, Run { at_once: self.images_at_once(request), ..self.run_sizes(request) })
    }

    /// Returns the number of images of a request that are generated at once: fewer than [`Self::parallel`] if it has fewer, or if more
    /// would take too much memory.
    fn images_at_once(&self, request: &Request) -> usize {
        let (model, most) = (&*self.model, self.parallel().min(request.total_images()).max(1));
        if most == 1 { 1 } else { model.budget.images_at_once(&model.config, self.run_sizes(request), most) }
    }

    /// Returns how much memory the decoder may use for a request.
    fn decoder_memory(&self, request: &Request) -> DecoderMemory {
        let model = &*self.model;
        model.budget.decoder_memory(&model.config, self.run_sizes(request))
    }

    /// Returns the sizes of a request on which its memory depends.
    fn run_sizes<'a>(&self, request: &'a Request) -> Run<'a> {
        // A run with a context skips the text stage.
        let system_prompt_tokens = request.context.is_none().then(|| self.system_prompt_tokens(request));
        Run {
            images: request.total_images(),
            at_once: 1,
            system_prompt_tokens,
            encodes_image: request.from_image.is_some(),
            pruning: request.pruning.as_ref(),
            halves: 1 + u64::from(self.sampling(request).is_guided()),
        }
    }

    /// Runs a closure in the model's thread pool, or in the current one if the model has none. For programs that use single stages.
    ///
    /// # Panics
    ///
    /// Panics if the closure panics, if the threads cannot be started, and if this process was forked during a call.
    pub fn install<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.model.threads.run(work).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Like [`Self::install`], but for closures that may fail. A failure of a GPU becomes an error.
    ///
    /// # Errors
    ///
    /// - The error of the closure, or [`Error::Device`](crate::Error::Device) if a GPU fails.
    /// - [`Error::Threads`](crate::Error::Threads) if the threads cannot be started, or [`Error::State`](crate::Error::State) if this
    ///   process was forked during a call.
    pub fn try_install<R: Send>(&self, work: impl FnOnce() -> Result<R> + Send) -> Result<R> {
        self.model.threads.run(|| self.model.device.catch_backend_panic(work))?
    }
}
