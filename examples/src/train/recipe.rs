//! What a training run is told: one TOML file.

use std::error::Error;
use std::fs;
use std::path::Path;

use hart_core::train::{GeneratorOptions, TokenizerOptions};
use hart_core::weights::StoredAs;
use hart_examples::data::SceneOptions;
use serde::Deserialize;
use serde_json::Value;

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
            let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
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
        let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
        let mut recipe: Self = toml::from_str(&text).map_err(|e| format!("{}: {e}", path.display()))?;
        recipe.check().map_err(|problem| format!("{}: {problem}", path.display()))?;
        (recipe.tokenizer.learning.seed, recipe.tokenizer.learning.shards) = (recipe.seed, recipe.shards);
        (recipe.generator.learning.seed, recipe.generator.learning.shards) = (recipe.seed, recipe.shards);
        Ok((recipe, text))
    }

    fn check(&self) -> Result<(), String> {
        for (name, batch, every) in
            [("tokenizer", self.tokenizer.batch, self.tokenizer.every), ("generator", self.generator.batch, self.generator.every)]
        {
            if self.shards == 0 || batch % self.shards != 0 || batch == 0 {
                return Err(format!("{name}.batch is {batch}, expected a multiple of shards, {}", self.shards));
            }
            if every == 0 {
                return Err(format!("{name}.every is 0, expected at least one step"));
            }
        }
        if self.prompts.is_empty() {
            return Err("prompts is empty: name at least one for the contact sheets".into());
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
