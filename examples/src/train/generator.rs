//! The second half: text encoder, transformer and residual diffusion together.

use std::error::Error;
use std::sync::Arc;

use hart_core::burn::prelude::Device;
use hart_core::config::Config;
use hart_core::stages::{TextTokenizer, VisualTokenizer};
use hart_core::train::{Captioned, GeneratorLosses, GeneratorTrainer, OptimizerOptions, learning_rate};
use hart_core::{DeviceKind, Hart, OpenOptions, Request};
use hart_examples::cli::grid;
use hart_examples::data::Scenes;
use serde_json::{Map, json};

use crate::export::write_generator;
use crate::folder::Folder;
use crate::progress::{Bar, Length, Stop};
use crate::recipe::Recipe;
use crate::scenes::{Batches, pictures};

const PHASE: &str = "generator";
/// Pictures that true captions are compared with shuffled ones on.
pub const COMPARED: usize = 128;

/// Trains it to the end, or until it is stopped. Returns whether it came to the end.
///
/// # Errors
///
/// A loss is not finite, or a file can't be read or written.
#[allow(clippy::too_many_arguments, reason = "one call, in main")]
pub fn train(
    recipe: &Recipe,
    config: &Config,
    from: Option<&Hart>,
    scenes: &Arc<Scenes>,
    folder: &Folder,
    visual: VisualTokenizer,
    device: &Device,
    stop: &Stop,
    length: &mut Length,
    quiet: bool,
) -> Result<bool, Box<dyn Error>> {
    let options = &recipe.generator.learning;
    let tokenizer = TextTokenizer::open(&folder.model().join("text"), config.text.vocab_size)?;
    let mut trainer = GeneratorTrainer::new(config, options.clone(), tokenizer, visual, device)?;
    let state = folder.state(PHASE);
    if state.is_file() {
        trainer.restore(&state)?;
    } else if let Some(hart) = from {
        trainer.adopt(hart)?;
    }
    let scales = config.transformer.sides.len();
    let each: Vec<String> = (1..=scales).map(|s| format!("scale_{s}")).collect();
    let columns = format!("step,seconds,images_per_second,learning_rate,diffusion,gradient_norm,{}", each.join(","));
    let mut table = folder.table(PHASE, &columns, trainer.steps())?;
    let mut steps = length.before(trainer.steps(), from.is_some() || state.is_file());
    let bar = Bar::new(PHASE, trainer.steps(), steps, recipe.generator.batch, quiet);
    let mut sum = Running::default();
    let batches = Batches::new(scenes, recipe.seed, trainer.steps()..u64::MAX, recipe.generator.batch);
    while trainer.steps() < steps {
        let rate = learning_rate(&OptimizerOptions { steps, ..options.optimizer }, trainer.steps());
        let losses = trainer.step(&batches.next()?)?;
        let step = trainer.steps();
        steps = length.steps(step);
        trainer.set_steps(steps);
        bar.step(step, steps, &format!("{} diffusion {:.3}", list(&losses.scales), losses.diffusion));
        sum.add(&losses);
        let is_last = step >= steps || stop.is_set();
        if step % recipe.generator.every == 0 || is_last {
            let mean = sum.take();
            let mut numbers = vec![bar.rate(step) as f32, rate as f32, mean.diffusion, mean.gradient_norm];
            numbers.extend(&mean.scales);
            table.push(step, bar.seconds(), &numbers)?;
            bar.say(&format!(
                "{PHASE} step {step}: scales {}, diffusion {:.3}, {:.1} images/s",
                list(&mean.scales),
                mean.diffusion,
                bar.rate(step)
            ));
            write_generator(&trainer.averaged(), &folder.model(), recipe.stored_as())?;
            // After the model, which a finished run doesn't write again; before the sheet, which may fail.
            trainer.save(&state)?;
            sheet(recipe, folder)?.save_png(folder.sheet(PHASE, step))?;
        }
        if stop.is_set() {
            return Ok(false);
        }
    }
    if trainer.steps() == 0 {
        write_generator(&trainer.averaged(), &folder.model(), recipe.stored_as())?;
    }
    compare_captions(&trainer, scenes, recipe.seed, folder, &bar)?;
    Ok(true)
}

/// What the captions are worth: losses on pictures that training didn't see, with their own captions and with each other's.
fn compare_captions(
    trainer: &GeneratorTrainer,
    scenes: &Scenes,
    seed: u64,
    folder: &Folder,
    bar: &Bar,
) -> Result<(), Box<dyn Error>> {
    let batch = pictures(scenes, seed, u64::MAX, COMPARED)?;
    let next = |index: usize| batch[(index + 1) % batch.len()].caption.clone();
    let shuffled: Vec<Captioned> =
        batch.iter().enumerate().map(|(i, item)| Captioned { image: item.image.clone(), caption: next(i) }).collect();
    let mut figures = Map::new();
    for (what, batch) in [("true", &batch), ("shuffled", &shuffled)] {
        let losses = trainer.losses(batch, u64::MAX)?;
        figures.insert(what.into(), json!({ "scales": losses.scales, "diffusion": losses.diffusion }));
        bar.say(&format!("loss per scale with {what} captions: {}; diffusion {:.3}", list(&losses.scales), losses.diffusion));
    }
    folder.report("losses", figures.into())?;
    Ok(())
}

/// Pictures of the recipe's prompts, by the model as a program opens it. On the CPU: on a GPU it would take longer to compile kernels
/// for one picture at a time than to draw it.
fn sheet(recipe: &Recipe, folder: &Folder) -> Result<hart_core::Image, Box<dyn Error>> {
    let hart = Hart::open(folder.model(), OpenOptions::new().device(DeviceKind::Cpu))?;
    let made = hart.generate(&Request::batch(recipe.prompts.clone()).seed(recipe.seed))?;
    Ok(grid::labelled(&made.images, recipe.prompts.len().min(8))?)
}

fn list(losses: &[f32]) -> String {
    losses.iter().map(|loss| format!("{loss:.2}")).collect::<Vec<_>>().join(" ")
}

/// Losses since the last line.
#[derive(Default)]
struct Running {
    sum: GeneratorLosses,
    steps: f32,
}

impl Running {
    fn add(&mut self, losses: &GeneratorLosses) {
        self.sum.scales.resize(losses.scales.len(), 0.0);
        self.sum.scales.iter_mut().zip(&losses.scales).for_each(|(sum, new)| *sum += new);
        self.sum.diffusion += losses.diffusion;
        self.sum.gradient_norm += losses.gradient_norm;
        self.steps += 1.0;
    }

    fn take(&mut self) -> GeneratorLosses {
        let Self { mut sum, steps } = std::mem::take(self);
        sum.scales.iter_mut().for_each(|s| *s /= steps);
        sum.diffusion /= steps;
        sum.gradient_norm /= steps;
        sum
    }
}
