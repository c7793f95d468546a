//! Files that are read within limits and written whole or not at all.

use std::fs;
use std::io::Read;
use std::path::Path;

use serde::de::DeserializeOwned;

/// Most bytes of a file that people write by hand: a recipe, a configuration, a list of names.
pub const MOST_SETTINGS: u64 = 4 << 20;

/// The bytes of a plain file that has at most so many.
///
/// # Errors
///
/// It can't be read, is no plain file, or is larger.
pub fn read(path: &Path, most: u64) -> Result<Vec<u8>, String> {
    let named = |e: std::io::Error| format!("{}: {e}", path.display());
    let about = path.metadata().map_err(named)?;
    // A pipe could keep its reader waiting, even for its opening; a device could go on without end.
    if !about.is_file() {
        return Err(format!("{}: expected a plain file", path.display()));
    }
    // A length is no promise, as for a file that grows, so both the start and the reading are limited.
    let length = about.len();
    let mut bytes = Vec::new();
    if length <= most {
        bytes.try_reserve_exact(length as usize).map_err(|e| format!("{}: {e}", path.display()))?;
        fs::File::open(path).map_err(named)?.take(most + 1).read_to_end(&mut bytes).map_err(named)?;
    }
    if length > most || bytes.len() as u64 > most {
        return Err(format!("{}: is larger than {most} bytes", path.display()));
    }
    Ok(bytes)
}

/// As [`read`], for text in UTF-8.
///
/// # Errors
///
/// As [`read`], or it is no text.
pub fn read_text(path: &Path, most: u64) -> Result<String, String> {
    String::from_utf8(read(path, most)?).map_err(|_| format!("{}: is no text in UTF-8", path.display()))
}

/// Values from lines of JSON; blank lines are passed over, and counted. `path` is only for the error.
///
/// # Errors
///
/// Names the first line that isn't such a value.
pub fn parse_lines<T: DeserializeOwned>(path: &Path, lines: &[&str]) -> Result<Vec<T>, String> {
    let parse =
        |(i, line): (usize, &&str)| serde_json::from_str(line).map_err(|e| format!("{}, line {}: {e}", path.display(), i + 1));
    lines.iter().enumerate().filter(|(_, line)| !line.trim().is_empty()).map(parse).collect()
}

/// Makes a folder that isn't there yet: `fill` writes into another beside it, which takes its name when it is whole.
///
/// # Errors
///
/// The folder is there already, can't be made, or the error of `fill`.
pub fn new_folder(folder: &Path, fill: impl FnOnce(&Path) -> Result<(), String>) -> Result<(), String> {
    let named = |e: &dyn std::fmt::Display| format!("{}: {e}", folder.display());
    check_new(folder)?;
    let beside = folder.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
    let staging = builder.prefix(".hart-").tempdir_in(beside).map_err(|e| named(&e))?;
    fill(staging.path()).map_err(|e| named(&e))?;
    fs::rename(staging.path(), folder).map_err(|e| named(&e))
}

/// A folder can be made; asked before any work is done.
///
/// # Errors
///
/// It is there already, or the one that it is to stand in isn't.
pub fn check_new(folder: &Path) -> Result<(), String> {
    if folder.symlink_metadata().is_ok() {
        return Err(format!("{}: is there already; name a new folder, or remove it first", folder.display()));
    }
    match folder.parent() {
        Some(parent) if !parent.as_os_str().is_empty() && !parent.is_dir() => {
            Err(format!("{}: there is no folder {}; make it first", folder.display(), parent.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_files_are_read_and_within_the_limit() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "text").unwrap();
        assert_eq!(read_text(&file, 4), Ok("text".into()));
        assert!(read(&file, 3).unwrap_err().contains("larger than 3 bytes"));
        assert!(read(folder.path(), 4).unwrap_err().contains("expected a plain file"));
        #[cfg(unix)]
        {
            let pipe = folder.path().join("pipe");
            assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
            for path in [pipe.as_path(), Path::new("/dev/zero")] {
                assert!(read(path, 4).unwrap_err().contains("expected a plain file"));
            }
        }
    }

    #[test]
    fn blank_lines_are_counted_and_passed_over() {
        let parse = |text: &str| parse_lines::<u8>(Path::new("some.jsonl"), &text.lines().collect::<Vec<_>>());
        assert_eq!(parse("1\n\n \n2\n"), Ok(vec![1, 2]));
        assert!(parse("1\n\n \nx\n").unwrap_err().contains("some.jsonl, line 4"));
    }
}
