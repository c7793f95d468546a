//! The files of a checkpoint, in folders or in memory, and the writing of files.

mod content;
mod map;
mod name;
mod write;

pub(crate) use content::CHECKED_BYTES;
pub use content::{check_download, decode_text};
pub(crate) use map::{Mapped, map_file};
pub use name::{check_file_name, windows_name_problem};
pub use write::{NewFolder, replace_file, write_file};

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use bytes::Bytes;

use crate::error::{Error, Result};

/// A checkpoint's files in memory, for programs that embed or download a model.
///
/// ```
/// use hart_core::{Files, Hart, OpenOptions};
///
/// # fn main() -> Result<(), hart_core::Error> {
/// # let folder = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tiny-a"));
/// # // A published package has no weights to open.
/// # if std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml.orig")).exists() { return Ok(()) }
/// let mut files = Files::new();
/// for name in ["config.json", "model.safetensors"] {
///     for part in ["llm", "tokenizer", "text"] {
///         files.insert(format!("{part}/{name}"), std::fs::read(folder.join(part).join(name)).unwrap())?;
///     }
/// }
/// for name in ["text/tokenizer.json", "text/tokenizer_config.json"] {
///     files.insert(name, std::fs::read(folder.join(name)).unwrap())?;
/// }
/// let hart = Hart::from_files(files, OpenOptions::new())?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, Default)]
pub struct Files(BTreeMap<PathBuf, Bytes>);

impl Files {
    /// Creates an empty set of files.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a file under its name relative to the checkpoint's root, such as `llm/config.json`. Clones, and models opened from the files,
    /// share the contents.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] if the name is empty, absolute, contains `..`, or already exists.
    pub fn insert(&mut self, name: impl AsRef<Path>, contents: impl Into<Vec<u8>>) -> Result<()> {
        self.insert_bytes(name.as_ref(), || Bytes::from(contents.into()))
    }

    /// Adds a file whose contents another object owns, without a copy. The object is dropped when the files, their clones and the models
    /// opened from them no longer need the contents, or at once if adding the file fails. Weights are read in place if the contents are
    /// aligned to 8 bytes.
    ///
    /// ```
    /// # let mut files = hart_core::Files::new();
    /// static CONFIG: &[u8] = b"{}";
    /// files.insert_owner("llm/config.json", CONFIG)?;
    /// # Ok::<(), hart_core::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Like [`Self::insert`].
    pub fn insert_owner(&mut self, name: impl AsRef<Path>, owner: impl AsRef<[u8]> + Send + 'static) -> Result<()> {
        self.insert_bytes(name.as_ref(), || Bytes::from_owner(owner))
    }

    fn insert_bytes(&mut self, name: &Path, contents: impl FnOnce() -> Bytes) -> Result<()> {
        let invalid = |problem: &str| Err(Error::request("file", format!("`{}` {problem}", name.display())));
        let plain = name.components().all(|part| matches!(part, Component::Normal(_)));
        if name.as_os_str().is_empty() || !plain {
            return invalid("is not a path below the checkpoint's root, such as llm/config.json");
        }
        if self.0.contains_key(name) {
            return invalid("already exists");
        }
        self.0.insert(name.to_path_buf(), contents());
        Ok(())
    }
}

/// Where the files of a checkpoint are stored.
#[derive(Clone, Debug)]
pub(crate) enum Storage {
    /// The file system. Weights are mapped or read.
    Disk { memory_map: bool },
    /// Files in memory.
    Memory(Files),
}

impl Storage {
    /// Returns whether a regular file with this path exists.
    pub(crate) fn is_file(&self, path: &Path) -> bool {
        match self {
            Self::Disk { .. } => path.is_file(),
            Self::Memory(files) => files.0.contains_key(path),
        }
    }

    /// Returns the names of the files in a folder, sorted. Names that are not UTF-8 are left out.
    pub(crate) fn names(&self, folder: &Path) -> Vec<String> {
        let file_name = |path: &Path| path.file_name().and_then(|name| name.to_str()).map(str::to_string);
        let mut names: Vec<String> = match self {
            Self::Disk { .. } => {
                let paths = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
                paths.filter(|path| path.is_file()).filter_map(|path| file_name(&path)).collect()
            }
            Self::Memory(files) => {
                files.0.keys().filter(|path| path.parent() == Some(folder)).filter_map(|p| file_name(p)).collect()
            }
        };
        names.sort();
        names
    }

    /// Reads a file of at most `limit` bytes. Fails if it is what a failed download leaves, which includes an empty file if
    /// `may_be_empty` is false.
    pub(crate) fn read(&self, path: &Path, limit: u64, may_be_empty: bool) -> Result<Vec<u8>> {
        let bytes = match self {
            Self::Disk { .. } => read_limited(path, limit)?,
            Self::Memory(files) => {
                let bytes = files.find(path)?;
                check_size(path, bytes.len(), limit)?;
                bytes.to_vec()
            }
        };
        if !(may_be_empty && bytes.is_empty()) {
            check_download(path, &bytes)?;
        }
        Ok(bytes)
    }

    /// Returns the contents of a file of any size, and its mapping if it has one. Contents that are in memory or can be mapped are
    /// not copied. Fails if the contents are what a failed download leaves.
    pub(crate) fn contents(&self, path: &Path) -> Result<(Bytes, Option<Mapped>)> {
        let (bytes, mapped) = match self {
            Self::Memory(files) => (files.find(path)?.clone(), None),
            Self::Disk { memory_map } => {
                require_regular_file(path)?;
                match if *memory_map { map_file(path).map_err(Error::io(path))? } else { None } {
                    Some(mapped) => (Bytes::from_owner(mapped.clone()), Some(mapped)),
                    None => (std::fs::read(path).map_err(Error::io(path))?.into(), None),
                }
            }
        };
        check_download(path, &bytes[..bytes.len().min(CHECKED_BYTES)])?;
        Ok((bytes, mapped))
    }
}

impl Files {
    fn find(&self, path: &Path) -> Result<&Bytes> {
        self.0.get(path).ok_or_else(|| Error::checkpoint(path, "no such file among those in memory"))
    }
}

/// Fails if the path is not a regular file: a read from a pipe may block, and a device may never end.
pub(crate) fn require_regular_file(path: &Path) -> Result<()> {
    if path.metadata().map_err(Error::io(path))?.is_file() {
        Ok(())
    } else {
        Err(Error::checkpoint(path, "expected a regular file"))
    }
}

/// Returns the start of a file that another library reads, after the same checks as [`Storage::contents`].
pub(crate) fn check_start(path: &Path) -> Result<Vec<u8>> {
    require_regular_file(path)?;
    let mut start = Vec::new();
    let file = File::open(path).map_err(Error::io(path))?;
    file.take(CHECKED_BYTES as u64).read_to_end(&mut start).map_err(Error::io(path))?;
    check_download(path, &start)?;
    Ok(start)
}

/// Reads a regular file of at most `limit` bytes.
pub(crate) fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>> {
    require_regular_file(path)?;
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(Error::io(path))?;
    file.take(limit + 1).read_to_end(&mut bytes).map_err(Error::io(path))?;
    check_size(path, bytes.len(), limit)?;
    Ok(bytes)
}

fn check_size(path: &Path, bytes: usize, limit: u64) -> Result<()> {
    if bytes as u64 <= limit {
        return Ok(());
    }
    Err(Error::checkpoint(path, format!("has more than {limit} bytes, the limit for such a file")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lie_below_the_root() {
        let mut files = Files::new();
        for name in ["", "/etc/passwd", "../x", "llm/../../x", "."] {
            assert!(files.insert(name, []).unwrap_err().to_string().contains("below"), "{name}");
        }
        files.insert("llm/config.json", *b"{}").unwrap();
        assert!(files.insert("llm/config.json", []).unwrap_err().to_string().contains("already"));
        let storage = Storage::Memory(files);
        assert!(storage.is_file(&Path::new("").join("llm").join("config.json")));
        assert_eq!(storage.read(Path::new("llm/config.json"), 2, false).unwrap(), b"{}");
        assert!(storage.read(Path::new("llm/config.json"), 1, false).unwrap_err().to_string().contains("more than 1 bytes"));
        assert!(storage.contents(Path::new("llm/x")).unwrap_err().to_string().contains("no such file"));
    }

    #[test]
    fn owners_are_dropped_once() {
        struct Owner {
            contents: [u8; 2],
            _count: std::sync::Arc<()>,
        }
        impl AsRef<[u8]> for Owner {
            fn as_ref(&self) -> &[u8] {
                &self.contents
            }
        }
        let count = std::sync::Arc::new(());
        let owners = || std::sync::Arc::strong_count(&count) - 1;
        let owner = |contents| Owner { contents, _count: count.clone() };
        let mut files = Files::new();
        files.insert_owner("a", owner(*b"{}")).unwrap();
        assert!(files.insert_owner("a", owner(*b"[]")).is_err());
        assert_eq!(owners(), 1);
        let clone = files.clone();
        drop(files);
        assert_eq!((owners(), &**clone.find(Path::new("a")).unwrap()), (1, &b"{}"[..]));
        drop(clone);
        assert_eq!(owners(), 0);
    }
}
