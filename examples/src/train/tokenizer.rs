//! The first half: the visual tokenizer.

use std::error::Error;
use std::sync::Arc;

use hart_core::Image;
use hart_core::burn::prelude::Device;
use hart_core::config::Config;
use hart_core::stages::{LATENT_SCALE, Progress, VisualTokenizer};
use hart_core::train::{TokenizerLosses, TokenizerTrainer, residual_size};
use hart_examples::data::Scenes;

use crate::export::write_tokenizer;
use crate::folder::Folder;
use crate::progress::{Bar, Length, Stop};
use crate::recipe::Recipe;
use crate::scenes::{Batches, pictures};

const PHASE: &str = "tokenizer";
/// Share of the residuals' numbers that the diffusion must be able to reach.
const REACHED: f64 = 0.999;
/// Pictures that the residuals are measured on.
const MEASURED: u64 = 256;
/// Pictures of a contact sheet.
const SHOWN: u64 = 12;

/// Trains it to the end, or until it is stopped, and then writes it into the model. None if it was stopped.
///
/// # Errors
///
/// A loss is not finite, or a file can't be read or written.
#[allow(clippy::too_many_arguments, reason = "one call, in main")]
pub fn train(
    recipe: &Recipe,
    config: &Config,
    from: Option<&VisualTokenizer>,
    scenes: &Arc<Scenes>,
    folder: &Folder,
    device: &Device,
    stop: &Stop,
    length: &mut Length,
    quiet: bool,
) -> Result<Option<VisualTokenizer>, Box<dyn Error>> {
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
    let bar = Bar::new(PHASE, trainer.steps(), options.optimizer.steps, recipe.tokenizer.batch, quiet);
    let mut sum = Running::default();
    let batches = Batches::new(scenes, recipe.seed, trainer.steps()..u64::MAX, recipe.tokenizer.batch);
    let mut steps = length.before(trainer.steps(), from.is_some() || state.is_file());
    while trainer.steps() < steps {
        let losses = trainer.step(&batches.next()?.into_iter().map(|item| item.image).collect::<Vec<_>>())?;
        let step = trainer.steps();
        sum.add(&losses);
        steps = length.steps(step);
        trainer.set_steps(steps);
        bar.step(step, steps, &format!("hybrid {:.4} discrete {:.4}", losses.hybrid, losses.discrete));
        let is_last = step >= steps || stop.is_set();
        if step % recipe.tokenizer.every == 0 || is_last {
            let [hybrid, discrete, quantizer, used, norm] = sum.take();
            table.push(step, bar.seconds(), &[bar.rate(step) as f32, hybrid, discrete, quantizer, used, norm])?;
            // Before the sheet, which may fail.
            trainer.save(&state)?;
            sheet(&trainer.averaged(), scenes, recipe.seed)?.save_png(folder.sheet(PHASE, step))?;
            let line = format!(
                "{PHASE} step {step}: hybrid {hybrid:.4}, discrete {discrete:.4}, quantizer {quantizer:.5}, {:.0} % of the rows a batch, {:.1} images/s",
                used * 100.0,
                bar.rate(step)
            );
            bar.say(&line);
        }
        if stop.is_set() {
            return Ok(None);
        }
    }
    let mut tokenizer = trainer.averaged();
    // Latents that did not learn are those that a generator knows.
    if trainer.steps() > 0 && !options.decoder_only {
        tokenizer = fit_residuals(tokenizer, scenes, recipe.seed, folder, &bar)?;
    }
    write_tokenizer(&tokenizer, &recipe.model, &folder.model(), recipe.stored_as())?;
    Ok(Some(tokenizer))
}

/// A tokenizer that is trained already, written into the model.
///
/// # Errors
///
/// The file can't be written.
pub fn keep(tokenizer: &VisualTokenizer, recipe: &Recipe, folder: &Folder) -> Result<VisualTokenizer, Box<dyn Error>> {
    write_tokenizer(tokenizer, &recipe.model, &folder.model(), recipe.stored_as())?;
    Ok(tokenizer.clone())
}

/// Scales latents so that the residuals fit what the diffusion can reach.
fn fit_residuals(
    tokenizer: VisualTokenizer,
    scenes: &Scenes,
    seed: u64,
    folder: &Folder,
    bar: &Bar,
) -> Result<VisualTokenizer, Box<dyn Error>> {
    let images: Vec<Image> = pictures(scenes, seed, u64::MAX, MEASURED as usize)?.into_iter().map(|item| item.image).collect();
    let size = residual_size(&tokenizer, &images, REACHED)?;
    let factor = LATENT_SCALE / size.max(f64::MIN_POSITIVE);
    bar.say(&format!(
        "residuals: {:.1} % lie within {size:.4}; latents are scaled by {factor:.4}, so that they lie within {LATENT_SCALE}",
        REACHED * 100.0
    ));
    folder.report("residual_size", size.into())?;
    folder.report("latents_scaled_by", factor.into())?;
    Ok(tokenizer.with_scaled_latents(factor))
}

/// Pictures, what continuous latents keep of them, and what codes alone keep: a row each.
fn sheet(tokenizer: &VisualTokenizer, scenes: &Scenes, seed: u64) -> Result<Image, Box<dyn Error>> {
    let images: Vec<Image> = pictures(scenes, seed, u64::MAX, SHOWN as usize)?.into_iter().map(|item| item.image).collect();
    let tokens = tokenizer.tokenize_images(&images)?;
    let mut progress = Progress::silent();
    let mut all = images;
    all.extend(tokenizer.decode_images(&tokens.hybrid(), &mut progress)?);
    all.extend(tokenizer.decode_images(&tokenizer.discrete(&tokens), &mut progress)?);
    Ok(Image::grid(&all, SHOWN as usize)?)
}

/// Losses since the last line.
#[derive(Default)]
struct Running {
    sums: [f32; 5],
    steps: f32,
}

impl Running {
    fn add(&mut self, l: &TokenizerLosses) {
        let new = [l.hybrid, l.discrete, l.quantizer, l.used_rows, l.gradient_norm];
        self.sums.iter_mut().zip(new).for_each(|(sum, new)| *sum += new);
        self.steps += 1.0;
    }

    fn take(&mut self) -> [f32; 5] {
        let steps = self.steps.max(1.0);
        std::mem::take(self).sums.map(|sum| sum / steps)
    }
}
