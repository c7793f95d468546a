//! Arguments that the programs share: which model to open, and how to sample.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{ArgAction, Args};
use hart_core::{CancelToken, DeviceKind, Hart, OpenOptions, Precision, Request, Respacing, SystemPrompt, WeightSet};

use super::word_filter::WordFilter;

/// The model that is shipped with the examples.
pub const SHIPPED_MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/hart-emoji");

/// Which model, and how it is opened.
#[derive(Args, Clone, Debug)]
pub struct Opening {
    /// Folder of the model, which holds llm and tokenizer
    #[arg(short, long, value_name = "FOLDER", default_value = SHIPPED_MODEL, hide_default_value = true)]
    pub model: PathBuf,
    /// Folder of the text model, if it isn't in or beside the model's
    #[arg(long, value_name = "FOLDER")]
    pub text_model: Option<PathBuf>,
    /// Which weights: EMA if there are some, else plain
    #[arg(long, value_name = "auto|ema|plain", default_value = "auto", value_parser = weight_set)]
    pub weights: WeightSet,
    /// Opens a model that has tensors which nothing uses, such as some fine-tuned ones
    #[arg(long)]
    pub allow_unused: bool,
    /// Where to compute; `generate --list-devices` says what there is
    #[arg(long, value_name = "auto|cpu|cuda[:n]|wgpu[:n]", default_value = "auto")]
    pub device: DeviceKind,
    /// Numbers to compute with: int8 and bf16, or f16 on a GPU, are faster and a little less exact
    #[arg(long, value_name = "auto|f32|f16|bf16|int8", default_value = "auto")]
    pub precision: Precision,
    /// Threads of the CPU [default: all]
    #[arg(long, value_name = "COUNT")]
    pub threads: Option<usize>,
    /// Refuses what is estimated to take more memory than this [default: no limit]
    #[arg(long, value_name = "GIGABYTES", value_parser = gigabytes, allow_negative_numbers = true)]
    pub max_memory: Option<f64>,
}

/// Which model, and how it samples.
#[derive(Args, Clone, Debug)]
pub struct Settings {
    #[allow(missing_docs)] // A comment here would be the programs' description.
    #[command(flatten)]
    pub opening: Opening,
    /// Seed of the first picture; random draws one and prints it
    #[arg(short, long, value_name = "NUMBER|random", default_value = "0", allow_negative_numbers = true)]
    pub seed: Seed,
    /// Strength of guidance; 0 is none [default: the model's, usually 4.5]
    #[arg(short, long, allow_negative_numbers = true)]
    pub guidance: Option<f64>,
    /// Mixes codes instead of drawing one [default: the model's, usually true]
    #[arg(long, value_name = "true|false", action = ArgAction::Set)]
    pub soft: Option<bool>,
    /// Codes kept in drawing a token [default: the model's, usually 600 then 300]
    #[arg(long)]
    pub top_k: Option<usize>,
    /// Keeps the likeliest codes of this probability together; 0 keeps all [default: the model's, usually 0]
    #[arg(long, allow_negative_numbers = true)]
    pub top_p: Option<f64>,
    /// Steps of the residual diffusion, such as 8, 10,5 or ddim25 [default: the model's]
    #[arg(long)]
    pub steps: Option<Respacing>,
    /// System prompt; "" for none [default: the model's llm/system_prompt.txt, if there is one]
    #[arg(long, value_name = "TEXT")]
    pub system_prompt: Option<String>,
    /// Refuses prompts with a word or phrase of this list, one a line
    #[arg(long, value_name = "FILE")]
    pub filter: Option<PathBuf>,
}

/// A seed as it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seed {
    /// This one.
    Number(u64),
    /// One that is drawn.
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
    /// The number. A drawn one has 32 bits, short enough to type again, and is said on standard error.
    ///
    /// # Errors
    ///
    /// The system has no random numbers.
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

/// Which weights, by name.
///
/// # Errors
///
/// There is no such name.
pub fn weight_set(name: &str) -> Result<WeightSet, String> {
    match name {
        "auto" => Ok(WeightSet::PreferEma),
        "ema" => Ok(WeightSet::Ema),
        "plain" => Ok(WeightSet::Plain),
        _ => Err("expected auto, ema or plain".into()),
    }
}

fn gigabytes(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|limit: &f64| *limit > 0.0).ok_or_else(|| "expected a number above 0".into())
}

impl Settings {
    /// A request for one picture of each prompt. The seed is [`Seed::number`]'s, asked for once.
    ///
    /// # Errors
    ///
    /// What is wrong with the word list.
    pub fn request(&self, prompts: Vec<String>, seed: u64, cancel: CancelToken) -> Result<Request, String> {
        let mut request = Request::batch(prompts).seed(seed).cancel_token(cancel);
        if let Some(guidance) = self.guidance {
            request = request.guidance(guidance);
        }
        if let Some(soft) = self.soft {
            request = request.smoothing(soft);
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
        if let Some(file) = &self.filter {
            request = request.filter(WordFilter::open(file)?);
        }
        Ok(match self.system_prompt.as_deref() {
            None => request,
            Some("") => request.system_prompt(SystemPrompt::Off),
            Some(text) => request.system_prompt(SystemPrompt::Text(text.into())),
        })
    }
}

impl Opening {
    /// Opens the model.
    ///
    /// # Errors
    ///
    /// As [`Hart::open`].
    pub fn open(&self) -> Result<Hart, hart_core::Error> {
        Hart::open(&self.model, self.options())
    }

    /// How it is opened.
    pub fn options(&self) -> OpenOptions {
        let mut options = OpenOptions::new().device(self.device).precision(self.precision).weight_set(self.weights);
        options = options.strict(!self.allow_unused);
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
