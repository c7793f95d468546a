//! Support for the example programs: arguments, progress, image files, terminal output and JSON results.

pub mod again;
#[cfg(feature = "images")]
pub mod animation;
pub mod args;
#[cfg(feature = "c2pa")]
pub mod c2pa;
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
pub mod prompt_syntax;
pub mod raster;
pub mod run;
pub mod saver;
pub mod sign;
#[cfg(feature = "images")]
pub mod terminal;
pub mod word_filter;

use std::error::Error;
use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue};
use clap::{Arg, Command, CommandFactory, Parser};
use hart_core::CancelToken;

/// Exit code of a run that Ctrl-C stopped: 128 plus the number of SIGINT, as in shells.
pub const INTERRUPTED: u8 = 130;

/// Parses the command line. Invalid arguments end the program with clap's message. A program that generates images adds a hint about
/// options of other such programs.
pub fn parse<A: Parser>() -> A {
    let command = A::command();
    let generates = command.get_arguments().any(|argument| argument.get_long() == Some("guidance"));
    parsed(command, std::env::args_os()).unwrap_or_else(|error| {
        // A closed output leaves nothing to do.
        let _ = error.print();
        if let Some(ContextValue::String(argument)) = error.get(ContextKind::InvalidArg)
            && let Some(hint) = foreign_flag(argument).filter(|_| generates)
        {
            eprintln!("\nhint: {hint}");
        }
        std::process::exit(error.exit_code())
    })
}

/// Parses arguments. A negative number after an option is its value, and an error if the option takes none.
fn parsed<A: Parser>(command: Command, arguments: impl IntoIterator<Item = OsString>) -> Result<A, clap::Error> {
    let takes_number = |argument: &Arg| !argument.is_positional() && argument.get_action().takes_values();
    let command =
        command.mut_args(|argument| if takes_number(&argument) { argument.allow_negative_numbers(true) } else { argument });
    let mut matches = command.try_get_matches_from(arguments)?;
    A::from_arg_matches_mut(&mut matches)
}

/// Returns a hint about an option that other programs have and HART can't have.
fn foreign_flag(argument: &str) -> Option<&'static str> {
    let name = argument.trim_start_matches('-').split('=').next().unwrap_or_default().replace('_', "-").to_lowercase();
    match name.as_str() {
        "neg" | "no" | "negative" | "neg-prompt" | "negative-prompt" | "n-prompt" | "uc" => {
            Some("there are no negative prompts; describe only what the image shows")
        }
        "width" | "height" | "w" | "h" | "size" | "ar" | "aspect" | "resolution" => {
            Some("the model sets the size of its images; select another model with --model")
        }
        "c2pa" | "c2pa-certificate" | "c2pa-key" | "c2pa-algorithm" | "c2pa-timestamp" if cfg!(not(feature = "c2pa")) => {
            Some("this program is built without the feature `c2pa`; add `--features hart-examples/c2pa` to cargo's arguments")
        }
        _ => None,
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::GenerationArgs;

    #[derive(Parser, Debug)]
    struct Arguments {
        prompt: Option<String>,
        #[command(flatten)]
        settings: GenerationArgs,
    }

    #[test]
    fn a_negative_number_after_an_option_is_its_value() {
        let parse =
            |arguments: &[&str]| parsed::<Arguments>(Arguments::command(), ["program"].iter().chain(arguments).map(OsString::from));
        assert_eq!(parse(&["--guidance", "-2", "x"]).unwrap().settings.request.guidance, Some(-2.0));
        let error = parse(&["x", "--top-k", "-1"]).unwrap_err().to_string();
        assert!(error.contains("'-1' for '--top-k <K>': expected a whole number"), "{error}");
        assert!(parse(&["--allow-unused", "x"]).unwrap().prompt.is_some());
        Arguments::command().debug_assert();
    }

    #[test]
    fn options_of_other_programs_get_a_hint() {
        for flag in ["--neg", "--no", "--negative_prompt", "--negative-prompt=blur"] {
            assert!(foreign_flag(flag).unwrap().contains("no negative prompts"), "{flag}");
        }
        assert!(foreign_flag("--width").unwrap().contains("--model"));
        assert_eq!(foreign_flag("--noise"), None);
    }
}
