//! The images of the input's lines.

use hart_core::stages::SamplingParams;
use hart_core::{Provenance, Pruning, Request, Respacing, SystemPrompt};
use hart_examples::cli::args::RequestArgs;
use hart_examples::cli::flags::with_flags;
use hart_examples::cli::lines;
use serde_json::{Map, Value, json};

use crate::hash::hash;
use crate::id::Id;
use crate::input::{Format, Line};

/// Largest number up to which JSON parsers that have only floating-point numbers are exact.
const MAX_EXACT: f64 = 9_007_199_254_740_992.0;

/// An image to generate.
#[derive(Clone, Debug, PartialEq)]
pub struct Task {
    /// Number of its line.
    pub line: u64,
    /// Its id.
    pub id: Id,
    /// Its prompt and settings.
    pub settings: Settings,
    /// What the line has that was ignored.
    pub warnings: Vec<String>,
}

/// The prompt and settings of an image. `None` stands for the model's default.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    pub prompt: String,
    pub seed: u64,
    pub guidance: Option<f64>,
    pub smoothing: Option<bool>,
    pub top_k: Option<usize>,
    pub top_p: Option<f64>,
    pub steps: Option<Respacing>,
    pub prune: Option<Pruning>,
    /// Text before the prompt; empty for none.
    pub system_prompt: Option<String>,
}

/// The error of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LineError {
    /// Number of the line.
    pub line: u64,
    /// The id, if the line has a valid one.
    pub id: Option<Id>,
    /// The problem.
    pub problem: String,
}

/// Values of settings that a line doesn't have, from the command line.
#[derive(Debug)]
pub struct Defaults {
    /// Seed of all lines that have none; `None` for a hash of the id.
    pub seed: Option<u64>,
    /// The other settings.
    pub request: RequestArgs,
    /// Name of the model.
    pub model: String,
}

impl Task {
    /// Parses a line. Returns `None` if it is a comment.
    ///
    /// # Errors
    ///
    /// Returns the line's error.
    pub fn parse(line: Line, format: Format, defaults: &Defaults) -> Result<Option<Self>, LineError> {
        let number = line.number;
        let of_line = |problem| LineError { line: number, id: None, problem };
        let bytes = line.bytes.map_err(of_line)?;
        match format {
            Format::Text => {
                let prompt = lines::entry(&bytes).map_err(|problem| of_line(format!("the line {problem}")))?;
                let id = Id::of_line(number);
                Ok(prompt.map(|prompt| Self {
                    line: number,
                    settings: Settings::new(prompt.into(), id.hash(), defaults),
                    id,
                    warnings: Vec::new(),
                }))
            }
            Format::JsonLines => {
                let text = lines::utf8(&bytes).map_err(|problem| of_line(format!("the line {problem}")))?;
                let value = serde_json::from_str(text).map_err(|e| of_line(format!("not a JSON object on one line: {e}")))?;
                let Value::Object(object) = value else {
                    return Err(of_line(
                        "expected a JSON object on each line, such as {\"id\": \"1\", \"prompt\": \"a parrot\"}".into(),
                    ));
                };
                Self::of_object(number, object, defaults).map(Some)
            }
        }
    }

    fn of_object(line: u64, mut object: Map<String, Value>, defaults: &Defaults) -> Result<Self, LineError> {
        let of_line = |problem| LineError { line, id: None, problem };
        let own = object.remove("id").filter(|value| !value.is_null());
        let custom = object.remove("custom_id").filter(|value| !value.is_null());
        let is_openai = custom.is_some() || object.get("body").is_some_and(Value::is_object);
        let id = match own.or(custom) {
            None => Id::of_line(line),
            Some(Value::String(text)) => Id::new(&text).map_err(of_line)?,
            Some(Value::Number(number)) if number.is_u64() || number.is_i64() => Id::new(&number.to_string()).map_err(of_line)?,
            Some(other) => return Err(of_line(format!("id: {other}, expected a text"))),
        };
        let of_id = |problem| LineError { line, id: Some(id.clone()), problem };
        let fields = if is_openai { openai_body(&mut object).map_err(of_id)? } else { object };
        let (settings, unknown) = Settings::parse(fields, &id, defaults).map_err(of_id)?;
        let warnings = unknown.iter().map(|name| format!("`{}` is unknown and was ignored", name.escape_debug())).collect();
        Ok(Self { line, id, settings, warnings })
    }

    /// Returns a number that is the same for lines with the same prompt, settings and model.
    pub fn digest(&self, defaults: &Defaults) -> u64 {
        let Settings { prompt, seed, guidance, smoothing, top_k, top_p, steps, prune, system_prompt } = &self.settings;
        let texts = json!([
            defaults.model,
            prompt,
            seed,
            // The text of a number is exact.
            guidance.map(|number| number.to_string()),
            smoothing,
            top_k,
            top_p.map(|number| number.to_string()),
            steps.as_ref().map(ToString::to_string),
            prune.as_ref().map(ToString::to_string),
            system_prompt,
        ]);
        hash(texts.to_string().as_bytes())
    }
}

/// Returns the request in a line of a file for OpenAI's batches. Fields that don't change the image are removed.
fn openai_body(object: &mut Map<String, Value>) -> Result<Map<String, Value>, String> {
    if let Some(url) = object.get("url").filter(|url| !url.as_str().is_some_and(|url| url.ends_with("/images/generations"))) {
        return Err(format!("url: {url}, expected \"/v1/images/generations\""));
    }
    let Some(Value::Object(mut body)) = object.remove("body") else {
        return Err("body: expected an object with the prompt".into());
    };
    match body.remove("n") {
        Some(n) if !n.is_null() && n.as_f64() != Some(1.0) => return Err(format!("n: {n}, expected 1: give each image a line")),
        _ => {}
    }
    for name in ["model", "user", "response_format", "moderation", "safety_identifier"] {
        body.remove(name);
    }
    Ok(body)
}

impl Settings {
    /// Creates the settings of a prompt with the command line's values.
    fn new(prompt: String, hash: u64, defaults: &Defaults) -> Self {
        let RequestArgs { guidance, smoothing, top_k, top_p, steps, prune, system_prompt, .. } = defaults.request.clone();
        let seed = defaults.seed.unwrap_or(hash);
        Self { prompt, seed, guidance, smoothing, top_k, top_p, steps, prune, system_prompt }
    }

    /// Parses the fields of a line. Returns the settings and the names of unknown fields.
    fn parse(fields: Map<String, Value>, id: &Id, defaults: &Defaults) -> Result<(Self, Vec<String>), String> {
        let mut settings = Self::new(String::new(), id.hash(), defaults);
        let mut unknown = Vec::new();
        for (name, value) in fields {
            if value.is_null() {
                continue;
            }
            match name.as_str() {
                "prompt" => settings.prompt = text(&name, &value)?,
                "seed" => settings.seed = whole(&name, &value)?,
                "guidance" => settings.guidance = Some(number(&name, &value)?),
                "smoothing" => settings.smoothing = Some(value.as_bool().ok_or_else(|| wrong(&name, &value, "true or false"))?),
                "top_k" => settings.top_k = Some(usize::try_from(whole(&name, &value)?).map_err(|e| format!("{name}: {e}"))?),
                "top_p" => settings.top_p = Some(number(&name, &value)?),
                "steps" => settings.steps = Some(parsed(&word(&value))?),
                "system_prompt" => settings.system_prompt = Some(text(&name, &value)?),
                "prune" => settings.prune = pruning(&value)?,
                _ => unknown.push(name),
            }
        }
        if settings.prompt.trim().is_empty() {
            return Err("prompt: is missing or empty: describe an image".into());
        }
        settings.request().validate().map_err(|error| plain(&error))?;
        Ok((settings, unknown))
    }

    /// Returns the request, without filter and marks.
    pub fn request(&self) -> Request {
        Request::new(&self.prompt)
            .seed(self.seed)
            .guidance(self.guidance)
            .smoothing(self.smoothing)
            .top_k(self.top_k)
            .top_p(self.top_p)
            .steps(self.steps.clone())
            .prune(self.prune.clone())
            .system_prompt(self.system_prompt())
    }

    /// Returns the text before the prompt, as requests have it.
    pub fn system_prompt(&self) -> SystemPrompt {
        self.system_prompt.clone().map_or(SystemPrompt::Checkpoint, SystemPrompt::Text)
    }

    /// Returns the first setting in which an image differs, with the value of the image and the wanted one. `sampling` are the wanted
    /// settings with the model's defaults. `None` if the image has these settings.
    pub fn difference(&self, image: &Provenance, sampling: &SamplingParams) -> Option<String> {
        let generation = image.generation.as_ref()?;
        let text =
            |text: Option<&str>| text.map_or_else(|| "the model's".to_string(), |text| format!("\"{}\"", text.escape_debug()));
        let plan = |plan: Option<String>| plan.unwrap_or_else(|| "none".into());
        let top_k = |top_k: Option<usize>| top_k.map_or_else(|| "the model's".into(), |k| k.to_string());
        let values = [
            ("prompt", text(Some(&image.prompt)), text(Some(&self.prompt))),
            ("seed", image.seed.to_string(), self.seed.to_string()),
            ("guidance", generation.guidance.to_string(), sampling.guidance.to_string()),
            ("smoothing", generation.smoothing.to_string(), sampling.smoothing.to_string()),
            ("top_k", top_k(generation.top_k), top_k(sampling.top_k)),
            ("top_p", generation.top_p.to_string(), sampling.top_p.to_string()),
            ("steps", generation.steps.clone(), sampling.steps.to_string()),
            ("prune", plan(generation.prune.clone()), plan(sampling.pruning.as_ref().map(ToString::to_string))),
            ("system prompt", text(generation.system_prompt.as_deref()), text(self.system_prompt.as_deref())),
        ];
        let (name, of_image, wanted) = values.into_iter().find(|(_, of_image, wanted)| of_image != wanted)?;
        Some(format!("{name} {of_image}, not {wanted}"))
    }
}

/// Returns the text of an error of a request without the word for the request, which is the line.
pub fn plain(error: &hart_core::Error) -> String {
    let message = error.to_string();
    let problem = message.strip_prefix("request: ").unwrap_or(&message);
    let problem = with_flags::<crate::Arguments>(problem);
    // A line has one prompt.
    problem.replacen("prompt: number 1 ", "prompt: ", 1)
}

fn wrong(name: &str, value: &Value, expected: &str) -> String {
    format!("{name}: {value}, expected {expected}")
}

fn text(name: &str, value: &Value) -> Result<String, String> {
    value.as_str().map(str::to_string).ok_or_else(|| wrong(name, value, "a text"))
}

/// Tables with missing values turn whole numbers into floating-point ones, and large seeds are often texts.
fn whole(name: &str, value: &Value) -> Result<u64, String> {
    let float =
        || value.as_f64().filter(|number| number.fract() == 0.0 && (0.0..=MAX_EXACT).contains(number)).map(|number| number as u64);
    let number = value.as_u64().or_else(|| value.as_str()?.trim().parse().ok()).or_else(float);
    number.ok_or_else(|| wrong(name, value, &format!("a whole number from 0 to {}, large ones as text", u64::MAX)))
}

fn number(name: &str, value: &Value) -> Result<f64, String> {
    let number = value.as_f64().or_else(|| value.as_str()?.trim().parse().ok());
    number.filter(|number| number.is_finite()).ok_or_else(|| wrong(name, value, "a number"))
}

/// Returns a text or a number as text.
fn word(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_string)
}

fn parsed<T: std::str::FromStr<Err = hart_core::Error>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error| plain(&error))
}

/// Parses ratios as text, as numbers, or `true` for the published ones.
fn pruning(value: &Value) -> Result<Option<Pruning>, String> {
    match value {
        Value::Bool(prunes) => Ok(prunes.then(Pruning::default)),
        Value::Array(ratios) => parsed(&ratios.iter().map(word).collect::<Vec<_>>().join(",")).map(Some),
        value => parsed(&word(value)).map(Some),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Arguments {
        #[command(flatten)]
        request: RequestArgs,
    }

    fn defaults(arguments: &[&str]) -> Defaults {
        let request = Arguments::parse_from([&["batch"], arguments].concat()).request;
        Defaults { seed: None, request, model: "m".into() }
    }

    fn parse(text: &str) -> Result<Task, LineError> {
        let line = Line { number: 7, bytes: Ok(text.as_bytes().to_vec()) };
        Task::parse(line, Format::JsonLines, &defaults(&[])).map(|task| task.expect("JSON has no comments"))
    }

    #[test]
    fn a_line_has_all_settings_of_a_request() {
        let task = parse(
            r#"{"id": "a", "prompt": "p", "seed": "18446744073709551615", "guidance": 2, "smoothing": false, "top_k": 5.0, "top_p": "0.5",
                "steps": 4, "prune": [0.5, 0.75], "system_prompt": "", "colour": "red", "note": null}"#,
        )
        .unwrap();
        let Settings { prompt, seed, guidance, smoothing, top_k, top_p, steps, prune, system_prompt } = task.settings;
        assert_eq!(
            (prompt.as_str(), seed, guidance, smoothing, top_k, top_p),
            ("p", u64::MAX, Some(2.0), Some(false), Some(5), Some(0.5))
        );
        assert_eq!((steps.unwrap().to_string(), prune), ("4".into(), Some(Pruning::default())));
        assert_eq!(system_prompt.as_deref(), Some(""));
        assert_eq!(task.warnings, ["`colour` is unknown and was ignored"]);
    }

    #[test]
    fn the_seed_of_a_line_without_one_is_a_hash_of_its_id() {
        assert_eq!(parse(r#"{"id": "a", "prompt": "p"}"#).unwrap().settings.seed, 14_598_278_634_844_962_250);
        let with_seed = Defaults { seed: Some(3), ..defaults(&[]) };
        let line = |text: &str| Line { number: 1, bytes: Ok(text.into()) };
        let seed = |text, format| Task::parse(line(text), format, &with_seed).unwrap().unwrap().settings.seed;
        assert_eq!(seed("a parrot", Format::Text), 3);
        assert_eq!(seed(r#"{"prompt": "p", "seed": 4}"#, Format::JsonLines), 4);
    }

    #[test]
    fn lines_of_openai_batches_are_read() {
        let task = parse(
            r#"{"custom_id": "b-1", "method": "POST", "url": "/v1/images/generations", "body": {"model": "m", "prompt": "p", "n": 1,
                "size": "64x64"}}"#,
        )
        .unwrap();
        assert_eq!((task.id.as_str(), task.settings.prompt.as_str()), ("b-1", "p"));
        assert_eq!(task.warnings, ["`size` is unknown and was ignored"]);
        let problem = |text: &str| parse(text).unwrap_err().problem;
        assert!(problem(r#"{"custom_id": "b", "body": {"prompt": "p", "n": 2}}"#).contains("n: 2, expected 1"));
        assert!(problem(r#"{"custom_id": "b", "url": "/v1/chat/completions", "body": {"prompt": "p"}}"#).starts_with("url: "));
        assert!(problem(r#"{"custom_id": "b", "prompt": "p"}"#).starts_with("body: "));
    }

    #[test]
    fn the_problem_of_a_line_names_the_field() {
        for (text, words) in [
            ("{", "not a JSON object on one line"),
            ("[1]", "expected a JSON object on each line"),
            (r#"{"id": "a/b", "prompt": "p"}"#, "id: \"a/b\""),
            (r#"{"id": true, "prompt": "p"}"#, "id: true, expected a text"),
            (r#"{"id": "a"}"#, "prompt: is missing or empty"),
            (r#"{"id": "a", "prompt": 3}"#, "prompt: 3, expected a text"),
            (r#"{"id": "a", "prompt": "p", "seed": -1}"#, "seed: -1"),
            (r#"{"id": "a", "prompt": "p", "seed": 1e30}"#, "large ones as text"),
            (r#"{"id": "a", "prompt": "p", "steps": "x"}"#, "steps: \"x\""),
            (r#"{"id": "a", "prompt": "p", "top_k": 0}"#, "top-k: 0"),
            (r#"{"id": "a", "prompt": "p", "prune": 2}"#, "pruning"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.line == 7 && error.problem.contains(words), "{text}: {error:?}");
        }
        assert_eq!(parse(r#"{"id": "a"}"#).unwrap_err().id, Some(Id::new("a").unwrap()));
    }

    #[test]
    fn digests_differ_where_images_do() {
        let of = |text: &str, arguments: &[&str]| parse(text).map(|task| task.digest(&defaults(arguments))).unwrap();
        let first = of(r#"{"id": "a", "prompt": "p"}"#, &[]);
        assert_eq!(first, of(r#"{"prompt": "p", "note": 1, "id": "a"}"#, &[]));
        for text in
            [r#"{"id": "a", "prompt": "q"}"#, r#"{"id": "b", "prompt": "p"}"#, r#"{"id": "a", "prompt": "p", "guidance": 1}"#]
        {
            assert_ne!(first, of(text, &[]), "{text}");
        }
        let task = parse(r#"{"id": "a", "prompt": "p"}"#).unwrap();
        assert_ne!(first, task.digest(&Defaults { model: "other".into(), ..defaults(&[]) }));
    }
}
