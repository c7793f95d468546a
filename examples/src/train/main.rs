//! Trains a model from a recipe: `cargo run --release -p hart-examples --features train --bin train -- examples/recipes/emoji.toml
//! --out target/emoji`.

mod batches;
mod export;
mod generator;
mod progress;
mod recipe;
mod run_folder;
mod tokenizer;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use hart_core::burn::prelude::Device;
use hart_core::config::{Config, Folders};
use hart_core::train::train_text_tokenizer;
use hart_core::{DeviceKind, Hart, OpenOptions, Precision};
use hart_examples::cli::{INTERRUPTED, output};
use hart_examples::data::{Scenes, open_or_render};
use serde_json::Value;

use progress::{StepBudget, StopFlag};
use recipe::{ModelConfigs, Recipe};
use run_folder::RunFolder;

/// Number of captions that the text tokenizer is trained on.
const CAPTIONS: u64 = 20_000;

/// Train a model from a recipe; running the same command again resumes training
#[derive(Parser, Debug)]
#[command(name = "train", version, max_term_width = 110)]
struct Arguments {
    /// Recipe, such as examples/recipes/emoji.toml
    #[arg(value_name = "RECIPE")]
    recipe: PathBuf,
    /// Folder of the run: saved states, losses, contact sheets, and the model in `model`
    #[arg(short, long, value_name = "FOLDER")]
    out: PathBuf,
    /// Folder of training images written by `dataset` [default: the drawings of this repository]
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,
    /// Start from the weights of this model instead of random ones; its configuration and text tokenizer replace the recipe's
    #[arg(long, value_name = "MODEL")]
    from: Option<PathBuf>,
    /// Use the visual tokenizer of this model unchanged, and train the rest
    #[arg(long, value_name = "MODEL")]
    tokenizer: Option<PathBuf>,
    /// Device to compute on
    #[arg(short, long, value_name = "auto|cpu|cuda[:n]|wgpu[:n]", default_value = "auto")]
    device: DeviceKind,
    /// Train the tokenizer and the generator for this many minutes each, instead of the recipe's numbers of steps; the learning
    /// rates decay over this time
    #[arg(long, value_name = "TOKENIZER,GENERATOR", value_parser = minutes)]
    minutes: Option<[f64; 2]>,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
}

/// Parses two numbers of minutes.
fn minutes(text: &str) -> Result<[f64; 2], String> {
    let numbers: Option<Vec<f64>> = text.split(',').map(|n| n.trim().parse().ok().filter(|n| (0.0..1e6).contains(n))).collect();
    numbers.and_then(|n| n.try_into().ok()).ok_or_else(|| "expected two numbers of minutes, such as 2,5.5".into())
}

/// State shared by both phases of a run.
#[derive(Clone, Copy)]
struct Run<'a> {
    recipe: &'a Recipe,
    config: &'a Config,
    folder: &'a RunFolder,
    device: &'a Device,
    stop: &'a StopFlag,
    quiet: bool,
}

fn main() -> ExitCode {
    hart_examples::cli::exit_code::<Arguments>(run(&hart_examples::cli::parse()))
}

fn run(arguments: &Arguments) -> Result<ExitCode, Box<dyn Error>> {
    let (mut recipe, text) = Recipe::read(&arguments.recipe)?;
    let device = arguments.device.open()?;
    let open = |path: &PathBuf| Hart::open(path, OpenOptions::new().device(arguments.device).precision(Precision::F32));
    let from = arguments.from.as_ref().map(open).transpose()?;
    let from_folders = arguments.from.as_ref().map(|path| Folders::find(path, None)).transpose()?;
    if let Some(folders) = &from_folders {
        recipe.model = ModelConfigs::read(folders)?;
    }
    let trained = arguments.tokenizer.as_ref().map(open).transpose()?;
    if let Some(path) = &arguments.tokenizer {
        recipe.model.tokenizer = ModelConfigs::read(&Folders::find(path, None)?)?.tokenizer;
    }
    if recipe.tokenizer.learning.decoder_only && from.is_none() && trained.is_none() {
        let recipe = arguments.recipe.display();
        return Err(format!(
            "{recipe}: tokenizer.learning.decoder_only is true: pass --from, the model whose decoder is to be trained"
        )
        .into());
    }
    let drawings = Arc::new(open_or_render(arguments.data.as_deref())?);
    let scenes_of = |exact: bool| {
        let options = if exact { recipe.scenes.exact() } else { recipe.scenes.clone() };
        Scenes::new(drawings.clone(), options).map(Arc::new)
    };
    let scenes = scenes_of(recipe.tokenizer.exact)?;
    let folder = RunFolder::open(&arguments.out, &text)?;
    let stop = StopFlag::on_ctrl_c()?;
    let config = export_configs(&arguments.recipe, from_folders.as_ref(), &recipe, &scenes, &folder)?;
    let tokenizer_from = arguments.tokenizer.as_ref().or(arguments.from.as_ref());
    recipe
        .check_model(&config, tokenizer_from.map(PathBuf::as_path))
        .map_err(|problem| format!("{}: {problem}", arguments.recipe.display()))?;
    let run = Run { recipe: &recipe, config: &config, folder: &folder, device: &device, stop: &stop, quiet: arguments.quiet };

    let minutes = |phase: usize| arguments.minutes.map(|minutes| minutes[phase]);
    let budget = StepBudget::new(recipe.tokenizer.learning.optimizer.steps, minutes(0));
    let visual = match trained {
        Some(hart) => {
            tokenizer::export(hart.visual(), &run)?;
            Some(hart.visual().clone())
        }
        None => tokenizer::train(&run, &scenes, from.as_ref().map(Hart::visual), budget)?,
    };
    let budget = StepBudget::new(recipe.generator.learning.optimizer.steps, minutes(1));
    let is_complete = match visual {
        Some(visual) => generator::train(&run, &scenes_of(recipe.generator.exact)?, from.as_ref(), visual, budget)?,
        None => false,
    };
    if !is_complete {
        eprintln!("stopped; run the same command again to resume");
        return Ok(ExitCode::from(INTERRUPTED));
    }
    output::print_line(folder.model().display())?;
    Ok(ExitCode::SUCCESS)
}

/// Exports the text tokenizer, trained on the scenes' captions or copied from `--from`, and the configuration of the model. A
/// resumed run keeps its existing ones.
fn export_configs(
    recipe_path: &Path,
    from: Option<&Folders>,
    recipe: &Recipe,
    scenes: &Scenes,
    folder: &RunFolder,
) -> Result<Config, Box<dyn Error>> {
    let model = folder.model();
    if folder.has_state()
        && let Ok(config) = Config::open(&model)
    {
        return Ok(config);
    }
    let limit = recipe.model.text.get("vocab_size").and_then(Value::as_u64);
    let source = match from {
        Some(from) => format!("{}: vocab_size", from.text.join("config.json").display()),
        None => format!("{}: model.text.vocab_size", recipe_path.display()),
    };
    let limit = limit.ok_or_else(|| format!("{source}: expected a number"))?;
    let vocabulary = match from {
        Some(from) => export::copy_text_tokenizer(&from.text, &model).map(|()| limit as usize)?,
        None => {
            let captions = batches::captions(scenes, recipe.seed, CAPTIONS);
            train_text_tokenizer(&captions, limit as usize, &model.join("text"))?
        }
    };
    export::write_configs(&recipe.model, &model, vocabulary).map_err(|error| match error.downcast_ref() {
        // The values are the recipe's, not those of a file that has just been written.
        Some(hart_core::Error::Config { path, field, got, expected }) if from.is_none() => {
            let section = match path.ends_with("generation_config.json") {
                true => "generation".into(),
                false => path.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy(),
            };
            format!("{}: model.{section}.{field} is {got}, expected {expected}", recipe_path.display()).into()
        }
        _ => error,
    })
}
