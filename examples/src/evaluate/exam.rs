//! An examination: prompts, the model's pictures, true renders, and what the scorer says of both.

use hart_core::{Error, Image, Request};
use rayon::prelude::*;

use super::draw::Artist;
use super::figures::Figures;
use super::prompts::{Prompt, Prompts};
use super::quality::{self, Reconstruction, Trial};
use super::report::{Report, Split};
use super::score::{Answer, Reading, Scorer, Verdict};
use super::segment::Picture;
use super::sweep;
use crate::data;

/// One in so many prompts is drawn again for every setting of a sweep.
const SWEEP_SHARE: usize = 4;

/// How much is done.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Prompts of each split.
    pub prompts: usize,
    /// Pictures compared with training pictures.
    pub compared: usize,
    /// Training pictures that each is compared with.
    pub training: usize,
    /// Whether prompts are drawn with other settings too.
    pub sweep: bool,
}

impl Extent {
    /// So many prompts of each split; `quick` keeps the rest short.
    pub fn new(prompts: usize, quick: bool, sweep: bool) -> Self {
        let (compared, training) = if quick { (24, 32) } else { (128, 64) };
        Self { prompts, compared, training, sweep }
    }
}

/// A picture of the model, and what is right in it.
#[derive(Clone, Debug)]
pub struct Marked {
    /// The picture.
    pub image: Image,
    /// What is right.
    pub verdict: Verdict,
}

/// Examines a model. `request` has the settings; seeds count up from `seed` through all splits. Stopped, it reports what was
/// done until then.
///
/// # Errors
///
/// The model's.
pub fn examine(
    artist: &Artist<'_>,
    scorer: &Scorer,
    prompts: &Prompts<'_>,
    extent: Extent,
    request: &Request,
    seed: u64,
) -> Result<(Report, Vec<Marked>), Error> {
    let asked: Vec<(data::Split, Vec<Prompt>)> = prompts.splits(extent.prompts);
    let all: Vec<&Prompt> = asked.iter().flat_map(|(_, prompts)| prompts).collect();
    let ask = |(index, prompt): (usize, &&Prompt)| request.clone().prompts([&prompt.caption]).seed(seed.wrapping_add(index as u64));
    let requests: Vec<Request> = all.iter().enumerate().map(ask).collect();
    let mut report = Report { concepts: scorer.concepts(), ..Report::default() };

    let mut drawn = artist.draw("drawing", &requests, false)?.into_iter().map(|drawn| drawn.map(|drawn| drawn.image));
    let mut marked = Vec::new();
    let mut compared = Vec::new();
    for (of, asked) in &asked {
        // A split that was stopped in the middle counts with the pictures that it has.
        let pictures: Vec<(&Prompt, Image)> = asked.iter().zip(&mut drawn).filter_map(|(p, image)| Some((p, image?))).collect();
        if pictures.is_empty() {
            continue;
        }
        let read = |image: &Image| scorer.read(Picture::of(image));
        let seen: Vec<Reading> = pictures.par_iter().map(|(_, image)| read(image)).collect();
        let answers: Vec<&Answer> = pictures.iter().map(|(prompt, _)| &prompt.answer).collect();
        let pairs: Vec<(&Reading, &Answer)> = seen.iter().zip(answers.iter().copied()).collect();

        let renders = pictures.par_iter().map(|(prompt, _)| prompts.render(prompt, 0)).collect::<Result<Vec<Image>, Error>>()?;
        let truth: Vec<Reading> = renders.par_iter().map(read).collect();
        let kept = quality::reconstruct(artist, &renders)?;
        let mut reconstruction = Reconstruction::default();
        for (original, again) in renders.iter().zip(&kept) {
            again.iter().for_each(|again| reconstruction.add(original, again));
        }
        let kept: Vec<Option<Reading>> = kept.par_iter().map(|again| again.as_ref().map(|again| read(&again.hybrid))).collect();
        report.splits.push(Split {
            of: *of,
            model: Figures::of(pairs.iter().copied()),
            ceiling: Figures::of(truth.iter().zip(answers.iter().copied())),
            tokenizer: Figures::of(kept.iter().zip(&answers).filter_map(|(kept, answer)| Some((kept.as_ref()?, *answer)))),
            shuffled: Figures::shuffled(&pairs),
            reconstruction,
        });
        let verdicts: Vec<Verdict> = pairs.iter().map(|(reading, answer)| reading.judge(answer)).collect();
        for ((prompt, image), verdict) in pictures.into_iter().zip(verdicts) {
            if report.splits.len() == 1 && compared.len() < extent.compared {
                compared.push((prompt, image.clone()));
            }
            marked.push(Marked { image, verdict });
        }
    }
    report.nearest_training_distance = copying(prompts, &compared, extent.training)?;
    if extent.sweep && !artist.is_cancelled() {
        let requests: Vec<Request> = requests.into_iter().step_by(SWEEP_SHARE).collect();
        let answers: Vec<Answer> = all.iter().step_by(SWEEP_SHARE).map(|prompt| prompt.answer.clone()).collect();
        report.sweep = sweep::sweep(artist, scorer, &requests, &answers)?;
    }
    Ok((report, marked))
}

/// How far pictures of seen prompts are from training pictures of the same contents.
fn copying(prompts: &Prompts<'_>, compared: &[(&Prompt, Image)], training: usize) -> Result<Option<f64>, Error> {
    let trial = |(prompt, image): &(&Prompt, Image)| {
        let render = |variation: usize| Ok(prompts.render(prompt, variation)?.pixels().to_vec());
        let training: Result<Vec<Vec<u8>>, Error> = (1..=training).map(render).collect();
        Ok(Trial { picture: image.pixels().to_vec(), training: training?, fresh: render(0)? })
    };
    let trials: Result<Vec<Trial>, Error> = compared.par_iter().map(trial).collect();
    Ok(quality::nearest_training_distance(&trials?))
}
