//! Prompt to PNG: `cargo run --release -- "a red heart on a yellow background"`.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use hart_core::{CancelToken, Generation, Image, Request};
use hart_examples::cli::saver::{Saver, list};
use hart_examples::cli::settings::Settings;
use hart_examples::cli::{INTERRUPTED, grid, lines, output, stop_on_ctrl_c};
use serde_json::json;

/// Makes pictures from prompts.
#[derive(Parser, Debug)]
#[command(name = "generate", version, about = "Makes pictures from prompts with HART", max_term_width = 110)]
struct Arguments {
    /// What to draw; several prompts make several pictures
    #[arg(required_unless_present_any = ["prompts_file", "list_devices"], value_name = "PROMPT")]
    prompts: Vec<String>,
    /// Also draws the prompts of this file, one a line; - is standard input. Blank lines and # comments are skipped
    #[arg(long = "prompts", id = "prompts_file", value_name = "FILE")]
    prompts_file: Option<PathBuf>,
    /// PNG file; n in braces stands for the number of a picture
    #[arg(short, long, value_name = "FILE", default_value = "out.png")]
    out: PathBuf,
    /// Also writes all pictures side by side into this PNG file, with their prompts and seeds
    #[arg(long, value_name = "FILE")]
    grid: Option<PathBuf>,
    /// The grid has the pictures alone, at their own size
    #[arg(long, requires = "grid")]
    no_labels: bool,
    /// Pictures of each prompt; their seeds count up
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 1)]
    count: usize,
    #[command(flatten)]
    settings: Settings,
    /// Lists the devices that are there and usable, the best first, and draws nothing
    #[arg(long)]
    list_devices: bool,
    /// Prints the time of each stage
    #[arg(long)]
    timings: bool,
    /// Prints one JSON object as the last line: files, seeds, milliseconds
    #[arg(long)]
    json: bool,
    /// Shows no progress
    #[arg(short, long)]
    quiet: bool,
}

impl Arguments {
    fn request(&self, seed: u64, cancel: CancelToken) -> Result<Request, String> {
        let mut prompts = self.prompts.clone();
        if let Some(file) = &self.prompts_file {
            prompts.extend(lines::read("--prompts", file)?);
        }
        Ok(self.settings.request(prompts, seed, cancel)?.images_per_prompt(self.count))
    }
}

fn main() -> ExitCode {
    hart_examples::cli::exit_code(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<ExitCode, Box<dyn Error>> {
    if arguments.list_devices {
        for device in hart_core::devices() {
            output::say(format!("{:8} {}", device.name, device.description))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let cancel = CancelToken::new();
    let seed = arguments.settings.seed.number()?;
    let request = arguments.request(seed, cancel.clone())?;
    request.validate()?;
    output::check_folder("--out", &arguments.out)?;
    if let Some(grid) = &arguments.grid {
        output::check_grid(grid, &arguments.out, request.total_images())?;
    }
    stop_on_ctrl_c(cancel)?;

    let opening = Instant::now();
    let hart = arguments.settings.opening.open()?;
    let opened = opening.elapsed();
    let mut saver = Saver::new(&arguments.out, request.total_images(), arguments.quiet);
    let made = hart.generate(&request, &mut saver);
    let files = saver.finish()?;
    match made {
        Ok(made) => {
            report(arguments, seed, &made, &files, opened)?;
            Ok(ExitCode::SUCCESS)
        }
        Err(error) if error.is_cancelled() => {
            eprintln!("cancelled; {} of {} pictures were finished{}", files.len(), request.total_images(), list(&files));
            Ok(ExitCode::from(INTERRUPTED))
        }
        Err(error) => Err(error.into()),
    }
}

fn report(arguments: &Arguments, seed: u64, made: &Generation, files: &[PathBuf], opened: Duration) -> Result<(), Box<dyn Error>> {
    output::warn_truncated(&made.truncated);
    if let Some(path) = &arguments.grid {
        let columns = (made.images.len() as f64).sqrt().ceil() as usize;
        let bare = || Image::grid(&made.images, columns);
        let grid = if arguments.no_labels { bare()? } else { grid::labelled(&made.images, arguments.count)? };
        grid.save_png(path)?;
    }
    if !arguments.quiet {
        eprintln!("{:.2} s{}", made.timings.total.as_secs_f64(), list(files));
    }
    if arguments.timings {
        output::say(format!("open         {:9.1} ms\n{}", opened.as_secs_f64() * 1e3, output::timing_table(&made.timings)))?;
    }
    if arguments.json {
        let seeds: Vec<_> = made.images.iter().map(|i| i.provenance.as_ref().map(|p| p.seed)).collect();
        output::say(json!({
            "files": files.iter().map(|f| f.to_string_lossy()).collect::<Vec<_>>(),
            "seed": seed,
            "seeds": seeds,
            "grid": arguments.grid.as_ref().map(|f| f.to_string_lossy()),
            "open_ms": (opened.as_secs_f64() * 1e5).round() / 100.0,
            "milliseconds": output::milliseconds(&made.timings),
        }))?;
    }
    Ok(())
}
