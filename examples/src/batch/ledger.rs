//! The files of results and errors: which images are done, and what failed.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, TryLockError};
use std::io::{BufRead, BufReader, BufWriter, ErrorKind, Write};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use hart_core::replace_file;
use serde_json::{Value, json};

use crate::id::Id;
use crate::shard::Shard;
use crate::task::LineError;

/// Name of the field with a task's digest.
const DIGEST: &str = "request";

/// A finished image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    pub id: Id,
    /// The file, or the tar file that contains it, in the folder of the batch.
    pub file: String,
    pub seed: u64,
    /// Time of generating the image; 0 if an earlier process generated it and could not say so.
    pub milliseconds: u64,
    pub warnings: Vec<String>,
    /// Digest of the task.
    pub digest: u64,
}

impl Finished {
    /// Returns the line of the file of results.
    pub fn to_json(&self) -> Value {
        json!({
            "id": self.id.as_str(),
            "file": self.file,
            // Many programs round large numbers.
            "seed": self.seed.to_string(),
            "milliseconds": self.milliseconds,
            "warnings": self.warnings,
            DIGEST: format!("{:016x}", self.digest),
        })
    }

    /// Parses a line of this program. Returns `None` if a field is missing.
    pub fn from_json(line: &Value) -> Option<Self> {
        Some(Self {
            id: Id::new(line["id"].as_str()?).ok()?,
            file: line["file"].as_str()?.into(),
            seed: line["seed"].as_str()?.parse().ok()?,
            milliseconds: line["milliseconds"].as_u64()?,
            warnings: line["warnings"].as_array()?.iter().filter_map(Value::as_str).map(str::to_string).collect(),
            digest: u64::from_str_radix(line[DIGEST].as_str()?, 16).ok()?,
        })
    }
}

/// The images that are done, by the hashes of their ids: 17 bytes each, in a table that is at least half full.
#[derive(Debug, Default)]
pub struct Done(HashMap<u64, Option<NonZero<u64>>>);

/// What is known of an image that is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DoneImage {
    /// Digest of its task; `None` if another program wrote the line.
    pub digest: Option<NonZero<u64>>,
}

impl Done {
    /// Reads the images that are done and may belong to a shard, from the files of all runs in a folder.
    ///
    /// # Errors
    ///
    /// Returns a message that names the file.
    pub fn read(folder: &Path, shard: Shard) -> Result<Self, String> {
        let (mut done, mut existing) = (Self::default(), Existing::new(folder));
        for name in names(folder)? {
            if Shard::of_name(&name, "results-", ".jsonl").is_some_and(|other| other != shard && other.overlaps(shard)) {
                lines(&folder.join(name), |line| {
                    done.insert(line, shard, &mut existing);
                    Ok(())
                })?;
            }
        }
        // A line of this shard counts, whatever the others say.
        let own = folder.join(results_name(shard));
        if own.exists() {
            lines(&own, |line| {
                done.insert(line, shard, &mut existing);
                Ok(())
            })?;
        }
        Ok(done)
    }

    /// Returns what is known of an image, or `None` if it isn't done.
    pub fn get(&self, id: &Id) -> Option<DoneImage> {
        self.0.get(&id.hash()).map(|&digest| DoneImage { digest })
    }

    /// Adds an image.
    pub fn add(&mut self, id: &Id, digest: u64) {
        self.0.insert(id.hash(), NonZero::new(digest));
    }

    fn insert(&mut self, line: &[u8], shard: Shard, existing: &mut Existing) {
        if let Some((id, digest)) = existing.image(line).filter(|(id, _)| shard.contains(id.hash())) {
            self.0.insert(id.hash(), digest);
        }
    }
}

/// The images whose files exist.
struct Existing {
    folder: PathBuf,
    /// Tar files, which are looked for once, by their names.
    tars: HashMap<String, bool>,
}

impl Existing {
    fn new(folder: &Path) -> Self {
        Self { folder: folder.into(), tars: HashMap::new() }
    }

    /// Returns the id and the digest of a line if it is complete and its image exists.
    fn image(&mut self, line: &[u8]) -> Option<(Id, Option<NonZero<u64>>)> {
        let line: Value = serde_json::from_slice(line.strip_suffix(b"\n")?).ok()?;
        let id = Id::new(line["id"].as_str()?).ok()?;
        let file = line["file"].as_str()?;
        let exists = match file.ends_with(".tar") {
            true => *self.tars.entry(file.into()).or_insert_with(|| self.folder.join(file).is_file()),
            false => self.folder.join(file).is_file(),
        };
        let digest = line[DIGEST].as_str().and_then(|text| u64::from_str_radix(text, 16).ok()).and_then(NonZero::new);
        exists.then_some((id, digest))
    }
}

/// The files of results and errors of a shard. No other process can open them at the same time.
#[derive(Debug)]
pub struct Ledger {
    results: Mutex<Log>,
    errors: Mutex<Log>,
    /// Locked until the end of the process, however it ends.
    _lock: File,
}

/// A file that lines are appended to.
#[derive(Debug)]
struct Log {
    path: PathBuf,
    file: File,
}

impl Log {
    /// Appends a line at once: a process that is killed leaves no part of it.
    fn append(&mut self, value: &Value) -> Result<(), String> {
        let line = format!("{value}\n");
        self.file.write_all(line.as_bytes()).map_err(|e| format!("{}: {e}", self.path.display()))
    }
}

impl Ledger {
    /// Opens the files in a folder. Errors of an earlier run are removed, because their lines are tried again. Results without an image
    /// are removed too, and a line that a crash of the system has cut.
    ///
    /// # Errors
    ///
    /// Returns a message if another process uses the files, or they can't be written.
    pub fn open(folder: &Path, shard: Shard) -> Result<Self, String> {
        let errors = open_log(folder.join(errors_name(shard)))?;
        // Windows locks the contents too, which would keep other programs from reading them.
        let lock = match cfg!(windows) {
            true => open_log(folder.join(format!(".batch-{shard}.lock")))?.file,
            false => errors.file.try_clone().map_err(|e| format!("{}: {e}", errors.path.display()))?,
        };
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(format!(
                    "{}: another process is running this shard: wait for its end, or give each process a shard (--shard) or a folder (--out) of \
                     its own",
                    folder.display()
                ));
            }
            Err(TryLockError::Error(error)) => eprintln!(
                "warning: {}: can't be locked ({error}): make sure that only one process runs this shard",
                folder.display()
            ),
        }
        // Windows can't empty a file that is open for appending only.
        let emptied = File::options().write(true).truncate(true).open(&errors.path);
        emptied.map_err(|e| format!("{}: {e}", errors.path.display()))?;
        let results = folder.join(results_name(shard));
        mend(folder, &results)?;
        Ok(Self { results: Mutex::new(open_log(results)?), errors: Mutex::new(errors), _lock: lock })
    }

    /// Adds a finished image.
    ///
    /// # Errors
    ///
    /// Returns a message if the line can't be written.
    pub fn add(&self, finished: &Finished) -> Result<(), String> {
        self.results.lock().unwrap_or_else(PoisonError::into_inner).append(&finished.to_json())
    }

    /// Adds the error of a line.
    ///
    /// # Errors
    ///
    /// Returns a message if the line can't be written.
    pub fn fail(&self, error: &LineError) -> Result<(), String> {
        let line = json!({ "id": error.id.as_ref().map(Id::as_str), "line": error.line, "error": error.problem });
        self.errors.lock().unwrap_or_else(PoisonError::into_inner).append(&line)
    }
}

/// Removes lines of results that are incomplete, repeat an id or have no image.
fn mend(folder: &Path, path: &Path) -> Result<(), String> {
    if !path.exists() {
        return Ok(());
    }
    let error = |e: std::io::Error| format!("{}: {e}", path.display());
    let keeper = || {
        let (mut existing, mut seen) = (Existing::new(folder), HashSet::new());
        move |line: &[u8]| existing.image(line).is_some_and(|(id, _)| seen.insert(id.hash()))
    };
    let (mut keeps, mut dropped) = (keeper(), 0);
    lines(path, |line| {
        dropped += u64::from(!keeps(line));
        Ok(())
    })?;
    if dropped == 0 {
        return Ok(());
    }
    // The name is one of those that are removed if the process ends here.
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(name.replacen("results-", ".batch-", 1).replacen(".jsonl", "-results", 1));
    let mut kept = BufWriter::new(File::create(&temporary).map_err(error)?);
    let mut keeps = keeper();
    lines(path, |line| if keeps(line) { kept.write_all(line).map_err(error) } else { Ok(()) })?;
    let file = kept.into_inner().map_err(|e| error(e.into_error()))?;
    file.sync_all().map_err(error)?;
    drop(file);
    replace_file(&temporary, path).map_err(|e| e.to_string())
}

/// Calls a function with each line of a file, with its end.
fn lines(path: &Path, mut each: impl FnMut(&[u8]) -> Result<(), String>) -> Result<(), String> {
    let error = |e: std::io::Error| format!("{}: {e}", path.display());
    let (mut reader, mut line) = (BufReader::with_capacity(1 << 16, File::open(path).map_err(error)?), Vec::new());
    while reader.read_until(b'\n', &mut line).map_err(error)? > 0 {
        each(&line)?;
        line.clear();
    }
    Ok(())
}

/// Returns the names in a folder; none if it doesn't exist.
pub fn names(folder: &Path) -> Result<Vec<String>, String> {
    let error = |e: std::io::Error| format!("{}: {e}", folder.display());
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(error(e)),
    };
    // Names in no known encoding are none of this program's, and neither are the images, whose number has no limit.
    let own = |name: &String| !name.ends_with(".png");
    let names = entries.map(|entry| entry.map(|entry| entry.file_name().into_string().ok().filter(own)));
    names.filter_map(Result::transpose).collect::<Result<_, _>>().map_err(error)
}

fn open_log(path: PathBuf) -> Result<Log, String> {
    let file = File::options().create(true).append(true).open(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(Log { path, file })
}

/// Returns the name of a shard's file of results.
pub fn results_name(shard: Shard) -> String {
    format!("results-{shard}.jsonl")
}

/// Returns the name of a shard's file of errors.
pub fn errors_name(shard: Shard) -> String {
    format!("errors-{shard}.jsonl")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finished(id: &str) -> Finished {
        let id = Id::new(id).unwrap();
        let warnings = vec!["w".into()];
        Finished { file: id.file_name(), seed: u64::MAX, milliseconds: 7, warnings, digest: 0xab, id }
    }

    fn is_done(done: &Done, id: &str) -> bool {
        done.get(&Id::new(id).unwrap()).is_some()
    }

    #[test]
    fn results_are_lines_with_all_fields() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(folder.path(), Shard::ALL).unwrap();
        ledger.add(&finished("a")).unwrap();
        ledger.fail(&LineError { line: 3, id: None, problem: "p".into() }).unwrap();
        let text = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
        let line: Value = serde_json::from_str(&text("results-0-of-1.jsonl")).unwrap();
        let expected = json!({"id": "a", "file": "a.png", "seed": "18446744073709551615", "milliseconds": 7, "warnings": ["w"],
                              "request": "00000000000000ab"});
        assert_eq!(line, expected);
        let error: Value = serde_json::from_str(&text("errors-0-of-1.jsonl")).unwrap();
        assert_eq!(error, json!({"id": null, "line": 3, "error": "p"}));
        // Failed lines are tried again.
        drop(ledger);
        Ledger::open(folder.path(), Shard::ALL).unwrap();
        assert_eq!(text("errors-0-of-1.jsonl"), "");
    }

    #[test]
    fn cut_lines_repeated_lines_and_lines_without_an_image_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results-0-of-1.jsonl");
        for id in ["a", "b", "d"] {
            fs::write(folder.path().join(format!("{id}.png")), "").unwrap();
        }
        let line = |id: &str| format!("{}\n", finished(id).to_json());
        let torn = line("d");
        fs::write(&path, format!("{}{}garbage\n{}{}{}", line("a"), line("b"), line("c"), line("a"), &torn[..torn.len() - 1]))
            .unwrap();
        let done = Done::read(folder.path(), Shard::ALL).unwrap();
        assert!(is_done(&done, "a") && is_done(&done, "b") && !is_done(&done, "c") && !is_done(&done, "d"));
        let ledger = Ledger::open(folder.path(), Shard::ALL).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), line("a") + &line("b"));
        ledger.add(&finished("d")).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), line("a") + &line("b") + &line("d"));
    }

    #[test]
    fn images_of_other_numbers_of_shards_are_done() {
        let folder = tempfile::tempdir().unwrap();
        let ids = ["a", "b", "c", "d", "e", "f"];
        let shards: Vec<Shard> = (0..3).map(|index| format!("{index}/3").parse().unwrap()).collect();
        for id in ids {
            fs::write(folder.path().join(format!("{id}.png")), "").unwrap();
            let shard = shards.iter().find(|shard| shard.contains(Id::new(id).unwrap().hash())).unwrap();
            Ledger::open(folder.path(), *shard).unwrap().add(&finished(id)).unwrap();
        }
        let done = Done::read(folder.path(), Shard::ALL).unwrap();
        assert!(ids.iter().all(|id| is_done(&done, id)));
        let half: Shard = "1/2".parse().unwrap();
        let of_half = Done::read(folder.path(), half).unwrap();
        assert!(ids.iter().all(|id| is_done(&of_half, id) == half.contains(Id::new(id).unwrap().hash())));
        assert_eq!(done.get(&Id::new("a").unwrap()), Some(DoneImage { digest: NonZero::new(0xab) }));
    }

    #[test]
    fn a_shard_is_run_by_one_process() {
        let folder = tempfile::tempdir().unwrap();
        let first = Ledger::open(folder.path(), Shard::ALL).unwrap();
        assert!(Ledger::open(folder.path(), Shard::ALL).unwrap_err().contains("another process is running this shard"));
        Ledger::open(folder.path(), "0/2".parse().unwrap()).unwrap();
        drop(first);
        Ledger::open(folder.path(), Shard::ALL).unwrap();
    }
}
