//! First phase: the visual tokenizer.

use std::error::Error;
use std::sync::Arc;

use hart_core::Image;
use hart_core::stages::{LATENT_SCALE, Progress, VisualTokenizer};
use hart_core::train::{TokenizerLosses, TokenizerTrainer, residual_quantile};
use hart_examples::data::Scenes;

use crate::Run;
use crate::batches::{Batches, batch};
use crate::export::write_tokenizer;
use crate::progress::{PhaseProgress, StepBudget};
use crate::run_folder::RunFolder;

const PHASE: &str = "tokenizer";
/// Quantile of the absolute residuals that is scaled to the range of the diffusion.
const RESIDUAL_QUANTILE: f64 = 0.999;
/// Number of images for measuring the residuals.
const MEASURED_IMAGES: usize = 256;
/// Number of images on a contact sheet.
const SHEET_IMAGES: usize = 12;

/// Trains the tokenizer, from the weights of `from` if given, and exports it into the model. Returns `None` if stopped by Ctrl-C.
///
/// # Errors
///
/// Returns an error if a loss is not finite, or a file can't be read or written.
pub fn train(
    run: &Run<'_>,
    scenes: &Arc<Scenes>,
    from: Option<&VisualTokenizer>,
    mut budget: StepBudget,
) -> Result<Option<VisualTokenizer>, Box<dyn Error>> {
    let Run { recipe, config, folder, device, stop, quiet } = *run;
    let options = recipe.tokenizer.learning;
    let mut trainer = match from {
        Some(tokenizer) => TokenizerTrainer::from_model(tokenizer, options, device)?,
        None => TokenizerTrainer::new(&config.visual, options, device)?,
    };
    let state = folder.state(PHASE);
    if state.is_file() {
        trainer.restore(&state)?;
    }
    let columns = "step,seconds,images_per_second,hybrid,discrete,quantizer,used_rows,gradient_norm";
    let mut table = folder.table(PHASE, columns, trainer.steps())?;
    let progress = PhaseProgress::new(PHASE, trainer.steps(), options.optimizer.steps, recipe.tokenizer.batch, quiet);
    let mut sum = LossSum::default();
    let batches = Batches::new(scenes, recipe.seed, trainer.steps()..u64::MAX, recipe.tokenizer.batch);
    let mut steps = budget.initial(trainer.steps(), from.is_some() || state.is_file());
    while trainer.steps() < steps {
        let losses = trainer.step(&batches.next()?.into_iter().map(|item| item.image).collect::<Vec<_>>())?;
        let step = trainer.steps();
        sum.add(&losses);
        steps = budget.update(step);
        trainer.set_steps(steps);
        progress.update(step, steps, &format!("hybrid {:.4} discrete {:.4}", losses.hybrid, losses.discrete));
        let is_last = step >= steps || stop.is_set();
        if step % recipe.tokenizer.every == 0 || is_last {
            let [hybrid, discrete, quantizer, used_rows, gradient_norm] = sum.take_mean();
            let images_per_second = progress.images_per_second(step);
            table.push(
                step,
                progress.seconds(),
                &[images_per_second as f32, hybrid, discrete, quantizer, used_rows, gradient_norm],
            )?;
            // Save before the sheet, which may fail.
            trainer.save(&state)?;
            contact_sheet(&trainer.averaged(), scenes, recipe.seed)?.save_png(folder.sheet(PHASE, step))?;
            progress.print_line(&format!(
                "{PHASE} step {step}: hybrid {hybrid:.4}, discrete {discrete:.4}, quantizer {quantizer:.5}, \
                 {:.0} % of the codebook used per batch, {images_per_second:.1} images/s",
                used_rows * 100.0,
            ));
        }
        if stop.is_set() {
            return Ok(None);
        }
    }
    let mut tokenizer = trainer.averaged();
    // A decoder trained alone keeps the latents, which the generator was trained on.
    if trainer.steps() > 0 && !options.decoder_only {
        tokenizer = fit_residuals(tokenizer, scenes, recipe.seed, folder, &progress)?;
    }
    export(&tokenizer, run)?;
    Ok(Some(tokenizer))
}

/// Exports a trained tokenizer into the model.
///
/// # Errors
///
/// Returns an error if the file can't be written.
pub fn export(tokenizer: &VisualTokenizer, run: &Run<'_>) -> hart_core::Result<()> {
    write_tokenizer(tokenizer, &run.recipe.model, &run.folder.model(), run.recipe.stored_as())
}

/// Scales the latents such that nearly all residuals lie in the range of the diffusion.
fn fit_residuals(
    tokenizer: VisualTokenizer,
    scenes: &Scenes,
    seed: u64,
    folder: &RunFolder,
    progress: &PhaseProgress,
) -> Result<VisualTokenizer, Box<dyn Error>> {
    let images: Vec<Image> = batch(scenes, seed, u64::MAX, MEASURED_IMAGES)?.into_iter().map(|item| item.image).collect();
    let size = residual_quantile(&tokenizer, &images, RESIDUAL_QUANTILE)?;
    let factor = LATENT_SCALE / size.max(f64::MIN_POSITIVE);
    progress.print_line(&format!(
        "residuals: {:.1} % lie within {size:.4}; latents are scaled by {factor:.4}, so that they lie within {LATENT_SCALE}",
        RESIDUAL_QUANTILE * 100.0
    ));
    folder.report("residual_size", size.into())?;
    folder.report("latents_scaled_by", factor.into())?;
    Ok(tokenizer.with_scaled_latents(factor))
}

/// Renders three rows: original images, their hybrid reconstruction, and their discrete reconstruction.
fn contact_sheet(tokenizer: &VisualTokenizer, scenes: &Scenes, seed: u64) -> Result<Image, Box<dyn Error>> {
    let images: Vec<Image> = batch(scenes, seed, u64::MAX, SHEET_IMAGES)?.into_iter().map(|item| item.image).collect();
    let tokens = tokenizer.tokenize_images(&images)?;
    let mut progress = Progress::silent();
    let mut all = images;
    all.extend(tokenizer.decode_images(&tokens.hybrid(), &mut progress)?);
    all.extend(tokenizer.decode_images(&tokenizer.discrete(&tokens), &mut progress)?);
    Ok(Image::grid(&all, SHEET_IMAGES)?)
}

/// Sum of the losses since the last log line.
#[derive(Default)]
struct LossSum {
    sums: [f32; 5],
    steps: f32,
}

impl LossSum {
    fn add(&mut self, l: &TokenizerLosses) {
        let new = [l.hybrid, l.discrete, l.quantizer, l.used_rows, l.gradient_norm];
        self.sums.iter_mut().zip(new).for_each(|(sum, new)| *sum += new);
        self.steps += 1.0;
    }

    /// Returns the mean losses, in the order of the table's columns, and resets the sum.
    fn take_mean(&mut self) -> [f32; 5] {
        let steps = self.steps.max(1.0);
        std::mem::take(self).sums.map(|sum| sum / steps)
    }
}
