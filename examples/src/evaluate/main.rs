//! Evaluates a model: `cargo run --release -p hart-examples --features evaluate --bin evaluate`.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use hart_core::{CancelToken, Hart, Image, OpenOptions, Request, write_file};
use hart_examples::cli::args::{GenerationArgs, ModelArgs};
use hart_examples::cli::{INTERRUPTED, output, stop_on_ctrl_c};
use hart_examples::data;
use hart_examples::evaluate::capabilities::Capabilities;
use hart_examples::evaluate::detection::Detector;
use hart_examples::evaluate::evaluation::{self, Extent, ScoredImage};
use hart_examples::evaluate::prompts::Prompts;
use hart_examples::evaluate::report::Report;
use hart_examples::evaluate::runner::Runner;
use hart_examples::evaluate::score::ImageScore;
use hart_examples::evaluate::sheet;
use serde_json::{Map, Value, json};

/// Default number of prompts of each split.
const PROMPTS: usize = 300;
/// Number of prompts of each split with --quick: less than a minute for a model of 64 x 64 pixels on two cores.
const QUICK_PROMPTS: usize = 24;
/// Maximum number of prompts of each split.
const MAX_PROMPTS: usize = 100_000;

/// End of the help text.
const METRICS: &str = "\
Metrics, each a share of the prompts that mention the part:
  object_top1, object_top5  single objects: the best match is right; one of the best 5 is right
  style                     single objects: the style is right
  any_object_..., any_style the same of all images: also pairs, several objects, held-out styles
  background                the background has the right colour
  relation_seen, _unseen    both objects are found, each in its half; as in training, and held out
  count_seen, _unseen       the number of objects is right; as in training, and held out
  position                  one object is at the right position
  all_right                 everything is right
  shuffled_control          object_top1 against another prompt: must be near chance
  ceilings                  metrics of true renders: the upper limit of the detection
  tokenizer                 metrics of reconstructed renders: the upper limit of the transformer
Others:
  hybrid_psnr_db            reconstruction of true renders, with the continuous residual
  discrete_psnr_db          the same, from the discrete codes alone
  nearest_training_distance near 0: copies of training images; 1: as different as fresh renders
Metrics that the model's capabilities.json excludes are null.
Splits: seen prompts; seen single objects; and held-out pairs of objects, orders of pairs,
backgrounds, styles and counts, and pairs with objects that training only shows alone.";

/// Evaluate how well a model's images match their prompts, on seen and held-out prompts
#[derive(Parser, Debug)]
#[command(name = "evaluate", version, max_term_width = 110, after_help = METRICS)]
struct Arguments {
    /// Folder of the model, like --model [default: the shipped model]
    #[arg(value_name = "FOLDER", conflicts_with = "model")]
    folder: Option<PathBuf>,
    /// Folder of a pack of drawings [default: the drawings of this repository]
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,
    /// Number of prompts of each split [default: 300, or 24 with --quick]
    #[arg(long, value_name = "COUNT")]
    prompts: Option<usize>,
    /// Use fewer prompts and comparisons; takes less than a minute for a small model
    #[arg(long)]
    quick: bool,
    /// Repeat a quarter of the prompts with other settings, and without the residual
    #[arg(long)]
    sweep: bool,
    /// Write the report to this JSON file
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Write a contact sheet to this image file: the images with their prompts, in green frames if right and red ones if wrong
    #[arg(long, value_name = "FILE")]
    sheet: Option<PathBuf>,
    /// Print the report as one line of JSON, the last line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: GenerationArgs,
    /// Show no progress and no table
    #[arg(short, long)]
    quiet: bool,
}

fn main() -> ExitCode {
    hart_examples::cli::exit_code::<Arguments>(run(&hart_examples::cli::parse()))
}

fn run(arguments: &Arguments) -> Result<ExitCode, Box<dyn Error>> {
    let start = Instant::now();
    let extent = arguments.extent()?;
    arguments.out.as_ref().map_or(Ok(()), |path| output::check_folder("--out", path))?;
    arguments.sheet.as_ref().map_or(Ok(()), |path| output::check_image("--sheet", path))?;
    if let (Some(out), Some(sheet)) = (&arguments.out, &arguments.sheet) {
        output::check_distinct("--sheet", sheet, "--out", out)?;
    }
    let seed = arguments.settings.seed()?;
    let cancel = CancelToken::new();
    // A placeholder prompt, to validate the settings before the model is opened.
    let request = arguments.settings.request(vec!["a parrot".into()], seed, cancel.clone())?;
    request.validate()?;
    stop_on_ctrl_c(cancel.clone())?;

    let model = arguments.model();
    let hart = Hart::open(model, arguments.options())?;
    let capabilities = Capabilities::open(model)?;
    let drawings = data::open_or_render(arguments.data.as_deref()).map_err(|e| format!("--data: {e}"))?;
    let prompts = Prompts::new(&drawings, capabilities, hart.config().resolution())?;
    let detector = Detector::of(&drawings);
    let runner = Runner::new(&hart, cancel.clone(), arguments.settings.model.threads, arguments.quiet);
    let (mut report, scored) = evaluation::evaluate(&runner, &detector, &prompts, extent, &request, seed)?;
    report.metadata = arguments.metadata(seed, &hart, &request, start, !cancel.is_cancelled());
    arguments.write(&report, &scored)?;
    if cancel.is_cancelled() {
        eprintln!("cancelled; {} images were finished", scored.len());
        return Ok(ExitCode::from(INTERRUPTED));
    }
    Ok(ExitCode::SUCCESS)
}

impl Arguments {
    /// Returns the folder of the model.
    fn model(&self) -> &Path {
        self.folder.as_ref().unwrap_or(&self.settings.model.folder)
    }

    /// Returns the options for opening the model. The threads belong to the runner, which gives one to each image.
    fn options(&self) -> OpenOptions {
        ModelArgs { threads: None, ..self.settings.model.clone() }.options()
    }

    /// Returns the extent of the evaluation.
    ///
    /// # Errors
    ///
    /// Returns an error if a number is out of range.
    fn extent(&self) -> Result<Extent, String> {
        let prompts = self.prompts.unwrap_or(if self.quick { QUICK_PROMPTS } else { PROMPTS });
        if !(1..=MAX_PROMPTS).contains(&prompts) {
            return Err(format!("--prompts {prompts}: expected 1 to {MAX_PROMPTS} prompts of each split"));
        }
        if self.settings.model.threads == Some(0) {
            return Err("--threads 0: expected at least 1; leave it out to use all cores".into());
        }
        Ok(Extent::new(prompts, self.quick, self.sweep))
    }

    /// Returns the metadata of the report.
    fn metadata(&self, seed: u64, hart: &Hart, request: &Request, start: Instant, complete: bool) -> Map<String, Value> {
        let sampling = hart.sampling(request);
        let settings = json!({
            "guidance": sampling.guidance, "smoothing": sampling.smoothing, "top_k": sampling.top_k, "top_p": sampling.top_p,
            "steps": sampling.steps.to_string(), "prune": sampling.pruning.map(|pruning| pruning.to_string()),
        });
        let metadata = [
            ("model", json!(self.model().to_string_lossy())),
            ("data", json!(self.data.as_ref().map(|data| data.to_string_lossy()))),
            ("side", json!(hart.config().resolution())),
            ("seed", json!(seed)),
            ("settings", settings),
            ("quick", json!(self.quick)),
            ("complete", json!(complete)),
            ("seconds", json!((start.elapsed().as_secs_f64() * 10.0).round() / 10.0)),
        ];
        metadata.map(|(key, value)| (key.to_string(), value)).into_iter().collect()
    }

    /// Writes and prints the results.
    fn write(&self, report: &Report, scored: &[ScoredImage]) -> Result<(), Box<dyn Error>> {
        if let Some(path) = &self.out {
            write_file(path, format!("{:#}\n", report.json()).as_bytes())?;
        }
        if let Some(path) = self.sheet.as_ref().filter(|_| !scored.is_empty()) {
            let images: Vec<(&Image, ImageScore)> = scored.iter().map(|scored| (&scored.image, scored.score)).collect();
            sheet::sheet(&images)?.save(path)?;
        }
        if !self.quiet && !scored.is_empty() {
            output::print_line(report.table())?;
        }
        if self.json {
            output::print_line(report.json())?;
        }
        Ok(())
    }
}
