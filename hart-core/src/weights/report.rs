//! What a checkpoint gave, and what it should have given.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

/// A tensor that is missing or not used.
#[derive(Clone, Debug, PartialEq)]
pub struct Misplaced {
    /// Its name in the checkpoint.
    pub name: String,
    /// The file that holds it, or where it was looked for.
    pub file: PathBuf,
    /// The shape that is expected of a missing tensor, or that an unused one has.
    pub shape: Vec<usize>,
}

/// A tensor of another shape than its configuration asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct Misshapen {
    /// Its name in the checkpoint.
    pub name: String,
    /// The file that holds it.
    pub file: PathBuf,
    /// The shape that the configuration asks for.
    pub expected: Vec<usize>,
    /// The shape in the file.
    pub found: Vec<usize>,
}

/// How a set of weights fitted its modules.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Report {
    /// Where it was opened.
    pub path: PathBuf,
    /// Files that gave tensors.
    pub files: BTreeSet<PathBuf>,
    /// Tensors that were loaded.
    pub loaded: usize,
    /// Their elements.
    pub parameters: u64,
    /// Tensors that modules need and the checkpoint lacks.
    pub missing: Vec<Misplaced>,
    /// Tensors that no module needs and that are not known buffers.
    pub unused: Vec<Misplaced>,
    /// Tensors of the wrong shape.
    pub misshapen: Vec<Misshapen>,
    /// Known buffers and foreign parts that were passed over.
    pub ignored: Vec<String>,
}

impl Report {
    /// Whether every tensor fitted.
    pub fn is_clean(&self) -> bool {
        self.missing.is_empty() && self.unused.is_empty() && self.misshapen.is_empty()
    }
}

/// How many tensors of a kind are named.
const MOST_NAMED: usize = 12;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.path.display())?;
        if self.is_clean() {
            return write!(f, "{} tensors, {} parameters", self.loaded, self.parameters);
        }
        let (missing, unused, misshapen) = (self.missing.len(), self.unused.len(), self.misshapen.len());
        write!(f, "the tensors don't fit config.json: {missing} missing, {unused} unused, {misshapen} misshapen; ")?;
        write!(f, "take both from the same model")?;
        if missing + misshapen == 0 {
            write!(f, ", or open it without `strict`, which lets unused ones be")?;
        }
        let file = |path: &Path| path.file_name().map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into_owned());
        list(f, &self.missing, |f, t| write!(f, "missing `{}` {:?} (looked in {})", shortened(&t.name), t.shape, file(&t.file)))?;
        list(f, &self.misshapen, |f, t| {
            write!(f, "misshapen `{}` in {}: expected {:?}, found {:?}", shortened(&t.name), file(&t.file), t.expected, t.found)
        })?;
        list(f, &self.unused, |f, t| write!(f, "unused `{}` {:?} in {}", shortened(&t.name), t.shape, file(&t.file)))
    }
}

fn list<T>(f: &mut fmt::Formatter<'_>, items: &[T], line: impl Fn(&mut fmt::Formatter<'_>, &T) -> fmt::Result) -> fmt::Result {
    for item in items.iter().take(MOST_NAMED) {
        f.write_str("\n  ")?;
        line(f, item)?;
    }
    if items.len() > MOST_NAMED { write!(f, "\n  ... and {} more", items.len() - MOST_NAMED) } else { Ok(()) }
}

/// Returns the first line of a text, shortened for a message. Control characters become spaces, since they could command a terminal.
pub(crate) fn shortened(text: &str) -> String {
    const MAX_CHARS: usize = 60;
    let line = text.trim().lines().next().unwrap_or_default();
    let short: String = line.chars().take(MAX_CHARS).map(|c| if c.is_control() { ' ' } else { c }).collect();
    let is_cut = line.chars().count() > MAX_CHARS || line.len() < text.trim().len();
    if is_cut { format!("{}...", short.trim_end()) } else { short }
}
