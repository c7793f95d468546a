//! hart and PyTorch side by side at the published 0.7B size: the same shapes, random weights, one picture, the same number of threads.
//!
//! Every run is a process of its own, so that memory is counted by itself, and the contestants take turns, so that a slow minute of
//! the machine meets all of them.

mod contestant;
mod measure;
mod stages;
mod table;

use std::error::Error;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use contestant::{Contestant, PEERS};
use hart_core::{CancelToken, Control, DeviceKind, Precision, WeightSet};
use hart_examples::random_checkpoint::{Float, Preset, RandomCheckpoint, Text};
use table::Results;

/// Times hart against PyTorch at the published size, with random weights
#[derive(Parser, Debug)]
#[command(name = "compare", version, max_term_width = 110)]
struct Arguments {
    /// Side of the picture in pixels
    #[arg(short, long, value_name = "256|512|1024", default_value = "512")]
    res: Preset,
    /// hart's precisions, separated by commas
    #[arg(short, long, value_name = "f32,int8,bf16", default_value = "f32,int8,bf16", value_delimiter = ',')]
    precision: Vec<Precision>,
    /// Where both sides compute: cpu, cuda, or another device of hart's
    #[arg(short, long, default_value = "cpu")]
    device: DeviceKind,
    /// Pictures of a batch
    #[arg(short, long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    batch: u32,
    /// Pictures, or batches, that a run makes one after the other, of which the last is counted: the first ones on a GPU compile
    /// kernels
    #[arg(short, long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    warm: u32,
    /// Runs of each
    #[arg(short = 'n', long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    repeat: u32,
    /// Threads of both sides [default: all cores]
    #[arg(short, long, default_value_t = std::thread::available_parallelism().map_or(1, usize::from), hide_default_value = true)]
    threads: usize,
    /// Python with torch and numpy
    #[arg(long, default_value = "python3")]
    python: PathBuf,
    /// PyTorch's precisions, separated by commas [default: f32 and, where the processor has instructions for it, bf16; f16 on a GPU]
    #[arg(long, value_name = "f32,bf16,f16", value_delimiter = ',', value_parser = PEERS, conflicts_with = "alone")]
    peers: Vec<String>,
    /// Leaves PyTorch out
    #[arg(long)]
    alone: bool,
    /// Writes every run's times into this file
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Prints the results as JSON in the last line
    #[arg(long)]
    json: bool,
    /// One run of hart with this model, for the comparison's own use
    #[arg(long, value_name = "FOLDER", hide = true)]
    measure: Option<PathBuf>,
}

fn main() -> ExitCode {
    hart_examples::cli::exit_code(run(&Arguments::parse()).map(|()| ExitCode::SUCCESS))
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    if let Some(model) = &arguments.measure {
        let precision = arguments.precision.first().copied().unwrap_or_default();
        println!("{}", measure::measure(model, precision, arguments)?);
        return Ok(());
    }
    let contestants =
        arguments.peers().into_iter().map(Contestant::Torch).chain(arguments.precision.iter().copied().map(Contestant::Hart));
    let mut results = Results(contestants.map(|contestant| (contestant, Vec::new())).collect());
    let models = models()?;
    let mut prepared = Vec::new();
    for &precision in &arguments.precision {
        prepared.push((precision, model(&models, arguments.res, precision, arguments.device)?));
    }
    for round in 1..=arguments.repeat {
        for (contestant, runs) in &mut results.0 {
            let model = prepared.iter().find(|(precision, _)| *contestant == Contestant::Hart(*precision));
            let run = contestant.run(arguments, model.map_or(Path::new(""), |(_, model)| model))?;
            eprintln!("round {round} of {}: {contestant} took {:.2} s", arguments.repeat, run.times.0[stages::STAGES.len() - 1]);
            runs.push(run);
        }
    }
    if let Some(path) = &arguments.csv {
        write(path, &results.csv(arguments.res.pixels(), arguments.threads))?;
    }
    println!("{}", results.table());
    if arguments.json {
        println!("{}", results.json());
    }
    Ok(())
}

impl Arguments {
    /// PyTorch's precisions that take part.
    fn peers(&self) -> Vec<&'static str> {
        if self.alone {
            return vec![];
        }
        if !self.peers.is_empty() {
            return PEERS.into_iter().filter(|peer| self.peers.iter().any(|asked| asked == peer)).collect();
        }
        if self.device != DeviceKind::Cpu {
            return vec!["f16"];
        }
        if !contestant::computes_in_bf16() {
            eprintln!(
                "PyTorch's bf16 is left out: without instructions for it, it takes many minutes; --peers f32,bf16 lets it run"
            );
            return vec!["f32"];
        }
        vec!["f32", "bf16"]
    }
}

/// Where models of random weights are kept, beside this program: made once.
fn models() -> Result<PathBuf, Box<dyn Error>> {
    let program = std::env::current_exe()?;
    let folder = program.parent().unwrap_or(Path::new(".")).join("compare-models");
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// The model of a size in a precision, made if it isn't there.
fn model(models: &Path, preset: Preset, precision: Precision, device: DeviceKind) -> Result<PathBuf, Box<dyn Error>> {
    let whole = models.join(format!("{}-f32", preset.pixels()));
    if !whole.is_dir() {
        eprintln!("making a model of random weights in {} (3 GB, once)", whole.display());
        let checkpoint = RandomCheckpoint { preset, text: Text::Small, dtype: Float::F32, changes: Vec::new(), seed: 0 };
        checkpoint.write(&whole, &CancelToken::new(), &mut |_| Ok(()))?;
    }
    // What is packed is the CPU's.
    if matches!(precision, Precision::Auto | Precision::F32 | Precision::F16) || device != DeviceKind::Cpu {
        return Ok(whole);
    }
    let converted = models.join(format!("{}-{precision}", preset.pixels()));
    if !converted.is_dir() {
        eprintln!("converting it into {}", converted.display());
        hart_core::convert(&whole, &converted, precision, WeightSet::PreferEma, None, &mut |_| Control::Continue)?;
    }
    Ok(converted)
}

/// Writes a file whole or not at all.
fn write(path: &Path, text: &str) -> Result<(), Box<dyn Error>> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let named = |e: std::io::Error| format!("{}: {e}", path.display());
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(named)?;
    file.write_all(text.as_bytes()).map_err(named)?;
    file.persist(path).map_err(|e| named(e.error))?;
    Ok(())
}
