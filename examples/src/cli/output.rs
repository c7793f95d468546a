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

/// The folder that a file is in.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A pattern's files can be written where they are to stand; asked before any work is done.
///
/// # Errors
///
/// What is wrong with it, and what to do.
pub fn check_folder(flag: &str, pattern: &Path) -> Result<(), String> {
    let folder = folder_of(pattern);
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
    // The file below has a name of its own; this one may be too long.
    if let Err(e) = pattern.symlink_metadata()
        && e.kind() != io::ErrorKind::NotFound
    {
        return Err(format!("{flag} {}: {e}; name another", pattern.display()));
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
    let mut builder = tempfile::Builder::new();
    // A temporary file is private; a picture has the rights of any new file.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut write = || {
        let mut file = builder.prefix(".hart-").tempfile_in(folder_of(&target))?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(&target).map_err(|e| e.error)
    };
    write().map(drop).map_err(|e| format!("{}: {e}", path.display()))
}

/// A text in one line, without the codes that a terminal obeys: a prompt may come from anyone.
pub fn one_line(text: &str) -> String {
    text.replace(char::is_control, " ")
}

/// As [`one_line`], and no longer than a message needs: a long text's middle is left out.
pub fn shortened(text: &str) -> String {
    /// Characters that stay at either end.
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

/// Says on standard error which texts were longer than the checkpoint reads, and what was cut.
pub fn warn_truncated(truncated: &[Truncation]) {
    for truncation in truncated {
        let which = truncation.prompt.map_or_else(|| "the system prompt".into(), |p| format!("prompt {}", p + 1));
        eprintln!(
            "warning: {which} has {} tokens, the model reads {}; not read: \"{}\"",
            truncation.tokens,
            truncation.kept,
            shortened(&truncation.cut)
        );
    }
}

/// Two files are not one, however they are spelt and whether they are there yet or not.
///
/// # Errors
///
/// They are one, which is `owner`'s.
pub fn check_apart(flag: &str, path: &Path, owner: &str, other: &Path) -> Result<(), String> {
    // A link that leads to a file is that file, as for `save`.
    let target = |path: &Path| {
        let new = || folder_of(path).canonicalize().map(|folder| folder.join(path.file_name().unwrap_or_default()));
        path.canonicalize().or_else(|_| new())
    };
    match (target(path), target(other)) {
        (Ok(a), Ok(b)) if a == b => Err(format!("{flag} {}: that is {owner}'s own file; name another", path.display())),
        _ => Ok(()),
    }
}

/// As [`check_folder`] for a grid of `count` pictures that go into files of their own.
///
/// # Errors
///
/// As [`check_folder`], or it would take the place of a picture.
pub fn check_grid(grid: &Path, pictures: &Path, count: usize) -> Result<(), String> {
    check_folder("--grid", grid)?;
    (0..count).try_for_each(|index| check_apart("--grid", grid, "a picture", &numbered(pictures, index, count)))
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

    #[test]
    fn one_file_is_found_by_all_its_names() {
        let folder = tempfile::tempdir().unwrap();
        let inside = |name: &str| folder.path().join(name);
        std::fs::create_dir(inside("sub")).unwrap();
        let check = |a: &str, b: &str| check_apart("--grid", &inside(a), "a picture", &inside(b));
        assert!(check("x.png", "y.png").is_ok() && check("x.png", "sub/x.png").is_ok());
        assert!(check("sub/../x.png", "x.png").unwrap_err().ends_with("x.png: that is a picture's own file; name another"));
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
