//! Recipes: the settings of a training run in a TOML file.

use std::error::Error;
use std::path::Path;

use hart_core::Request;
use hart_core::config::{Config, Folders};
use hart_core::train::{GeneratorOptions, TokenizerOptions};
use hart_core::weights::StorageDtype;
use hart_examples::data::{SceneOptions, files};
use serde::Deserialize;
use serde_json::Value;

use crate::generator::COMPARED_IMAGES;

/// Names of configuration files.
const CONFIG: &str = "config.json";
const GENERATION: &str = "generation_config.json";
/// Maximum number of images in a batch.
const MAX_BATCH: usize = 1 << 14;

/// The settings of a training run.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Seed of all random numbers.
    pub seed: u64,
    /// Number of parts of a batch that are processed in parallel: the number of cores on a CPU, 1 on a GPU. It changes the order of
    /// summation and therefore the rounding of the result.
    pub shards: usize,
    /// Type of the stored weights.
    stored_as: WeightType,
    /// Options of the scenes.
    #[serde(default)]
    pub scenes: SceneOptions,
    /// The model's `config.json` files, in the published layout.
    pub model: ModelConfigs,
    /// First phase: training of the visual tokenizer.
    pub tokenizer: Phase<TokenizerOptions>,
    /// Second phase: training of the text encoder, transformer and residual diffusion.
    pub generator: Phase<GeneratorOptions>,
    /// Prompts of the contact sheets.
    pub prompts: Vec<String>,
}

/// The contents of the model's configuration files.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfigs {
    /// `text/config.json`. Its `vocab_size` is an upper limit; the exported file has the actual size.
    pub text: Value,
    /// `llm/config.json`.
    pub llm: Value,
    /// `tokenizer/config.json`.
    pub tokenizer: Value,
    /// `llm/generation_config.json`.
    pub generation: Value,
}

impl ModelConfigs {
    /// Reads the configuration files of a model.
    ///
    /// # Errors
    ///
    /// Returns an error if a file can't be read or is not JSON.
    pub fn read(folders: &Folders) -> Result<Self, String> {
        let read = |folder: &Path, name: &str| -> Result<Value, String> {
            let path = folder.join(name);
            let text = files::read_text(&path, files::MAX_SETTINGS_SIZE)?;
            serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))
        };
        let generation = match folders.transformer.join(GENERATION).exists() {
            true => read(&folders.transformer, GENERATION)?,
            false => Value::Object(serde_json::Map::new()),
        };
        let mut text = read(&folders.text, CONFIG)?;
        // Newer exports of the vision-language model nest the decoder's configuration.
        if let Some(nested) = text.get_mut("text_config").filter(|nested| nested.is_object()) {
            text = nested.take();
        }
        let (llm, tokenizer) = (read(&folders.transformer, CONFIG)?, read(&folders.visual, CONFIG)?);
        Ok(Self { text, llm, tokenizer, generation })
    }
}

/// Settings of a phase of training.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Phase<O> {
    /// Number of images in a batch.
    pub batch: usize,
    /// Number of steps between log lines, contact sheets and saved states.
    pub every: u64,
    /// True to render scenes without the variation that captions don't mention, as with [`SceneOptions::exact`]. A small generator
    /// then has less to learn. The visual tokenizer should see all variation.
    #[serde(default)]
    pub exact: bool,
    /// Losses and optimizer.
    pub learning: O,
}

/// Type of the stored weights.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum WeightType {
    F32,
    F16,
}

impl Recipe {
    /// Reads a recipe and copies its seed and shards to both phases. Also returns the text of the file.
    ///
    /// # Errors
    ///
    /// Returns an error if the file can't be read, or one that names the first invalid value.
    pub fn read(path: &Path) -> Result<(Self, String), Box<dyn Error>> {
        let text = files::read_text(path, files::MAX_SETTINGS_SIZE)?;
        let mut recipe: Self = toml::from_str(&text).map_err(|e| format!("{}: {e}", path.display()))?;
        recipe.check().map_err(|problem| format!("{}: {problem}", path.display()))?;
        (recipe.tokenizer.learning.seed, recipe.tokenizer.learning.shards) = (recipe.seed, recipe.shards);
        (recipe.generator.learning.seed, recipe.generator.learning.shards) = (recipe.seed, recipe.shards);
        Ok((recipe, text))
    }

    /// Checks every value before training starts, so that an invalid one is not found hours later.
    fn check(&self) -> Result<(), String> {
        let ranges = [
            // The comparison of captions needs at least one image per shard.
            ("shards", self.shards, COMPARED_IMAGES),
            ("tokenizer.batch", self.tokenizer.batch, MAX_BATCH),
            ("generator.batch", self.generator.batch, MAX_BATCH),
        ];
        for (name, value, max) in ranges {
            if !(1..=max).contains(&value) {
                return Err(format!("{name} is {value}, expected a number from 1 to {max}"));
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

    /// Checks that the recipe fits the model's configuration. `tokenizer_from` is the model whose visual tokenizer replaces the recipe's.
    ///
    /// # Errors
    ///
    /// Returns an error that names the first value that doesn't fit.
    pub fn check_model(&self, config: &Config, tokenizer_from: Option<&Path>) -> Result<(), String> {
        let (side, resolution) = (self.scenes.side, config.resolution());
        if side != resolution {
            return Err(format!("scenes.side is {side}, expected {resolution}, the side of the model's images"));
        }
        let (sides, visual) = (&config.transformer.sides, &config.visual.sides);
        if visual != sides {
            let tokenizer = match tokenizer_from {
                Some(model) => format!("the v_patch_nums of the visual tokenizer of {} are", model.display()),
                None => "model.tokenizer.v_patch_nums is".into(),
            };
            return Err(format!("{tokenizer} {visual:?}, expected {sides:?}, the patch_nums of model.llm"));
        }
        let (weights, scales) = (self.generator.learning.scale_weights.len(), sides.len());
        if weights != scales {
            return Err(format!("generator.learning.scale_weights has {weights} values, expected {scales}, one per scale"));
        }
        Ok(())
    }

    /// Returns the type of the stored weights.
    pub fn stored_as(&self) -> StorageDtype {
        match self.stored_as {
            WeightType::F32 => StorageDtype::F32,
            WeightType::F16 => StorageDtype::F16,
        }
    }
}
