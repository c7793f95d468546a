//! Generates images from prompts: `cargo run --release -- "a red heart on a yellow background"`.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use hart_core::{CancelToken, Generation, Image, Request};
use hart_examples::cli::args::GenerationArgs;
use hart_examples::cli::saver::{Saver, file_list};
use hart_examples::cli::{INTERRUPTED, grid, lines, output, stop_on_ctrl_c};
use serde_json::json;

/// Generate images from prompts with HART
#[derive(Parser, Debug)]
#[command(name = "generate", version, max_term_width = 110)]
struct Arguments {
    /// Descriptions of the images to generate
    #[arg(required_unless_present_any = ["prompts_file", "list_devices"], value_name = "PROMPT")]
    prompts: Vec<String>,
    /// Add the prompts of this file, one per line; - reads standard input. Blank lines and # comments are skipped
    #[arg(long = "prompts", id = "prompts_file", value_name = "FILE")]
    prompts_file: Option<PathBuf>,
    /// PNG file; n in braces stands for the index of the image, from 0
    #[arg(short, long, value_name = "FILE", default_value = "out.png")]
    out: PathBuf,
    /// Also write all images side by side to this PNG file, labelled with prompts and seeds
    #[arg(long, value_name = "FILE")]
    grid: Option<PathBuf>,
    /// Write the grid without labels and at the images' original size
    #[arg(long, requires = "grid")]
    no_labels: bool,
    /// Number of images per prompt, with consecutive seeds
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 1)]
    count: usize,
    #[command(flatten)]
    settings: GenerationArgs,
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
    fn request(&self, seed: u64, cancel: CancelToken) -> Result<Request, String> {
        let mut prompts = self.prompts.clone();
        if let Some(file) = &self.prompts_file {
            prompts.extend(lines::read("--prompts", file)?);
        }
        Ok(self.settings.request(prompts, seed, cancel)?.images_per_prompt(self.count))
    }
}

fn main() -> ExitCode {
    hart_examples::cli::exit_code::<Arguments>(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<ExitCode, Box<dyn Error>> {
    if arguments.list_devices {
        for device in hart_core::devices() {
            output::print_line(format!("{:8} {}", device.name, device.description))?;
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

    let start = Instant::now();
    let hart = arguments.settings.model.open()?;
    let open_time = start.elapsed();
    let mut saver = Saver::new(&arguments.out, request.total_images(), arguments.quiet);
    let result = hart.generate_with(&request, &mut saver);
    let files = saver.finish()?;
    match result {
        Ok(generation) => {
            report(arguments, seed, &generation, &files, open_time)?;
            Ok(ExitCode::SUCCESS)
        }
        Err(error) if error.is_cancelled() => {
            eprintln!("cancelled; {} of {} images were finished{}", files.len(), request.total_images(), file_list(&files));
            Ok(ExitCode::from(INTERRUPTED))
        }
        Err(error) => Err(error.into()),
    }
}

fn report(
    arguments: &Arguments,
    seed: u64,
    generation: &Generation,
    files: &[PathBuf],
    open_time: Duration,
) -> Result<(), Box<dyn Error>> {
    output::warn_truncated(&generation.truncated);
    if let Some(path) = &arguments.grid {
        let columns = (generation.images.len() as f64).sqrt().ceil() as usize;
        let grid = if arguments.no_labels {
            Image::grid(&generation.images, columns)?
        } else {
            grid::labelled(&generation.images, arguments.count)?
        };
        grid.save_png(path)?;
    }
    if !arguments.quiet {
        eprintln!("{:.2} s{}", generation.timings.total.as_secs_f64(), file_list(files));
    }
    if arguments.timings {
        output::print_line(format!(
            "open         {:9.1} ms\n{}",
            open_time.as_secs_f64() * 1e3,
            output::timing_table(&generation.timings)
        ))?;
    }
    if arguments.json {
        let seeds: Vec<_> = generation.images.iter().map(|i| i.provenance.as_ref().map(|p| p.seed)).collect();
        output::print_line(json!({
            "files": files.iter().map(|f| f.to_string_lossy()).collect::<Vec<_>>(),
            "seed": seed,
            "seeds": seeds,
            "grid": arguments.grid.as_ref().map(|f| f.to_string_lossy()),
            "open_ms": (open_time.as_secs_f64() * 1e5).round() / 100.0,
            "milliseconds": output::milliseconds(&generation.timings),
        }))?;
    }
    Ok(())
}
