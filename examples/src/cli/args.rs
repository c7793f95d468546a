//! Command-line arguments that the programs share: the model, and the settings of a run.

use std::error::Error;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{ArgAction, Args};
use hart_core::{
    CancelToken, DeviceKind, Hart, Marks, OpenOptions, Precision, Pruning, Request, Respacing, SystemPrompt, WeightSet,
};

use super::out_files::OutFiles;
use super::prompt_syntax;
use super::run::Run;
use super::word_filter::WordFilter;

/// Folder of the small model in this repository.
pub const SHIPPED_MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/hart-emoji");

/// Arguments that select a model and how to open it.
#[derive(Args, Clone, Debug)]
pub struct ModelArgs {
    /// Model folder, with the subfolders llm and tokenizer [default: the model in this repository]
    #[arg(id = "model", short, long = "model", value_name = "FOLDER", default_value = SHIPPED_MODEL, hide_default_value = true)]
    pub folder: PathBuf,
    /// Text encoder folder, if it is neither in nor next to the model folder
    #[arg(long, value_name = "FOLDER")]
    pub text_model: Option<PathBuf>,
    /// Weights to load; auto uses EMA weights if the model has them
    #[arg(long, value_name = "auto|ema|plain", default_value = "auto", value_parser = weight_set)]
    pub weights: WeightSet,
    /// Ignore unused tensors, as in some fine-tuned models, instead of failing
    #[arg(long)]
    pub allow_unused: bool,
    /// Device to compute on; `generate --list-devices` lists the devices of this machine
    #[arg(long, value_name = "auto|cpu|cuda[:n]|wgpu[:n]", default_value = "auto")]
    pub device: DeviceKind,
    /// Precision of the computation; int8 and bf16, or f16 on a GPU, are faster and slightly less exact [default: auto]
    #[arg(long, value_name = "auto|f32|f16|bf16|int8", value_parser = value::<Precision>)]
    pub precision: Option<Precision>,
    /// Number of CPU threads [default: all cores]
    #[arg(long, value_name = "COUNT", value_parser = count::<usize>)]
    pub threads: Option<usize>,
    /// Number of images generated at once, on shares of the threads [default: from the size of the model]
    #[arg(long, value_name = "COUNT", value_parser = count::<usize>)]
    pub parallel: Option<usize>,
    /// Refuse requests that are estimated to need more memory [default: no limit]
    #[arg(long, value_name = "GIGABYTES", value_parser = gigabytes)]
    pub max_memory: Option<f64>,
    /// Keep the text model in memory between requests; saves 0.1 s a request, or 2 s if weights are quantised on opening
    #[arg(long)]
    pub keep_text_model: bool,
}

/// Arguments that select a model and set how it generates images.
#[derive(Args, Clone, Debug)]
pub struct GenerationArgs {
    #[allow(missing_docs)] // clap would show a doc comment as the program's description.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Seed of the first image; `random` chooses one and prints it [default: 0]
    #[arg(short, long, value_name = "NUMBER|random")]
    pub seed: Option<Seed>,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub request: RequestArgs,
}

/// Arguments that set how images are generated, apart from prompts and seed.
#[derive(Args, Clone, Debug)]
pub struct RequestArgs {
    /// Classifier-free guidance scale; 0 turns guidance off [default: the model's, usually 4.5]
    #[arg(short, long)]
    pub guidance: Option<f64>,
    /// Gumbel-softmax smoothing: mix codebook entries instead of sampling one [default: the model's, usually true]
    #[arg(long, value_name = "true|false", action = ArgAction::Set)]
    pub smoothing: Option<bool>,
    /// Sample from the K most likely codes [default: the model's, usually 600, then 300]
    #[arg(long, value_name = "K", value_parser = count::<usize>)]
    pub top_k: Option<usize>,
    /// Sample from the most likely codes with cumulative probability P; 0 turns it off [default: the model's, usually 0]
    #[arg(long, value_name = "P")]
    pub top_p: Option<f64>,
    /// Steps of the residual diffusion, such as 8, 10,5 or ddim25 [default: the model's]
    #[arg(long, value_parser = value::<Respacing>)]
    pub steps: Option<Respacing>,
    /// Leave out these shares of the tokens of the last scales (FastVAR): faster, with less memory, but other images
    #[arg(long, value_name = "RATIOS", num_args = 0..=1, default_missing_value = "0.5,0.75", value_parser = value::<Pruning>)]
    pub prune: Option<Pruning>,
    /// System prompt; "" for none [default: the model's llm/system_prompt.txt, if it exists]
    #[arg(long, value_name = "TEXT")]
    pub system_prompt: Option<String>,
    /// Refuse prompts that contain a word or phrase of this file, one per line
    #[arg(long, value_name = "FILE")]
    pub filter: Option<PathBuf>,
    /// Leave marks out of the image files, such as prompt or prompt,settings
    #[arg(long, value_name = "prompt|parameters|settings|source|all", value_parser = value::<Marks>)]
    pub omit_marks: Option<Marks>,
}

/// A seed argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seed {
    /// A given seed.
    Number(u64),
    /// A seed to choose at random.
    Random,
}

impl FromStr for Seed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.eq_ignore_ascii_case("random") {
            return Ok(Self::Random);
        }
        text.parse().map(Self::Number).map_err(|_| format!("expected a number from 0 to {}, or random", u64::MAX))
    }
}

impl Seed {
    /// Returns the given seed, or chooses one and prints it on standard error. Chosen seeds have 32 bits, short enough to type.
    ///
    /// # Errors
    ///
    /// Returns a message if the system has no source of random numbers.
    pub fn number(self) -> Result<u64, String> {
        match self {
            Self::Number(number) => Ok(number),
            Self::Random => {
                let number = getrandom::u32().map_err(|e| format!("--seed random: {e}; give a number"))?.into();
                eprintln!("seed {number}");
                Ok(number)
            }
        }
    }
}

/// Parses the name of a weight set.
///
/// # Errors
///
/// Returns a message if the name is unknown.
pub fn weight_set(name: &str) -> Result<WeightSet, String> {
    match name {
        "auto" => Ok(WeightSet::PreferEma),
        "ema" => Ok(WeightSet::Ema),
        "plain" => Ok(WeightSet::Plain),
        _ => Err("expected auto, ema or plain".into()),
    }
}

/// Parses a number of objects.
///
/// # Errors
///
/// Returns a message if the text is not a whole number.
pub fn count<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| "expected a whole number that is not negative".into())
}

/// Parses a value of the library. The message of an error is without the name of the value, which clap adds.
///
/// # Errors
///
/// Returns a message that describes the valid values.
pub fn value<T: FromStr<Err = hart_core::Error>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error| match error {
        hart_core::Error::Request { problem, .. } => problem,
        error => error.to_string(),
    })
}

fn gigabytes(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|limit: &f64| *limit > 0.0).ok_or_else(|| "expected a number above 0".into())
}

impl GenerationArgs {
    /// Returns the seed of the first image, like [`Seed::number`].
    ///
    /// # Errors
    ///
    /// Returns a message if the system has no source of random numbers.
    pub fn seed(&self) -> Result<u64, String> {
        self.seed.map_or(Ok(0), Seed::number)
    }

    /// Builds a request for one image of each prompt. `seed` is the result of [`Self::seed`].
    ///
    /// # Errors
    ///
    /// Returns a message if the file of `--filter` is invalid or refuses a prompt.
    pub fn request(&self, prompts: Vec<String>, seed: u64, cancel: CancelToken) -> Result<Request, String> {
        let filter = self.request.filter.as_deref().map(WordFilter::open).transpose()?;
        filter.as_ref().map_or(Ok(()), |filter| filter.check(&prompts)).map_err(|e| e.to_string())?;
        let request = self.request.set(Request::batch(prompts)).seed(seed).cancel_token(cancel);
        Ok(match filter {
            Some(filter) => request.filter(filter),
            None => request,
        })
    }

    /// Builds a run of `count` images of each prompt, which are saved in the files of `out`, and checks all of its values.
    ///
    /// # Errors
    ///
    /// Returns a message if a value is invalid, a prompt is refused, or a file can't be written.
    pub fn prepare_run(
        &self,
        prompts: Vec<String>,
        count: usize,
        out: &OutFiles,
        cancel: CancelToken,
    ) -> Result<Run, Box<dyn Error>> {
        let seed = self.seed()?;
        prompt_syntax::warn(&prompts);
        let settings = self.request(prompts.clone(), seed, cancel)?;
        let run = Run::new(prompts, count, seed, settings, out.clone())?;
        out.check(run.total_images())?;
        Ok(run)
    }
}

impl RequestArgs {
    /// Sets all settings of a request except for the filter.
    pub fn set(&self, request: Request) -> Request {
        request
            .guidance(self.guidance)
            .smoothing(self.smoothing)
            .top_k(self.top_k)
            .top_p(self.top_p)
            .steps(self.steps.clone())
            .prune(self.prune.clone())
            .system_prompt(self.system_prompt())
            .marks(self.marks())
    }

    /// Returns the system prompt; an empty text stands for none.
    pub fn system_prompt(&self) -> SystemPrompt {
        match self.system_prompt.as_deref() {
            None => SystemPrompt::Checkpoint,
            Some("") => SystemPrompt::Off,
            Some(text) => SystemPrompt::Text(text.into()),
        }
    }

    /// Returns the marks that image files get.
    pub fn marks(&self) -> Marks {
        Marks::ALL.without(self.omit_marks.unwrap_or(Marks::NONE))
    }
}

impl ModelArgs {
    /// Opens the model.
    ///
    /// # Errors
    ///
    /// Like [`Hart::open`].
    pub fn open(&self) -> Result<Hart, hart_core::Error> {
        Hart::open(&self.folder, self.options())
    }

    /// Returns the options to open the model with.
    pub fn options(&self) -> OpenOptions {
        OpenOptions::new()
            .device(self.device)
            .precision(self.precision.unwrap_or(Precision::Auto))
            .weight_set(self.weights)
            .strict(!self.allow_unused)
            .threads(self.threads)
            .parallel(self.parallel)
            .max_memory(self.max_memory.map(|gigabytes| (gigabytes * 1e9) as u64))
            .text_model(self.text_model.clone())
            .keep_text_model(self.keep_text_model)
    }
}
