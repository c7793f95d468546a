//! What the example programs share: arguments, progress, pictures for people, file names, and results as JSON.

pub mod animation;
pub mod bars;
pub mod enlarge;
pub mod grid;
pub mod image_file;
pub mod label;
pub mod lines;
pub mod output;
pub mod saver;
pub mod settings;
pub mod terminal;
pub mod word_filter;

use std::error::Error;
use std::process::ExitCode;

use hart_core::CancelToken;

/// Exit code of a run stopped by Ctrl-C, as shells have it.
pub const INTERRUPTED: u8 = 130;

/// Ctrl-C cancels the run; the second one ends the program at once.
///
/// # Errors
///
/// The system's.
pub fn stop_on_ctrl_c(cancel: CancelToken) -> Result<(), ctrlc::Error> {
    ctrlc::set_handler(move || if cancel.is_cancelled() { std::process::exit(INTERRUPTED.into()) } else { cancel.cancel() })
}

/// What a program ends with: its own code, or lines about the error and failure.
pub fn exit_code(result: Result<ExitCode, Box<dyn Error>>) -> ExitCode {
    result.unwrap_or_else(|error| {
        let lines: Vec<String> = error.to_string().lines().map(output::one_line).collect();
        eprintln!("error: {}", lines.join("\n"));
        ExitCode::FAILURE
    })
}
