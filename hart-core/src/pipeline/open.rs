//! Opening a model from a checkpoint's files.

use std::path::Path;
use std::sync::Arc;

use burn::prelude::Device;

use super::{Hart, Model};
use crate::config::{Config, Layout};
use crate::device::{self, OpenDevice, Precision, is_cpu};
use crate::error::{Error, Result};
use crate::files::{Files, Storage};
use crate::kernels::{self, with_default_float_state};
use crate::memory::{self, Budget, ModelBytes, Release};
use crate::options::OpenOptions;
use crate::process::Call;
use crate::residual::ResidualDiffusion;
use crate::scales;
use crate::text::{ModelId, TextEncoder, TextTokenizer};
use crate::threads::Threads;
use crate::transformer::Transformer;
use crate::visual::{DecoderMemory, VisualTokenizer};
use crate::weights::{Checkpoint, Loader, TRANSFORMER, WeightSet};

impl Hart {
    /// Opens a checkpoint's root folder, which contains `llm` and `tokenizer`.
    ///
    /// # Errors
    ///
    /// - [`Error::Checkpoint`], [`Error::Config`], [`Error::Weights`], [`Error::NotFinite`] or [`Error::Io`] naming the file.
    /// - [`Error::Device`], [`Error::Memory`], [`Error::Threads`], or [`Error::Request`] if an option is invalid.
    /// - [`Error::State`] if this process was forked during a call.
    pub fn open(path: impl AsRef<Path>, options: OpenOptions) -> Result<Self> {
        with_default_float_state(|| Self::open_in(&options.disk(), path.as_ref(), &options))
    }

    /// Opens a checkpoint whose files are in memory. f32 tensors are not copied.
    ///
    /// # Errors
    ///
    /// Like [`Self::open`]. Torch's `.bin` files cannot be read from memory.
    pub fn from_files(files: Files, options: OpenOptions) -> Result<Self> {
        with_default_float_state(|| Self::open_in(&Storage::Memory(files), Path::new(""), &options))
    }

    fn open_in(storage: &Storage, root: &Path, options: &OpenOptions) -> Result<Self> {
        let _call = Call::begin()?;
        let threads = Threads::new(options.threads)?;
        let device = options.device.find()?;
        let layout = Layout::find(storage, root, options.text_model.as_deref())?;
        let id = ModelId::new(root);
        let load = || Model::load(id, storage, layout, options, device.clone(), threads.clone());
        let model = threads.run(|| device.catch_backend_panic(load))??;
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
        let tokenizer = TextTokenizer::open_in(storage, &layout.text, config.text.vocab_size)?;
        let text_checkpoint = Checkpoint::open_in(storage, &layout.text)?;
        let visual_checkpoint = Checkpoint::open_in(storage, &layout.visual)?;
        let checkpoints = [&text_checkpoint, &checkpoint, &visual_checkpoint];
        let precision = resolve_precision(options.precision, [&checkpoint, &text_checkpoint], device)?;
        let budget = budget(&config, checkpoints, precision, options, device);
        budget.allow_opening(&config)?;
        let (text, text_report) = {
            let memory = budget.text_memory();
            TextEncoder::load(tokenizer, text_checkpoint, &config.text, device, precision, options.strict, memory)?
        };
        let (visual, visual_report) = VisualTokenizer::load(&visual_checkpoint, &config.visual, options, device, precision)?;
        let mut loader = Loader::new(&checkpoint, &TRANSFORMER).with_precision(precision);
        let transformer = loader.load(Transformer::init(&config, device), "transformer", device)?.frozen();
        let residual = loader.load(ResidualDiffusion::init(&config, device), "residual", device)?;
        let reports = vec![text_report, loader.finish(options.strict)?, visual_report];
        kernels::reserve_pool(device, memory::largest_map(&config, precision));
        let released_after_sampling = if budget.release.transformer { checkpoint.mapped().to_vec() } else { Vec::new() };
        Ok(Self {
            id,
            codebook: visual.codebook().rows(),
            scales: scales::plan(&config.transformer),
            system_prompt: layout.system_prompt,
            device: open,
            config,
            text,
            transformer,
            residual,
            visual,
            precision,
            budget,
            released_after_sampling,
            threads,
            reports,
        })
    }
}

/// Returns the memory of the model in three checkpoints (text model, transformer, visual tokenizer), with its limit.
fn budget(config: &Config, checkpoints: [&Checkpoint; 3], precision: Precision, options: &OpenOptions, device: &Device) -> Budget {
    let bytes = |precision| ModelBytes::of(config, checkpoints, precision, device);
    let is_fixed = checkpoints.iter().any(|checkpoint| checkpoint.packed_precision().is_some());
    Budget {
        bytes: bytes(precision),
        int8: (options.max_memory.is_some() && is_cpu(device) && !is_fixed).then(|| bytes(Precision::Int8).converted()),
        precision,
        release: Release { text: !options.keep_text_model, transformer: options.max_memory.is_some() },
        // A GPU's decoder always uses the same memory.
        least_decoder: if is_cpu(device) { DecoderMemory::Limited } else { DecoderMemory::Full },
        limit: options.max_memory,
    }
}

/// Resolves the precision. Packed weights can only be used in the precision in which they are stored, which must be the same in all
/// checkpoints that have some.
fn resolve_precision(requested: Precision, checkpoints: [&Checkpoint; 2], device: &Device) -> Result<Precision> {
    let mut resolved = requested;
    for checkpoint in checkpoints {
        let Some(stored) = checkpoint.packed_precision() else { continue };
        let refused = |problem| Err(Error::checkpoint(checkpoint.path(), problem));
        if !is_cpu(device) {
            return refused(format!(
                "holds {stored} weights packed for the CPU: open it on the CPU, or use the unconverted model here"
            ));
        }
        if resolved != Precision::Auto && resolved != stored {
            return refused(match requested {
                Precision::Auto => {
                    format!("holds {stored} weights, but the transformer is in {resolved}: convert the whole model again")
                }
                _ => format!("holds {stored} weights: open it with the precision {stored} or auto, not {requested}"),
            });
        }
        resolved = stored;
    }
    match resolved {
        Precision::Auto => Ok(device::best_precision(device)),
        _ if resolved != requested => Ok(resolved),
        _ => device::check_precision(requested, device),
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
                "holds no EMA weights: expected ema_model.safetensors or ema_model.bin; or use the plain weights (the option `weights`)",
            )
        }),
    }
}
