//! Trains a model from a recipe: `cargo run --release -p hart-examples --features train --bin train -- examples/recipes/emoji.toml
//! --out target/emoji`.

mod export;
mod folder;
mod generator;
mod progress;
mod recipe;
mod scenes;
mod tokenizer;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use hart_core::config::Config;
use hart_core::train::train_text_tokenizer;
use hart_core::{DeviceKind, Hart, OpenOptions, Precision};
use hart_examples::cli::{INTERRUPTED, output};
use hart_examples::data::{Scenes, open_or_render};
use serde_json::Value;

use folder::Folder;
use progress::{Length, Stop};
use recipe::{Model, Recipe};

/// Captions that the text tokenizer is learned from.
const CAPTIONS: u64 = 20_000;

/// Trains a model from a recipe; run again, it goes on where it stopped
#[derive(Parser, Debug)]
#[command(name = "train", version, max_term_width = 110)]
struct Arguments {
    /// The recipe, such as examples/recipes/emoji.toml
    #[arg(value_name = "RECIPE")]
    recipe: PathBuf,
    /// Folder of the run: states to go on from, losses, contact sheets, and the model itself in `model`
    #[arg(short, long, value_name = "FOLDER")]
    out: PathBuf,
    /// Pictures made by `dataset`; default: the drawings that come with the repository
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,
    /// Goes on from this model's weights instead of random ones; its layers and words are the model's, not the recipe's
    #[arg(long, value_name = "MODEL")]
    from: Option<PathBuf>,
    /// Takes this model's visual tokenizer as it is, and trains the rest
    #[arg(long, value_name = "MODEL")]
    tokenizer: Option<PathBuf>,
    /// Where to compute
    #[arg(short, long, value_name = "auto|cpu|cuda[:n]|wgpu[:n]", default_value = "auto")]
    device: DeviceKind,
    /// Trains tokenizer and generator for so long each, instead of the recipe's numbers of steps: learning rates fall by the clock
    #[arg(long, value_name = "TOKENIZER,GENERATOR", value_parser = minutes)]
    minutes: Option<[f64; 2]>,
    /// Shows no progress
    #[arg(short, long)]
    quiet: bool,
}

/// Two numbers of minutes.
fn minutes(text: &str) -> Result<[f64; 2], String> {
    let numbers: Option<Vec<f64>> = text.split(',').map(|n| n.trim().parse().ok().filter(|n| (0.0..1e6).contains(n))).collect();
    numbers.and_then(|n| n.try_into().ok()).ok_or_else(|| "expected two numbers of minutes, such as 2,5.5".into())
}

fn main() -> ExitCode {
    hart_examples::cli::exit_code(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<ExitCode, Box<dyn Error>> {
    let (mut recipe, text) = Recipe::read(&arguments.recipe)?;
    let device = arguments.device.open()?;
    let open = |path: &PathBuf| Hart::open(path, OpenOptions::new().device(arguments.device).precision(Precision::F32));
    let from = arguments.from.as_ref().map(open).transpose()?;
    if let Some(path) = &arguments.from {
        recipe.model = Model::read(path)?;
    }
    let ready = arguments.tokenizer.as_ref().map(open).transpose()?;
    if let Some(path) = &arguments.tokenizer {
        recipe.model.tokenizer = Model::read(path)?.tokenizer;
    }
    if recipe.tokenizer.learning.decoder_only && from.is_none() && ready.is_none() {
        let recipe = arguments.recipe.display();
        return Err(
            format!("{recipe}: tokenizer.learning.decoder_only is true: give --from, the model whose decoder is to learn").into()
        );
    }
    let drawings = Arc::new(open_or_render(arguments.data.as_deref())?);
    let scenes_of = |exact: bool| {
        let options = if exact { recipe.scenes.exact() } else { recipe.scenes.clone() };
        Scenes::new(drawings.clone(), options).map(Arc::new)
    };
    let scenes = scenes_of(recipe.tokenizer.exact)?;
    let folder = Folder::open(&arguments.out, &text)?;
    let stop = Stop::on_ctrl_c()?;

    let model = folder.model();
    let config = match Config::open(&model) {
        // Taken up: the vocabulary stays what the first half of the run was told.
        Ok(config) if folder.is_taken_up() => config,
        _ => {
            let limit = recipe.model.text.get("vocab_size").and_then(Value::as_u64);
            let limit = limit.ok_or_else(|| format!("{}: model.text.vocab_size: expected a number", arguments.recipe.display()))?;
            let vocabulary = match &arguments.from {
                Some(from) => export::copy_text_tokenizer(from, &model).map(|()| limit as usize)?,
                None => {
                    let captions = scenes::captions(&scenes, recipe.seed, CAPTIONS);
                    train_text_tokenizer(&captions, limit as usize, &model.join("text"))?
                }
            };
            export::write_configurations(&recipe.model, &model, vocabulary)?
        }
    };
    recipe.check_model(&config).map_err(|problem| format!("{}: {problem}", arguments.recipe.display()))?;

    let minutes = |phase: usize| arguments.minutes.map(|minutes| minutes[phase]);
    let mut length = Length::new(recipe.tokenizer.learning.optimizer.steps, minutes(0));
    let tokenizer = match ready {
        Some(hart) => Some(tokenizer::keep(hart.visual(), &recipe, &folder)?),
        None => {
            let from = from.as_ref().map(Hart::visual);
            tokenizer::train(&recipe, &config, from, &scenes, &folder, &device, &stop, &mut length, arguments.quiet)?
        }
    };
    let mut length = Length::new(recipe.generator.learning.optimizer.steps, minutes(1));
    let finished = match tokenizer {
        None => false,
        Some(visual) => {
            let (from, scenes) = (from.as_ref(), scenes_of(recipe.generator.exact)?);
            generator::train(&recipe, &config, from, &scenes, &folder, visual, &device, &stop, &mut length, arguments.quiet)?
        }
    };
    if !finished {
        eprintln!("stopped; run the same command again to go on");
        return Ok(ExitCode::from(INTERRUPTED));
    }
    output::print_line(model.display())?;
    Ok(ExitCode::SUCCESS)
}
