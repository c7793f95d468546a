//! All pictures in one, framed by whether they are right.

use hart_core::{Error, Image};

use super::score::Verdict;
use crate::cli::grid;

/// Most pictures of a sheet; of more, every so many.
const MOST_PICTURES: usize = 144;
/// Width of a frame as a share of the side.
const FRAME: usize = 32;
/// Frame of a picture in which all that was asked for is right.
const RIGHT: [u8; 3] = [30, 160, 70];
/// Frame of the others.
const WRONG: [u8; 3] = [220, 40, 40];

/// Pictures with their prompts and seeds, in green frames where all is right and in red ones where something is wrong, which their
/// labels say too.
///
/// # Errors
///
/// There is no picture.
pub fn sheet(pictures: &[(&Image, Verdict)]) -> Result<Image, Error> {
    let step = pictures.len().div_ceil(MOST_PICTURES).max(1);
    let framed: Result<Vec<Image>, Error> = pictures.iter().step_by(step).map(|(image, verdict)| framed(image, verdict)).collect();
    grid::labelled(&framed?, 1)
}

fn framed(image: &Image, verdict: &Verdict) -> Result<Image, Error> {
    let right = verdict.all_right();
    let frame = (image.width() / FRAME).max(1);
    let (width, height) = (image.width() + 2 * frame, image.height() + 2 * frame);
    let mut pixels = if right { RIGHT } else { WRONG }.repeat(width * height);
    for (y, line) in image.pixels().chunks_exact(3 * image.width()).enumerate() {
        let start = 3 * ((y + frame) * width + frame);
        pixels[start..start + line.len()].copy_from_slice(line);
    }
    let mut framed = Image::from_rgb(width, height, pixels)?;
    framed.provenance = image.provenance.clone().map(|mut made| {
        made.prompt = format!("{}: {}", if right { "right" } else { "wrong" }, made.prompt);
        made
    });
    Ok(framed)
}
