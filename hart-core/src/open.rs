//! How a checkpoint is opened, and where its parts lie (spec section 0).

use std::path::{Path, PathBuf};

use burn::prelude::Device;

use crate::config::{Config, GenerationConfig, TextConfig, TransformerConfig, VisualConfig};
use crate::device::{DeviceKind, Precision};
use crate::error::{Error, Result};
use crate::files::Storage;
use crate::text::{Qwen2, TextEncoder, TextTokenizer};
use crate::visual::VisualTokenizer;
use crate::weights::{Checkpoint, Loader, Report, TEXT, VISUAL, WeightSet};

/// Folder names under which a text model is looked for, in the checkpoint's root and beside it. The second is the published one's.
const TEXT_FOLDERS: [&str; 2] = ["text", "Qwen2-VL-1.5B-Instruct"];
/// Longest system prompt file that is read, in bytes.
const MAX_SYSTEM_PROMPT: u64 = 1 << 20;

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
    pub(crate) max_memory: Option<u64>,
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
            max_memory: None,
        }
    }
}

impl OpenOptions {
    /// Creates the default options: the best device, EMA weights if there are any, mapped files, and no unused tensors.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the device.
    pub fn device(mut self, device: DeviceKind) -> Self {
        self.device = device;
        self
    }

    /// Sets the precision of weights and activations.
    pub fn precision(mut self, precision: Precision) -> Self {
        self.precision = precision;
        self
    }

    /// Sets the folder of the text model. `None` looks for `text` or `Qwen2-VL-1.5B-Instruct`, in the checkpoint's root or next to it.
    pub fn text_model(mut self, folder: impl Into<Option<PathBuf>>) -> Self {
        self.text_model = folder.into();
        self
    }

    /// Selects the weights of the transformer.
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

    /// Sets the number of threads of the model's own pool. `None` uses rayon's current pool: all cores, unless the program has configured
    /// it. Images do not depend on the number.
    pub fn threads(mut self, threads: impl Into<Option<usize>>) -> Self {
        self.threads = threads.into();
        self
    }

    /// Limits the memory of the model in bytes. Opening or a run whose estimate exceeds the limit fails before any work. `None`, the
    /// default, sets no limit.
    pub fn max_memory(mut self, bytes: impl Into<Option<u64>>) -> Self {
        self.max_memory = bytes.into();
        self
    }
}

impl OpenOptions {
    pub(crate) fn disk(&self) -> Storage {
        Storage::Disk { memory_map: self.memory_map }
    }
}

impl TextEncoder {
    /// Opens a text model's folder, with `config.json`, weights, `tokenizer.json` and `tokenizer_config.json`.
    ///
    /// # Errors
    ///
    /// A file is missing or damaged, or the tensors don't fit the configuration.
    pub fn open(folder: &Path, options: &OpenOptions, device: &Device) -> Result<(Self, Report)> {
        let storage = options.disk();
        let config = TextConfig::read_in(&storage, &folder.join("config.json"))?;
        Self::open_in(&storage, folder, &config, options, device, Precision::F32)
    }

    pub(crate) fn open_in(
        storage: &Storage,
        folder: &Path,
        config: &TextConfig,
        options: &OpenOptions,
        device: &Device,
        arriving: Precision,
    ) -> Result<(Self, Report)> {
        let tokenizer = TextTokenizer::open_in(storage, folder, config.vocab_size)?;
        let checkpoint = Checkpoint::open_in(storage, folder)?;
        let mut loader = Loader::new(&checkpoint, &TEXT);
        let encoder = loader.load(Qwen2::init(config, device).with_precision(arriving), "", device)?;
        Ok((Self::new(tokenizer, encoder), loader.finish(options.strict)?))
    }
}

impl VisualTokenizer {
    /// Opens a visual tokenizer's folder, with `config.json` and weights.
    ///
    /// # Errors
    ///
    /// A file is missing or damaged, or the tensors don't fit the configuration.
    pub fn open(folder: &Path, options: &OpenOptions, device: &Device) -> Result<(Self, Report)> {
        let storage = options.disk();
        let config = VisualConfig::read_in(&storage, &folder.join("config.json"))?;
        Self::open_in(&storage, folder, &config, options, device, Precision::F32)
    }

    pub(crate) fn open_in(
        storage: &Storage,
        folder: &Path,
        config: &VisualConfig,
        options: &OpenOptions,
        device: &Device,
        arriving: Precision,
    ) -> Result<(Self, Report)> {
        let checkpoint = Checkpoint::open_in(storage, folder)?;
        let mut loader = Loader::new(&checkpoint, &VISUAL);
        if !config.has_phi() {
            loader.overlook("quantize.quant_resi");
        }
        let tokenizer = loader.load(Self::init(config, device).with_precision(arriving), "", device)?;
        Ok((tokenizer, loader.finish(options.strict)?))
    }
}

/// Where a checkpoint's parts lie, with the configuration that was read there.
pub(crate) struct Layout {
    pub(crate) transformer: PathBuf,
    pub(crate) visual: PathBuf,
    pub(crate) text: PathBuf,
    pub(crate) config: Config,
    pub(crate) system_prompt: Option<String>,
}

impl Layout {
    /// Finds the parts below a checkpoint's root and reads their configuration.
    pub(crate) fn find(storage: &Storage, root: &Path, text_model: Option<&Path>) -> Result<Self> {
        if matches!(storage, Storage::Disk { .. }) && !root.is_dir() {
            return Err(Error::checkpoint(
                root,
                "no such folder: pass the checkpoint's root folder, which holds llm and tokenizer",
            ));
        }
        let transformer = root.join("llm");
        let config_file = part(storage, &transformer, "pass the checkpoint's root folder, which holds llm and tokenizer")?;
        let (transformer_config, residual) = TransformerConfig::read_in(storage, &config_file)?;
        let visual = visual_folder(storage, root, &transformer_config);
        let visual_config = VisualConfig::read_in(storage, &part(storage, &visual, "the visual tokenizer belongs beside llm")?)?;
        let text = text_folder(storage, root, text_model)?;
        let advice = "name the text model's folder (the option text model)";
        let text_config = TextConfig::read_in(storage, &part(storage, &text, advice)?)?;
        let generation = transformer.join("generation_config.json");
        let generation = match storage.is_file(&generation) {
            true => GenerationConfig::read_in(storage, &generation)?,
            false => GenerationConfig::default(),
        };
        let config = Config { text: text_config, transformer: transformer_config, residual, visual: visual_config, generation };
        config.check(&config_file)?;
        let system_prompt = system_prompt(storage, &transformer)?;
        Ok(Self { transformer, visual, text, config, system_prompt })
    }
}

impl Config {
    /// Reads and checks the configuration files of a checkpoint's root folder.
    ///
    /// # Errors
    ///
    /// A file is missing, or [`Error::Config`] names the first value that won't do.
    pub fn open(folder: &Path) -> Result<Self> {
        Ok(Layout::find(&Storage::Disk { memory_map: false }, folder, None)?.config)
    }
}

/// The part's `config.json`.
fn part(storage: &Storage, folder: &Path, advice: &str) -> Result<PathBuf> {
    let file = folder.join("config.json");
    if storage.is_file(&file) { Ok(file) } else { Err(Error::checkpoint(&file, format!("no such file: {advice}"))) }
}

/// `vae_path` is the training machine's: it counts where it leads somewhere here, else the folder `tokenizer` beside `llm` does.
fn visual_folder(storage: &Storage, root: &Path, config: &TransformerConfig) -> PathBuf {
    let named = config.visual_path.iter().flat_map(|path| [root.join(path), root.join("llm").join(path)]);
    let (usual, llm) = (root.join("tokenizer"), root.join("llm"));
    // Nothing, or a dot, would lead to the transformer itself.
    let mut others = named.into_iter().filter(|folder| !folder.components().eq(llm.components()));
    others.find(|folder| storage.is_file(&folder.join("config.json"))).unwrap_or(usual)
}

fn text_folder(storage: &Storage, root: &Path, text_model: Option<&Path>) -> Result<PathBuf> {
    if let Some(folder) = text_model {
        return Ok(folder.to_path_buf());
    }
    let beside = match storage {
        Storage::Disk { .. } => root.canonicalize().map_err(Error::io(root))?.parent().map(Path::to_path_buf),
        Storage::Memory(_) => None,
    };
    let places = std::iter::once(root.to_path_buf()).chain(beside);
    let mut folders = places.flat_map(|place| TEXT_FOLDERS.map(|name| place.join(name)));
    folders.find(|folder| storage.is_file(&folder.join("config.json"))).ok_or_else(|| {
        let names = TEXT_FOLDERS.join(" or ");
        Error::checkpoint(
            root,
            format!("no text model: expected a folder {names} there or beside it, or name its folder (the option text model)"),
        )
    })
}

fn system_prompt(storage: &Storage, folder: &Path) -> Result<Option<String>> {
    let path = folder.join("system_prompt.txt");
    let there = match storage {
        // Whatever is there must do: a pipe is refused, not overlooked.
        Storage::Disk { .. } => path.exists(),
        Storage::Memory(_) => storage.is_file(&path),
    };
    if !there {
        return Ok(None);
    }
    let bytes = storage.read(&path, MAX_SYSTEM_PROMPT)?;
    let text = String::from_utf8(bytes).map_err(|_| Error::checkpoint(&path, "not UTF-8 text"))?;
    Ok(Some(text).filter(|t| !t.is_empty()))
}
