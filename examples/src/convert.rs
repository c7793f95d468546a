//! Converts a model to another precision. The result opens faster, and never needs the memory of the f32 weights.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use hart_core::{CancelToken, Control, Precision, WeightSet};
use hart_examples::cli::args::{value, weight_set};
use hart_examples::cli::progress::bar_style;
use hart_examples::cli::{INTERRUPTED, output, stop_on_ctrl_c};
use indicatif::ProgressBar;

/// Steps of the progress bar.
const STEPS: u64 = 1000;

/// Convert the weights of a model's large layers to another precision
#[derive(Parser, Debug)]
#[command(name = "convert", version, max_term_width = 110)]
struct Arguments {
    /// Model folder, with the subfolders llm and tokenizer
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// Folder to create; must not exist
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,
    /// Precision of the weights
    #[arg(short, long, value_name = "int8|bf16", default_value = "int8", value_parser = value::<Precision>)]
    precision: Precision,
    /// Text encoder folder, if it is neither in nor next to the model folder
    #[arg(long, value_name = "FOLDER")]
    text_model: Option<PathBuf>,
    /// Weights to load; auto uses EMA weights if the model has them
    #[arg(long, value_name = "auto|ema|plain", default_value = "auto", value_parser = weight_set)]
    weights: WeightSet,
}

fn main() -> ExitCode {
    hart_examples::cli::exit_code::<Arguments>(run(&hart_examples::cli::parse()))
}

fn run(arguments: &Arguments) -> Result<ExitCode, Box<dyn Error>> {
    let Arguments { model, folder, precision, text_model, weights } = arguments;
    let cancel = CancelToken::new();
    stop_on_ctrl_c(cancel.clone())?;
    let bar = ProgressBar::new(STEPS);
    bar.set_style(bar_style("converting {bar:40} {percent:>3}% {elapsed}"));
    let mut observer = |fraction: f32| {
        bar.set_position((fraction * STEPS as f32) as u64);
        if cancel.is_cancelled() { Control::Cancel } else { Control::Continue }
    };
    let result = hart_core::convert(model, folder, *precision, *weights, text_model.as_deref(), &mut observer);
    bar.finish_and_clear();
    if result.as_ref().is_err_and(hart_core::Error::is_cancelled) {
        return Ok(ExitCode::from(INTERRUPTED));
    }
    result?;
    output::print_line(folder.display())?;
    Ok(ExitCode::SUCCESS)
}
