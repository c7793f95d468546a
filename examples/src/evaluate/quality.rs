//! Reconstruction quality of a model's tokenizer, and the distance of generated images from training images.

use hart_core::stages::{Latent, Progress};
use hart_core::{Error, Image};

use super::runner::Runner;
use crate::cli::image_file;

/// Upper limit of an image's PSNR, in decibels. A lossless reconstruction would make the mean infinite.
const MAX_PSNR: f64 = 60.0;

/// Peak signal-to-noise ratio (PSNR) of reconstructed images, summed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ReconstructionQuality {
    /// PSNR from the whole latent with the continuous residual, in decibels.
    hybrid: f64,
    /// PSNR from the discrete codes alone, in decibels.
    discrete: f64,
    /// Number of images.
    pub images: usize,
}

impl ReconstructionQuality {
    /// Adds an image and its reconstructions.
    pub fn add(&mut self, original: &Image, reconstructed: &Reconstructed) {
        let psnr = |reconstructed: &Image| image_file::psnr(original, reconstructed).min(MAX_PSNR);
        self.hybrid += psnr(&reconstructed.hybrid);
        self.discrete += psnr(&reconstructed.discrete);
        self.images += 1;
    }

    /// Adds the quality of other images.
    pub fn plus(self, other: &Self) -> Self {
        let images = self.images + other.images;
        Self { hybrid: self.hybrid + other.hybrid, discrete: self.discrete + other.discrete, images }
    }

    /// Returns the mean hybrid and discrete PSNR in decibels, or `None` without an image.
    pub fn means(&self) -> Option<[f64; 2]> {
        (self.images > 0).then(|| [self.hybrid, self.discrete].map(|sum| sum / self.images as f64))
    }
}

/// The reconstructions of an image.
#[derive(Clone, Debug)]
pub struct Reconstructed {
    /// From the whole latent with the continuous residual.
    pub hybrid: Image,
    /// From the discrete codes alone.
    pub discrete: Image,
}

/// Encodes and decodes images of the model's size with its tokenizer. The result is `None` for images that were not finished before
/// a cancellation.
///
/// # Errors
///
/// Returns [`Error::Request`] if an image has another size, and [`Error::Overflow`] if a value is not finite.
pub fn reconstruct(runner: &Runner<'_>, images: &[Image]) -> Result<Vec<Option<Reconstructed>>, Error> {
    let visual = runner.hart().visual();
    let decode = |latent: &Latent| Ok(visual.decode_images(latent, &mut Progress::silent())?.swap_remove(0));
    runner.run("reconstructing", images.len(), |index| {
        let tokens = visual.tokenize_images(std::slice::from_ref(&images[index]))?;
        Ok(Reconstructed { hybrid: decode(&tokens.hybrid())?, discrete: decode(&visual.discrete(&tokens))? })
    })
}

/// A generated image and renders of the same prompt, as in training: each with other positions and sizes.
#[derive(Clone, Debug)]
pub struct CopyTrial {
    /// Pixels of the generated image.
    pub generated: Vec<u8>,
    /// Renders that training may have shown.
    pub training: Vec<Vec<u8>>,
    /// Another render, for the distance of an image that is not a copy.
    pub fresh: Vec<u8>,
}

/// Returns the distance of generated images from the nearest training image of the same content, relative to that of fresh renders:
/// near 0 for copies, 1 for images that differ as much as fresh renders, more for less accurate images. `None` without a trial.
pub fn nearest_training_distance(trials: &[CopyTrial]) -> Option<f64> {
    let nearest = |image: &[u8], trial: &CopyTrial| trial.training.iter().map(|t| distance(image, t)).fold(f64::MAX, f64::min);
    let trials: Vec<&CopyTrial> = trials.iter().filter(|trial| !trial.training.is_empty()).collect();
    let generated: f64 = trials.iter().map(|trial| nearest(&trial.generated, trial)).sum();
    let fresh: f64 = trials.iter().map(|trial| nearest(&trial.fresh, trial)).sum();
    (fresh > 0.0).then(|| generated / fresh)
}

/// Returns the root mean square difference of two images' channel values, 0 to 255, after subtracting each image's mean colour.
/// A copy with another shade of the background therefore still counts as a copy.
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
    fn a_copy_is_near_and_a_new_image_is_not() {
        let render = |row: usize, level: u8| -> Vec<u8> {
            (0..64).flat_map(|p| if p / 8 == row { [255, 0, level] } else { [level; 3] }).collect()
        };
        let trial = |generated| CopyTrial { generated, training: vec![render(1, 100), render(4, 100)], fresh: render(6, 100) };
        // The copy has a lighter background.
        let (copy, new) = (render(1, 104), render(7, 100));
        assert!(nearest_training_distance(&[trial(copy)]).unwrap() < 0.05);
        let distance = nearest_training_distance(&[trial(new)]).unwrap();
        assert!((distance - 1.0).abs() < 0.01, "{distance}");
        assert_eq!(nearest_training_distance(&[]), None);
    }
}
