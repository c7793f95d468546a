//! Generates an image for each line of a file, and continues where it was interrupted: `cargo run --release --bin batch --
//! prompts.jsonl --out images`.

mod estimate;
mod hash;
mod id;
mod in_work;
mod input;
mod ledger;
mod pipe;
mod progress;
mod selection;
mod shard;
mod stop;
mod store;
mod tar_files;
mod task;
mod worker;

use std::error::Error;
use std::fs;
use std::num::NonZero;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use clap::Parser;
use hart_core::{Control, Event, Hart};
use hart_examples::cli::args::{ModelArgs, RequestArgs, count};
use hart_examples::cli::sign::SignArgs;
use hart_examples::cli::word_filter::WordFilter;

use estimate::Survey;
use in_work::InWork;
use input::{Format, Input};
use ledger::{Done, Ledger, errors_name};
use progress::Progress;
use selection::Selection;
use shard::Shard;
use stop::Stop;
use store::ImageFolder;
use tar_files::TarFiles;
use task::Defaults;
use worker::{Store, Worker};

/// Generate an image for each line of a file; running the same command again continues
///
/// Lines are JSON objects with `prompt` and optionally `id`, `seed` and other settings, lines of an OpenAI batch file, or plain prompts.
/// The exit code is 0 if all images are done, 1 if lines have failed or the batch can't go on, 130 after Ctrl-C and 143 after SIGTERM.
#[derive(Parser, Debug)]
#[command(name = "batch", version, max_term_width = 110)]
struct Arguments {
    /// File of JSON lines or of prompts, one per line; - reads standard input
    #[arg(value_name = "FILE")]
    input: PathBuf,
    /// Folder of the images and of the files of results and errors; created if it doesn't exist
    #[arg(short, long, value_name = "FOLDER")]
    out: PathBuf,
    /// Format of the input [default: by the ending of the file's name, or its first line]
    #[arg(long, value_name = "jsonl|text")]
    format: Option<Format>,
    /// Generate only share K, from 0, of N shares of the lines [default: that of a Kubernetes or Slurm job, or all]
    #[arg(long, value_name = "K/N")]
    shard: Option<Shard>,
    /// Number of shares, if the job sets only the index [default: the variable HART_BATCH_SHARDS, or Slurm's]
    #[arg(long, value_name = "N", conflicts_with = "shard", value_parser = count::<NonZero<u64>>)]
    shards: Option<NonZero<u64>>,
    /// Seed of the lines that have none [default: a hash of the line's id]
    #[arg(short, long, value_name = "NUMBER", value_parser = count::<u64>)]
    seed: Option<u64>,
    /// Stop when more lines than this have failed; up to this number, the exit code is 0 [default: never stop, and 0]
    #[arg(long, value_name = "COUNT", value_parser = count::<u64>)]
    max_failures: Option<u64>,
    /// Write tar files for WebDataset with this number of images each, instead of image files
    #[arg(long, value_name = "IMAGES", value_parser = count::<NonZero<usize>>)]
    tar: Option<NonZero<usize>>,
    /// Only count lines and errors, and estimate time and memory
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    request: RequestArgs,
    #[command(flatten)]
    sign: SignArgs,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
}

fn main() -> ExitCode {
    hart_examples::cli::exit_code::<Arguments>(run(&hart_examples::cli::parse()))
}

/// What all parts of a batch use.
struct Batch<'a> {
    arguments: &'a Arguments,
    shard: Shard,
    defaults: Defaults,
    stop: Stop,
}

fn run(arguments: &Arguments) -> Result<ExitCode, Box<dyn Error>> {
    // A dry run leaves nothing to finish.
    let stop = if arguments.dry_run { Stop::default() } else { Stop::on_signals()? };
    let shard = Shard::choose(arguments.shard, arguments.shards.map(NonZero::get))?;
    // The name that the model has when it is open.
    let folder = arguments.model.folder.canonicalize().ok();
    let model = folder.and_then(|folder| Some(folder.file_name()?.to_string_lossy().into_owned())).unwrap_or_default();
    let defaults = Defaults { seed: arguments.seed, request: arguments.request.clone(), model };
    let batch = Batch { arguments, shard, defaults, stop };
    if arguments.dry_run { batch.estimate() } else { batch.generate() }
}

impl Batch<'_> {
    fn input(&self) -> Result<Input, String> {
        Input::open(&self.arguments.input, self.arguments.format, &self.stop)
    }

    fn select<'a>(&'a self, input: Input, done: &'a Done) -> Selection<'a> {
        Selection::new(input, self.shard, &self.defaults, done, self.arguments.tar.is_some())
    }

    /// Opens the model. A signal cancels that.
    fn open(&self) -> Result<Hart, hart_core::Error> {
        let mut until_stop = |_: &Event<'_>| if self.stop.is_set() { Control::Cancel } else { Control::Continue };
        Hart::open_with(&self.arguments.model.folder, self.arguments.model.options(), &mut until_stop)
    }

    /// Counts the lines and estimates time and memory.
    fn estimate(&self) -> Result<ExitCode, Box<dyn Error>> {
        let (arguments, shard) = (self.arguments, self.shard);
        let input = self.input()?;
        let mut done = Done::read(&arguments.out, shard)?;
        if let Some(images) = arguments.tar {
            TarFiles::open(ImageFolder::new(&arguments.out, shard), shard, images.get(), &mut done, None)?;
        }
        let survey = Survey::count(self.select(input, &done), true)?;
        survey.print()?;
        if survey.new > 0 {
            let hart = self.open()?;
            estimate::print_estimate(&survey, &hart)?;
        }
        Ok(self.exit_code_of(survey.failed))
    }

    /// Generates the images that are not done.
    fn generate(&self) -> Result<ExitCode, Box<dyn Error>> {
        let (arguments, shard) = (self.arguments, self.shard);
        let filter = arguments.request.filter.as_deref().map(WordFilter::open).transpose()?;
        let signing = arguments.sign.open()?;
        let input = self.input()?;
        fs::create_dir_all(&arguments.out).map_err(|e| format!("--out {}: {e}", arguments.out.display()))?;
        let ledger = Ledger::open(&arguments.out, shard)?;
        tar_files::check_incomplete(&arguments.out, shard, arguments.tar.map(|_| shard))?;
        let mut done = Done::read(&arguments.out, shard)?;
        let images = ImageFolder::new(&arguments.out, shard);
        images.remove_leftovers()?;
        let store = match arguments.tar {
            None => Store::Images(images),
            Some(count) => Store::Tar(TarFiles::open(images, shard, count.get(), &mut done, Some(&ledger))?),
        };
        let in_work = InWork::open(&arguments.out, shard, &done)?;
        // What can be read twice is counted first.
        let survey = match Input::is_repeatable(&arguments.input) {
            true => Some(Survey::count(self.select(self.input()?, &done), false)?),
            false => None,
        };
        let hart = match survey.as_ref().is_none_or(|survey| survey.needs_model()) {
            false => None,
            true => match self.open() {
                Err(error) if error.is_cancelled() => return Ok(self.end(&Progress::new(None, true), survey.as_ref(), false)),
                opened => Some(opened?),
            },
        };
        let progress = Progress::new(survey.as_ref().map(|survey| survey.new), arguments.quiet);
        let worker = Worker {
            hart: hart.as_ref(),
            store: &store,
            ledger: &ledger,
            in_work: &in_work,
            defaults: &self.defaults,
            filter: filter.as_ref(),
            signing: &signing,
            progress: &progress,
            stop: &self.stop,
            parallel: hart.as_ref().map_or(1, Hart::parallel),
            max_failures: arguments.max_failures,
        };
        let is_finished = AtomicBool::new(false);
        let result = thread::scope(|scope| {
            let shown = scope.spawn(|| progress.show_until(&self.stop, || is_finished.load(Ordering::Relaxed)));
            let result = worker.run(self.select(input, &done));
            is_finished.store(true, Ordering::Relaxed);
            shown.thread().unpark();
            result
        });
        let exit_code = self.end(&progress, survey.as_ref(), *result.as_ref().unwrap_or(&false));
        Ok(result.map(|_| exit_code)?)
    }

    /// Prints a summary, and returns the exit code.
    fn end(&self, progress: &Progress, survey: Option<&Survey>, is_complete: bool) -> ExitCode {
        let failed = progress.counts()[2];
        let out = &self.arguments.out;
        if !self.arguments.quiet {
            eprintln!("{} -> {}", progress.summary(survey.map(|survey| survey.done)), out.display());
            if failed > 0 {
                eprintln!("the errors are in {}", out.join(errors_name(self.shard)).display());
            }
        }
        match self.stop.exit_code().filter(|_| !is_complete) {
            Some(code) => {
                eprintln!("stopped; run the same command again to continue");
                ExitCode::from(code)
            }
            None => {
                if !is_complete && self.arguments.max_failures.is_some_and(|limit| failed > limit) {
                    eprintln!("error: {failed} lines have failed, more than --max-failures allows; the other lines are left");
                }
                self.exit_code_of(failed)
            }
        }
    }

    fn exit_code_of(&self, failed: u64) -> ExitCode {
        if failed > self.arguments.max_failures.unwrap_or(0) { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }
}
