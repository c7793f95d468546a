//! Output files, messages and JSON results.

use std::fmt::Display;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hart_core::{ImageFormat, Stage, Timings, Truncation, check_file_name};
use serde_json::{Map, Value, json};

use super::out_files::OutFiles;

/// Maximum number of images of a grid, which are all in memory at once.
const MAX_GRID_IMAGES: usize = 1024;
/// Maximum number of truncated prompts that are reported one by one.
const MAX_WARNINGS: usize = 10;
/// Maximum number of files that a message lists one by one.
const MAX_LISTED_FILES: usize = 16;

/// Returns the folder of a file.
pub(super) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Checks that a file can be written. Programs call it before they start to compute.
///
/// # Errors
///
/// Returns a message that names `flag` and says what to do.
pub fn check_folder(flag: &str, path: &Path) -> Result<(), String> {
    let folder = folder_of(path);
    check_is_folder(flag, path, folder)?;
    check_file(flag, path)?;
    check_writable(flag, path, folder)
}

/// Like [`check_folder`], for an image file, whose ending stands for its format.
///
/// # Errors
///
/// Like [`check_folder`], and returns a message if there is no such format.
pub fn check_image(flag: &str, path: &Path) -> Result<(), String> {
    check_folder(flag, path)?;
    check_image_file(flag, path)
}

/// Like [`check_file`], for an image file.
pub(super) fn check_image_file(flag: &str, path: &Path) -> Result<(), String> {
    check_file(flag, path)?;
    match ImageFormat::from_path(path) {
        Ok(_) => Ok(()),
        Err(hart_core::Error::Request { problem, .. }) => Err(format!("{flag} {problem}")),
        Err(error) => Err(format!("{flag} {error}")),
    }
}

/// Checks that the folder of a file exists.
pub(super) fn check_is_folder(flag: &str, path: &Path, folder: &Path) -> Result<(), String> {
    if folder.is_dir() {
        return Ok(());
    }
    Err(format!("{flag} {}: no folder {}; create it first", path.display(), folder.display()))
}

/// Checks that a path is a valid name of a file, and that nothing but a regular file is in its place.
pub(super) fn check_file(flag: &str, path: &Path) -> Result<(), String> {
    check_file_name(path).map_err(|e| format!("{flag} {e}"))?;
    let path_text = path.display();
    if path_text.to_string().ends_with(std::path::is_separator) && !path.is_dir() {
        return Err(format!("{flag} {path_text}: no such folder; create it first, and add the name of a file"));
    }
    // Links aren't followed: a dangling one is replaced.
    match path.symlink_metadata() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(format!("{flag} {path_text}: {e}; choose another name")),
        Ok(_) if path.is_dir() => {
            Err(format!("{flag} {path_text}: is a folder, expected a file name, such as {}", path.join("out.png").display()))
        }
        Ok(_) if path.exists() && !path.is_file() => {
            Err(format!("{flag} {path_text}: exists and is not a regular file; choose another name"))
        }
        Ok(_) => Ok(()),
    }
}

/// Checks that files can be created in a folder.
pub(super) fn check_writable(flag: &str, path: &Path, folder: &Path) -> Result<(), String> {
    match tempfile::Builder::new().prefix(".hart-").tempfile_in(folder) {
        Ok(_) => Ok(()),
        Err(e) => Err(format!("{flag} {}: can't write to {}: {}", path.display(), folder.display(), e.kind())),
    }
}

/// Replaces control characters by spaces: a prompt from elsewhere can't send escape codes to the terminal or start a new line.
pub fn one_line(text: &str) -> String {
    text.replace(char::is_control, " ")
}

/// Like [`one_line`], but also replaces the middle of a long text by an ellipsis.
pub fn shortened(text: &str) -> String {
    /// Characters kept at each end.
    const END: usize = 30;
    let line = one_line(text.trim());
    let length = line.chars().count();
    if length <= 2 * END {
        return line;
    }
    let start: String = line.chars().take(END).collect();
    let end: String = line.chars().skip(length - END).collect();
    format!("{start}...{end}")
}

/// Prints a warning on standard error for each truncated prompt. Only counts those after the first few.
pub fn warn_truncated(truncated: &[Truncation]) {
    for truncation in truncated.iter().take(MAX_WARNINGS) {
        let text = truncation.prompt.map_or_else(|| "the system prompt".into(), |p| format!("prompt {}", p + 1));
        eprintln!(
            "warning: {text} has {} tokens, the model reads {}; ignored: \"{}\"",
            truncation.tokens,
            truncation.kept,
            shortened(&truncation.cut)
        );
    }
    if truncated.len() > MAX_WARNINGS {
        eprintln!("warning: {} other prompts are too long as well", truncated.len() - MAX_WARNINGS);
    }
}

/// Returns the files as the end of a message: ` -> a.png -> b.png`. Names only the first and the last of many.
pub fn file_list(files: &[PathBuf]) -> String {
    match files {
        [first, .., last] if files.len() > MAX_LISTED_FILES => {
            format!(" -> {} files, {} to {}", files.len(), first.display(), last.display())
        }
        _ => files.iter().map(|file| format!(" -> {}", file.display())).collect(),
    }
}

/// Checks that two paths lead to different files, whether the files exist or not.
///
/// # Errors
///
/// Returns a message that names `flag`, and `owner` as the use of the other file.
pub fn check_distinct(flag: &str, path: &Path, owner: &str, other: &Path) -> Result<(), String> {
    // A symbolic link counts as its target, as in [`hart_core::write_file`].
    let target = |path: &Path| {
        let new = || folder_of(path).canonicalize().map(|folder| folder.join(path.file_name().unwrap_or_default()));
        path.canonicalize().or_else(|_| new())
    };
    match (target(path), target(other)) {
        (Ok(a), Ok(b)) if a == b => Err(format!("{flag} {}: is the same file as {owner}; choose another name", path.display())),
        _ => Ok(()),
    }
}

/// Checks that a grid can be written next to the files of `count` images.
///
/// # Errors
///
/// Like [`check_folder`], and returns a message if there are more images than a grid shows, or the grid would overwrite one.
pub fn check_grid(grid: &Path, images: &OutFiles, count: usize) -> Result<(), String> {
    check_image("--grid", grid)?;
    if count > MAX_GRID_IMAGES {
        return Err(format!("--grid {}: shows at most {MAX_GRID_IMAGES} images, not {count}; leave it out", grid.display()));
    }
    (0..count).try_for_each(|index| check_distinct("--grid", grid, "an image", &images.path(index)))
}

/// Prints a line on standard output. A closed pipe is no error, since its reader wants no more lines: the program still writes its files.
///
/// # Errors
///
/// Returns any other error of standard output, such as a full disk. `println!` would panic.
pub fn print_line(line: impl Display) -> io::Result<()> {
    match writeln!(io::stdout(), "{line}") {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(io::Error::new(e.kind(), format!("standard output: {e}"))),
        _ => Ok(()),
    }
}

/// Returns the milliseconds of each stage and the total as a JSON object.
pub fn milliseconds(timings: &Timings) -> Value {
    let round = |d: Duration| json!((d.as_secs_f64() * 1e5).round() / 100.0);
    let mut map: Map<String, Value> = Stage::ALL.iter().map(|s| (s.name().to_string(), round(timings.of(*s)))).collect();
    map.insert("total".into(), round(timings.total));
    Value::Object(map)
}

/// Returns the milliseconds of each stage and the total as lines of text.
pub fn timing_table(timings: &Timings) -> String {
    let stages = Stage::ALL.iter().map(|s| (s.name(), timings.of(*s)));
    let line = |(name, time): (&str, Duration)| format!("{name:12} {:9.1} ms", time.as_secs_f64() * 1e3);
    stages.chain([("total", timings.total)]).map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_folder_is_named() {
        let folder = tempfile::tempdir().unwrap();
        assert!(check_folder("--out", &folder.path().join("out.png")).is_ok());
        assert!(check_folder("--out", folder.path()).unwrap_err().contains("is a folder"));
        assert!(check_folder("--out", &folder.path().join("missing/out.png")).unwrap_err().contains("create it first"));
    }

    #[test]
    fn a_file_is_recognised_under_all_its_names() {
        let folder = tempfile::tempdir().unwrap();
        let inside = |name: &str| folder.path().join(name);
        std::fs::create_dir(inside("sub")).unwrap();
        let check = |a: &str, b: &str| check_distinct("--grid", &inside(a), "an image", &inside(b));
        assert!(check("x.png", "y.png").is_ok() && check("x.png", "sub/x.png").is_ok());
        assert!(check("sub/../x.png", "x.png").unwrap_err().ends_with("x.png: is the same file as an image; choose another name"));
        std::fs::write(inside("x.png"), "").unwrap();
        assert!(check("sub/../x.png", "x.png").is_err() && check("x.png", "y.png").is_ok());
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(inside("x.png"), inside("link.png")).unwrap();
            assert!(check("link.png", "x.png").is_err());
        }
    }

    #[test]
    fn a_text_becomes_one_short_line_without_codes() {
        assert_eq!(shortened(" a\x1b[2J\nerror: b\u{9b}c\n"), "a [2J error: b c");
        assert_eq!(shortened(&"é".repeat(60)), "é".repeat(60));
        let long = format!("{}{}", "é".repeat(100), "b".repeat(30));
        assert_eq!(shortened(&long), format!("{}...{}", "é".repeat(30), "b".repeat(30)));
    }
}
