//! Errors, grouped by cause: the caller's request, the checkpoint's files, the device, or a defect.

use std::path::{Path, PathBuf};

use crate::weights::{LoadReport, shortened};

/// Errors of the library. Messages name the cause, the expected value and the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder cannot be read or written.
    #[error("{}: {source}", shown(path))]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// A file of a checkpoint is missing or damaged.
    #[error("{}: {problem}", shown(path))]
    Checkpoint {
        /// The file or folder.
        path: PathBuf,
        /// The problem, and what to do.
        problem: String,
    },
    /// An image file is damaged or of another type.
    #[error("{}: {problem}", shown(path))]
    Image {
        /// The file.
        path: PathBuf,
        /// The problem.
        problem: String,
    },
    /// A value in a configuration file is missing, of the wrong type, out of range, or not supported.
    #[error("{}: `{field}` is {got}, expected {expected}", shown(path))]
    Config {
        /// The configuration file.
        path: PathBuf,
        /// Name of the value.
        field: String,
        /// The value in the file.
        got: String,
        /// A description of the valid values.
        expected: String,
    },
    /// The tensors of a checkpoint do not match its configuration.
    #[error("{0}")]
    Weights(Box<LoadReport>),
    /// A tensor of a checkpoint contains NaN or an infinity.
    #[error(
        "{}: tensor `{tensor}` holds {value} at element {index}: the file is damaged or its training diverged; download it again",
        shown(path)
    )]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// Name of the tensor in the file.
        tensor: String,
        /// Index of the element in row-major order.
        index: usize,
        /// NaN, inf or -inf.
        value: f32,
    },
    /// A value of the request or of an option is invalid.
    #[error("request: {field}: {problem}")]
    Request {
        /// The part of the request.
        field: &'static str,
        /// The problem, and the valid values.
        problem: String,
    },
    /// The request's [`PromptFilter`](crate::PromptFilter) refused a prompt.
    #[error("prompt \"{}\" is refused: {reason}", shortened(prompt))]
    Refused {
        /// The whole prompt.
        prompt: String,
        /// The filter's reason.
        reason: String,
    },
    /// The device is not compiled in, is missing, does not work, or has failed.
    #[error("device `{name}`: {problem}")]
    Device {
        /// The requested name.
        name: String,
        /// The problem, and what to do.
        problem: String,
    },
    /// The system does not start the threads that the work needs. A later call may succeed.
    #[error(
        "no threads could be started: {problem}; raise the limit on threads (ulimit -u, or the container's limit on pids), or use fewer \
         (the option `threads`)"
    )]
    Threads {
        /// The system's error.
        problem: String,
    },
    /// The call is not possible in the present state of the process, for example after a fork.
    #[error("{problem}")]
    State {
        /// The problem, and what to do.
        problem: String,
    },
    /// The work needs more memory than [`OpenOptions::max_memory`](crate::OpenOptions::max_memory) allows.
    #[error("{what} would take about {} MB of memory, {} MB are allowed: {remedy}", needed >> 20, limit >> 20)]
    Memory {
        /// The work.
        what: &'static str,
        /// Estimated number of bytes.
        needed: u64,
        /// Allowed number of bytes.
        limit: u64,
        /// What to do.
        remedy: String,
    },
    /// The observer or a [`CancelToken`](crate::CancelToken) cancelled the run. Images that were finished before were passed to
    /// [`Observer::image`](crate::Observer::image).
    #[error("cancelled")]
    Cancelled,
    /// A computed value is NaN or infinite.
    #[error("{what} are not finite: the weights are damaged, or guidance is extreme; try guidance 4.5 or another checkpoint")]
    Overflow {
        /// The values.
        what: String,
    },
}

/// Returns a path as text. An empty one is shown by quotes.
fn shown(path: &Path) -> String {
    if path.as_os_str().is_empty() { "\"\"".into() } else { path.display().to_string() }
}

/// A result of the library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

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

    /// Returns whether the run was cancelled.
    pub fn is_cancelled(&self) -> bool {
        matches!(self, Self::Cancelled)
    }
}
