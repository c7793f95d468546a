//! Output files, messages and JSON results.

use std::fmt::Display;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hart_core::{Stage, Timings, Truncation, check_file_name};
use serde_json::{Map, Value, json};

/// Returns the file name of image `index` of `count`.
///
/// `{n}` in the pattern is replaced by the index. Without it, images after the first get `-1`, `-2` and so on before the extension.
pub fn numbered(pattern: &Path, index: usize, count: usize) -> PathBuf {
    if let Some(text) = pattern.to_str().filter(|text| text.contains("{n}")) {
        return PathBuf::from(text.replace("{n}", &index.to_string()));
    }
    if count == 1 || index == 0 {
        return pattern.to_path_buf();
    }
    let mut name = pattern.file_stem().unwrap_or_default().to_os_string();
    name.push(format!("-{index}"));
    if let Some(extension) = pattern.extension() {
        name.push(".");
        name.push(extension);
    }
    pattern.with_file_name(name)
}

/// Returns the folder of a file.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Checks that files of this pattern can be written. Programs call it before they start to compute.
///
/// # Errors
///
/// Returns a message that names `flag` and says what to do.
pub fn check_folder(flag: &str, pattern: &Path) -> Result<(), String> {
    check_file_name(pattern).map_err(|e| format!("{flag} {e}"))?;
    let folder = folder_of(pattern);
    if !folder.is_dir() {
        return Err(format!("{flag} {}: no folder {}; create it first", pattern.display(), folder.display()));
    }
    if pattern.exists() && !pattern.is_dir() && !pattern.is_file() {
        return Err(format!("{flag} {}: exists and is not a regular file; choose another name", pattern.display()));
    }
    if pattern.is_dir() {
        return Err(format!(
            "{flag} {}: is a folder, expected a file name, such as {}/out.png",
            pattern.display(),
            pattern.display()
        ));
    }
    // The temporary file below has another name. This one may be too long.
    if let Err(e) = pattern.symlink_metadata()
        && e.kind() != io::ErrorKind::NotFound
    {
        return Err(format!("{flag} {}: {e}; choose another name", pattern.display()));
    }
    match tempfile::Builder::new().prefix(".hart-").tempfile_in(folder) {
        Ok(_) => Ok(()),
        Err(e) => Err(format!("{flag} {}: can't write to {}: {}", pattern.display(), folder.display(), e.kind())),
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

/// Prints a warning on standard error for each truncated prompt.
pub fn warn_truncated(truncated: &[Truncation]) {
    for truncation in truncated {
        let text = truncation.prompt.map_or_else(|| "the system prompt".into(), |p| format!("prompt {}", p + 1));
        eprintln!(
            "warning: {text} has {} tokens, the model reads {}; ignored: \"{}\"",
            truncation.tokens,
            truncation.kept,
            shortened(&truncation.cut)
        );
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

/// Checks that a grid can be written next to `count` images, whose file names follow the pattern `images`.
///
/// # Errors
///
/// Like [`check_folder`], and returns a message if the grid would overwrite an image.
pub fn check_grid(grid: &Path, images: &Path, count: usize) -> Result<(), String> {
    check_folder("--grid", grid)?;
    (0..count).try_for_each(|index| check_distinct("--grid", grid, "an image", &numbered(images, index, count)))
}

/// Prints a line on standard output.
///
/// # Errors
///
/// Returns an error if standard output can't be written, such as a closed pipe. `println!` would panic.
pub fn print_line(line: impl Display) -> io::Result<()> {
    writeln!(io::stdout(), "{line}")
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
    fn images_get_distinct_file_names() {
        let name = |pattern: &str, index, count| numbered(Path::new(pattern), index, count).to_string_lossy().into_owned();
        assert_eq!(name("out.png", 0, 1), "out.png");
        assert_eq!(name("a/out.png", 0, 3), "a/out.png");
        assert_eq!(name("a/out.png", 2, 3), "a/out-2.png");
        assert_eq!(name("p{n}.png", 2, 3), "p2.png");
        assert_eq!(name("p{n}.png", 0, 1), "p0.png");
        assert_eq!(name("out", 1, 2), "out-1");
    }

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
