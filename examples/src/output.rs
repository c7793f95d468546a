//! Where pictures go, and what is said about them.

use std::fmt::Display;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hart_core::{Stage, Timings, Truncation};
use serde_json::{Map, Value, json};

/// File name of picture `index` of `count`: `{n}` becomes its number, from 0; without one, pictures after the first get `-1`, `-2`
/// and so on before the extension.
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

/// The folder that a pattern's files go into is there and can be written to; asked before any work is done.
///
/// # Errors
///
/// What is wrong with it, and what to do.
pub fn check_folder(flag: &str, pattern: &Path) -> Result<(), String> {
    let folder = match pattern.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if !folder.is_dir() {
        return Err(format!("{flag} {}: there is no folder {}; make it first", pattern.display(), folder.display()));
    }
    if pattern.exists() && !pattern.is_dir() && !pattern.is_file() {
        return Err(format!("{flag} {}: is there already and no plain file; name another", pattern.display()));
    }
    if pattern.is_dir() {
        return Err(format!(
            "{flag} {}: that is a folder; give a file name, such as {}/out.png",
            pattern.display(),
            pattern.display()
        ));
    }
    match tempfile::Builder::new().prefix(".hart-").tempfile_in(folder) {
        Ok(_) => Ok(()),
        Err(e) => Err(format!("{flag} {}: can't write into {}: {e}", pattern.display(), folder.display())),
    }
}

/// Writes a file whole or not at all: to a temporary one in the same folder, which then takes its name. A link is followed.
///
/// # Errors
///
/// The system's, with the path.
pub fn save(path: &Path, bytes: &[u8]) -> Result<(), String> {
    let target = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    let folder = match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    // A temporary file is private; a picture has the rights of any new file.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut write = || {
        let mut file = builder.prefix(".hart-").tempfile_in(folder)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(&target).map_err(|e| e.error)
    };
    write().map(drop).map_err(|e| format!("{}: {e}", path.display()))
}

/// Says on standard error which texts were longer than the checkpoint reads, and what was cut.
pub fn warn_truncated(truncated: &[Truncation]) {
    for truncation in truncated {
        let which = truncation.prompt.map_or_else(|| "the system prompt".into(), |p| format!("prompt {}", p + 1));
        eprintln!(
            "warning: {which} has {} tokens, the model reads {}; not read: \"{}\"",
            truncation.tokens, truncation.kept, truncation.cut
        );
    }
}

/// As [`check_folder`] for a grid of `count` pictures that go into files of their own.
///
/// # Errors
///
/// As [`check_folder`], or it would take the place of a picture.
pub fn check_grid(grid: &Path, pictures: &Path, count: usize) -> Result<(), String> {
    check_folder("--grid", grid)?;
    if (0..count).any(|i| numbered(pictures, i, count) == *grid) {
        return Err(format!("--grid {}: that is a picture's own file; name another", grid.display()));
    }
    Ok(())
}

/// Writes a line to standard output.
///
/// # Errors
///
/// It can't be written, as when the reader of a pipe has gone.
pub fn say(line: impl Display) -> io::Result<()> {
    writeln!(io::stdout(), "{line}")
}

/// Milliseconds of each stage and of the whole, as a JSON object.
pub fn milliseconds(timings: &Timings) -> Value {
    let round = |d: Duration| json!((d.as_secs_f64() * 1e5).round() / 100.0);
    let mut map: Map<String, Value> = Stage::ALL.iter().map(|s| (s.name().to_string(), round(timings.of(*s)))).collect();
    map.insert("total".into(), round(timings.total));
    Value::Object(map)
}

/// The same as lines for people.
pub fn timing_table(timings: &Timings) -> String {
    let stages = Stage::ALL.iter().map(|s| (s.name(), timings.of(*s)));
    let line = |(name, time): (&str, Duration)| format!("{name:12} {:9.1} ms", time.as_secs_f64() * 1e3);
    stages.chain([("total", timings.total)]).map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_get_their_own_names() {
        let name = |pattern: &str, index, count| numbered(Path::new(pattern), index, count).to_string_lossy().into_owned();
        assert_eq!(name("out.png", 0, 1), "out.png");
        assert_eq!(name("a/out.png", 0, 3), "a/out.png");
        assert_eq!(name("a/out.png", 2, 3), "a/out-2.png");
        assert_eq!(name("p{n}.png", 2, 3), "p2.png");
        assert_eq!(name("p{n}.png", 0, 1), "p0.png");
        assert_eq!(name("out", 1, 2), "out-1");
    }

    #[test]
    fn a_folder_that_is_not_there_is_named() {
        let folder = tempfile::tempdir().unwrap();
        assert!(check_folder("--out", &folder.path().join("out.png")).is_ok());
        assert!(check_folder("--out", folder.path()).unwrap_err().contains("that is a folder"));
        assert!(check_folder("--out", &folder.path().join("missing/out.png")).unwrap_err().contains("make it first"));
    }
}
