//! Tar files for WebDataset: an image and its JSON object for each id, and a number of images in each file.

use std::fs::{self, File};
use std::io::{BufReader, ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use hart_core::{Image, replace_file};
use serde_json::Value;
use tar::{Archive, Builder, Header};

use crate::ledger::{Done, Finished, Ledger, names};
use crate::shard::Shard;
use crate::store::ImageFolder;

/// Bytes of a block of a tar file.
const BLOCK: u64 = 512;

/// The tar files of a shard. A file gets its name when it is complete. Until then it has a temporary name, and a process that is killed
/// leaves images that the next one keeps.
pub struct TarFiles {
    folder: ImageFolder,
    shard: Shard,
    /// Number of images in a file.
    images: usize,
    state: Mutex<State>,
}

/// The file that is being written.
struct State {
    number: u64,
    file: Option<Builder<File>>,
    /// The images in the file.
    finished: Vec<Finished>,
}

/// The complete images at the start of a tar file.
#[derive(Debug, Default)]
struct Contents {
    finished: Vec<Finished>,
    /// Number of bytes up to the end of the last image.
    bytes: u64,
}

impl TarFiles {
    /// Opens the tar files of a shard. The images of a file that is not complete are done, and so are those of a file that could not be
    /// reported before a process was killed. `ledger` receives the latter; without one, nothing is written.
    ///
    /// # Errors
    ///
    /// Returns a message if a file can't be read or written.
    pub fn open(
        folder: ImageFolder,
        shard: Shard,
        images: usize,
        done: &mut Done,
        ledger: Option<&Ledger>,
    ) -> Result<Self, String> {
        let name = |number: u64| format!("shard-{shard}-{number:06}.tar");
        let prefix = format!("shard-{shard}-");
        let number_of = |other: &String| {
            let number = other.strip_prefix(&prefix)?.strip_suffix(".tar")?.parse().ok()?;
            (*other == name(number)).then_some(number)
        };
        let last = names(folder.path())?.iter().filter_map(number_of).max();
        if let Some(last) = last {
            let contents = read(&folder.path().join(name(last)), &name(last))?;
            for finished in &contents.finished {
                if done.get(&finished.id).is_none() {
                    ledger.map_or(Ok(()), |ledger| ledger.add(finished))?;
                    done.add(&finished.id, finished.digest);
                }
            }
        }
        let files = Self {
            state: Mutex::new(State { number: last.map_or(0, |last| last + 1), file: None, finished: Vec::new() }),
            folder,
            shard,
            images,
        };
        {
            let mut state = files.state.lock().unwrap_or_else(PoisonError::into_inner);
            let (partial, name) = (files.partial(state.number), files.name(state.number));
            let contents = read(&partial, &name)?;
            contents.finished.iter().for_each(|finished| done.add(&finished.id, finished.digest));
            if ledger.is_some() && partial.exists() {
                let error = |e: std::io::Error| format!("{}: {e}", partial.display());
                let mut file = File::options().write(true).open(&partial).map_err(error)?;
                // What follows was cut by the end of a process.
                file.set_len(contents.bytes).map_err(error)?;
                file.seek(SeekFrom::End(0)).map_err(error)?;
                state.file = Some(Builder::new(file));
            }
            state.finished = contents.finished;
        }
        Ok(files)
    }

    fn name(&self, number: u64) -> String {
        format!("shard-{}-{number:06}.tar", self.shard)
    }

    /// Returns the path of a file that is not complete.
    fn partial(&self, number: u64) -> PathBuf {
        self.folder.path().join(format!(".{}", self.name(number)))
    }

    /// Appends an image and its JSON object. The ledger receives the images of a file when it is complete.
    ///
    /// # Errors
    ///
    /// Returns a message if a file can't be written.
    pub fn save(&self, png: &[u8], mut object: Value, mut finished: Finished, ledger: &Ledger) -> Result<(), String> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.partial(state.number);
        let error = |e: std::io::Error| format!("{}: {e}", path.display());
        finished.file = self.name(state.number);
        if let (Value::Object(object), Value::Object(line)) = (&mut object, finished.to_json()) {
            object.extend(line);
        }
        let file = match &mut state.file {
            Some(file) => file,
            none => none.insert(Builder::new(File::create(&path).map_err(error)?)),
        };
        let start = file.get_mut().stream_position().map_err(error)?;
        let id = finished.id.as_str();
        let appended = append(file, &format!("{id}.png"), png)
            .and_then(|()| append(file, &format!("{id}.json"), object.to_string().as_bytes()))
            .and_then(|()| file.get_ref().sync_data());
        if let Err(e) = appended {
            // The next image, if there is one, must follow a complete one.
            let file = file.get_mut();
            let _ = file.set_len(start).and_then(|()| file.seek(SeekFrom::Start(start)));
            return Err(error(e));
        }
        state.finished.push(finished);
        if state.finished.len() >= self.images { self.complete(&mut state, ledger) } else { Ok(()) }
    }

    /// Completes the last file, which may have fewer images.
    ///
    /// # Errors
    ///
    /// Returns a message if a file can't be written.
    pub fn finish(&self, ledger: &Ledger) -> Result<(), String> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.finished.is_empty() { Ok(()) } else { self.complete(&mut state, ledger) }
    }

    fn complete(&self, state: &mut State, ledger: &Ledger) -> Result<(), String> {
        let (partial, name) = (self.partial(state.number), self.name(state.number));
        let error = |e: std::io::Error| format!("{}: {e}", partial.display());
        let Some(builder) = state.file.take() else { return Ok(()) };
        // Writes the end of the file.
        let file = builder.into_inner().map_err(error)?;
        file.sync_all().map_err(error)?;
        drop(file);
        replace_file(&partial, self.folder.path().join(name)).map_err(|e| e.to_string())?;
        self.folder.sync().map_err(error)?;
        state.number += 1;
        state.finished.drain(..).try_for_each(|finished| ledger.add(&finished))
    }
}

/// Checks that no other run has images of a shard in a tar file that is not complete, where nothing else sees them. `continued` is the
/// shard whose tar files are continued, if there is one.
///
/// # Errors
///
/// Returns a message that names the file.
pub fn check_incomplete(folder: &Path, shard: Shard, continued: Option<Shard>) -> Result<(), String> {
    let shard_of = |name: &str| Shard::of_name(name.strip_prefix(".shard-")?.strip_suffix(".tar")?.rsplit_once('-')?.0, "", "");
    for name in names(folder)? {
        if let Some(other) = shard_of(&name).filter(|other| other.overlaps(shard) && Some(*other) != continued) {
            return Err(format!(
                "{}: an interrupted run has left images in it: complete it with --tar and --shard {}, or remove it",
                folder.join(&name).display(),
                other.argument()
            ));
        }
    }
    Ok(())
}

/// Appends a file to a tar file.
fn append(tar: &mut Builder<File>, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    // The same images make the same files.
    header.set_mtime(0);
    tar.append_data(&mut header, name, bytes)
}

/// Reads the complete images at the start of a tar file; none if it doesn't exist. `name` is its final name.
fn read(path: &Path, name: &str) -> Result<Contents, String> {
    let error = |e: std::io::Error| format!("{}: {e}", path.display());
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Contents::default()),
        Err(e) => return Err(error(e)),
    };
    let length = fs::metadata(path).map_err(error)?.len();
    let (mut archive, mut contents) = (Archive::new(BufReader::new(file)), Contents::default());
    let mut png: Option<String> = None;
    for entry in archive.entries().map_err(error)? {
        // A header that was cut, or anything after it, ends the complete images.
        let Ok(mut entry) = entry else { break };
        let end = (entry.raw_file_position() + entry.size()).next_multiple_of(BLOCK);
        let mut bytes = Vec::new();
        if end > length || entry.read_to_end(&mut bytes).is_err() {
            break;
        }
        let file = entry.path().map(|path| path.to_string_lossy().into_owned()).unwrap_or_default();
        if let Some(id) = file.strip_suffix(".png") {
            png = Image::from_png(&file, &bytes).is_ok().then(|| id.to_string());
            continue;
        }
        let finished = serde_json::from_slice(&bytes).ok().and_then(|object| Finished::from_json(&object));
        match finished {
            Some(finished) if png.as_deref() == Some(finished.id.as_str()) && finished.file == name => {
                contents.finished.push(finished);
                contents.bytes = end;
            }
            _ => break,
        }
    }
    Ok(contents)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::id::Id;

    fn png() -> Vec<u8> {
        Image::from_rgb(1, 1, vec![1, 2, 3]).unwrap().to_png().unwrap()
    }

    fn open(folder: &Path, done: &mut Done, ledger: &Ledger) -> TarFiles {
        TarFiles::open(ImageFolder::new(folder, Shard::ALL), Shard::ALL, 3, done, Some(ledger)).unwrap()
    }

    fn save(files: &TarFiles, id: &str, ledger: &Ledger) {
        let finished =
            Finished { id: Id::new(id).unwrap(), file: String::new(), seed: 1, milliseconds: 2, warnings: Vec::new(), digest: 3 };
        files.save(&png(), json!({ "prompt": "p" }), finished, ledger).unwrap();
    }

    fn entries(path: &Path) -> Vec<String> {
        let mut archive = Archive::new(File::open(path).unwrap());
        archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().to_string_lossy().into_owned()).collect()
    }

    fn is_done(done: &Done, id: &str) -> bool {
        done.get(&Id::new(id).unwrap()).is_some()
    }

    #[test]
    fn a_file_that_was_cut_anywhere_is_continued() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(folder.path(), Shard::ALL).unwrap();
        let files = open(folder.path(), &mut Done::default(), &ledger);
        save(&files, "a", &ledger);
        let partial = folder.path().join(".shard-0-of-1-000000.tar");
        let length = || fs::metadata(&partial).unwrap().len() as usize;
        let one = length();
        save(&files, "b", &ledger);
        let two = length();
        drop(files);
        let whole = fs::read(&partial).unwrap();
        for length in [0, 100, 512, 700, one, one + 300, two - 513, two, whole.len()] {
            fs::write(&partial, &whole[..length]).unwrap();
            let mut done = Done::default();
            open(folder.path(), &mut done, &ledger);
            assert_eq!((is_done(&done, "a"), is_done(&done, "b")), (length >= one, length >= two), "{length}");
        }
        fs::write(&partial, &whole[..two]).unwrap();
        let files = open(folder.path(), &mut Done::default(), &ledger);
        save(&files, "c", &ledger);
        let complete = folder.path().join("shard-0-of-1-000000.tar");
        assert_eq!(entries(&complete), ["a.png", "a.json", "b.png", "b.json", "c.png", "c.json"]);
        assert!(!partial.exists());
        let results = fs::read_to_string(folder.path().join("results-0-of-1.jsonl")).unwrap();
        assert_eq!(results.lines().count(), 3);
        assert!(results.lines().all(|line| line.contains("\"file\":\"shard-0-of-1-000000.tar\"")), "{results}");
    }

    #[test]
    fn incomplete_files_of_other_runs_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let check = |shard: Shard, continued| check_incomplete(folder.path(), shard, continued);
        fs::write(folder.path().join(".shard-1-of-4-000003.tar"), "").unwrap();
        let own: Shard = "1/4".parse().unwrap();
        assert!(check(own, Some(own)).is_ok() && check("0/4".parse().unwrap(), None).is_ok());
        for (shard, continued) in [(own, None), (Shard::ALL, Some(Shard::ALL))] {
            assert!(
                check(shard, continued)
                    .unwrap_err()
                    .contains("000003.tar: an interrupted run has left images in it: complete it with --tar and --shard 1/4")
            );
        }
    }

    #[test]
    fn images_of_a_complete_file_are_reported_once() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(folder.path(), Shard::ALL).unwrap();
        let files = open(folder.path(), &mut Done::default(), &ledger);
        ["a", "b", "c", "d"].iter().for_each(|id| save(&files, id, &ledger));
        files.finish(&ledger).unwrap();
        files.finish(&ledger).unwrap();
        drop(files);
        drop(ledger);
        let results = folder.path().join("results-0-of-1.jsonl");
        let lines = fs::read_to_string(&results).unwrap();
        assert_eq!(lines.lines().count(), 4);
        // A process was killed before it could report the last file.
        fs::write(&results, lines.lines().take(3).map(|line| format!("{line}\n")).collect::<String>()).unwrap();
        let ledger = Ledger::open(folder.path(), Shard::ALL).unwrap();
        let mut done = Done::read(folder.path(), Shard::ALL).unwrap();
        assert!(!is_done(&done, "d"));
        let files = open(folder.path(), &mut done, &ledger);
        assert!(is_done(&done, "d"));
        assert_eq!(fs::read_to_string(&results).unwrap(), lines);
        save(&files, "e", &ledger);
        files.finish(&ledger).unwrap();
        assert_eq!(entries(&folder.path().join("shard-0-of-1-000002.tar")), ["e.png", "e.json"]);
    }
}
