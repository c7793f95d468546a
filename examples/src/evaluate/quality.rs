//! How well a model's tokenizer keeps pictures, and whether the model copies those that it was trained on.

use hart_core::stages::{Latent, Progress};
use hart_core::{Error, Image};

use super::draw::Artist;
use crate::cli::image_file;

/// Highest figure of one picture, in decibels: one that is kept to the last bit would make every mean infinite.
const MOST_DECIBELS: f64 = 60.0;

/// Peak signal-to-noise ratio of pictures that went through the tokenizer and back, added up.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Reconstruction {
    /// With the continuous features, the hybrid tokenizer's whole latent, in decibels.
    hybrid: f64,
    /// With the discrete codes alone, in decibels.
    discrete: f64,
    /// How many pictures.
    pub pictures: usize,
}

impl Reconstruction {
    /// Adds a picture, and what became of it with and without the continuous features.
    pub fn add(&mut self, original: &Image, again: &Reconstructed) {
        let decibels = |again: &Image| image_file::psnr(original, again).min(MOST_DECIBELS);
        self.hybrid += decibels(&again.hybrid);
        self.discrete += decibels(&again.discrete);
        self.pictures += 1;
    }

    /// With those of other pictures.
    pub fn plus(self, other: &Self) -> Self {
        let pictures = self.pictures + other.pictures;
        Self { hybrid: self.hybrid + other.hybrid, discrete: self.discrete + other.discrete, pictures }
    }

    /// The means in decibels, with the continuous features and from the discrete codes alone; none without a picture.
    pub fn means(&self) -> Option<[f64; 2]> {
        (self.pictures > 0).then(|| [self.hybrid, self.discrete].map(|sum| sum / self.pictures as f64))
    }
}

/// What the tokenizer keeps of a picture.
#[derive(Clone, Debug)]
pub struct Reconstructed {
    /// With the continuous features.
    pub hybrid: Image,
    /// From the discrete codes alone.
    pub discrete: Image,
}

/// Sends pictures of the model's size through its tokenizer and back. None where it was stopped before.
///
/// # Errors
///
/// [`Error::Request`] if a picture has another size, [`Error::Overflow`].
pub fn reconstruct(artist: &Artist<'_>, pictures: &[Image]) -> Result<Vec<Option<Reconstructed>>, Error> {
    let visual = artist.hart().visual();
    let decode = |latent: &Latent| Ok(visual.decode_images(latent, &mut Progress::silent())?.swap_remove(0));
    artist.each("reconstructing", pictures.len(), |index| {
        let tokens = visual.tokenize_images(std::slice::from_ref(&pictures[index]))?;
        Ok(Reconstructed { hybrid: decode(&tokens.hybrid())?, discrete: decode(&visual.discrete(&tokens))? })
    })
}

/// A generated picture, and drawings of what it shows as training has them: each time at another place, in another size.
#[derive(Clone, Debug)]
pub struct Trial {
    /// The generated picture's pixels.
    pub picture: Vec<u8>,
    /// What training may have shown.
    pub training: Vec<Vec<u8>>,
    /// One more of the same kind, which a model that learned and didn't copy might have drawn.
    pub fresh: Vec<u8>,
}

/// How far generated pictures are from the nearest training picture of the same content, by how far fresh drawings are from it: near
/// 0 for copies; 1 for pictures as new as fresh drawings; more for pictures that are also less exact. None without a trial.
pub fn nearest_training_distance(trials: &[Trial]) -> Option<f64> {
    let nearest = |picture: &[u8], trial: &Trial| trial.training.iter().map(|t| distance(picture, t)).fold(f64::MAX, f64::min);
    let trials: Vec<&Trial> = trials.iter().filter(|trial| !trial.training.is_empty()).collect();
    let generated: f64 = trials.iter().map(|trial| nearest(&trial.picture, trial)).sum();
    let fresh: f64 = trials.iter().map(|trial| nearest(&trial.fresh, trial)).sum();
    (fresh > 0.0).then(|| generated / fresh)
}

/// Root of the mean square of two pictures' differences, in levels, after each has lost its mean colour: a shade of the background
/// doesn't make a copy new.
fn distance(a: &[u8], b: &[u8]) -> f64 {
    let mean = |pixels: &[u8], channel: usize| {
        pixels.iter().skip(channel).step_by(3).map(|&v| f64::from(v)).sum::<f64>() / (pixels.len() / 3) as f64
    };
    let shifts = [0, 1, 2].map(|channel| mean(a, channel) - mean(b, channel));
    let pairs = a.iter().zip(b).enumerate();
    let squares: f64 = pairs.map(|(at, (&a, &b))| (f64::from(a) - f64::from(b) - shifts[at % 3]).powi(2)).sum();
    (squares / a.len() as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_near_and_a_new_drawing_is_not() {
        let drawn = |place: usize, level: u8| -> Vec<u8> {
            (0..64).flat_map(|p| if p / 8 == place { [255, 0, level] } else { [level; 3] }).collect()
        };
        let trial = |picture| Trial { picture, training: vec![drawn(1, 100), drawn(4, 100)], fresh: drawn(6, 100) };
        // The same drawing on a lighter shade is a copy still.
        let (copy, new) = (drawn(1, 104), drawn(7, 100));
        assert!(nearest_training_distance(&[trial(copy)]).unwrap() < 0.05);
        let distance = nearest_training_distance(&[trial(new)]).unwrap();
        assert!((distance - 1.0).abs() < 0.01, "{distance}");
        assert_eq!(nearest_training_distance(&[]), None);
    }
}
