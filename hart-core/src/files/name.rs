//! File names that not every system can store.

use std::io;
use std::path::Path;

use crate::error::{Error, Result};

/// Characters that Windows allows in no file name, besides control characters.
const FORBIDDEN: &str = "<>:\"/\\|?*";
/// Names that Windows reserves for devices, with any extension.
const DEVICES: [&str; 6] = ["CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"];
/// Devices that have a number.
const NUMBERED_DEVICES: [&str; 2] = ["COM", "LPT"];
/// Numbers of [`NUMBERED_DEVICES`].
const NUMBERS: &str = "0123456789¹²³";

/// Checks that this system can store a file under the name of the path. Windows reserves some names and characters. Without this
/// check, it may write to a device, to a hidden stream of another file, or to a file with another name.
///
/// # Errors
///
/// [`Error::Io`] with the problem.
pub fn check_file_name(path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    match windows_name_problem(&name) {
        Some(problem) if cfg!(windows) => {
            let problem = format!("{problem}: choose another name");
            Err(Error::io(path)(io::Error::new(io::ErrorKind::InvalidFilename, problem)))
        }
        _ => Ok(()),
    }
}

/// Returns the reason why Windows can't store a file under a name, on any system. For names that must work on all of them.
///
/// ```
/// assert!(hart_core::windows_name_problem("aux.png").is_some());
/// assert_eq!(hart_core::windows_name_problem("parrot.png"), None);
/// ```
#[must_use]
pub fn windows_name_problem(name: &str) -> Option<String> {
    if let Some(character) = name.chars().find(|&c| c.is_ascii_control() || FORBIDDEN.contains(c)) {
        return Some(format!("a file name can't contain {character:?} on Windows"));
    }
    if name.ends_with(['.', ' ']) {
        return Some("Windows drops a dot or space at the end of a file name".into());
    }
    // Windows ignores spaces before the extension too.
    let stem = name.split('.').next().unwrap_or_default().trim_end_matches(' ').to_uppercase();
    let number = NUMBERED_DEVICES.iter().find_map(|device| stem.strip_prefix(device));
    let is_numbered = number.is_some_and(|number| number.chars().count() == 1 && NUMBERS.contains(number));
    let is_device = is_numbered || DEVICES.contains(&stem.as_str());
    is_device.then(|| format!("Windows reserves the name {stem} for a device"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_windows_would_change_are_found() {
        for (name, words) in [
            ("out:x.png", "can't contain ':'"),
            ("what?.png", "can't contain '?'"),
            ("a\tb.png", "can't contain '\\t'"),
            ("out.png.", "dot or space"),
            ("out.png ", "dot or space"),
            ("nul", "reserves the name NUL"),
            ("Con.png", "reserves the name CON"),
            ("aux .tar.gz", "reserves the name AUX"),
            ("com1.png", "reserves the name COM1"),
            ("LPT³", "reserves the name LPT³"),
            ("conout$", "reserves the name CONOUT$"),
        ] {
            let problem = windows_name_problem(name);
            assert!(problem.as_ref().is_some_and(|problem| problem.contains(words)), "{name}: {problem:?}");
        }
        for name in
            ["", "out.png", "console.png", "com.png", "com10.png", "lpt", "nul-1.png", "a.con", "{n}.png", "hérz 心.png", ".hart"]
        {
            assert_eq!(windows_name_problem(name), None, "{name}");
        }
    }

    #[test]
    fn only_windows_refuses_names() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a?.png", "nul.png", "out.png.", "out:x.png"] {
            let path = folder.path().join(name);
            match crate::write_file(&path, b"x") {
                Ok(()) => assert!(!cfg!(windows) && path.is_file(), "{name}"),
                Err(error) => assert!(cfg!(windows) && error.to_string().contains("choose another name"), "{name}: {error}"),
            }
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), if cfg!(windows) { 0 } else { 4 });
    }
}
