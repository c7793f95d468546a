//! The result of loading a checkpoint.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

/// A tensor that is missing or unused.
#[derive(Clone, Debug, PartialEq)]
pub struct UnmatchedTensor {
    /// Name in the checkpoint.
    pub name: String,
    /// File of an unused tensor; file or folder that lacks a missing one.
    pub file: PathBuf,
    /// Shape of an unused tensor; expected shape of a missing one.
    pub shape: Vec<usize>,
}

/// A tensor whose shape differs from the configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct ShapeMismatch {
    /// Name in the checkpoint.
    pub name: String,
    /// File of the tensor.
    pub file: PathBuf,
    /// Shape according to the configuration.
    pub expected: Vec<usize>,
    /// Shape in the file.
    pub found: Vec<usize>,
}

/// The tensors of a checkpoint that were loaded, and those that do not fit the model.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct LoadReport {
    /// File or folder of the checkpoint.
    pub path: PathBuf,
    /// Files from which tensors were loaded.
    pub files: BTreeSet<PathBuf>,
    /// Number of tensors loaded.
    pub loaded: usize,
    /// Number of their elements.
    pub parameters: u64,
    /// Tensors that the model needs and the checkpoint does not have.
    pub missing: Vec<UnmatchedTensor>,
    /// Tensors that the model does not need, except those in `ignored`.
    pub unused: Vec<UnmatchedTensor>,
    /// Tensors with the wrong shape.
    pub misshapen: Vec<ShapeMismatch>,
    /// Names of known buffers, of single numbers and empty tensors, and of tensors of other models, which were skipped.
    pub ignored: Vec<String>,
    /// Parts of names that training tools had added and that were removed, such as `module.`, and keys of the dictionaries in which the
    /// tensors were, such as `state_dict.`.
    pub removed: BTreeSet<String>,
}

impl LoadReport {
    /// Returns whether no tensor is missing, unused or misshapen.
    pub fn is_clean(&self) -> bool {
        self.missing.is_empty() && self.unused.is_empty() && self.misshapen.is_empty()
    }
}

impl LoadReport {
    /// Writes which parts of names were removed, if any.
    fn fmt_removed(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.removed.is_empty() {
            return Ok(());
        }
        let parts: Vec<String> = self.removed.iter().map(|part| format!("`{part}`")).collect();
        write!(f, "; names are without {}", parts.join(" and "))
    }
}

/// Maximum number of tensors of a kind that are listed.
const MAX_LISTED: usize = 12;

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.path.display())?;
        if self.is_clean() {
            write!(f, "{} tensors, {} parameters", self.loaded, self.parameters)?;
            return self.fmt_removed(f);
        }
        let (missing, unused, misshapen) = (self.missing.len(), self.unused.len(), self.misshapen.len());
        write!(f, "the tensors don't fit config.json: {missing} missing, {unused} unused, {misshapen} misshapen; ")?;
        write!(f, "take both from the same model")?;
        if missing + misshapen == 0 {
            write!(f, ", or allow unused tensors (turn the option `strict` off)")?;
        }
        self.fmt_removed(f)?;
        let file = |path: &Path| path.file_name().map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into_owned());
        list(f, &self.missing, |f, t| write!(f, "missing `{}` {:?} (looked in {})", shortened(&t.name), t.shape, file(&t.file)))?;
        list(f, &self.misshapen, |f, t| {
            write!(f, "misshapen `{}` in {}: expected {:?}, found {:?}", shortened(&t.name), file(&t.file), t.expected, t.found)
        })?;
        list(f, &self.unused, |f, t| write!(f, "unused `{}` {:?} in {}", shortened(&t.name), t.shape, file(&t.file)))
    }
}

fn list<T>(f: &mut fmt::Formatter<'_>, items: &[T], line: impl Fn(&mut fmt::Formatter<'_>, &T) -> fmt::Result) -> fmt::Result {
    for item in items.iter().take(MAX_LISTED) {
        f.write_str("\n  ")?;
        line(f, item)?;
    }
    if items.len() > MAX_LISTED { write!(f, "\n  ... and {} more", items.len() - MAX_LISTED) } else { Ok(()) }
}

/// Returns the first line of a text, shortened for a message. Control characters become spaces, since a terminal would interpret them.
pub(crate) fn shortened(text: &str) -> String {
    const MAX_CHARS: usize = 60;
    let line = text.trim().lines().next().unwrap_or_default();
    let short: String = line.chars().take(MAX_CHARS).map(|c| if c.is_control() { ' ' } else { c }).collect();
    let is_cut = line.chars().count() > MAX_CHARS || line.len() < text.trim().len();
    if is_cut { format!("{}...", short.trim_end()) } else { short }
}
