//! A model, scored: `cargo run --release -p hart-examples --features evaluate --bin evaluate`.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use hart_core::{CancelToken, Hart, Image, OpenOptions, Request};
use hart_examples::cli::args::{GenerationArgs, ModelArgs};
use hart_examples::cli::{INTERRUPTED, output, stop_on_ctrl_c};
use hart_examples::data;
use hart_examples::evaluate::draw::Artist;
use hart_examples::evaluate::exam::{self, Extent, Marked};
use hart_examples::evaluate::knows::Knows;
use hart_examples::evaluate::prompts::Prompts;
use hart_examples::evaluate::report::Report;
use hart_examples::evaluate::score::{Scorer, Verdict};
use hart_examples::evaluate::sheet;
use serde_json::{Map, Value, json};

/// Prompts of each split.
const PROMPTS: usize = 300;
/// Prompts of each split with --quick: less than a minute for a model of 64 x 64 pixels on two cores.
const QUICK_PROMPTS: usize = 24;
/// Most prompts of each split.
const MOST_PROMPTS: usize = 100_000;

const FIGURES: &str = "\
Figures, each as a share of what was asked for:
  object_top1, object_top5  a single object is most alike the right drawing; is among the 5 most alike concepts
  style                     a single object is drawn in the style asked for
  any_object_..., any_style the same of all pictures: pairs, numbers, and styles that an object never had
  background                the background's name is right
  relation_seen, _unseen    two objects are there, each in its half; as in training, and for held-out prompts
  count_seen, _unseen       there are as many objects as asked for
  place                     one object is where it was asked for
  all_right                 all of this that the prompt asks for
  shuffled_control          object_top1 by another prompt's answer: must be near chance
  ceilings                  the same figures of true renders: the best that the scorer can see
  tokenizer                 the same through the model's tokenizer: the best that its transformer could do
Others:
  hybrid_psnr_db, discrete_psnr_db   true renders through the tokenizer, with the continuous rest and without
  nearest_training_distance          near 0: copies; 1: as new as a fresh drawing of the same thing
What a model isn't asked, for its folder's knows.json says that it doesn't know it, is null.
Splits: seen prompts, seen single objects, and held out pairs of objects, their order, colours of the background, styles, counts, and
objects that were only ever seen alone.";

/// Scores a model's pictures by what their prompts ask for, on seen and held-out prompts
#[derive(Parser, Debug)]
#[command(name = "evaluate", version, max_term_width = 110, after_help = FIGURES)]
struct Arguments {
    /// Folder of the model, as with --model [default: the shipped one]
    #[arg(value_name = "FOLDER", conflicts_with = "model")]
    folder: Option<PathBuf>,
    /// Folder of a pack of drawings [default: those that come with the repository]
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,
    /// Prompts of each split [default: 300, or 24 with --quick]
    #[arg(long, value_name = "COUNT")]
    prompts: Option<usize>,
    /// Does less, in less than a minute for a small model
    #[arg(long)]
    quick: bool,
    /// Also draws a quarter of the prompts with other settings, and without the residual
    #[arg(long)]
    sweep: bool,
    /// Also writes the figures into this JSON file
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Also writes the pictures into this PNG file, with their prompts, framed by whether they are right
    #[arg(long, value_name = "FILE")]
    sheet: Option<PathBuf>,
    /// Prints one JSON object as the last line: all figures
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: GenerationArgs,
    /// Shows no progress and no table
    #[arg(short, long)]
    quiet: bool,
}

fn main() -> ExitCode {
    hart_examples::cli::exit_code(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<ExitCode, Box<dyn Error>> {
    let start = Instant::now();
    let extent = arguments.extent()?;
    for (flag, path) in [("--out", &arguments.out), ("--sheet", &arguments.sheet)] {
        path.as_ref().map_or(Ok(()), |path| output::check_folder(flag, path))?;
    }
    if let (Some(out), Some(sheet)) = (&arguments.out, &arguments.sheet) {
        output::check_distinct("--sheet", sheet, "--out", out)?;
    }
    let seed = arguments.settings.seed.number()?;
    let cancel = CancelToken::new();
    // The prompts come from the data; until then one stands for them.
    let request = arguments.settings.request(vec!["a parrot".into()], seed, cancel.clone())?;
    request.validate()?;
    stop_on_ctrl_c(cancel.clone())?;

    let model = arguments.model();
    let hart = Hart::open(model, arguments.options())?;
    let knows = Knows::open(model)?;
    let drawings = data::open_or_render(arguments.data.as_deref()).map_err(|e| format!("--data: {e}"))?;
    let prompts = Prompts::new(&drawings, knows, hart.config().resolution())?;
    let scorer = Scorer::of(&drawings);
    let artist = Artist::new(&hart, cancel.clone(), arguments.settings.model.threads, arguments.quiet);
    let (mut report, marked) = exam::examine(&artist, &scorer, &prompts, extent, &request, seed)?;
    report.about = arguments.about(seed, &hart, &request, start, !cancel.is_cancelled());
    arguments.write(&report, &marked)?;
    if cancel.is_cancelled() {
        eprintln!("cancelled; {} pictures were finished", marked.len());
        return Ok(ExitCode::from(INTERRUPTED));
    }
    Ok(ExitCode::SUCCESS)
}

impl Arguments {
    fn model(&self) -> &Path {
        self.folder.as_ref().unwrap_or(&self.settings.model.folder)
    }

    /// The threads are the artist's, which gives each picture one.
    fn options(&self) -> OpenOptions {
        ModelArgs { threads: None, ..self.settings.model.clone() }.options()
    }

    fn extent(&self) -> Result<Extent, String> {
        let prompts = self.prompts.unwrap_or(if self.quick { QUICK_PROMPTS } else { PROMPTS });
        if !(1..=MOST_PROMPTS).contains(&prompts) {
            return Err(format!("--prompts {prompts}: expected 1 to {MOST_PROMPTS} prompts of each split"));
        }
        if self.settings.model.threads == Some(0) {
            return Err("--threads 0: ask for at least one, or leave it out for all cores".into());
        }
        Ok(Extent::new(prompts, self.quick, self.sweep))
    }

    /// What stands beside the figures.
    fn about(&self, seed: u64, hart: &Hart, request: &Request, start: Instant, complete: bool) -> Map<String, Value> {
        let sampling = hart.sampling(request);
        let settings = json!({
            "guidance": sampling.guidance, "soft": sampling.smoothing, "top_k": sampling.top_k, "top_p": sampling.top_p,
            "steps": sampling.steps.to_string(),
        });
        let about = [
            ("model", json!(self.model().to_string_lossy())),
            ("data", json!(self.data.as_ref().map(|data| data.to_string_lossy()))),
            ("side", json!(hart.config().resolution())),
            ("seed", json!(seed)),
            ("settings", settings),
            ("quick", json!(self.quick)),
            ("complete", json!(complete)),
            ("seconds", json!((start.elapsed().as_secs_f64() * 10.0).round() / 10.0)),
        ];
        about.map(|(key, value)| (key.to_string(), value)).into_iter().collect()
    }

    fn write(&self, report: &Report, marked: &[Marked]) -> Result<(), Box<dyn Error>> {
        if let Some(path) = &self.out {
            output::write_file(path, format!("{:#}\n", report.json()).as_bytes())?;
        }
        if let Some(path) = self.sheet.as_ref().filter(|_| !marked.is_empty()) {
            let pictures: Vec<(&Image, Verdict)> = marked.iter().map(|marked| (&marked.image, marked.verdict)).collect();
            sheet::sheet(&pictures)?.save_png(path)?;
        }
        if !self.quiet {
            output::print_line(report.table())?;
        }
        if self.json {
            output::print_line(report.json())?;
        }
        Ok(())
    }
}
