//! Images to start from: the known part, and the part to regenerate. Plain pixels, no tensors.

use crate::error::{Error, Result};
use crate::image::Image;

/// Minimum mean of a mask pixel's channels for it to count as white.
const WHITE: u32 = 128;

/// A mask of the pixels to regenerate.
#[derive(Clone, PartialEq)]
pub struct Mask {
    width: usize,
    height: usize,
    /// Whether each pixel is regenerated, in row-major order.
    regenerated: Vec<bool>,
}

impl std::fmt::Debug for Mask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Mask({} x {})", self.width, self.height)
    }
}

impl Mask {
    /// Converts an image to a mask: white pixels are regenerated, black pixels are kept.
    pub fn from_image(image: &Image) -> Self {
        let is_white = |pixel: &[u8]| pixel.iter().map(|&v| u32::from(v)).sum::<u32>() / 3 >= WHITE;
        let regenerated = image.pixels().chunks(3).map(is_white).collect();
        Self { width: image.width(), height: image.height(), regenerated }
    }

    /// Creates a mask of a size (width, height) that regenerates a rectangle. The part of the rectangle outside the mask is ignored.
    pub fn rectangle(size: (usize, usize), left: usize, top: usize, width: usize, height: usize) -> Self {
        let inside = |value: usize, from: usize, length: usize| value >= from && value - from < length;
        let row = |y: usize| (0..size.0).map(move |x| inside(x, left, width) && inside(y, top, height));
        Self { width: size.0, height: size.1, regenerated: (0..size.1).flat_map(row).collect() }
    }

    /// Returns whether each patch of `patch` x `patch` pixels is known, that is, none of its pixels is regenerated.
    pub(crate) fn known_patches(&self, patch: usize) -> Vec<bool> {
        let (columns, rows) = (self.width / patch, self.height / patch);
        let is_known = |x: usize, y: usize| {
            let line = |dy: usize| &self.regenerated[(y * patch + dy) * self.width + x * patch..][..patch];
            (0..patch).all(|dy| !line(dy).contains(&true))
        };
        (0..rows).flat_map(|y| (0..columns).map(move |x| (x, y))).map(|(x, y)| is_known(x, y)).collect()
    }
}

/// An image to start from. The tokens of its known part replace the sampled ones, scale by scale, and the other tokens are sampled to
/// fit. This is the zero-shot editing of VAR (arXiv 2404.02905, section 4.3) and needs no training.
#[derive(Clone, Debug, PartialEq)]
pub struct FromImage {
    image: Image,
    mask: Option<Mask>,
    /// Position (left, top) of a smaller image on the canvas.
    offset: Option<(usize, usize)>,
    kept_scales: usize,
}

impl FromImage {
    /// Regenerates the masked part. The latent of patches outside it does not change.
    pub fn inpaint(image: Image, mask: Mask) -> Self {
        Self { image, mask: Some(mask), offset: None, kept_scales: 0 }
    }

    /// Extends an image that is smaller than the model's. `left` and `top` are the position of its top left corner on the canvas.
    pub fn outpaint(image: Image, left: usize, top: usize) -> Self {
        Self { image, mask: None, offset: Some((left, top)), kept_scales: 0 }
    }

    /// Keeps the coarsest scales of an image, from 1 to all but the last, and regenerates the finer ones. Few scales keep only the
    /// layout, many keep nearly everything.
    pub fn vary(image: Image, kept_scales: usize) -> Self {
        Self { image, mask: None, offset: None, kept_scales }
    }

    /// Keeps the coarsest scales in the regenerated part as well, so that it resembles the original.
    #[must_use]
    pub fn keep_scales(mut self, kept_scales: usize) -> Self {
        self.kept_scales = kept_scales;
        self
    }

    /// Returns the name of the kind of editing, for [`Provenance::settings`](crate::Provenance::settings).
    pub(crate) fn name(&self) -> &'static str {
        match (&self.mask, self.offset) {
            (Some(_), _) => "inpainting",
            (None, Some(_)) => "outpainting",
            (None, None) => "variation",
        }
    }

    /// Returns the number of coarsest scales that are kept everywhere.
    pub(crate) fn kept_scales(&self) -> usize {
        self.kept_scales
    }

    /// Checks the sizes against a model's resolution and number of scales.
    pub(crate) fn check(&self, side: usize, scales: usize) -> Result<()> {
        let invalid = |problem: String| Err(Error::request("image to start from", problem));
        let (width, height) = (self.image.width(), self.image.height());
        match self.offset {
            Some((left, top)) => {
                let fits = |start: usize, length: usize| start.checked_add(length).is_some_and(|end| end <= side);
                if !fits(left, width) || !fits(top, height) {
                    return invalid(format!(
                        "{width} x {height} pixels at ({left}, {top}) reach beyond the model's {side} x {side}: make it smaller"
                    ));
                }
                if (width, height) == (side, side) {
                    return invalid(format!("it fills the model's {side} x {side} pixels: nothing is left to generate around it"));
                }
            }
            None if (width, height) != (side, side) => {
                return invalid(format!("has {width} x {height} pixels, the model generates {side} x {side}: resize it"));
            }
            None => {}
        }
        if let Some(mask) = &self.mask {
            if (mask.width, mask.height) != (width, height) {
                return invalid(format!(
                    "it has {width} x {height} pixels, its mask {} x {}: expected equal sizes",
                    mask.width, mask.height
                ));
            }
            if !mask.regenerated.contains(&true) {
                return invalid("its mask keeps everything: make the part to regenerate white".into());
            }
        }
        let varies = self.mask.is_none() && self.offset.is_none();
        if self.kept_scales >= scales || (varies && self.kept_scales == 0) {
            let from = usize::from(varies);
            return invalid(format!("{} scales are to be kept, expected {from} to {} of {scales}", self.kept_scales, scales - 1));
        }
        Ok(())
    }

    /// Returns the whole canvas and its mask; `None` if no region is masked. The edge pixels of a smaller image are repeated over the
    /// rest of the canvas, so that the encoder sees no border.
    pub(crate) fn canvas(&self, side: usize) -> Result<(Image, Option<Mask>)> {
        let Some((left, top)) = self.offset else { return Ok((self.image.clone(), self.mask.clone())) };
        let (width, height) = (self.image.width(), self.image.height());
        let nearest = |value: usize, from: usize, length: usize| value.clamp(from, from + length - 1) - from;
        let pixel = |x: usize, y: usize| {
            let start = 3 * (nearest(y, top, height) * width + nearest(x, left, width));
            self.image.pixels()[start..start + 3].iter().copied()
        };
        let positions = (0..side).flat_map(|y| (0..side).map(move |x| (x, y)));
        let image = Image::from_rgb(side, side, positions.flat_map(|(x, y)| pixel(x, y)).collect())?;
        let mut mask = Mask::rectangle((side, side), left, top, width, height);
        mask.regenerated.iter_mut().for_each(|regenerated| *regenerated = !*regenerated);
        Ok((image, Some(mask)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(width: usize, height: usize) -> Image {
        Image::from_rgb(width, height, (0..3 * width * height).map(|i| i as u8).collect()).unwrap()
    }

    #[test]
    fn a_patch_is_kept_if_all_its_pixels_are() {
        let mask = Mask::rectangle((6, 4), 3, 0, 1, 2);
        assert_eq!(mask.known_patches(2), [true, false, true, true, true, true]);
        let mut pixels = vec![0; 3 * 24];
        pixels[9..12].fill(200);
        pixels[27..30].fill(255);
        assert_eq!(Mask::from_image(&Image::from_rgb(6, 4, pixels).unwrap()), mask);
    }

    #[test]
    fn outpainting_repeats_the_edge_on_the_canvas() {
        let (canvas, mask) = FromImage::outpaint(image(2, 2), 1, 2).canvas(4).unwrap();
        let reds: Vec<u8> = canvas.pixels().iter().step_by(3).copied().collect();
        assert_eq!(reds, [0, 0, 3, 3, 0, 0, 3, 3, 0, 0, 3, 3, 6, 6, 9, 9]);
        let kept: Vec<usize> =
            mask.unwrap().regenerated.iter().enumerate().filter(|(_, regenerated)| !**regenerated).map(|(i, _)| i).collect();
        assert_eq!(kept, [9, 10, 13, 14]);
    }

    #[test]
    fn errors_name_what_does_not_fit() {
        let problem = |from: FromImage| from.check(4, 3).unwrap_err().to_string();
        assert!(problem(FromImage::vary(image(2, 4), 1)).contains("has 2 x 4 pixels, the model generates 4 x 4"));
        assert!(problem(FromImage::vary(image(4, 4), 0)).contains("expected 1 to 2 of 3"));
        assert!(problem(FromImage::vary(image(4, 4), 3)).contains("expected 1 to 2 of 3"));
        assert!(problem(FromImage::outpaint(image(4, 4), 0, 0)).contains("nothing is left"));
        assert!(problem(FromImage::outpaint(image(2, 2), 3, 0)).contains("reach beyond"));
        assert!(problem(FromImage::outpaint(image(2, 2), usize::MAX, 0)).contains("reach beyond"));
        let mask = |size| Mask::rectangle((size, size), 0, 0, 1, 1);
        assert!(problem(FromImage::inpaint(image(4, 4), mask(5))).contains("its mask 5 x 5"));
        assert!(problem(FromImage::inpaint(image(4, 4), Mask::rectangle((4, 4), 9, 0, 1, 1))).contains("keeps everything"));
        assert!(problem(FromImage::inpaint(image(4, 4), mask(4)).keep_scales(3)).contains("expected 0 to 2 of 3"));
        assert!(FromImage::inpaint(image(4, 4), mask(4)).check(4, 3).is_ok());
        assert!(FromImage::outpaint(image(2, 3), 2, 1).check(4, 3).is_ok());
    }
}
