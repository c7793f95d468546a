//! Files and folders that appear under their names only when they are complete.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::{Builder, TempDir};

use super::check_file_name;
use crate::error::{Error, Result};

/// Prefix of temporary names.
const PREFIX: &str = ".hart-";
/// Number of attempts to rename a file that is in use.
const ATTEMPTS: u32 = 6;
/// Pause after the first attempt. It doubles each time, to half a second in all.
const FIRST_PAUSE: Duration = Duration::from_millis(16);

/// Writes a file atomically: to a temporary file in the same folder, which is then renamed. Follows symbolic links.
///
/// # Errors
///
/// [`Error::Io`] if the file cannot be written, its name is not allowed (see [`check_file_name`]), or the path exists and is not a
/// regular file, such as a device. Windows also refuses to replace a file that a program has mapped, such as the weights of an open
/// model.
pub fn write_file(path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
    let path = path.as_ref();
    check_file_name(path)?;
    write(path, bytes).map_err(Error::io(path))
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let target = match path.canonicalize() {
        Ok(target) if !target.is_file() => {
            return Err(io::Error::new(ErrorKind::InvalidInput, "exists and is not a regular file: choose another name"));
        }
        Ok(target) => target,
        Err(_) => path.to_path_buf(),
    };
    // The crate's own files are private on Unix, and marked as temporary on Windows, where backups leave them out.
    let mut file = Builder::new().prefix(PREFIX).make_in(folder_of(&target), |path| File::create_new(path))?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    rename(&file.into_temp_path(), &target)
}

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
        let staging = builder.prefix(PREFIX).tempdir_in(parent).map_err(Error::io(parent))?;
        Ok(Self { staging, target })
    }

    /// Returns the folder's temporary path, to write files to.
    pub fn path(&self) -> &Path {
        self.staging.path()
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
