//! What can go wrong, by whose fault: the caller's request, the checkpoint's files, the device, or ours.

use std::path::{Path, PathBuf};

use crate::image::Image;
use crate::weights::Report;

/// Everything that the library can answer instead of a result. Messages name the thing, what was expected and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A checkpoint's file is missing or is not what its name promises.
    #[error("{}: {problem}", path.display())]
    Checkpoint {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        problem: String,
    },
    /// A picture file is not what its name promises.
    #[error("{}: {problem}", path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A value in a configuration file is missing, of the wrong type, out of range, or not supported.
    #[error("{}: `{field}` is {got}, expected {expected}", path.display())]
    Config {
        /// The configuration file.
        path: PathBuf,
        /// Name of the value.
        field: String,
        /// What the file says.
        got: String,
        /// What would do.
        expected: String,
    },
    /// The tensors of a checkpoint are not those that its configuration asks for.
    #[error("{0}")]
    Weights(Box<Report>),
    /// A tensor of a checkpoint holds NaN or an infinity.
    #[error(
        "{}: tensor `{tensor}` holds {value} at element {index}: the file is damaged or its training diverged; get it again",
        path.display()
    )]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// Name of the tensor in the file.
        tensor: String,
        /// Position in row-major order.
        index: usize,
        /// NaN, inf or -inf.
        value: f32,
    },
    /// The request can't be carried out as it stands.
    #[error("request: {field}: {problem}")]
    Request {
        /// Which part of the request.
        field: &'static str,
        /// What is wrong with it, and what would do.
        problem: String,
    },
    /// The request's [`PromptFilter`](crate::PromptFilter) refuses a prompt.
    #[error("prompt \"{}\" is refused: {reason}", shortened(prompt))]
    Refused {
        /// The prompt, whole.
        prompt: String,
        /// What the filter said.
        reason: String,
    },
    /// The device is not compiled in, is not there, doesn't work, or has failed.
    #[error("device `{name}`: {problem}")]
    Device {
        /// The name that was asked for.
        name: String,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// More memory would be needed than [`OpenOptions::max_memory`](crate::OpenOptions::max_memory) allows.
    #[error("{what} would take about {} MB of memory, {} MB are allowed: raise the limit or take a smaller model", needed >> 20, limit >> 20)]
    Memory {
        /// What for.
        what: &'static str,
        /// Bytes that it would take, estimated.
        needed: u64,
        /// Bytes that are allowed.
        limit: u64,
    },
    /// The run was cancelled by the observer or a [`CancelToken`](crate::CancelToken).
    #[error("cancelled; {} pictures were finished before", completed.len())]
    Cancelled {
        /// The pictures that were finished before.
        completed: Vec<Image>,
    },
    /// A number that must be finite is not: the weights and the arithmetic don't fit together.
    #[error("{what} are not finite: the weights are damaged, or guidance is extreme; try guidance 4.5 or another checkpoint")]
    Overflow {
        /// Which numbers.
        what: String,
    },
}

/// The library's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A text's first line, and no more of it than a message needs; what would command a terminal is replaced.
pub(crate) fn shortened(text: &str) -> String {
    const MOST: usize = 60;
    let line = text.trim().lines().next().unwrap_or_default();
    let short: String = line.chars().take(MOST).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if line.chars().count() > MOST || line.len() < text.trim().len() { format!("{}...", short.trim_end()) } else { short }
}

impl Error {
    pub(crate) fn io(path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::Io { path, source }
    }

    pub(crate) fn checkpoint(path: impl AsRef<Path>, problem: impl Into<String>) -> Self {
        Self::Checkpoint { path: path.as_ref().to_path_buf(), problem: problem.into() }
    }

    pub(crate) fn request(field: &'static str, problem: impl Into<String>) -> Self {
        Self::Request { field, problem: problem.into() }
    }

    /// Whether the run was cancelled, which is no fault.
    pub fn is_cancelled(&self) -> bool {
        matches!(self, Self::Cancelled { .. })
    }
}
