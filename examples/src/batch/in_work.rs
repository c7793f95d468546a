//! The images in work, which a process that is killed leaves in a file.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::id::Id;
use crate::shard::Shard;

/// The ids of the images in work, in a hidden file.
///
/// An image during which a process was killed is generated after all others: a prompt that always kills its process, for example because
/// the memory is exhausted, doesn't keep the others waiting.
#[derive(Debug)]
pub struct InWork {
    path: PathBuf,
    ids: Mutex<Ids>,
}

#[derive(Debug)]
struct Ids {
    /// Images in work when an earlier process was killed.
    interrupted: BTreeSet<String>,
    running: Vec<String>,
}

impl InWork {
    /// Reads the file that the last process of a shard has left, if it was killed.
    ///
    /// # Errors
    ///
    /// Returns a message if the file can't be read.
    pub fn open(folder: &Path, shard: Shard) -> Result<Self, String> {
        let path = folder.join(format!(".batch-{shard}.work"));
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            // A crash of the system may leave any bytes.
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::InvalidData) => String::new(),
            Err(e) => return Err(format!("{}: {e}", path.display())),
        };
        let interrupted = text.lines().filter(|line| Id::new(line).is_ok()).map(str::to_string).collect();
        Ok(Self { path, ids: Mutex::new(Ids { interrupted, running: Vec::new() }) })
    }

    /// Returns whether a process was killed during an image.
    pub fn was_interrupted(&self, id: &Id) -> bool {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner).interrupted.contains(id.as_str())
    }

    /// Adds an image.
    ///
    /// # Errors
    ///
    /// Returns a message if the file can't be written.
    pub fn begin(&self, id: &Id) -> Result<(), String> {
        let mut ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        ids.running.push(id.as_str().into());
        self.write(&ids)
    }

    /// Removes an image, which is finished or has failed. The file follows when the next image is added.
    pub fn end(&self, id: &Id) {
        let mut ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        ids.running.retain(|other| other != id.as_str());
        ids.interrupted.remove(id.as_str());
    }

    /// Writes the file when no image is in work. It is removed if no image was interrupted.
    ///
    /// # Errors
    ///
    /// Returns a message if the file can't be written.
    pub fn close(&self) -> Result<(), String> {
        let ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        if !ids.interrupted.is_empty() || !ids.running.is_empty() {
            return self.write(&ids);
        }
        match fs::remove_file(&self.path) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(format!("{}: {e}", self.path.display())),
            _ => Ok(()),
        }
    }

    fn write(&self, ids: &Ids) -> Result<(), String> {
        let lines = ids.interrupted.iter().chain(&ids.running).map(|id| format!("{id}\n"));
        let text: String = lines.collect();
        // Not synced: only a process that is killed matters, not the system.
        File::create(&self.path)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .map_err(|e| format!("{}: {e}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interrupted_images_are_known_until_they_are_finished() {
        let folder = tempfile::tempdir().unwrap();
        let [a, b] = ["a", "b"].map(|text| Id::new(text).unwrap());
        let open = || InWork::open(folder.path(), Shard::ALL).unwrap();
        let first = open();
        first.begin(&a).unwrap();
        first.end(&a);
        first.begin(&b).unwrap();
        // The process is killed.
        let second = open();
        assert!(!second.was_interrupted(&a) && second.was_interrupted(&b));
        second.begin(&a).unwrap();
        // So is the next.
        let third = open();
        assert!(third.was_interrupted(&a) && third.was_interrupted(&b));
        third.begin(&a).unwrap();
        third.end(&a);
        // It is stopped.
        third.close().unwrap();
        let fourth = open();
        assert!(!fourth.was_interrupted(&a) && fourth.was_interrupted(&b));
        fourth.begin(&b).unwrap();
        fourth.end(&b);
        fourth.close().unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
