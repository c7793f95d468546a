//! Opening a model from a checkpoint's files.

use std::cell::Cell;
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
use crate::progress::{Observer, Progress, Stage, Step};
use crate::residual::ResidualDiffusion;
use crate::scales;
use crate::text::{ModelId, Qwen2, TextEncoder, TextSource, TextTokenizer};
use crate::threads::Threads;
use crate::transformer::Transformer;
use crate::visual::{DecoderMemory, VisualTokenizer};
use crate::weights::{self, Checkpoint, Fingerprint, Loader, TRANSFORMER, WeightSet};

/// Maximum length of a model's name in characters.
const MAX_NAME: usize = 255;

impl Hart {
    /// Opens a checkpoint's root folder, which contains `llm` and `tokenizer`.
    ///
    /// # Errors
    ///
    /// - [`Error::Checkpoint`], [`Error::Config`], [`Error::Weights`], [`Error::NotFinite`] or [`Error::Io`] naming the file.
    /// - [`Error::Device`], [`Error::Memory`], [`Error::Threads`], or [`Error::Request`] if an option is invalid.
    /// - [`Error::State`] if this process was forked during a call.
    /// - [`Error::Cancelled`] by [`OpenOptions::cancel_token`].
    pub fn open(path: impl AsRef<Path>, options: OpenOptions) -> Result<Self> {
        Self::open_with(path, options, &mut ())
    }

    /// Opens a checkpoint's root folder and reports every loaded tensor to an observer, which may cancel. The observer is called on the
    /// current thread, with events of [`Step::Tensor`].
    ///
    /// # Errors
    ///
    /// Like [`Self::open`].
    pub fn open_with(path: impl AsRef<Path>, options: OpenOptions, observer: &mut dyn Observer) -> Result<Self> {
        with_default_float_state(|| Self::open_in(&options.disk(), path.as_ref(), &options, observer))
    }

    /// Opens a checkpoint whose files are in memory. f32 tensors are not copied.
    ///
    /// # Errors
    ///
    /// Like [`Self::open`]. Torch's `.bin` files cannot be read from memory.
    pub fn from_files(files: Files, options: OpenOptions) -> Result<Self> {
        Self::from_files_with(files, options, &mut ())
    }

    /// Opens a checkpoint whose files are in memory and reports to an observer like [`Self::open_with`].
    ///
    /// # Errors
    ///
    /// Like [`Self::from_files`].
    pub fn from_files_with(files: Files, options: OpenOptions, observer: &mut dyn Observer) -> Result<Self> {
        with_default_float_state(|| Self::open_in(&Storage::Memory(files), Path::new(""), &options, observer))
    }

    fn open_in(storage: &Storage, root: &Path, options: &OpenOptions, observer: &mut dyn Observer) -> Result<Self> {
        let _call = Call::begin()?;
        let threads = Threads::new(options.threads, options.parallel)?;
        // A model is large, so it is not moved through the calling thread's stack.
        let model = threads.observe(observer, |observer| {
            let device = options.device.find()?;
            let layout = Layout::find(storage, root, options.text_model.as_deref())?;
            let id = ModelId::new(root);
            let load = || Model::load(id, storage, layout, options, device.clone(), threads.clone(), observer).map(Arc::new);
            device.catch_backend_panic(load)
        })?;
        Ok(Self { model })
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
        observer: &mut dyn Observer,
    ) -> Result<Self> {
        let device = &open.device;
        let checkpoint = transformer_weights(storage, &layout.transformer, options.weight_set)?;
        let tokenizer = TextTokenizer::open_in(storage, &layout.text, layout.config.text.vocab_size)?;
        let text_checkpoint = Checkpoint::open_in(storage, &layout.text)?;
        let visual_checkpoint = Checkpoint::open_in(storage, &layout.visual)?;
        let checkpoints = [&text_checkpoint, &checkpoint, &visual_checkpoint];
        let fingerprint = fingerprint(storage, &layout, checkpoints)?;
        let config = layout.config;
        let precision = resolve_precision(options.precision, [&checkpoint, &text_checkpoint], device)?;
        let budget = budget(&config, checkpoints, precision, options, device);
        budget.allow_opening(&config)?;
        options.parallel.map_or(Ok(()), |parallel| budget.allow_at_once(&config, parallel))?;
        let counts = parameter_counts(&config, device);
        let mut progress = Progress::new(observer, options.cancel.as_ref(), counts.iter().sum::<u64>() as f64);
        progress.check()?;
        let (stage, mut loaded) = (Cell::new(Stage::Text), 0);
        let mut report = |parameters: u64| {
            loaded += 1;
            progress.enter(stage.get());
            progress.report(Step::Tensor { tensor: loaded, tensors: counts.len() }, parameters as f64)
        };
        let source = TextSource::new(text_checkpoint, &config.text, device, precision);
        let (text, text_report) = TextEncoder::load(tokenizer, source, options.strict, budget.text_memory(), &mut report)?;
        stage.set(Stage::Decode);
        let (visual, visual_report) =
            VisualTokenizer::load(&visual_checkpoint, &config.visual, options, device, precision, &mut report)?;
        let mut loader = Loader::new(&checkpoint, &TRANSFORMER).with_precision(precision).with_progress(&mut report);
        stage.set(Stage::Transformer);
        let transformer = loader.load(Transformer::init(&config, device), "transformer", device)?.frozen();
        stage.set(Stage::Residual);
        let residual = loader.load(ResidualDiffusion::init(&config, device), "residual", device)?;
        let reports = vec![text_report, loader.finish(options.strict)?, visual_report];
        kernels::reserve_pool(device, memory::largest_map(&config, precision));
        let released_after_sampling = if budget.release.transformer { checkpoint.mapped().to_vec() } else { Vec::new() };
        let mut model = Self {
            name: folder_name(id.name()),
            id,
            fingerprint,
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
        };
        model.threads = model.threads.clone().shared_by(model.parallel(options)?);
        Ok(model)
    }
}

/// Returns the name of a checkpoint's folder, without the path: image files contain it, and the path may be private.
fn folder_name(root: &str) -> String {
    let root = Path::new(root).canonicalize().unwrap_or_default();
    root.file_name().unwrap_or_default().to_string_lossy().chars().take(MAX_NAME).collect()
}

/// Returns the number of parameters of each tensor of the model.
fn parameter_counts(config: &Config, device: &Device) -> Vec<u64> {
    [
        weights::parameter_counts(&Qwen2::init(&config.text, device)),
        weights::parameter_counts(&VisualTokenizer::init(&config.visual, device)),
        weights::parameter_counts(&Transformer::init(config, device)),
        weights::parameter_counts(&ResidualDiffusion::init(config, device)),
    ]
    .concat()
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
                    format!(
                        "holds {stored} weights, but the transformer is converted to {resolved}: expected the same precision in both; \
                         convert the original model again, as a whole"
                    )
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

/// Returns the fingerprint of the model in the parts of a checkpoint: text model, transformer and visual tokenizer.
fn fingerprint(storage: &Storage, layout: &Layout, checkpoints: [&Checkpoint; 3]) -> Result<String> {
    let mut fingerprint = Fingerprint::new();
    let contents = |folder: &Path, file: &str| Ok::<_, Error>(storage.contents(&folder.join(file))?.0);
    let folders = [&layout.text, &layout.transformer, &layout.visual];
    for ((name, folder), checkpoint) in ["text", "transformer", "visual"].into_iter().zip(folders).zip(checkpoints) {
        fingerprint.text(name, Some(&contents(folder, "config.json")?));
        fingerprint.weights(name, checkpoint)?;
    }
    let generation = "generation_config.json";
    let has_generation = storage.is_file(&layout.transformer.join(generation));
    let text = has_generation.then(|| contents(&layout.transformer, generation)).transpose()?;
    fingerprint.text(generation, text.as_deref());
    fingerprint.text("system prompt", layout.system_prompt.as_deref().map(str::as_bytes));
    fingerprint.sample("tokenizer.json", &contents(&layout.text, "tokenizer.json")?);
    Ok(fingerprint.finish())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::DeviceKind;
    use crate::progress::{CancelToken, Control, Event};

    #[test]
    fn opening_reports_every_tensor_and_can_be_cancelled() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-a");
        for threads in [None, Some(1)] {
            let options = || OpenOptions::new().device(DeviceKind::Cpu).threads(threads);
            let (this_thread, mut events) = (std::thread::current().id(), Vec::new());
            let mut observer = |event: &Event<'_>| {
                assert_eq!(std::thread::current().id(), this_thread);
                assert!(!event.has_preview());
                let Step::Tensor { tensor, tensors } = event.step else { panic!("{event:?}") };
                events.push((event.stage, tensor, tensors, event.fraction));
                Control::Continue
            };
            let hart = Hart::open_with(&folder, options(), &mut observer).unwrap();
            let loaded: usize = hart.reports().iter().map(|report| report.loaded).sum();
            let tensors: Vec<usize> = events.iter().map(|(_, tensor, ..)| *tensor).collect();
            assert_eq!(tensors, (1..=loaded).collect::<Vec<usize>>());
            assert!(events.iter().all(|(_, _, tensors, _)| *tensors == loaded));
            assert!(events.windows(2).all(|pair| pair[0].3 <= pair[1].3) && events.last().unwrap().3 == 1.0);
            let mut stages: Vec<Stage> = events.iter().map(|(stage, ..)| *stage).collect();
            stages.dedup();
            assert_eq!(stages, [Stage::Text, Stage::Decode, Stage::Transformer, Stage::Residual]);

            let (mut seen, token) = (0, CancelToken::new());
            let mut cancel = |_: &Event<'_>| {
                seen += 1;
                if seen == 3 { Control::Cancel } else { Control::Continue }
            };
            assert!(Hart::open_with(&folder, options(), &mut cancel).unwrap_err().is_cancelled());
            assert_eq!(seen, 3);
            let mut seen = 0;
            let mut use_token = |_: &Event<'_>| {
                seen += 1;
                token.cancel();
                Control::Continue
            };
            let cancellable = || options().cancel_token(token.clone());
            assert!(Hart::open_with(&folder, cancellable(), &mut use_token).unwrap_err().is_cancelled());
            assert!(Hart::open_with(&folder, cancellable(), &mut use_token).unwrap_err().is_cancelled());
            assert_eq!(seen, 1);
            token.reset();
            assert!(Hart::open(&folder, cancellable()).is_ok());
        }
    }
}
