//! An open model.

use hart_core::{Error, Hart, MAX_GUIDANCE, MAX_PROMPT_BYTES, OpenOptions, Request, SystemPrompt};
use serde::Deserialize;
use serde_json::json;
use wasm_bindgen::prelude::*;

use crate::events::{Events, Listener, rgba, timings};
use crate::failure::Failure;
use crate::files::ModelFiles;

/// Memory in bytes that a model and its runs may take: what 32-bit addresses reach, less the program and the gaps between blocks.
const ADDRESSABLE: u64 = 3840 << 20;

/// A model.
#[wasm_bindgen]
pub struct Model(Hart);

/// Options for opening a model.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Options {
    precision: Option<String>,
    max_memory: Option<f64>,
}

/// Settings of a run. The seed is text, because a number in JavaScript has only 53 bits.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Settings {
    prompt: String,
    seed: String,
    guidance: Option<f64>,
    smoothing: Option<bool>,
    top_k: Option<usize>,
    top_p: Option<f64>,
    steps: Option<usize>,
    /// Absent for the checkpoint's, empty for none.
    system_prompt: Option<String>,
    /// Names of the marks in the image file; absent for all.
    marks: Option<String>,
    /// Largest side of previews in pixels; 0 for none.
    preview: usize,
}

impl Settings {
    fn request(&self) -> Result<Request, Failure> {
        let seed = self.seed.parse().map_err(|_| {
            Failure::new("request", format!("request: seed: {}, expected a whole number from 0 to {}", self.seed, u64::MAX))
        })?;
        let steps = self.steps.map(|steps| steps.to_string().parse()).transpose()?;
        let system_prompt = match &self.system_prompt {
            None => SystemPrompt::Checkpoint,
            Some(text) if text.is_empty() => SystemPrompt::Off,
            Some(text) => SystemPrompt::Text(text.clone()),
        };
        let marks = self.marks.as_deref().unwrap_or("all").parse()?;
        let request = Request::new(&self.prompt).marks(marks).seed(seed).system_prompt(system_prompt).steps(steps);
        Ok(request.guidance(self.guidance).smoothing(self.smoothing).top_k(self.top_k).top_p(self.top_p))
    }
}

/// A generated image.
#[wasm_bindgen]
pub struct Generated {
    json: String,
    pixels: Vec<u8>,
    png: Vec<u8>,
}

#[wasm_bindgen]
impl Model {
    /// Opens the model whose files are given. Takes the files.
    ///
    /// # Errors
    ///
    /// An error of `Hart::from_files`.
    pub fn open(files: ModelFiles, options: &str) -> Result<Self, JsValue> {
        Ok(Self::open_files(files, options)?)
    }

    /// Returns the properties of the model as JSON.
    pub fn info(&self) -> String {
        let (hart, defaults) = (&self.0, self.0.sampling(&Request::new("")));
        let config = hart.config();
        json!({
            "width": config.resolution(),
            "height": config.resolution(),
            "scales": config.transformer.sides.len(),
            "precision": hart.precision().to_string(),
            "fingerprint": hart.fingerprint(),
            "threads": rayon::current_num_threads(),
            "defaults": {
                "guidance": defaults.guidance,
                "smoothing": defaults.smoothing,
                "topK": defaults.top_k,
                "topP": defaults.top_p,
                "steps": defaults.steps.timesteps().len(),
            },
            "maxGuidance": MAX_GUIDANCE,
            "maxPromptBytes": MAX_PROMPT_BYTES,
        })
        .to_string()
    }

    /// Generates an image and passes the events of the run to a listener.
    ///
    /// # Errors
    ///
    /// An error of `Hart::generate_with`.
    pub fn generate(&self, settings: &str, listener: &Listener) -> Result<Generated, JsValue> {
        Ok(self.run(settings, listener)?)
    }
}

impl Model {
    fn open_files(files: ModelFiles, options: &str) -> Result<Self, Failure> {
        let options: Options = serde_json::from_str(options)?;
        let limit = options.max_memory.map_or(ADDRESSABLE, |bytes| (bytes as u64).min(ADDRESSABLE));
        let mut open = OpenOptions::new().max_memory(limit);
        if let Some(precision) = options.precision {
            open = open.precision(precision.parse()?);
        }
        Ok(Self(Hart::from_files(files.files, open)?))
    }

    fn run(&self, settings: &str, listener: &Listener) -> Result<Generated, Failure> {
        let settings: Settings = serde_json::from_str(settings)?;
        let generation = self.0.generate_with(&settings.request()?, &mut Events::new(listener, settings.preview))?;
        let image = generation.images.first().ok_or(Error::Cancelled)?;
        let png = image.to_png().map_err(|error| Failure::new("image", format!("no PNG file of the image: {error}")))?;
        let cut = generation.truncated.iter().find(|cut| cut.prompt.is_some()).map(|cut| &cut.cut);
        let json = json!({
            "width": image.width(),
            "height": image.height(),
            "seed": settings.seed,
            "prompt": settings.prompt,
            "settings": image.provenance.as_ref().map(|provenance| &provenance.settings),
            "truncated": cut,
            "timings": timings(&generation.timings),
        });
        Ok(Generated { json: json.to_string(), pixels: rgba(image), png })
    }
}

#[wasm_bindgen]
impl Generated {
    /// Takes size, seed, settings and timings as JSON.
    pub fn json(&mut self) -> String {
        std::mem::take(&mut self.json)
    }

    /// Takes the pixels in RGBA.
    pub fn pixels(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.pixels)
    }

    /// Takes the PNG file, with the prompt, seed and settings in its text chunks.
    pub fn png(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.png)
    }
}
