//! What the example programs share: progress bars, file names, and results as JSON.

pub mod bars;
pub mod output;

use std::error::Error;
use std::process::ExitCode;

/// What a program ends with: its own code, or a line about the error and failure.
pub fn exit_code(result: Result<ExitCode, Box<dyn Error>>) -> ExitCode {
    result.unwrap_or_else(|error| {
        eprintln!("error: {error}");
        ExitCode::FAILURE
    })
}

/// The project's front page, compiled.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct FrontPage;
