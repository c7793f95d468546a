//! Generates images from prompts: `cargo run --release -- "a red heart on a yellow background"`.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use hart_core::{CancelToken, Image};
use hart_examples::cli::again::Again;
use hart_examples::cli::args::{GenerationArgs, count};
use hart_examples::cli::out_files::OutFiles;
use hart_examples::cli::run::{Outcome, Run};
use hart_examples::cli::sign::{SignArgs, Signing};
use hart_examples::cli::{grid, lines, output, stop_on_ctrl_c};
use serde_json::json;

/// Generate images from prompts with HART
#[derive(Parser, Debug)]
#[command(name = "generate", version, max_term_width = 110)]
struct Arguments {
    /// Descriptions of the images to generate
    #[arg(required_unless_present_any = ["prompts_file", "list_devices", "again"], value_name = "PROMPT")]
    prompts: Vec<String>,
    /// Add the prompts of this file, one per line; - reads standard input. Blank lines and # comments are skipped
    #[arg(long = "prompts", id = "prompts_file", value_name = "FILE")]
    prompts_file: Option<PathBuf>,
    /// Generate this image again with the settings in its file; other arguments replace them
    #[arg(long, value_name = "FILE")]
    again: Option<PathBuf>,
    #[command(flatten)]
    out: OutFiles,
    /// Also write all images side by side to this file, labelled with prompts and seeds
    #[arg(long, value_name = "FILE")]
    grid: Option<PathBuf>,
    /// Write the grid without labels and at the images' original size
    #[arg(long, requires = "grid")]
    no_labels: bool,
    /// Number of images per prompt, with consecutive seeds
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 1, value_parser = count::<usize>)]
    count: usize,
    #[command(flatten)]
    settings: GenerationArgs,
    #[command(flatten)]
    sign: SignArgs,
    /// List the usable devices in order of preference, and exit
    #[arg(long)]
    list_devices: bool,
    /// Print the time of each stage
    #[arg(long)]
    timings: bool,
    /// Print a JSON object as the last line, with files, seeds and milliseconds
    #[arg(long)]
    json: bool,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
}

impl Arguments {
    /// Returns the prompts of the command line and of the file.
    fn prompts(&self) -> Result<Vec<String>, String> {
        let mut prompts = self.prompts.clone();
        if let Some(file) = &self.prompts_file {
            prompts.extend(lines::read("--prompts", file)?);
        }
        Ok(prompts)
    }
}

fn main() -> ExitCode {
    hart_examples::cli::exit_code::<Arguments>(run(&hart_examples::cli::parse()))
}

fn run(arguments: &Arguments) -> Result<ExitCode, Box<dyn Error>> {
    if arguments.list_devices {
        for device in hart_core::devices() {
            output::print_line(format!("{:8} {}", device.name, device.description))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let cancel = CancelToken::new();
    let (mut settings, mut prompts) = (arguments.settings.clone(), arguments.prompts()?);
    let again = arguments.again.as_deref().map(|file| Again::open(file, &mut settings, &mut prompts)).transpose()?;
    let run = settings.prepare_run(prompts, arguments.count, &arguments.out, cancel.clone())?;
    if let Some(grid) = &arguments.grid {
        output::check_grid(grid, &arguments.out, run.total_images())?;
    }
    let signing = arguments.sign.open()?;
    let run = run.signed(signing.clone());
    stop_on_ctrl_c(cancel)?;

    let start = Instant::now();
    // A run without new images needs no model.
    let hart = (run.new_images() > 0).then(|| settings.model.open()).transpose()?;
    if let (Some(again), Some(hart)) = (&again, &hart) {
        again.warn(hart);
    }
    let open_time = start.elapsed();
    let mut outcome = hart.map_or_else(Outcome::default, |hart| run.execute(&hart, arguments.grid.is_some(), arguments.quiet));
    if let Some(error) = outcome.error.take() {
        return run.end_early(&outcome, error);
    }
    report(arguments, &run, &outcome, &signing, open_time)?;
    Ok(ExitCode::SUCCESS)
}

fn report(
    arguments: &Arguments,
    run: &Run,
    outcome: &Outcome,
    signing: &Signing,
    open_time: Duration,
) -> Result<(), Box<dyn Error>> {
    output::warn_truncated(&outcome.truncated);
    if let Some(path) = &arguments.grid {
        let columns = (outcome.images.len() as f64).sqrt().ceil() as usize;
        let grid = if arguments.no_labels {
            Image::grid(&outcome.images, columns)?
        } else {
            grid::labelled(&outcome.images, arguments.count)?
        };
        signing.save(&grid, path)?;
    }
    if !arguments.quiet {
        eprintln!("{}", run.summary(outcome));
    }
    if arguments.timings {
        output::print_line(format!(
            "open         {:9.1} ms\n{}",
            open_time.as_secs_f64() * 1e3,
            output::timing_table(&outcome.timings)
        ))?;
    }
    if arguments.json {
        output::print_line(json!({
            "files": outcome.files.iter().map(|f| f.to_string_lossy()).collect::<Vec<_>>(),
            "kept": run.kept_images(),
            "seed": run.seed(),
            "seeds": outcome.seeds,
            "grid": arguments.grid.as_ref().map(|f| f.to_string_lossy()),
            "open_ms": (open_time.as_secs_f64() * 1e5).round() / 100.0,
            "milliseconds": output::milliseconds(&outcome.timings),
        }))?;
    }
    Ok(())
}
