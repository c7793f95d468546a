//! Comparison of hart with PyTorch, and of its parts also with OpenVINO, at the published 0.7B size: the same shapes, random weights
//! and number of threads.
//!
//! Every run is a separate process, so that its peak memory can be measured. The implementations take turns, so that a slow phase of
//! the machine affects all of them.

mod implementation;
mod measure;
mod parts;
mod stages;
mod table;

use std::error::Error;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use hart_core::{CancelToken, Control, DeviceKind, Precision, Pruning, WeightSet};
use hart_examples::random_checkpoint::{Float, Preset, RandomCheckpoint, Text};
use implementation::{Implementation, TORCH_DTYPES};
use table::Results;

/// Time hart against PyTorch at the published size, with random weights
#[derive(Parser, Debug)]
#[command(name = "compare", version, max_term_width = 110)]
struct Arguments {
    /// Side of the image in pixels
    #[arg(short, long, value_name = "256|512|1024", default_value = "512")]
    res: Preset,
    /// hart's precisions, separated by commas
    #[arg(short, long, value_name = "f32,int8,bf16", default_value = "f32,int8,bf16", value_delimiter = ',')]
    precision: Vec<Precision>,
    /// Device for hart and PyTorch: cpu, cuda, or another device of hart
    #[arg(short, long, default_value = "cpu")]
    device: DeviceKind,
    /// Number of images in a batch
    #[arg(short, long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    batch: u32,
    /// Number of images, or batches, that a run generates one after the other; only the last is measured, since the first ones
    /// on a GPU compile kernels
    #[arg(short, long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    warm: u32,
    /// Number of runs of each implementation
    #[arg(short = 'n', long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    repeat: u32,
    /// Leave out these shares of the tokens of the last scales in hart's runs; PyTorch computes all
    #[arg(long, value_name = "RATIOS", num_args = 0..=1, default_missing_value = "0.5,0.75")]
    prune: Option<Pruning>,
    /// Number of threads for each [default: all cores]
    #[arg(short, long, default_value_t = std::thread::available_parallelism().map_or(1, usize::from), hide_default_value = true)]
    threads: usize,
    /// Python interpreter with torch and numpy
    #[arg(long, default_value = "python3")]
    python: PathBuf,
    /// PyTorch's precisions, separated by commas [default: f32, and bf16 if the processor has instructions for it; f16 on a GPU]
    #[arg(long, value_name = "f32,bf16,f16", value_delimiter = ',', value_parser = TORCH_DTYPES, conflicts_with = "alone")]
    peers: Vec<String>,
    /// Measure hart only, without PyTorch
    #[arg(long)]
    alone: bool,
    /// Measure one transformer block at each of the last three scales, and the decoder, in each of hart's precisions, also against
    /// torch.compile and OpenVINO; on the CPU
    #[arg(long, conflicts_with_all = ["device", "batch", "warm", "peers", "csv", "json"])]
    parts: bool,
    /// Write the times of every run to this file
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Print the results as JSON on the last line
    #[arg(long)]
    json: bool,
    /// Run hart once with this model; the comparison passes this option to the processes that it starts
    #[arg(long, value_name = "FOLDER", hide = true)]
    measure: Option<PathBuf>,
}

fn main() -> ExitCode {
    hart_examples::cli::exit_code::<Arguments>(run(&Arguments::parse()).map(|()| ExitCode::SUCCESS))
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    if let Some(model) = &arguments.measure {
        let precision = arguments.precision.first().copied().unwrap_or_default();
        if arguments.parts {
            return parts::serve(model, precision, arguments);
        }
        println!("{}", measure::measure(model, precision, arguments)?);
        return Ok(());
    }
    if arguments.parts {
        return parts::compare(&models_folder()?, arguments);
    }
    let torch = arguments.torch_dtypes().into_iter().map(Implementation::Torch);
    let hart = arguments.precision.iter().copied().map(Implementation::Hart);
    let mut results = Results(torch.chain(hart).map(|implementation| (implementation, Vec::new())).collect());
    let models = models_folder()?;
    let mut prepared = Vec::new();
    for &precision in &arguments.precision {
        prepared.push((precision, model(&models, arguments.res, precision, arguments.device)?));
    }
    for round in 1..=arguments.repeat {
        for (implementation, runs) in &mut results.0 {
            let model = prepared.iter().find(|(precision, _)| *implementation == Implementation::Hart(*precision));
            let run = implementation.run(arguments, model.map_or(Path::new(""), |(_, model)| model))?;
            eprintln!(
                "round {round} of {}: {implementation} took {:.2} s",
                arguments.repeat,
                run.times.0[stages::STAGES.len() - 1]
            );
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
    /// Returns the precisions in which PyTorch is measured.
    fn torch_dtypes(&self) -> Vec<&'static str> {
        if self.alone {
            return vec![];
        }
        if !self.peers.is_empty() {
            return TORCH_DTYPES.into_iter().filter(|dtype| self.peers.iter().any(|peer| peer == dtype)).collect();
        }
        if self.device != DeviceKind::Cpu {
            return vec!["f16"];
        }
        if !implementation::has_bf16_instructions() {
            eprintln!("skipping bf16 in PyTorch, which takes many minutes without bf16 instructions; --peers f32,bf16 includes it");
            return vec!["f32"];
        }
        vec!["f32", "bf16"]
    }
}

/// Returns the folder for models of random weights, next to this program. Creates it if it does not exist.
fn models_folder() -> Result<PathBuf, Box<dyn Error>> {
    let program = std::env::current_exe()?;
    let folder = program.parent().unwrap_or(Path::new(".")).join("compare-models");
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// Returns the folder of the model of a size in a precision. Writes the model if it does not exist.
fn model(models: &Path, preset: Preset, precision: Precision, device: DeviceKind) -> Result<PathBuf, Box<dyn Error>> {
    let original = models.join(format!("{}-f32", preset.pixels()));
    if !original.is_dir() {
        eprintln!("writing a model of random weights to {} (3 GB, once)", original.display());
        let checkpoint = RandomCheckpoint { preset, text: Text::Small, dtype: Float::F32, changes: Vec::new(), seed: 0 };
        checkpoint.write(&original, &CancelToken::new(), &mut |_| Ok(()))?;
    }
    // Only the CPU uses packed weights.
    if matches!(precision, Precision::Auto | Precision::F32 | Precision::F16) || device != DeviceKind::Cpu {
        return Ok(original);
    }
    let converted = models.join(format!("{}-{precision}", preset.pixels()));
    if !converted.is_dir() {
        eprintln!("converting it to {precision} in {}", converted.display());
        hart_core::convert(&original, &converted, precision, WeightSet::PreferEma, None, &mut |_| Control::Continue)?;
    }
    Ok(converted)
}

/// Writes a file completely or not at all.
fn write(path: &Path, text: &str) -> Result<(), Box<dyn Error>> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let with_path = |e: std::io::Error| format!("{}: {e}", path.display());
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(with_path)?;
    file.write_all(text.as_bytes()).map_err(with_path)?;
    file.persist(path).map_err(|e| with_path(e.error))?;
    Ok(())
}
