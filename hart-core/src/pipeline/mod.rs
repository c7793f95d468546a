//! Prompt to picture: the staircase.

mod generate;
mod opening;
mod sample;

pub use generate::Generation;
pub(crate) use opening::transformer_weights;

use burn::prelude::Device;

use crate::config::Config;
use crate::device::{DeviceKind, Precision, catch_backend_panic};
use crate::error::Result;
use crate::memory::{self, Memory};
use crate::request::Request;
use crate::residual::ResidualDiffusion;
use crate::sampling::CodebookRows;
use crate::scales::Scale;
use crate::text::TextEncoder;
use crate::threads::Threads;
use crate::transformer::Transformer;
use crate::visual::VisualTokenizer;
use crate::weights::Report;

/// An opened model: shared, immutable weights. Any number of threads may generate with it at once; what a run changes lives in that
/// run.
pub struct Hart {
    config: Config,
    kind: DeviceKind,
    device: Device,
    text: TextEncoder,
    transformer: Transformer,
    residual: ResidualDiffusion,
    visual: VisualTokenizer,
    codebook: CodebookRows,
    scales: Vec<Scale>,
    system_prompt: Option<String>,
    precision: Precision,
    /// Bytes that packed weights take less than in f32.
    saved_bytes: u64,
    threads: Threads,
    max_memory: Option<u64>,
    reports: Vec<Report>,
}

/// `Hart` is shared between threads.
const _: fn() = || {
    fn shared<T: Send + Sync>() {}
    shared::<Hart>();
};

impl std::fmt::Debug for Hart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hart").field("config", &self.config).field("device", &self.device).finish_non_exhaustive()
    }
}

impl Hart {
    /// The checkpoint's sizes and options.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// How the weights fitted: text model, transformer, visual tokenizer.
    pub fn reports(&self) -> &[Report] {
        &self.reports
    }

    /// The text tokenizer and encoder.
    pub fn text(&self) -> &TextEncoder {
        &self.text
    }

    /// The transformer.
    pub fn transformer(&self) -> &Transformer {
        &self.transformer
    }

    /// The residual diffusion.
    pub fn residual(&self) -> &ResidualDiffusion {
        &self.residual
    }

    /// The visual tokenizer and decoder.
    pub fn visual(&self) -> &VisualTokenizer {
        &self.visual
    }

    /// The device that it runs on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Which device that is; never [`DeviceKind::Auto`].
    pub fn device_kind(&self) -> DeviceKind {
        self.kind
    }

    /// The numbers that it computes with; never [`Precision::Auto`].
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Estimates the memory that a request takes, before it is made.
    pub fn memory(&self, request: &Request) -> Memory {
        let tokenize =
            |system_prompt| self.text.tokenizer().tokenize(&[""], Some(system_prompt), self.config.transformer.context_tokens);
        let system_prompt =
            self.system_prompt(request).and_then(|text| tokenize(text).ok()).map_or(0, |tokens| tokens.system.len());
        let floats: u64 = self.reports.iter().map(|report| report.parameters * size_of::<f32>() as u64).sum();
        let weights = floats.saturating_sub(self.saved_bytes);
        Memory {
            weights,
            working: memory::working(&self.config, self.transformer.precision(), request.total_images(), system_prompt),
        }
    }

    /// Does work with the stages on the model's own threads, if it has some.
    pub fn install<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.threads.install(work)
    }

    /// As [`Self::install`], for work that may fail: a GPU that fails in it is an error too.
    ///
    /// # Errors
    ///
    /// The work's, and [`Error::Device`](crate::Error::Device).
    pub fn attempt<R: Send>(&self, work: impl FnOnce() -> Result<R> + Send) -> Result<R> {
        self.threads.install(|| catch_backend_panic(self.kind, work))
    }
}
