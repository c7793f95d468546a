//! What a training run is told: one TOML file.

use std::error::Error;
use std::path::Path;

use hart_core::Request;
use hart_core::config::Config;
use hart_core::train::{GeneratorOptions, TokenizerOptions};
use hart_core::weights::StoredAs;
use hart_examples::data::{SceneOptions, files};
use serde::Deserialize;
use serde_json::Value;

use crate::generator::COMPARED;

/// Most pictures of a step.
const MOST_BATCH: usize = 1 << 14;

/// A recipe.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Seed of everything random.
    pub seed: u64,
    /// Parts of a batch that are worked on side by side: the number of cores on a CPU, 1 on a GPU. Another number adds up in another
    /// order, and so gives other last bits.
    pub shards: usize,
    /// How the model's numbers are stored.
    stored_as: Stored,
    /// How captions and pictures are made of drawings.
    #[serde(default)]
    pub scenes: SceneOptions,
    /// The model's `config.json` files, in the published layout.
    pub model: Model,
    /// Training of the visual tokenizer.
    pub tokenizer: Phase<TokenizerOptions>,
    /// Training of text encoder, transformer and residual diffusion.
    pub generator: Phase<GeneratorOptions>,
    /// Prompts of the contact sheets.
    pub prompts: Vec<String>,
}

/// The model's files.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// `text/config.json`; the vocabulary's size is a limit, and what the captions give is written.
    pub text: Value,
    /// `llm/config.json`.
    pub llm: Value,
    /// `tokenizer/config.json`.
    pub tokenizer: Value,
    /// `llm/generation_config.json`.
    pub generation: Value,
}

impl Model {
    /// The configuration of a model in the published layout.
    ///
    /// # Errors
    ///
    /// A file can't be read, or is no JSON.
    pub fn read(folder: &Path) -> Result<Self, String> {
        let read = |name: &str| {
            let path = folder.join(name);
            let text = files::read_text(&path, files::MAX_SETTINGS_SIZE)?;
            serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))
        };
        let generation = read("llm/generation_config.json").unwrap_or_else(|_| Value::Object(serde_json::Map::new()));
        Ok(Self {
            text: read("text/config.json")?,
            llm: read("llm/config.json")?,
            tokenizer: read("tokenizer/config.json")?,
            generation,
        })
    }
}

/// One half of the training.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Phase<O> {
    /// Pictures of a step.
    pub batch: usize,
    /// Steps from one line of losses, contact sheet and saved state to the next.
    pub every: u64,
    /// Whether its scenes have nothing that their captions don't say: less to learn for a small generator. The visual tokenizer had
    /// better see everything.
    #[serde(default)]
    pub exact: bool,
    /// Losses and optimizer.
    pub learning: O,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Stored {
    F32,
    F16,
}

impl Recipe {
    /// Reads a recipe and hands its seed and shards on to both halves.
    ///
    /// # Errors
    ///
    /// It can't be read, or what in it is wrong.
    pub fn read(path: &Path) -> Result<(Self, String), Box<dyn Error>> {
        let text = files::read_text(path, files::MAX_SETTINGS_SIZE)?;
        let mut recipe: Self = toml::from_str(&text).map_err(|e| format!("{}: {e}", path.display()))?;
        recipe.check().map_err(|problem| format!("{}: {problem}", path.display()))?;
        (recipe.tokenizer.learning.seed, recipe.tokenizer.learning.shards) = (recipe.seed, recipe.shards);
        (recipe.generator.learning.seed, recipe.generator.learning.shards) = (recipe.seed, recipe.shards);
        Ok((recipe, text))
    }

    /// Whatever can be known is found now, and not when it is first used, hours later.
    fn check(&self) -> Result<(), String> {
        let numbers = [
            // What compares captions in the end needs a picture for each.
            ("shards", self.shards, COMPARED),
            ("tokenizer.batch", self.tokenizer.batch, MOST_BATCH),
            ("generator.batch", self.generator.batch, MOST_BATCH),
        ];
        for (name, number, most) in numbers {
            if !(1..=most).contains(&number) {
                return Err(format!("{name} is {number}, expected a number from 1 to {most}"));
            }
        }
        for (name, batch, every) in
            [("tokenizer", self.tokenizer.batch, self.tokenizer.every), ("generator", self.generator.batch, self.generator.every)]
        {
            if batch % self.shards != 0 {
                return Err(format!("{name}.batch is {batch}, expected a multiple of shards, {}", self.shards));
            }
            if every == 0 {
                return Err(format!("{name}.every is 0, expected at least one step"));
            }
        }
        let learning = [("tokenizer", self.tokenizer.learning.validate()), ("generator", self.generator.learning.validate())];
        for (name, checked) in learning {
            checked.map_err(|error| match error {
                hart_core::Error::Request { field, problem } => format!("{name}.learning.{field} {problem}"),
                other => format!("{name}.learning: {other}"),
            })?;
        }
        Request::batch(self.prompts.clone()).validate().map_err(|error| format!("prompts: {error}"))
    }

    /// What the recipe and the model's files must agree on.
    ///
    /// # Errors
    ///
    /// Names what doesn't fit.
    pub fn check_model(&self, config: &Config) -> Result<(), String> {
        let (side, resolution) = (self.scenes.side, config.resolution());
        if side != resolution {
            return Err(format!("scenes.side is {side}, the model's pictures have {resolution}"));
        }
        let (sides, visual) = (&config.transformer.sides, &config.visual.sides);
        if visual != sides {
            return Err(format!("model.tokenizer.v_patch_nums is {visual:?}, expected {sides:?}, the patch_nums of model.llm"));
        }
        let (weights, scales) = (self.generator.learning.scale_weights.len(), sides.len());
        if weights != scales {
            return Err(format!("generator.learning.scale_weights has {weights} numbers, expected {scales}, one a scale"));
        }
        Ok(())
    }

    /// How the model's numbers are stored.
    pub fn stored_as(&self) -> StoredAs {
        match self.stored_as {
            Stored::F32 => StoredAs::F32,
            Stored::F16 => StoredAs::F16,
        }
    }
}
