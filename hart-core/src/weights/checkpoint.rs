//! A set of weights in one file or several shards, opened and indexed. Tensors are read on demand.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::SafeTensors;
use serde_json::Value;

use super::tensors::{ElementType, TensorBytes, TensorEntry, TensorInfo};
use super::wrappers::{is_of_adapter, torch_tensors, unwrapped_name};
use crate::config::Fields;
use crate::device::Precision;
use crate::error::{Error, Result};
use crate::files::{Mapped, Storage, check_start};

/// File names of the plain weights, in order of precedence. The `.index.json` files list shards.
const PLAIN_FILES: [&str; 4] =
    ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"];
/// File names of the EMA weights, in order of precedence.
const EMA_FILES: [&str; 5] = ["ema_model.safetensors", "ema_model.bin", "ema_model.pt", "ema_model.pth", "ema_model.ckpt"];
/// Endings of torch files under other names.
const TORCH_ENDINGS: [&str; 4] = ["bin", "pt", "pth", "ckpt"];
/// Beginnings of the names of files that do not hold plain weights, although they have the ending of torch files.
const OTHER_CONTENTS: [&str; 7] = ["ema_", "adapter_", "optimizer", "scheduler", "scaler", "rng_state", "training_args"];
/// First bytes of torch's zip files.
const TORCH_MAGIC: &[u8] = b"PK\x03\x04";
/// Maximum number of shards of a checkpoint.
const MAX_SHARDS: usize = 1024;

/// An opened set of weights.
pub struct Checkpoint {
    /// The file that was opened.
    path: PathBuf,
    tensors: BTreeMap<String, TensorEntry>,
    /// Names that share the tensor of another name.
    aliases: BTreeMap<String, String>,
    /// Parts that were removed from names.
    removed: BTreeSet<String>,
    /// Memory-mapped files.
    mapped: Vec<Mapped>,
}

impl std::fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Checkpoint({}, {} tensors)", self.path.display(), self.tensors.len())
    }
}

impl Checkpoint {
    /// Opens the plain weights in a folder. Files are memory-mapped if `memory_map`, else read into memory.
    ///
    /// # Errors
    ///
    /// [`Error::Checkpoint`] if there is no file of weights, or it is damaged; [`Error::Io`] if it cannot be read.
    pub fn open(folder: &Path, memory_map: bool) -> Result<Self> {
        Self::open_in(&Storage::Disk { memory_map }, folder)
    }

    pub(crate) fn open_in(storage: &Storage, folder: &Path) -> Result<Self> {
        match find(storage, folder, &PLAIN_FILES) {
            Some(path) => Self::open_file_in(storage, &path),
            None => Self::open_file_in(storage, &other_file(&storage.names(folder), folder)?),
        }
    }

    /// Opens the EMA weights in a folder. Returns `None` if it has none.
    ///
    /// # Errors
    ///
    /// [`Error::Checkpoint`] if the file is damaged; [`Error::Io`] if it cannot be read.
    pub fn open_ema(folder: &Path, memory_map: bool) -> Result<Option<Self>> {
        Self::open_ema_in(&Storage::Disk { memory_map }, folder)
    }

    pub(crate) fn open_ema_in(storage: &Storage, folder: &Path) -> Result<Option<Self>> {
        find(storage, folder, &EMA_FILES).map(|path| Self::open_file_in(storage, &path)).transpose()
    }

    /// Opens a file: safetensors, torch `.bin`, or the index of shards in either format.
    ///
    /// # Errors
    ///
    /// [`Error::Checkpoint`] if a file is damaged; [`Error::Io`] if it cannot be read.
    pub fn open_file(path: &Path, memory_map: bool) -> Result<Self> {
        Self::open_file_in(&Storage::Disk { memory_map }, path)
    }

    fn open_file_in(storage: &Storage, path: &Path) -> Result<Self> {
        let mut checkpoint = Self::empty(path);
        if path.extension().is_some_and(|e| e == "json") {
            for shard in shards(storage, path)? {
                checkpoint.add_file(storage, &shard)?;
            }
        } else {
            checkpoint.add_file(storage, path)?;
        }
        Ok(checkpoint)
    }

    fn empty(path: &Path) -> Self {
        let path = path.to_path_buf();
        Self { path, tensors: BTreeMap::new(), aliases: BTreeMap::new(), removed: BTreeSet::new(), mapped: Vec::new() }
    }

    /// Opens a safetensors file in memory. Errors refer to it as `name`.
    ///
    /// # Errors
    ///
    /// [`Error::Checkpoint`] if the file is damaged.
    pub fn from_safetensors(name: &Path, bytes: Vec<u8>) -> Result<Self> {
        let mut checkpoint = Self::empty(name);
        checkpoint.add_safetensors(name, bytes::Bytes::from(bytes))?;
        Ok(checkpoint)
    }

    /// Returns the file that was opened, or the name given to [`Self::from_safetensors`].
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the names of all tensors, sorted. Aliases of tied weights are not among them.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Returns the metadata of a tensor, or `None` if there is none of that name.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.entry(name).map(|entry| &entry.info)
    }

    /// Reads a tensor's values as f32, in row-major order.
    ///
    /// # Errors
    ///
    /// [`Error::Checkpoint`] if there is no such tensor or its elements are not floats; [`Error::NotFinite`] if a value is not finite;
    /// [`Error::Io`] if the file cannot be read.
    pub fn values(&self, name: &str) -> Result<Vec<f32>> {
        let Some(entry) = self.entry(name) else {
            return Err(Error::checkpoint(&self.path, format!("holds no tensor `{name}`")));
        };
        let data = entry.read(name, false)?;
        data.try_to_vec().map_err(|e| Error::checkpoint(&self.path, format!("tensor `{name}`: {e:?}")))
    }

    /// Returns the precision of the packed weights, if there are any.
    pub(crate) fn packed_precision(&self) -> Option<Precision> {
        self.tensors.values().find_map(TensorEntry::packed_precision)
    }

    /// Releases the memory of the mapped pages read so far.
    pub(super) fn release_pages(&self) {
        self.mapped.iter().for_each(Mapped::release);
    }

    /// Returns the memory-mapped files; none if the weights were read into memory.
    pub(crate) fn mapped(&self) -> &[Mapped] {
        &self.mapped
    }

    /// Returns the names and the tensors, sorted by name.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&str, &TensorEntry)> {
        self.tensors.iter().map(|(name, entry)| (name.as_str(), entry))
    }

    pub(super) fn entry(&self, name: &str) -> Option<&TensorEntry> {
        self.tensors.get(self.stored_name(name))
    }

    /// Returns the name under which a tensor is stored; another one if `name` is an alias.
    pub(super) fn stored_name<'a>(&'a self, name: &'a str) -> &'a str {
        if self.tensors.contains_key(name) { name } else { self.aliases.get(name).map_or(name, String::as_str) }
    }

    /// Returns the other names of a stored tensor, sorted.
    pub(super) fn aliases_of<'a>(&'a self, stored: &'a str) -> impl Iterator<Item = &'a str> {
        self.aliases.iter().filter(move |(_, of)| *of == stored).map(|(alias, _)| alias.as_str())
    }

    /// Returns the parts that were removed from names.
    pub(super) fn removed_parts(&self) -> &BTreeSet<String> {
        &self.removed
    }

    fn add_file(&mut self, storage: &Storage, path: &Path) -> Result<()> {
        if path.extension().is_some_and(|e| e == "safetensors") {
            let (bytes, mapped) = storage.contents(path)?;
            self.mapped.extend(mapped);
            return self.add_safetensors(path, bytes);
        }
        match storage {
            Storage::Disk { .. } => self.add_torch(path),
            Storage::Memory(_) => Err(Error::checkpoint(
                path,
                "torch files can't be read from memory: save its tensors as model.safetensors, or open it from a folder",
            )),
        }
    }

    fn add_safetensors(&mut self, path: &Path, bytes: bytes::Bytes) -> Result<()> {
        let damaged = |e| Error::checkpoint(path, format!("not a complete safetensors file ({e}): download it again"));
        if bytes.starts_with(TORCH_MAGIC) {
            return Err(Error::checkpoint(path, "is a torch file: rename it so that it ends in .bin"));
        }
        // Validate first that the tensors cover the file without gaps or overlaps.
        SafeTensors::deserialize(&bytes).map_err(damaged)?;
        let (header, metadata) = SafeTensors::read_metadata(&bytes).map_err(damaged)?;
        let data = header + size_of::<u64>();
        for (name, info) in metadata.tensors() {
            let tensor = TensorBytes::Buffer(bytes.slice(data + info.data_offsets.0..data + info.data_offsets.1));
            self.insert(path, &name, info.shape.clone(), info.dtype.into(), tensor)?;
        }
        // `safetensors.torch.save_model` stores tied weights once, and the other names in the metadata.
        for (alias, stored) in metadata.metadata().iter().flatten() {
            let stored = unwrapped_name(stored, &mut self.removed);
            if self.tensors.contains_key(&stored) {
                self.aliases.insert(unwrapped_name(alias, &mut self.removed), stored);
            }
        }
        Ok(())
    }

    fn add_torch(&mut self, path: &Path) -> Result<()> {
        let start = check_start(path)?;
        if start.get(8) == Some(&b'{') && start[4..8] == [0; 4] {
            return Err(Error::checkpoint(path, "is a safetensors file: rename it so that it ends in .safetensors"));
        }
        let size = path.metadata().map_err(Error::io(path))?.len();
        let tensors = torch_tensors(path, &mut self.removed).map_err(|e| {
            Error::checkpoint(path, format!("not a readable torch file ({e}): download it again, or convert it to safetensors"))
        })?;
        for (name, tensor) in tensors {
            // A view with strides of zero can have any size.
            if tensor.byte_len() as u64 > size {
                let problem = format!("tensor `{name}` claims {} bytes, the file has {size}: download it again", tensor.byte_len());
                return Err(Error::checkpoint(path, problem));
            }
            let (shape, element) = (tensor.shape().to_vec(), tensor.dtype().into());
            self.insert(path, &name, shape, element, TensorBytes::Torch(Arc::new(tensor)))?;
        }
        Ok(())
    }

    fn insert(&mut self, file: &Path, stored: &str, shape: Vec<usize>, element: ElementType, bytes: TensorBytes) -> Result<()> {
        if is_of_adapter(stored) {
            let problem = format!(
                "tensor `{stored}` is of a LoRA adapter that is not merged: merge it first (in PEFT, `merge_and_unload`), \
                 and save the merged model"
            );
            return Err(Error::checkpoint(file, problem));
        }
        let name = unwrapped_name(stored, &mut self.removed);
        let info = TensorInfo { file: file.to_path_buf(), shape };
        match self.tensors.insert(name.clone(), TensorEntry { info, element, bytes }) {
            None => Ok(()),
            Some(other) if other.info.file == file => {
                let problem = format!("has the tensor `{name}` under two names, one of them `{stored}`: keep one of the two");
                Err(Error::checkpoint(file, problem))
            }
            Some(other) => {
                let problem = format!("tensor `{name}` is also in {}: the shards don't belong together", other.info.file.display());
                Err(Error::checkpoint(file, problem))
            }
        }
    }
}

/// Returns the only torch file in a folder that has no weights under a usual name.
///
/// # Errors
///
/// [`Error::Checkpoint`] if there is none or several, naming the files to rename.
fn other_file(names: &[String], folder: &Path) -> Result<PathBuf> {
    let ends_in = |name: &str, endings: &[&str]| {
        let ending = Path::new(name).extension().and_then(|ending| ending.to_str());
        ending.is_some_and(|ending| endings.contains(&ending))
    };
    let weights = |endings: &[&str]| -> Vec<&str> {
        let is_plain = |name: &&str| !OTHER_CONTENTS.iter().any(|other| name.starts_with(other));
        names.iter().map(String::as_str).filter(|name| ends_in(name, endings)).filter(is_plain).collect()
    };
    let (torch, safetensors) = (weights(&TORCH_ENDINGS), weights(&["safetensors"]));
    let expected = format!("expected one of {}", PLAIN_FILES.join(", "));
    let problem = match (torch.as_slice(), safetensors.as_slice()) {
        ([only], []) => return Ok(folder.join(only)),
        ([], []) if names.iter().any(|name| name.starts_with("adapter_model.")) => {
            format!("holds a LoRA adapter without its model: merge it first (in PEFT, `merge_and_unload`); {expected}")
        }
        ([], []) => format!("holds no weights: {expected}"),
        (torch, safetensors) => {
            let found = [safetensors, torch].concat().join(", ");
            format!("holds no weights of a known name: {expected}; found {found}: rename the model's file to one of these names")
        }
    };
    Err(Error::checkpoint(folder, problem))
}

fn find(storage: &Storage, folder: &Path, names: &[&str]) -> Option<PathBuf> {
    names.iter().map(|name| folder.join(name)).find(|path| storage.is_file(path))
}

/// Returns the shards that an index lists, which are in its folder.
fn shards(storage: &Storage, index: &Path) -> Result<Vec<PathBuf>> {
    let fields = Fields::read(storage, index)?;
    let Some(Value::Object(map)) = fields.get("weight_map") else {
        return Err(fields.wrong("weight_map", "an object from tensor names to file names"));
    };
    let names: Option<BTreeSet<&str>> = map.values().map(Value::as_str).collect();
    // A path could lead out of the folder.
    let is_file_name = |name: &&str| Path::new(name).file_name().is_some_and(|n| n == *name);
    match names.filter(|names| (1..=MAX_SHARDS).contains(&names.len()) && names.iter().all(is_file_name)) {
        Some(names) => Ok(names.into_iter().map(|name| index.with_file_name(name)).collect()),
        None => Err(fields.wrong("weight_map", format!("names of 1 to {MAX_SHARDS} files in the same folder"))),
    }
}
