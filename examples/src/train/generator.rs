//! Second phase: the text encoder, transformer and residual diffusion.

use std::error::Error;
use std::sync::Arc;

use hart_core::stages::{TextTokenizer, VisualTokenizer};
use hart_core::train::{CaptionedImage, GeneratorLosses, GeneratorTrainer, OptimizerOptions, learning_rate};
use hart_core::{DeviceKind, Hart, OpenOptions, Request};
use hart_examples::cli::grid;
use hart_examples::data::Scenes;
use serde_json::{Map, json};

use crate::Run;
use crate::batches::{Batches, batch};
use crate::export::write_generator;
use crate::progress::{PhaseProgress, StepBudget};
use crate::recipe::Recipe;
use crate::run_folder::RunFolder;

const PHASE: &str = "generator";
/// Number of images for the comparison of true captions with shuffled ones.
pub const COMPARED_IMAGES: usize = 128;

/// Trains the generator, from the weights of `from` if given. Returns whether training is complete, not stopped by Ctrl-C.
///
/// # Errors
///
/// Returns an error if a loss is not finite, or a file can't be read or written.
pub fn train(
    run: &Run<'_>,
    scenes: &Arc<Scenes>,
    from: Option<&Hart>,
    visual: VisualTokenizer,
    mut budget: StepBudget,
) -> Result<bool, Box<dyn Error>> {
    let Run { recipe, config, folder, device, stop, quiet } = *run;
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
    let scale_columns: Vec<String> = (1..=scales).map(|s| format!("scale_{s}")).collect();
    let columns = format!("step,seconds,images_per_second,learning_rate,diffusion,gradient_norm,{}", scale_columns.join(","));
    let mut table = folder.table(PHASE, &columns, trainer.steps())?;
    let mut steps = budget.initial(trainer.steps(), from.is_some() || state.is_file());
    let progress = PhaseProgress::new(PHASE, trainer.steps(), steps, recipe.generator.batch, quiet);
    let mut sum = LossSum::default();
    let batches = Batches::new(scenes, recipe.seed, trainer.steps()..u64::MAX, recipe.generator.batch);
    while trainer.steps() < steps {
        let rate = learning_rate(&OptimizerOptions { steps, ..options.optimizer }, trainer.steps());
        let losses = trainer.step(&batches.next()?)?;
        let step = trainer.steps();
        steps = budget.update(step);
        trainer.set_steps(steps);
        progress.update(step, steps, &format!("{} diffusion {:.3}", format_losses(&losses.scales), losses.diffusion));
        sum.add(&losses);
        let is_last = step >= steps || stop.is_set();
        if step % recipe.generator.every == 0 || is_last {
            let mean = sum.take_mean();
            let images_per_second = progress.images_per_second(step);
            let mut values = vec![images_per_second as f32, rate as f32, mean.diffusion, mean.gradient_norm];
            values.extend(&mean.scales);
            table.push(step, progress.seconds(), &values)?;
            progress.print_line(&format!(
                "{PHASE} step {step}: scales {}, diffusion {:.3}, {images_per_second:.1} images/s",
                format_losses(&mean.scales),
                mean.diffusion,
            ));
            write_generator(&trainer.averaged(), &folder.model(), recipe.stored_as())?;
            // Save after the model, which a finished run doesn't write again, and before the sheet, which may fail.
            trainer.save(&state)?;
            contact_sheet(recipe, folder)?.save_png(folder.sheet(PHASE, step))?;
        }
        if stop.is_set() {
            return Ok(false);
        }
    }
    if trainer.steps() == 0 {
        write_generator(&trainer.averaged(), &folder.model(), recipe.stored_as())?;
    }
    compare_captions(&trainer, scenes, recipe.seed, folder, &progress)?;
    Ok(true)
}

/// Compares the losses on images outside the training set with true captions and with shuffled ones. The difference shows how much
/// the model uses the captions.
fn compare_captions(
    trainer: &GeneratorTrainer,
    scenes: &Scenes,
    seed: u64,
    folder: &RunFolder,
    progress: &PhaseProgress,
) -> Result<(), Box<dyn Error>> {
    let batch = batch(scenes, seed, u64::MAX, COMPARED_IMAGES)?;
    let next_caption = |index: usize| batch[(index + 1) % batch.len()].caption.clone();
    let shuffled: Vec<CaptionedImage> =
        batch.iter().enumerate().map(|(i, item)| CaptionedImage { image: item.image.clone(), caption: next_caption(i) }).collect();
    let mut report = Map::new();
    for (captions, batch) in [("true", &batch), ("shuffled", &shuffled)] {
        let losses = trainer.losses(batch, u64::MAX)?;
        report.insert(captions.into(), json!({ "scales": losses.scales, "diffusion": losses.diffusion }));
        progress.print_line(&format!(
            "loss per scale with {captions} captions: {}; diffusion {:.3}",
            format_losses(&losses.scales),
            losses.diffusion
        ));
    }
    folder.report("losses", report.into())?;
    Ok(())
}

/// Generates images of the recipe's prompts with the exported model. Always on the CPU: compiling GPU kernels would take longer
/// than generating a few images.
fn contact_sheet(recipe: &Recipe, folder: &RunFolder) -> Result<hart_core::Image, Box<dyn Error>> {
    let hart = Hart::open(folder.model(), OpenOptions::new().device(DeviceKind::Cpu))?;
    let generation = hart.generate(&Request::batch(recipe.prompts.clone()).seed(recipe.seed))?;
    Ok(grid::labelled(&generation.images, recipe.prompts.len().min(8))?)
}

fn format_losses(losses: &[f32]) -> String {
    losses.iter().map(|loss| format!("{loss:.2}")).collect::<Vec<_>>().join(" ")
}

/// Sum of the losses since the last log line.
#[derive(Default)]
struct LossSum {
    sum: GeneratorLosses,
    steps: f32,
}

impl LossSum {
    fn add(&mut self, losses: &GeneratorLosses) {
        self.sum.scales.resize(losses.scales.len(), 0.0);
        self.sum.scales.iter_mut().zip(&losses.scales).for_each(|(sum, new)| *sum += new);
        self.sum.diffusion += losses.diffusion;
        self.sum.gradient_norm += losses.gradient_norm;
        self.steps += 1.0;
    }

    /// Returns the mean losses and resets the sum.
    fn take_mean(&mut self) -> GeneratorLosses {
        let Self { mut sum, steps } = std::mem::take(self);
        sum.scales.iter_mut().for_each(|s| *s /= steps);
        sum.diffusion /= steps;
        sum.gradient_norm /= steps;
        sum
    }
}
