//! Contact sheet of the evaluated images, with frames that show whether they are right.

use hart_core::{Error, Image};

use super::score::ImageScore;
use crate::cli::grid;

/// Maximum number of images on a sheet. If there are more, the sheet shows every n-th image.
const MAX_IMAGES: usize = 144;
/// Divisor of an image's width that gives the width of its frame.
const FRAME_DIVISOR: usize = 32;
/// Frame colour of images in which everything is right.
const RIGHT_COLOUR: [u8; 3] = [30, 160, 70];
/// Frame colour of the other images.
const WRONG_COLOUR: [u8; 3] = [220, 40, 40];

/// Renders the images with their prompts and seeds. Frames and labels show whether everything in an image is right (green) or
/// something is wrong (red).
///
/// # Errors
///
/// Returns an error if there is no image.
pub fn sheet(images: &[(&Image, ImageScore)]) -> Result<Image, Error> {
    let step = images.len().div_ceil(MAX_IMAGES).max(1);
    let framed: Result<Vec<Image>, Error> = images.iter().step_by(step).map(|(image, score)| framed(image, score)).collect();
    grid::labelled(&framed?, 1)
}

/// Adds the frame and the label of an image's score.
fn framed(image: &Image, score: &ImageScore) -> Result<Image, Error> {
    let right = score.all_right();
    let frame = (image.width() / FRAME_DIVISOR).max(1);
    let (width, height) = (image.width() + 2 * frame, image.height() + 2 * frame);
    let mut pixels = if right { RIGHT_COLOUR } else { WRONG_COLOUR }.repeat(width * height);
    for (y, line) in image.pixels().chunks_exact(3 * image.width()).enumerate() {
        let start = 3 * ((y + frame) * width + frame);
        pixels[start..start + line.len()].copy_from_slice(line);
    }
    let mut framed = Image::from_rgb(width, height, pixels)?;
    framed.marks = image.marks;
    framed.provenance = image.provenance.clone().map(|mut provenance| {
        provenance.prompt = format!("{}: {}", if right { "right" } else { "wrong" }, provenance.prompt);
        provenance
    });
    Ok(framed)
}
