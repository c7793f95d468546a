//! Image files: written completely or not at all, and found again after a crash.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use hart_core::stages::SamplingParams;
use hart_core::{Hart, Image, Provenance, replace_file};
use tempfile::Builder;

use crate::ledger::names;
use crate::shard::Shard;
use crate::task::Task;

/// The last chunk of every PNG file.
const PNG_END: &[u8] = b"\0\0\0\0IEND\xaeB`\x82";

/// The folder of a batch, as one shard writes it.
#[derive(Debug)]
pub struct ImageFolder {
    path: PathBuf,
    shard: Shard,
}

/// A file that has the name of an image that is not done.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// There is none.
    Nothing,
    /// The image, which a process could not report before its end.
    Image,
    /// An incomplete file.
    Damaged,
    /// Another image, with the difference.
    Other(String),
    /// An image that lacks its prompt or its settings.
    Unknown,
}

impl ImageFolder {
    /// Creates the folder of a shard.
    pub fn new(path: &Path, shard: Shard) -> Self {
        Self { path: path.into(), shard }
    }

    /// Removes temporary files of processes that were killed.
    ///
    /// # Errors
    ///
    /// Returns a message if the folder can't be read, or a file can't be removed.
    pub fn remove_leftovers(&self) -> Result<(), String> {
        for name in names(&self.path)?.iter().filter(|name| name.starts_with(&self.temporary_prefix())) {
            let path = self.path.join(name);
            match fs::remove_file(&path) {
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(format!("{}: {e}", path.display())),
                _ => {}
            }
        }
        Ok(())
    }

    /// Returns the folder's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the start of the names of temporary files. Other shards may be running, and have other names.
    fn temporary_prefix(&self) -> String {
        format!(".batch-{}-", self.shard)
    }

    /// Writes a file. It is on disk, under its name, when this returns.
    ///
    /// # Errors
    ///
    /// Returns a message with the file's name.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), String> {
        let path = self.path.join(name);
        let error = |e: std::io::Error| format!("{}: {e}", path.display());
        // The crate's own files are private.
        let create = |path: &Path| File::create_new(path);
        let mut file = Builder::new().prefix(&self.temporary_prefix()).make_in(&self.path, create).map_err(error)?;
        file.as_file_mut().write_all(bytes).map_err(error)?;
        file.as_file().sync_all().map_err(error)?;
        replace_file(file.into_temp_path(), &path).map_err(|e| e.to_string())?;
        self.sync().map_err(error)
    }

    /// Writes the names of new files to disk. Windows does so by itself.
    pub fn sync(&self) -> std::io::Result<()> {
        if cfg!(unix) {
            match File::open(&self.path).and_then(|folder| folder.sync_all()) {
                // Some network file systems can't.
                Err(e) if !matches!(e.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }

    /// Looks for a file with the name of a task's image.
    ///
    /// # Errors
    ///
    /// Returns a message if the file can't be read.
    pub fn find(&self, task: &Task, hart: &Hart) -> Result<Found, String> {
        let path = self.path.join(task.id.file_name());
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Found::Nothing),
            Err(e) => return Err(format!("{}: {e}", path.display())),
        };
        Ok(compare(&bytes, task, hart, &hart.sampling(&task.settings.request())))
    }

    /// Returns the difference between an image that is done and the wanted one, if its file says so.
    pub fn difference(&self, task: &Task, hart: &Hart) -> Option<String> {
        let provenance = Image::open_png(self.path.join(task.id.file_name())).ok()?.provenance.filter(is_whole)?;
        task.settings.difference(&provenance, &hart.sampling(&task.settings.request()))
    }
}

/// Returns whether nothing was left out of the settings in a file.
fn is_whole(provenance: &Provenance) -> bool {
    let is_omitted = provenance.generation.as_ref().is_none_or(|generation| generation.system_prompt_omitted);
    !is_omitted && !provenance.prompt.is_empty()
}

/// Compares the contents of a file with the image of a task.
fn compare(bytes: &[u8], task: &Task, hart: &Hart, sampling: &SamplingParams) -> Found {
    if !bytes.ends_with(PNG_END) {
        return Found::Damaged;
    }
    let Ok(image) = Image::from_png(task.id.file_name(), bytes) else { return Found::Damaged };
    let side = hart.config().resolution();
    let Some((provenance, generation)) =
        image.provenance.as_ref().filter(|p| is_whole(p)).and_then(|p| Some((p, p.generation.as_ref()?)))
    else {
        return Found::Unknown;
    };
    let device = hart.device_kind().to_string();
    let of_run = [
        ("model", &generation.model_fingerprint, hart.fingerprint().to_string()),
        ("precision", &generation.precision, hart.precision().to_string()),
        ("device", &generation.device, device.split(':').next().unwrap_or_default().to_string()),
        ("version", &generation.version, env!("CARGO_PKG_VERSION").to_string()),
    ];
    let difference = of_run.into_iter().find(|(_, of_image, wanted)| *of_image != wanted);
    let difference = difference.map(|(name, of_image, wanted)| format!("{name} {of_image}, not {wanted}"));
    let difference = difference.or_else(|| {
        let size = |width: usize, height: usize| format!("size {width}x{height}");
        let (own, wanted) = (size(image.width(), image.height()), size(side, side));
        (own != wanted || generation.edit.is_some()).then(|| if own == wanted { "an edit of another image".into() } else { own })
    });
    difference.or_else(|| task.settings.difference(provenance, sampling)).map_or(Found::Image, Found::Other)
}
