//! Support for the example programs: arguments, progress, image files, terminal output and JSON results.

#[cfg(feature = "images")]
pub mod animation;
pub mod args;
pub mod batch;
pub mod enlarge;
pub mod flags;
pub mod grid;
#[cfg(feature = "images")]
pub mod image_file;
pub mod label;
pub mod lines;
pub mod out_files;
pub mod output;
pub mod progress;
pub mod raster;
pub mod saver;
#[cfg(feature = "images")]
pub mod terminal;
pub mod word_filter;

use std::error::Error;
use std::process::ExitCode;

use clap::CommandFactory;
use hart_core::CancelToken;

/// Exit code of a run that Ctrl-C stopped: 128 plus the number of SIGINT, as in shells.
pub const INTERRUPTED: u8 = 130;

/// Makes Ctrl-C cancel the run. A second Ctrl-C ends the program at once.
///
/// # Errors
///
/// Returns an error if the signal handler can't be installed.
pub fn stop_on_ctrl_c(cancel: CancelToken) -> Result<(), ctrlc::Error> {
    ctrlc::set_handler(move || if cancel.is_cancelled() { std::process::exit(INTERRUPTED.into()) } else { cancel.cancel() })
}

/// Returns the exit code of a program with arguments `A`. An error is printed on standard error, with the program's flags in place of
/// the library's options, and becomes [`ExitCode::FAILURE`].
pub fn exit_code<A: CommandFactory>(result: Result<ExitCode, Box<dyn Error>>) -> ExitCode {
    result.unwrap_or_else(|error| {
        let message = flags::with_flags::<A>(&error.to_string());
        let lines: Vec<String> = message.lines().map(output::one_line).collect();
        eprintln!("error: {}", lines.join("\n"));
        ExitCode::FAILURE
    })
}
