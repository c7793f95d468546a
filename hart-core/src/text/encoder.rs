//! The text model: tokenizer, encoder, and the memory of its weights.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::prelude::Device;

use super::{Context, Qwen2, TextTokenizer, Tokens};
use crate::config::TextConfig;
use crate::device::Precision;
use crate::error::Result;
use crate::files::Mapped;
use crate::options::OpenOptions;
use crate::progress::Progress;
use crate::weights::{Checkpoint, LoadReport, Loader, TEXT, TensorProgress};

/// Tokenizer and encoder of a text model's folder.
#[derive(Debug)]
pub struct TextEncoder {
    tokenizer: TextTokenizer,
    /// Multiply-adds of one token.
    work_per_token: f64,
    /// `None` after they were dropped, until the next prompt.
    weights: Mutex<Option<Arc<Qwen2>>>,
    /// The source of weights that are dropped after a prompt.
    source: Option<TextSource>,
    /// Memory-mapped files whose pages are released after a prompt.
    released: Vec<Mapped>,
}

/// The memory of the weights between two prompts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TextMemory {
    /// The weights stay in memory.
    Keep,
    /// Pages of mapped files are released. They are read again from the system's cache.
    ReleasePages,
    /// The weights are dropped as well. They are loaded again from the mapped files.
    Drop,
}

/// The file, sizes and form of the weights.
#[derive(Debug)]
pub(crate) struct TextSource {
    checkpoint: Checkpoint,
    config: TextConfig,
    device: Device,
    precision: Precision,
}

impl TextSource {
    pub(crate) fn new(checkpoint: Checkpoint, config: &TextConfig, device: &Device, precision: Precision) -> Self {
        Self { checkpoint, config: config.clone(), device: device.clone(), precision }
    }

    fn loader(&self) -> Loader<'_> {
        Loader::new(&self.checkpoint, &TEXT).with_precision(self.precision)
    }

    fn read(&self, loader: &mut Loader<'_>) -> Result<Arc<Qwen2>> {
        Ok(Arc::new(loader.load(Qwen2::init(&self.config, &self.device), "", &self.device)?))
    }
}

impl TextEncoder {
    /// Opens a text model's folder, with `config.json`, weights, `tokenizer.json` and `tokenizer_config.json`. The weights stay in
    /// memory.
    ///
    /// # Errors
    ///
    /// A file is missing or damaged, or the tensors don't fit the configuration.
    pub fn open(folder: &Path, options: &OpenOptions, device: &Device) -> Result<(Self, LoadReport)> {
        let storage = options.disk();
        let config = TextConfig::read_in(&storage, &folder.join("config.json"))?;
        let tokenizer = TextTokenizer::open_in(&storage, folder, config.vocab_size)?;
        let source = TextSource::new(Checkpoint::open_in(&storage, folder)?, &config, device, Precision::F32);
        Self::load(tokenizer, source, options.strict, TextMemory::Keep, &mut |_| Ok(()))
    }

    /// Loads the weights.
    pub(crate) fn load(
        tokenizer: TextTokenizer,
        source: TextSource,
        strict: bool,
        memory: TextMemory,
        progress: &mut TensorProgress<'_>,
    ) -> Result<(Self, LoadReport)> {
        let mut loader = source.loader().with_progress(progress);
        let encoder = source.read(&mut loader)?;
        let report = loader.finish(strict)?;
        let work_per_token = encoder.work(1);
        let released = if memory == TextMemory::Keep { Vec::new() } else { source.checkpoint.mapped().to_vec() };
        let source = (memory == TextMemory::Drop).then_some(source);
        Ok((Self { tokenizer, work_per_token, weights: Mutex::new(Some(encoder)), source, released }, report))
    }

    /// Returns the tokenizer.
    pub fn tokenizer(&self) -> &TextTokenizer {
        &self.tokenizer
    }

    /// Estimates the multiply-adds of one row of tokens, for progress.
    pub(crate) fn work(&self, length: usize) -> f64 {
        self.work_per_token * length as f64
    }

    /// Returns whether weights are dropped between prompts, so that encoding prompts together is faster.
    pub(crate) fn drops_weights(&self) -> bool {
        self.source.is_some()
    }

    /// Encodes token rows. Loads the weights again if they were dropped.
    ///
    /// # Errors
    ///
    /// [`Error::Cancelled`](crate::Error::Cancelled), or the error of reading a file again.
    pub fn encode(&self, tokens: &Tokens, progress: &mut Progress<'_>) -> Result<Context> {
        self.encoder()?.forward(tokens, progress)
    }

    /// Returns the encoder. Loads its weights again if they were dropped.
    pub(crate) fn encoder(&self) -> Result<Arc<Qwen2>> {
        if let Some(encoder) = &*self.lock() {
            return Ok(encoder.clone());
        }
        let source = self.source.as_ref().expect("only weights with a source are dropped");
        // Not under the lock: a thread that waits for the others while it packs weights may start another request of the same pool,
        // which would wait for the lock. Two threads may therefore load the weights at the same time.
        let loaded = source.read(&mut source.loader())?;
        self.released.iter().for_each(Mapped::release);
        Ok(self.lock().get_or_insert(loaded).clone())
    }

    /// Releases the memory of the weights until the next prompt, if the model was opened so.
    pub(crate) fn release(&self) {
        self.released.iter().for_each(Mapped::release);
        if self.drops_weights() {
            *self.lock() = None;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Qwen2>>> {
        self.weights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::Storage;
    use crate::kernels;

    /// Encodes a prompt, releases the memory and encodes it again.
    #[test]
    fn dropped_weights_are_loaded_again() {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tiny-a/text"));
        let storage = Storage::Disk { memory_map: true };
        let config = TextConfig::read_in(&storage, &folder.join("config.json")).unwrap();
        for memory in [TextMemory::Keep, TextMemory::ReleasePages, TextMemory::Drop] {
            let tokenizer = TextTokenizer::open_in(&storage, folder, config.vocab_size).unwrap();
            let checkpoint = Checkpoint::open_in(&storage, folder).unwrap();
            let source = TextSource::new(checkpoint, &config, &Device::flex(), Precision::Int8);
            let (text, _) = TextEncoder::load(tokenizer, source, true, memory, &mut |_| Ok(())).unwrap();
            let tokens = text.tokenizer().tokenize(&["a parrot"], None, 8).unwrap();
            let encode = || kernels::values(text.encode(&tokens, &mut Progress::silent()).unwrap().hidden);
            let first = encode();
            text.release();
            assert_eq!(text.lock().is_none(), memory == TextMemory::Drop);
            assert_eq!(encode(), first, "{memory:?}");
            assert!(text.lock().is_some());
        }
    }
}
