//! The images in work, which a process that is killed leaves in a file.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::id::Id;
use crate::ledger::Done;
use crate::shard::Shard;

/// The ids of the images in work, in a hidden file.
///
/// Images during which a process was killed are generated after all others and one by one, those first that were interrupted least: a
/// prompt that always kills its process, for example because the memory is exhausted, doesn't keep the others waiting.
#[derive(Debug)]
pub struct InWork {
    path: PathBuf,
    ids: Mutex<Ids>,
}

#[derive(Debug)]
struct Ids {
    /// Images in work when earlier processes were killed, with the number of these processes.
    interrupted: BTreeMap<String, u32>,
    running: Vec<String>,
}

impl InWork {
    /// Reads the file that the last process of a shard has left, if it was killed.
    ///
    /// # Errors
    ///
    /// Returns a message if the file can't be read.
    pub fn open(folder: &Path, shard: Shard, done: &Done) -> Result<Self, String> {
        let path = folder.join(format!(".batch-{shard}.work"));
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            // A crash of the system may leave any bytes.
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::InvalidData) => String::new(),
            Err(e) => return Err(format!("{}: {e}", path.display())),
        };
        let parse = |line: &str| {
            let (count, id) = line.split_once(' ')?;
            let id = Id::new(id).ok().filter(|id| done.get(id).is_none())?;
            Some((id.as_str().to_string(), count.parse().ok()?))
        };
        let interrupted = text.lines().filter_map(parse).collect();
        Ok(Self { path, ids: Mutex::new(Ids { interrupted, running: Vec::new() }) })
    }

    /// Returns the number of processes that were killed during an image.
    pub fn interruptions(&self, id: &Id) -> u32 {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner).interrupted.get(id.as_str()).copied().unwrap_or(0)
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

    /// Writes the file when no image is in work. It is removed if the batch is complete or no image was interrupted.
    ///
    /// # Errors
    ///
    /// Returns a message if the file can't be written.
    pub fn close(&self, is_complete: bool) -> Result<(), String> {
        let ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        let is_empty = ids.interrupted.is_empty() && ids.running.is_empty();
        if !is_complete && !is_empty {
            return self.write(&ids);
        }
        match fs::remove_file(&self.path) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(format!("{}: {e}", self.path.display())),
            _ => Ok(()),
        }
    }

    fn write(&self, ids: &Ids) -> Result<(), String> {
        let mut counts = ids.interrupted.clone();
        for id in &ids.running {
            *counts.entry(id.clone()).or_default() += 1;
        }
        let text: String = counts.iter().map(|(id, count)| format!("{count} {id}\n")).collect();
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
        let open = || InWork::open(folder.path(), Shard::ALL, &Done::default()).unwrap();
        let first = open();
        first.begin(&a).unwrap();
        first.end(&a);
        first.begin(&b).unwrap();
        // The process is killed.
        let second = open();
        assert_eq!((second.interruptions(&a), second.interruptions(&b)), (0, 1));
        second.begin(&b).unwrap();
        second.begin(&a).unwrap();
        // So is the next.
        let third = open();
        assert_eq!((third.interruptions(&a), third.interruptions(&b)), (1, 2));
        third.begin(&a).unwrap();
        third.end(&a);
        // It is stopped.
        third.close(false).unwrap();
        let fourth = open();
        assert_eq!((fourth.interruptions(&a), fourth.interruptions(&b)), (0, 2));
        fourth.begin(&b).unwrap();
        fourth.end(&b);
        fourth.close(false).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
