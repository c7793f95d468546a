//! Files and folders that appear under their names only when they are complete.

use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::{Builder, TempDir};

use super::check_file_name;
use crate::error::{Error, Result};

/// Prefix of temporary names.
const PREFIX: &str = ".hart-";
/// Maximum number of symbolic links in a row, the same as Linux's.
const MAX_LINKS: usize = 40;
/// Number of attempts to rename a file that is in use.
const ATTEMPTS: u32 = 6;
/// Pause after the first attempt. It doubles each time, to half a second in all.
const FIRST_PAUSE: Duration = Duration::from_millis(16);

/// Writes a file atomically: to a temporary file in the same folder, which is then renamed. A file that exists keeps its mode and, if
/// the program may set it, its owner; a new one gets those of any new file. A symbolic link stays one, and its target is written, even
/// if that does not exist yet. Another hard link to the file keeps the old contents.
///
/// # Errors
///
/// [`Error::Io`] if the file cannot be written, its name is empty or not allowed (see [`check_file_name`]), or the path exists and is not
/// a regular file, such as a device. A file that may not be written is not replaced. Windows also refuses to replace a file that a
/// program has mapped, such as the weights of an open model.
pub fn write_file(path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
    let path = path.as_ref();
    check_file_name(path)?;
    write(path, bytes).map_err(Error::io(path))
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if path.as_os_str().is_empty() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "the name is empty"));
    }
    let target = resolve(path)?;
    let existing = match target.metadata() {
        Ok(existing) if !existing.is_file() => {
            return Err(io::Error::new(ErrorKind::InvalidInput, "exists and is not a regular file: choose another name"));
        }
        Ok(existing) => Some(existing),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    // Unix allows to replace a file that may not be written. Windows does not.
    if cfg!(unix) && existing.is_some() {
        File::options().write(true).open(&target)?;
    }
    // The crate's own files are private on Unix, and marked as temporary on Windows, where backups leave them out.
    let mut system_error = None;
    let create = |path: &Path| File::create_new(path).inspect_err(|error| system_error = error.raw_os_error());
    let file = Builder::new().prefix(PREFIX).make_in(folder_of(&target), create);
    // The crate's error has the temporary path in its text.
    let mut file = file.map_err(|error| system_error.map_or_else(|| error.kind().into(), io::Error::from_raw_os_error))?;
    if let Some(existing) = &existing {
        keep_owner_and_mode(file.as_file(), existing);
    }
    // The same holds for its own `write_all`.
    file.as_file_mut().write_all(bytes)?;
    file.as_file().sync_all()?;
    rename(&file.into_temp_path(), &target)
}

/// Follows symbolic links, also to a file that does not exist yet.
fn resolve(path: &Path) -> io::Result<PathBuf> {
    if let Ok(target) = path.canonicalize() {
        return Ok(target);
    }
    let mut target = path.to_path_buf();
    for _ in 0..MAX_LINKS {
        match fs::read_link(&target) {
            Ok(next) => target = folder_of(&target).join(next),
            Err(_) => return Ok(target),
        }
    }
    Err(io::Error::new(ErrorKind::InvalidInput, "is a symbolic link that leads back to itself"))
}

/// Gives a new file the owner and mode of the one that it replaces. Not every program may set the owner, and not every file system has
/// them.
#[cfg(unix)]
fn keep_owner_and_mode(file: &File, existing: &Metadata) {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
    let (user, group) = (existing.uid(), existing.gid());
    if fchown(file, Some(user), Some(group)).is_err() {
        let _ = fchown(file, None, Some(group));
    }
    let _ = file.set_permissions(fs::Permissions::from_mode(existing.mode() & 0o777));
}

#[cfg(not(unix))]
fn keep_owner_and_mode(_: &File, _: &Metadata) {}

/// A new folder that gets its name only when it is complete. If it is dropped before, what was written is removed.
#[derive(Debug)]
pub struct NewFolder {
    staging: TempDir,
    target: PathBuf,
}

impl NewFolder {
    /// Creates an empty folder under a temporary name next to `target`.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if `target` exists, its name is not allowed (see [`check_file_name`]), or the folder cannot be created.
    pub fn create(target: impl AsRef<Path>) -> Result<Self> {
        let target = target.as_ref().to_path_buf();
        check_file_name(&target)?;
        if target.symlink_metadata().is_ok() {
            let exists = io::Error::new(ErrorKind::AlreadyExists, "already exists: choose another name");
            return Err(Error::io(target)(exists));
        }
        let mut builder = Builder::new();
        // Temporary folders are private by default. This one gets the permissions of any new folder.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
        let parent = folder_of(&target);
        parent.metadata().map_err(Error::io(parent))?;
        // The crate's error has the temporary path in its text.
        let staging = builder.prefix(PREFIX).tempdir_in(parent).map_err(|error| Error::io(parent)(error.kind().into()))?;
        Ok(Self { staging, target })
    }

    /// Returns the folder's temporary path, to write files to.
    pub fn path(&self) -> &Path {
        self.staging.path()
    }

    /// Replaces the temporary path in an error by the final one.
    #[must_use]
    pub fn with_final_path(&self, error: Error) -> Error {
        let moved = |path: PathBuf| path.strip_prefix(self.path()).map(|rest| self.target.join(rest)).unwrap_or(path);
        match error {
            Error::Io { path, source } => Error::Io { path: moved(path), source },
            Error::Checkpoint { path, problem } => Error::Checkpoint { path: moved(path), problem },
            Error::Config { path, field, got, expected } => Error::Config { path: moved(path), field, got, expected },
            error => error,
        }
    }

    /// Renames the folder to its final name. No file in it may be open.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the folder cannot be renamed.
    pub fn finish(self) -> Result<()> {
        rename(self.staging.path(), &self.target).map_err(Error::io(&self.target))
    }
}

/// Returns the folder of a file.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Renames a complete file in its folder, and replaces the file that has the name. For programs that write files under temporary names
/// of their own. A file that is in use on Windows is tried again for half a second.
///
/// # Errors
///
/// [`Error::Io`] with the final name if the file can't be renamed.
pub fn replace_file(temporary: impl AsRef<Path>, path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    check_file_name(path)?;
    rename(temporary.as_ref(), path).map_err(Error::io(path))
}

/// Renames a file or folder, and replaces a file. Virus scanners on Windows open new files for a moment, so a file that is in use is
/// tried again.
fn rename(from: &Path, to: &Path) -> io::Result<()> {
    let mut pause = FIRST_PAUSE;
    for _ in 1..ATTEMPTS {
        match fs::rename(from, to) {
            Err(error) if is_in_use(&error) => std::thread::sleep(pause),
            done => return done,
        }
        pause *= 2;
    }
    fs::rename(from, to).map_err(|error| match is_in_use(&error) {
        true => io::Error::new(error.kind(), format!("{error}; {IN_USE}")),
        false => error,
    })
}

/// Remedy for the errors of [`is_in_use`].
const IN_USE: &str =
    "it may be read-only, or open in another program, for example as part of a model: close it there, or choose another name";

/// Returns whether an error may be due to a program that has the file open. Only Windows has such errors.
fn is_in_use(error: &io::Error) -> bool {
    const ACCESS_DENIED: i32 = 5;
    const SHARING_VIOLATION: i32 = 32;
    const USER_MAPPED_FILE: i32 = 1224;
    cfg!(windows) && matches!(error.raw_os_error(), Some(ACCESS_DENIED | SHARING_VIOLATION | USER_MAPPED_FILE))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_written_and_replaced() {
        let folder = tempfile::tempdir().unwrap();
        // Letters of several scripts, one of them outside the basic plane, and a space.
        let path = folder.path().join("hérz 心 🦜.txt");
        for text in ["one", "two"] {
            write_file(&path, text.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        assert_eq!(names(folder.path()), ["hérz 心 🦜.txt"]);
        let error = write_file(folder.path(), b"").unwrap_err().to_string();
        assert!(error.contains("not a regular file"), "{error}");
    }

    /// A name of usual length in a folder whose path is longer than Windows accepts without a prefix.
    #[test]
    fn a_long_path_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let deep = (0..8).fold(folder.path().to_path_buf(), |path, _| path.join("a".repeat(50)));
        fs::create_dir_all(&deep).unwrap();
        write_file(deep.join("x.txt"), b"one").unwrap();
        write_file(deep.join("x.txt"), b"two").unwrap();
        assert_eq!(fs::read(deep.join("x.txt")).unwrap(), b"two");
        let new = NewFolder::create(deep.join("new")).unwrap();
        write_file(new.path().join("x.txt"), b"one").unwrap();
        new.finish().unwrap();
        assert_eq!(names(&deep), ["new", "x.txt"]);
    }

    #[test]
    fn a_new_folder_appears_when_it_is_complete() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("model");
        let new = NewFolder::create(&target).unwrap();
        fs::create_dir(new.path().join("llm")).unwrap();
        write_file(new.path().join("llm/config.json"), b"{}").unwrap();
        assert!(!target.exists());
        new.finish().unwrap();
        assert_eq!(names(folder.path()), ["model"]);
        assert_eq!(names(&target.join("llm")), ["config.json"]);
        let error = NewFolder::create(&target).unwrap_err().to_string();
        assert!(error.contains("model: already exists"), "{error}");
        drop(NewFolder::create(folder.path().join("other")).unwrap());
        assert_eq!(names(folder.path()), ["model"]);
    }

    #[test]
    fn errors_name_no_temporary_path() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing");
        let errors = [write_file(missing.join("x"), b"").unwrap_err(), NewFolder::create(missing.join("x")).unwrap_err()];
        assert!(errors.iter().all(|error| !error.to_string().contains(PREFIX)), "{errors:?}");
        let new = NewFolder::create(folder.path().join("new")).unwrap();
        let error = new.with_final_path(Error::checkpoint(new.path().join("llm"), "is full"));
        assert_eq!(error.to_string(), format!("{}: is full", folder.path().join("new").join("llm").display()));
    }

    #[cfg(unix)]
    #[test]
    fn new_files_and_folders_are_not_private() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let mode = |name: &str| fs::metadata(folder.path().join(name)).unwrap().permissions().mode();
        fs::write(folder.path().join("usual.txt"), "").unwrap();
        fs::create_dir(folder.path().join("usual")).unwrap();
        write_file(folder.path().join("x.txt"), b"").unwrap();
        NewFolder::create(folder.path().join("x")).unwrap().finish().unwrap();
        assert_eq!((mode("x.txt"), mode("x")), (mode("usual.txt"), mode("usual")));
    }

    #[cfg(unix)]
    #[test]
    fn a_file_that_exists_keeps_its_mode_and_owner() {
        use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.txt");
        fs::write(&path, "old").unwrap();
        // Only root may give a file away.
        let is_root = chown(&path, Some(65534), Some(65534)).is_ok();
        for mode in [0o600, 0o664, 0o755] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            write_file(&path, b"new").unwrap();
            let written = fs::metadata(&path).unwrap();
            assert_eq!(written.permissions().mode() & 0o7777, mode);
            assert!(!is_root || (written.uid(), written.gid()) == (65534, 65534));
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
        if !is_root {
            assert!(write_file(&path, b"newer").unwrap_err().to_string().contains("x.txt: Permission denied"));
            assert_eq!(fs::read(&path).unwrap(), b"new");
        }
    }

    #[cfg(unix)]
    #[test]
    fn links_stay_links() {
        use std::os::unix::fs::symlink;
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("there")).unwrap();
        symlink("there/x.txt", at("new.txt")).unwrap();
        symlink(at("new.txt"), at("chain.txt")).unwrap();
        for (link, text) in [("new.txt", "one"), ("chain.txt", "two"), ("new.txt", "three")] {
            write_file(at(link), text.as_bytes()).unwrap();
            assert!(at(link).is_symlink() && fs::read_to_string(at("there/x.txt")).unwrap() == text);
        }
        symlink("loop.txt", at("loop.txt")).unwrap();
        assert!(write_file(at("loop.txt"), b"").unwrap_err().to_string().contains("loop.txt: is a symbolic link that leads back"));
        symlink("nowhere/x.txt", at("lost.txt")).unwrap();
        assert!(write_file(at("lost.txt"), b"").unwrap_err().to_string().contains("lost.txt: No such file or directory"));
        assert_eq!(names(folder.path()), ["chain.txt", "loop.txt", "lost.txt", "new.txt", "there"]);
    }

    #[test]
    fn an_error_names_the_file_and_no_temporary_one() {
        let folder = tempfile::tempdir().unwrap();
        let name = folder.path().join("none").join("x.txt");
        let error = write_file(&name, b"").unwrap_err().to_string();
        assert!(error.starts_with(&format!("{}: ", name.display())) && !error.contains(PREFIX), "{error}");
        let error = NewFolder::create(&name).unwrap_err().to_string();
        assert!(error.contains("none: ") && !error.contains(PREFIX), "{error}");
        assert_eq!(write_file("", b"").unwrap_err().to_string(), "\"\": the name is empty");
        // No file can be created in this folder, even by root.
        #[cfg(target_os = "linux")]
        for error in [write_file("/proc/x.txt", b"").unwrap_err(), NewFolder::create("/proc/x").unwrap_err()] {
            let error = error.to_string();
            assert!(error.starts_with("/proc") && !error.contains(PREFIX), "{error}");
        }
    }

    #[cfg(windows)]
    #[test]
    fn a_file_in_use_is_named_and_kept() {
        use std::os::windows::fs::OpenOptionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.txt");
        fs::write(&path, "old").unwrap();
        let open = || File::options().read(true).share_mode(0).open(&path).unwrap();
        let file = open();
        let error = write_file(&path, b"new").unwrap_err().to_string();
        assert!(error.contains("x.txt: ") && error.ends_with(IN_USE), "{error}");
        drop(file);
        assert_eq!((fs::read_to_string(&path).unwrap().as_str(), names(folder.path())), ("old", vec!["x.txt".into()]));
        // A short use only delays the write.
        let file = open();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(4 * FIRST_PAUSE);
                drop(file);
            });
            write_file(&path, b"new").unwrap();
        });
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }

    /// Windows keeps a mapped file under its name; other systems replace it, and the mapping shows the old contents.
    #[test]
    fn a_mapped_file_keeps_its_contents() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.txt");
        fs::write(&path, "old").unwrap();
        let mapped = super::super::map_file(&path).unwrap().expect("systems with temporary files map files");
        match write_file(&path, b"new") {
            Ok(()) => assert_eq!(fs::read(&path).unwrap(), b"new"),
            Err(error) => assert!(cfg!(windows) && error.to_string().ends_with(IN_USE), "{error}"),
        }
        assert_eq!(mapped.as_ref(), b"old");
        drop(mapped);
        write_file(&path, b"newer").unwrap();
        assert_eq!((fs::read_to_string(&path).unwrap().as_str(), names(folder.path())), ("newer", vec!["x.txt".into()]));
    }
}
