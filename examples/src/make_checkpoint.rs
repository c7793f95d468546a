//! Writes a checkpoint of random weights in the published layout, to measure speed and memory at any size.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use hart_core::CancelToken;
use hart_examples::cli::{INTERRUPTED, output, stop_on_ctrl_c};
use hart_examples::random_checkpoint::{Float, Preset, RandomCheckpoint, Text};

/// Write a checkpoint of random weights in the published layout
#[derive(Parser, Debug)]
#[command(name = "make_checkpoint", version, max_term_width = 110)]
struct Arguments {
    /// Folder to create; must not exist
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,
    /// Resolution of the published 0.7B model whose sizes to use
    #[arg(short, long, value_name = "256|512|1024", default_value = "1024")]
    preset: Preset,
    /// Text encoder
    #[arg(short, long, default_value = "small")]
    text: Text,
    /// Data type of the weights
    #[arg(short, long, default_value = "f32")]
    dtype: Float,
    /// Change a value of a config.json, such as `llm.depth=4` or `llm.patch_nums=[1,2,4]`; can be repeated
    #[arg(long = "set", value_name = "FILE.KEY=JSON")]
    changes: Vec<String>,
    /// Seed of the weights
    #[arg(short, long, default_value_t = 0)]
    seed: u64,
}

fn main() -> ExitCode {
    hart_examples::cli::exit_code::<Arguments>(run(hart_examples::cli::parse()))
}

fn run(arguments: Arguments) -> Result<ExitCode, Box<dyn Error>> {
    let Arguments { folder, preset, text, dtype, changes, seed } = arguments;
    let cancel = CancelToken::new();
    stop_on_ctrl_c(cancel.clone())?;
    let written =
        RandomCheckpoint { preset, text, dtype, changes, seed }.write(&folder, &cancel, &mut |line| Ok(output::print_line(line)?));
    if cancel.is_cancelled() && written.is_err() {
        return Ok(ExitCode::from(INTERRUPTED));
    }
    written?;
    output::print_line(folder.display())?;
    Ok(ExitCode::SUCCESS)
}
