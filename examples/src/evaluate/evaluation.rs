//! The evaluation: generates images of the test prompts, scores them, and measures ceilings and controls.

use hart_core::{Error, Image, Request};
use rayon::prelude::*;

use super::detection::{Detection, Detector};
use super::metrics::Metrics;
use super::prompts::{Prompt, Prompts};
use super::quality::{self, CopyTrial, ReconstructionQuality};
use super::report::{Report, SplitReport};
use super::runner::Runner;
use super::score::{Expected, ImageScore};
use super::segment::ImageView;
use super::sweep;
use crate::data;

/// A sweep uses every n-th prompt for each setting.
const SWEEP_STEP: usize = 4;

/// Extent of an evaluation.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Number of prompts of each split.
    pub prompts: usize,
    /// Number of images that are compared with training images.
    pub compared: usize,
    /// Number of training images that each is compared with.
    pub training: usize,
    /// True to repeat the prompts with other settings.
    pub sweep: bool,
}

impl Extent {
    /// Creates an extent with `prompts` prompts of each split. With `quick`, fewer images are compared with training images.
    pub fn new(prompts: usize, quick: bool, sweep: bool) -> Self {
        let (compared, training) = if quick { (24, 32) } else { (128, 64) };
        Self { prompts, compared, training, sweep }
    }
}

/// A generated image and its score.
#[derive(Clone, Debug)]
pub struct ScoredImage {
    /// The image.
    pub image: Image,
    /// The score.
    pub score: ImageScore,
}

/// Evaluates a model. `request` contains the settings. Prompt i of all splits together has the seed `seed + i`. After a
/// cancellation, the report covers the finished images.
///
/// # Errors
///
/// Returns the errors of the model.
pub fn evaluate(
    runner: &Runner<'_>,
    detector: &Detector,
    prompts: &Prompts<'_>,
    extent: Extent,
    request: &Request,
    seed: u64,
) -> Result<(Report, Vec<ScoredImage>), Error> {
    let splits: Vec<(data::Split, Vec<Prompt>)> = prompts.splits(extent.prompts);
    let all: Vec<&Prompt> = splits.iter().flat_map(|(_, prompts)| prompts).collect();
    let request_of =
        |(index, prompt): (usize, &&Prompt)| request.clone().prompts([&prompt.caption]).seed(seed.wrapping_add(index as u64));
    let requests: Vec<Request> = all.iter().enumerate().map(request_of).collect();
    let mut report = Report { concepts: detector.concepts(), ..Report::default() };

    let mut generated = runner.generate("generating", &requests, false)?.into_iter().map(|generated| generated.map(|g| g.image));
    let mut scored = Vec::new();
    let mut compared = Vec::new();
    for (split, of_split) in &splits {
        // After a cancellation, a split counts with the images that are finished.
        let images: Vec<(&Prompt, Image)> =
            of_split.iter().zip(&mut generated).filter_map(|(p, image)| Some((p, image?))).collect();
        if images.is_empty() {
            continue;
        }
        let (split_report, scores) = evaluate_split(runner, detector, prompts, *split, &images)?;
        report.splits.push(split_report);
        for ((prompt, image), score) in images.into_iter().zip(scores) {
            if report.splits.len() == 1 && compared.len() < extent.compared {
                compared.push((prompt, image.clone()));
            }
            scored.push(ScoredImage { image, score });
        }
    }
    report.nearest_training_distance = training_distance(prompts, &compared, extent.training)?;
    if extent.sweep && !runner.is_cancelled() {
        let requests: Vec<Request> = requests.into_iter().step_by(SWEEP_STEP).collect();
        let expected: Vec<Expected> = all.iter().step_by(SWEEP_STEP).map(|prompt| prompt.expected.clone()).collect();
        report.sweep = sweep::sweep(runner, detector, &requests, &expected)?;
    }
    Ok((report, scored))
}

/// Scores the images of one split, and true renders of the same prompts, directly and reconstructed by the model's tokenizer.
fn evaluate_split(
    runner: &Runner<'_>,
    detector: &Detector,
    prompts: &Prompts<'_>,
    split: data::Split,
    images: &[(&Prompt, Image)],
) -> Result<(SplitReport, Vec<ImageScore>), Error> {
    let detect = |image: &Image| detector.detect(ImageView::of(image));
    let detections: Vec<Detection> = images.par_iter().map(|(_, image)| detect(image)).collect();
    let expected: Vec<&Expected> = images.iter().map(|(prompt, _)| &prompt.expected).collect();
    let pairs: Vec<(&Detection, &Expected)> = detections.iter().zip(expected.iter().copied()).collect();

    let renders = images.par_iter().map(|(prompt, _)| prompts.render(prompt, 0)).collect::<Result<Vec<Image>, Error>>()?;
    let ceiling: Vec<Detection> = renders.par_iter().map(detect).collect();
    let reconstructed = quality::reconstruct(runner, &renders)?;
    let mut reconstruction = ReconstructionQuality::default();
    for (original, reconstructed) in renders.iter().zip(&reconstructed) {
        reconstructed.iter().for_each(|reconstructed| reconstruction.add(original, reconstructed));
    }
    let tokenizer: Vec<Option<Detection>> = reconstructed.par_iter().map(|image| Some(detect(&image.as_ref()?.hybrid))).collect();
    let report = SplitReport {
        split,
        model: Metrics::of(pairs.iter().copied()),
        ceiling: Metrics::of(ceiling.iter().zip(expected.iter().copied())),
        tokenizer: Metrics::of(tokenizer.iter().zip(&expected).filter_map(|(found, expected)| Some((found.as_ref()?, *expected)))),
        shuffled: Metrics::shuffled(&pairs),
        reconstruction,
    };
    Ok((report, pairs.iter().map(|(detection, expected)| detection.score(expected)).collect()))
}

/// Measures the distance of generated images from training images of the same contents.
fn training_distance(prompts: &Prompts<'_>, compared: &[(&Prompt, Image)], training: usize) -> Result<Option<f64>, Error> {
    let trial = |(prompt, image): &(&Prompt, Image)| {
        let render = |variation: usize| Ok(prompts.render(prompt, variation)?.pixels().to_vec());
        let training: Result<Vec<Vec<u8>>, Error> = (1..=training).map(render).collect();
        Ok(CopyTrial { generated: image.pixels().to_vec(), training: training?, fresh: render(0)? })
    };
    let trials: Result<Vec<CopyTrial>, Error> = compared.par_iter().map(trial).collect();
    Ok(quality::nearest_training_distance(&trials?))
}
