//! Reading files within size limits, and creating folders atomically.

use std::fs;
use std::io::Read;
use std::path::Path;

use hart_core::NewFolder;
use serde::de::DeserializeOwned;

/// Maximum size of a hand-written file, such as a recipe, a configuration or a list of names, in bytes.
pub const MAX_SETTINGS_SIZE: u64 = 4 << 20;

/// Reads a regular file of at most `max_size` bytes.
///
/// # Errors
///
/// Returns an error if the file can't be read, is not a regular file, is larger, or is a Git LFS pointer or a web page.
pub fn read(path: &Path, max_size: u64) -> Result<Vec<u8>, String> {
    let named = |e: std::io::Error| format!("{}: {e}", path.display());
    let metadata = path.metadata().map_err(named)?;
    // Opening or reading a pipe could block, and a device could be endless.
    if !metadata.is_file() {
        return Err(format!("{}: expected a regular file", path.display()));
    }
    // The file may grow while it is read, so both its length and the number of bytes read are checked.
    let length = metadata.len();
    let mut bytes = Vec::new();
    if length <= max_size {
        bytes.try_reserve_exact(length as usize).map_err(|e| format!("{}: {e}", path.display()))?;
        fs::File::open(path).map_err(named)?.take(max_size + 1).read_to_end(&mut bytes).map_err(named)?;
    }
    if length > max_size || bytes.len() as u64 > max_size {
        return Err(format!("{}: larger than {max_size} bytes", path.display()));
    }
    // An empty file may be one that a user has not filled yet.
    if !bytes.is_empty() {
        hart_core::check_download(path, &bytes).map_err(|e| e.to_string())?;
    }
    Ok(bytes)
}

/// Like [`read`], for UTF-8 text. A byte order mark is skipped.
///
/// # Errors
///
/// Like [`read`], and returns an error if the file is not UTF-8.
pub fn read_text(path: &Path, max_size: u64) -> Result<String, String> {
    let bytes = read(path, max_size)?;
    hart_core::decode_text(path, &bytes).map(str::to_string).map_err(|e| e.to_string())
}

/// Parses lines of JSON. Blank lines are skipped, but counted. `path` is used only in the error.
///
/// # Errors
///
/// Returns an error with the number of the first invalid line.
pub fn parse_lines<T: DeserializeOwned>(path: &Path, lines: &[&str]) -> Result<Vec<T>, String> {
    let parse =
        |(i, line): (usize, &&str)| serde_json::from_str(line).map_err(|e| format!("{}, line {}: {e}", path.display(), i + 1));
    lines.iter().enumerate().filter(|(_, line)| !line.trim().is_empty()).map(parse).collect()
}

/// Creates a folder atomically: `fill` writes to a temporary folder next to it, which is then renamed.
///
/// # Errors
///
/// Returns an error if the folder already exists or can't be created, and the error of `fill`.
pub fn create_folder(folder: &Path, fill: impl FnOnce(&Path) -> Result<(), String>) -> Result<(), String> {
    check_new(folder)?;
    let new = NewFolder::create(folder).map_err(|e| e.to_string())?;
    fill(new.path()).map_err(|e| format!("{}: {e}", folder.display()))?;
    new.finish().map_err(|e| e.to_string())
}

/// Checks that a folder can be created. Programs call this before they do any work.
///
/// # Errors
///
/// Returns an error if the folder already exists, its parent doesn't, or its name is not allowed.
pub fn check_new(folder: &Path) -> Result<(), String> {
    hart_core::check_file_name(folder).map_err(|e| e.to_string())?;
    if folder.symlink_metadata().is_ok() {
        return Err(format!("{}: already exists; pass a new folder, or remove it first", folder.display()));
    }
    match folder.parent() {
        Some(parent) if !parent.as_os_str().is_empty() && !parent.is_dir() => {
            Err(format!("{}: no folder {}; create it first", folder.display(), parent.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_within_the_limit_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "text").unwrap();
        assert_eq!(read_text(&file, 4), Ok("text".into()));
        assert!(read(&file, 3).unwrap_err().contains("larger than 3 bytes"));
        assert!(read(folder.path(), 4).unwrap_err().contains("expected a regular file"));
        #[cfg(unix)]
        {
            let pipe = folder.path().join("pipe");
            assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
            for path in [pipe.as_path(), Path::new("/dev/zero")] {
                assert!(read(path, 4).unwrap_err().contains("expected a regular file"));
            }
        }
    }

    #[test]
    fn failed_downloads_are_named_and_byte_order_marks_skipped() {
        let folder = tempfile::tempdir().unwrap();
        let read = |contents: &[u8]| {
            let file = folder.path().join("captions.jsonl");
            fs::write(&file, contents).unwrap();
            read_text(&file, 1000)
        };
        assert_eq!(read(b"\xef\xbb\xbf{}\n"), Ok("{}\n".into()));
        assert_eq!(read(b""), Ok(String::new()));
        for (contents, words) in [
            (&b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"[..], "git lfs pull"),
            (b"<html>", "is a web page"),
            (b"\xff\xfea\0", "is in UTF-16"),
            (b"\xff", "is not UTF-8"),
        ] {
            let error = read(contents).unwrap_err();
            assert!(error.contains("captions.jsonl: ") && error.contains(words), "{error}");
        }
    }

    #[test]
    fn blank_lines_are_skipped_but_counted() {
        let parse = |text: &str| parse_lines::<u8>(Path::new("some.jsonl"), &text.lines().collect::<Vec<_>>());
        assert_eq!(parse("1\n\n \n2\n"), Ok(vec![1, 2]));
        assert!(parse("1\n\n \nx\n").unwrap_err().contains("some.jsonl, line 4"));
    }
}
