//! Writes a model in another precision, so that it opens at once and never takes the memory of the f32 weights.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use hart_core::{Precision, WeightSet};
use hart_examples::output;
use hart_examples::settings::weight_set;

/// Writes a model with the large layers' weights in another precision
#[derive(Parser, Debug)]
#[command(name = "convert", version, max_term_width = 110)]
struct Arguments {
    /// Folder of the model, which holds llm and tokenizer
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// Folder to make; it must not exist
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,
    /// Precision of the weights
    #[arg(short, long, value_name = "int8|bf16", default_value = "int8")]
    precision: Precision,
    /// Folder of the text model, if it isn't in or beside the model's
    #[arg(long, value_name = "FOLDER")]
    text_model: Option<PathBuf>,
    /// Which weights: EMA if there are some, else plain
    #[arg(long, value_name = "auto|ema|plain", default_value = "auto", value_parser = weight_set)]
    weights: WeightSet,
}

fn main() -> ExitCode {
    hart_examples::exit_code(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<ExitCode, Box<dyn Error>> {
    let Arguments { model, folder, precision, text_model, weights } = arguments;
    hart_core::convert(model, folder, *precision, *weights, text_model.as_deref())?;
    output::say(folder.display())?;
    Ok(ExitCode::SUCCESS)
}
