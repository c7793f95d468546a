//! Prompt to PNG: `cargo run --release -- "a red heart on a yellow background"`.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{ArgAction, Parser};
use hart_core::{
    CancelToken, Control, DeviceKind, Event, Generation, Hart, Image, Observer, OpenOptions, Request, Respacing, SystemPrompt,
    WeightSet,
};
use hart_examples::bars::Bars;
use hart_examples::output;
use serde_json::json;

/// The model that is shipped with the examples.
const SHIPPED_MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/starter");
/// Exit code of a run stopped by Ctrl-C, as shells have it.
const INTERRUPTED: u8 = 130;

/// Makes pictures from prompts.
#[derive(Parser, Debug)]
#[command(name = "generate", version, about = "Makes pictures from prompts with HART", max_term_width = 110)]
struct Arguments {
    /// What to draw; several prompts make several pictures
    #[arg(required = true, value_name = "PROMPT")]
    prompts: Vec<String>,
    /// Folder of the model, which holds llm and tokenizer
    #[arg(short, long, value_name = "FOLDER", default_value = SHIPPED_MODEL, hide_default_value = true)]
    model: PathBuf,
    /// Folder of the text model, if it isn't in or beside the model's
    #[arg(long, value_name = "FOLDER")]
    text_model: Option<PathBuf>,
    /// Which weights: EMA if there are some, else plain
    #[arg(long, value_name = "auto|ema|plain", default_value = "auto", value_parser = weight_set)]
    weights: WeightSet,
    /// PNG file; n in braces stands for the number of a picture
    #[arg(short, long, value_name = "FILE", default_value = "out.png")]
    out: PathBuf,
    /// Also writes all pictures side by side into this PNG file
    #[arg(long, value_name = "FILE")]
    grid: Option<PathBuf>,
    /// Pictures of each prompt; their seeds count up
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 1)]
    count: usize,
    /// Seed of the first picture
    #[arg(short, long, default_value_t = 0, allow_negative_numbers = true)]
    seed: u64,
    /// Strength of guidance; 0 is none [default: the model's, usually 4.5]
    #[arg(short, long, allow_negative_numbers = true)]
    guidance: Option<f64>,
    /// Mixes codes instead of drawing one [default: the model's, usually true]
    #[arg(long, value_name = "true|false", action = ArgAction::Set)]
    soft: Option<bool>,
    /// Codes kept in drawing a token [default: the model's, usually 600 then 300]
    #[arg(long)]
    top_k: Option<usize>,
    /// Keeps the likeliest codes of this probability together; 0 keeps all [default: the model's, usually 0]
    #[arg(long, allow_negative_numbers = true)]
    top_p: Option<f64>,
    /// Steps of the residual diffusion, such as 8, 10,5 or ddim25 [default: the model's]
    #[arg(long)]
    steps: Option<Respacing>,
    /// System prompt; "" for none [default: the model's llm/system_prompt.txt, if there is one]
    #[arg(long, value_name = "TEXT")]
    system_prompt: Option<String>,
    /// Where to compute
    #[arg(long, value_name = "auto|cpu", default_value = "auto")]
    device: DeviceKind,
    /// Threads of the CPU [default: all]
    #[arg(long, value_name = "COUNT")]
    threads: Option<usize>,
    /// Refuses what is estimated to take more memory than this [default: no limit]
    #[arg(long, value_name = "GIGABYTES")]
    max_memory: Option<f64>,
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

fn weight_set(name: &str) -> Result<WeightSet, String> {
    match name {
        "auto" => Ok(WeightSet::PreferEma),
        "ema" => Ok(WeightSet::Ema),
        "plain" => Ok(WeightSet::Plain),
        _ => Err("expected auto, ema or plain".into()),
    }
}

impl Arguments {
    fn request(&self, cancel: CancelToken) -> Request {
        let mut request = Request::batch(self.prompts.clone()).images_per_prompt(self.count).seed(self.seed).cancel_token(cancel);
        if let Some(guidance) = self.guidance {
            request = request.guidance(guidance);
        }
        if let Some(soft) = self.soft {
            request = request.soft_sampling(soft);
        }
        if let Some(top_p) = self.top_p {
            request = request.top_p(top_p);
        }
        if let Some(top_k) = self.top_k {
            request = request.top_k(top_k);
        }
        if let Some(steps) = &self.steps {
            request = request.steps(steps.clone());
        }
        match self.system_prompt.as_deref() {
            None => request,
            Some("") => request.system_prompt(SystemPrompt::Off),
            Some(text) => request.system_prompt(SystemPrompt::Text(text.into())),
        }
    }

    fn options(&self) -> OpenOptions {
        let mut options = OpenOptions::new().device(self.device).weight_set(self.weights);
        if let Some(threads) = self.threads {
            options = options.threads(threads);
        }
        if let Some(gigabytes) = self.max_memory {
            options = options.max_memory((gigabytes * 1e9) as u64);
        }
        match &self.text_model {
            Some(folder) => options.text_model(folder),
            None => options,
        }
    }
}

fn main() -> ExitCode {
    hart_examples::exit_code(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<ExitCode, Box<dyn Error>> {
    let cancel = CancelToken::new();
    let request = arguments.request(cancel.clone());
    request.validate()?;
    output::check_folder("--out", &arguments.out)?;
    if let Some(grid) = &arguments.grid {
        output::check_folder("--grid", grid)?;
        if (0..request.total_images()).any(|i| output::numbered(&arguments.out, i, request.total_images()) == *grid) {
            return Err(format!("--grid {}: that is a picture's own file; name another", grid.display()).into());
        }
    }
    // The second Ctrl-C ends the program at once.
    ctrlc::set_handler(move || if cancel.is_cancelled() { std::process::exit(INTERRUPTED.into()) } else { cancel.cancel() })?;

    let opening = Instant::now();
    let hart = Hart::open(&arguments.model, arguments.options())?;
    let opened = opening.elapsed();
    let mut saver = Saver::new(arguments, request.total_images());
    let made = hart.generate(&request, &mut saver);
    let files = saver.finish()?;
    match made {
        Ok(made) => {
            report(arguments, &made, &files, opened)?;
            Ok(ExitCode::SUCCESS)
        }
        Err(error) if error.is_cancelled() => {
            eprintln!("cancelled; {} of {} pictures were finished{}", files.len(), request.total_images(), list(&files));
            Ok(ExitCode::from(INTERRUPTED))
        }
        Err(error) => Err(error.into()),
    }
}

/// Shows progress, and saves every picture as soon as it is finished.
struct Saver<'a> {
    out: &'a Path,
    count: usize,
    bars: Bars,
    files: Vec<PathBuf>,
    error: Option<hart_core::Error>,
}

impl<'a> Saver<'a> {
    fn new(arguments: &'a Arguments, count: usize) -> Self {
        let bars = Bars::new(count, arguments.quiet);
        Self { out: &arguments.out, count, bars, files: vec![], error: None }
    }

    /// The files, or what kept one from being written.
    fn finish(self) -> Result<Vec<PathBuf>, hart_core::Error> {
        self.error.map_or(Ok(self.files), Err)
    }
}

impl Observer for Saver<'_> {
    fn event(&mut self, event: &Event<'_>) -> Control {
        if self.error.is_some() { Control::Cancel } else { self.bars.event(event) }
    }

    fn picture(&mut self, image: &Image) {
        let path = output::numbered(self.out, self.files.len(), self.count);
        match image.save_png(&path) {
            Ok(()) => self.files.push(path),
            Err(error) => self.error = Some(error),
        }
    }
}

fn report(arguments: &Arguments, made: &Generation, files: &[PathBuf], opened: Duration) -> Result<(), Box<dyn Error>> {
    for truncation in &made.truncated {
        let which = truncation.prompt.map_or_else(|| "the system prompt".into(), |p| format!("prompt {}", p + 1));
        eprintln!(
            "warning: {which} has {} tokens, the model reads {}; not read: \"{}\"",
            truncation.tokens, truncation.kept, truncation.cut
        );
    }
    if let Some(path) = &arguments.grid {
        let columns = (made.images.len() as f64).sqrt().ceil() as usize;
        Image::grid(&made.images, columns)?.save_png(path)?;
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
            "seeds": seeds,
            "grid": arguments.grid.as_ref().map(|f| f.to_string_lossy()),
            "open_ms": (opened.as_secs_f64() * 1e5).round() / 100.0,
            "milliseconds": output::milliseconds(&made.timings),
        }))?;
    }
    Ok(())
}

fn list(files: &[PathBuf]) -> String {
    files.iter().map(|f| format!(" -> {}", f.display())).collect()
}
