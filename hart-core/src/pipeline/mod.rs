//! The model and its pipeline from prompt to image.

mod encode;
mod generate;
mod open;
mod sample;

pub use generate::Generation;
pub(crate) use open::transformer_weights;

use std::sync::Arc;

use burn::prelude::Device;

use crate::config::Config;
use crate::device::{DeviceKind, OpenDevice, Precision};
use crate::error::Result;
use crate::memory::{self, Memory};
use crate::request::Request;
use crate::residual::ResidualDiffusion;
use crate::sampling::CodebookRows;
use crate::scales::Scale;
use crate::text::{ModelId, TextEncoder};
use crate::threads::Threads;
use crate::transformer::Transformer;
use crate::visual::VisualTokenizer;
use crate::weights::LoadReport;

/// An open model. The weights are immutable and shared: clones are cheap, and any number of threads may generate with them at once.
#[derive(Clone)]
pub struct Hart {
    model: Arc<Model>,
}

/// The weights and settings that clones of [`Hart`] share.
struct Model {
    id: ModelId,
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
    /// Number of bytes by which packed weights are smaller than in f32.
    bytes_below_f32: u64,
    threads: Threads,
    max_memory: Option<u64>,
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

    /// Returns the precision, never [`Precision::Auto`].
    pub fn precision(&self) -> Precision {
        self.model.precision
    }

    /// Estimates the memory that a request needs. The memory of its [`PromptContext`](crate::PromptContext), if it has one, is not
    /// included.
    pub fn memory(&self, request: &Request) -> Memory {
        let model = &*self.model;
        // A run with a context skips the text stage.
        let text = if request.context.is_some() { 0 } else { memory::text(&model.config, self.system_prompt_tokens(request)) };
        Memory {
            weights: self.weight_bytes(),
            working: memory::working(&model.config, model.precision, request.total_images(), text),
        }
    }

    /// Returns the bytes of the weights.
    fn weight_bytes(&self) -> u64 {
        let f32_bytes: u64 = self.model.reports.iter().map(|report| report.parameters * size_of::<f32>() as u64).sum();
        f32_bytes.saturating_sub(self.model.bytes_below_f32)
    }

    /// Runs a closure in the model's thread pool, or in the current one if the model has none. For programs that use single stages.
    pub fn install<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.model.threads.install(work)
    }

    /// Like [`Self::install`], but for closures that may fail. A failure of a GPU becomes an error.
    ///
    /// # Errors
    ///
    /// The error of the closure, or [`Error::Device`](crate::Error::Device) if a GPU fails.
    pub fn try_install<R: Send>(&self, work: impl FnOnce() -> Result<R> + Send) -> Result<R> {
        self.install(|| self.model.device.catch_backend_panic(work))
    }
}
