//! Opening a model from a checkpoint's files.

use std::path::Path;
use std::sync::Arc;

use burn::prelude::Device;

use super::{Hart, Model};
use crate::config::Layout;
use crate::device::{self, OpenDevice, Precision, is_cpu};
use crate::error::{Error, Result};
use crate::files::{Files, Storage};
use crate::kernels;
use crate::memory;
use crate::options::OpenOptions;
use crate::residual::ResidualDiffusion;
use crate::scales;
use crate::text::{ModelId, TextEncoder};
use crate::threads::Threads;
use crate::transformer::Transformer;
use crate::visual::VisualTokenizer;
use crate::weights::{Checkpoint, Loader, TRANSFORMER, WeightSet};

impl Hart {
    /// Opens a checkpoint's root folder, which contains `llm` and `tokenizer`.
    ///
    /// # Errors
    ///
    /// - [`Error::Checkpoint`], [`Error::Config`], [`Error::Weights`], [`Error::NotFinite`] or [`Error::Io`] naming the file.
    /// - [`Error::Device`], [`Error::Memory`], or [`Error::Request`] if an option is invalid.
    pub fn open(path: impl AsRef<Path>, options: OpenOptions) -> Result<Self> {
        Self::open_in(&options.disk(), path.as_ref(), &options)
    }

    /// Opens a checkpoint whose files are in memory. f32 tensors are not copied.
    ///
    /// # Errors
    ///
    /// Like [`Self::open`]. Torch's `.bin` files cannot be read from memory.
    pub fn from_files(files: Files, options: OpenOptions) -> Result<Self> {
        Self::open_in(&Storage::Memory(files), Path::new(""), &options)
    }

    fn open_in(storage: &Storage, root: &Path, options: &OpenOptions) -> Result<Self> {
        let threads = Threads::new(options.threads)?;
        let device = options.device.find()?;
        let layout = Layout::find(storage, root, options.text_model.as_deref())?;
        memory::allow("opening this model", options.max_memory, || {
            let stored = transformer_weights(storage, &layout.transformer, options.weight_set);
            memory::weights(&layout.config, &device.device).saturating_sub(stored.map_or(0, |stored| stored.bytes_below_f32()))
        })?;
        let id = ModelId::new(root);
        let load = || Model::load(id, storage, layout, options, device.clone(), threads.clone());
        let model = threads.install(|| device.catch_backend_panic(load))?;
        Ok(Self { model: Arc::new(model) })
    }
}

impl Model {
    fn load(
        id: ModelId,
        storage: &Storage,
        layout: Layout,
        options: &OpenOptions,
        open: OpenDevice,
        threads: Threads,
    ) -> Result<Self> {
        let (config, device) = (layout.config, &open.device);
        let checkpoint = transformer_weights(storage, &layout.transformer, options.weight_set)?;
        let precision = resolve_precision(options.precision, checkpoint.packed_precision(), &layout.transformer, device)?;
        let (text, text_report) = TextEncoder::open_in(storage, &layout.text, &config.text, options, device, precision)?;
        let (visual, visual_report) =
            VisualTokenizer::open_in(storage, &layout.visual, &config.visual, options, device, precision)?;
        let mut loader = Loader::new(&checkpoint, &TRANSFORMER).with_precision(precision);
        let transformer = loader.load(Transformer::init(&config, device), "transformer", device)?.frozen();
        let residual = loader.load(ResidualDiffusion::init(&config, device), "residual", device)?;
        let bytes_below_f32 = loader.bytes_below_f32();
        let reports = vec![text_report, loader.finish(options.strict)?, visual_report];
        kernels::reserve_pool(device, memory::largest_map(&config, precision));
        Ok(Self {
            id,
            codebook: visual.codebook().rows(),
            scales: scales::plan(&config.transformer),
            system_prompt: layout.system_prompt,
            max_memory: options.max_memory,
            device: open,
            config,
            text,
            transformer,
            residual,
            visual,
            precision,
            bytes_below_f32,
            threads,
            reports,
        })
    }
}

/// Resolves the precision. Packed weights can only be used in the precision in which they are stored.
fn resolve_precision(requested: Precision, stored: Option<Precision>, folder: &Path, device: &Device) -> Result<Precision> {
    match (requested, stored) {
        (Precision::Auto, None) => Ok(device::best_precision(device)),
        (_, Some(stored)) if !is_cpu(device) => Err(Error::checkpoint(
            folder,
            format!("holds {stored} weights packed for the CPU: open it on the CPU, or use the unconverted model here"),
        )),
        (Precision::Auto, Some(stored)) => Ok(stored),
        (requested, None) => device::check_precision(requested, device),
        (requested, Some(stored)) if requested != stored => Err(Error::checkpoint(
            folder,
            format!("holds {stored} weights: open it with the precision {stored} or auto, not {requested}"),
        )),
        (requested, Some(_)) => Ok(requested),
    }
}

/// Opens the transformer's weights.
pub(crate) fn transformer_weights(storage: &Storage, folder: &Path, set: WeightSet) -> Result<Checkpoint> {
    let plain = || Checkpoint::open_in(storage, folder);
    let ema = || Checkpoint::open_ema_in(storage, folder);
    match set {
        WeightSet::Plain => plain(),
        WeightSet::PreferEma => ema()?.map_or_else(plain, Ok),
        WeightSet::Ema => ema()?.ok_or_else(|| {
            Error::checkpoint(
                folder,
                "holds no EMA weights: expected ema_model.safetensors or ema_model.bin; or use the plain weights",
            )
        }),
    }
}
