//! Starting from a picture: what of it is kept, and what is drawn anew. Plain pixels, no tensors.

use crate::error::{Error, Result};
use crate::image::Image;

/// Lightness from which on a mask's pixel is drawn anew.
const WHITE: u32 = 128;

/// Which pixels of a picture are drawn anew.
#[derive(Clone, PartialEq)]
pub struct Mask {
    width: usize,
    height: usize,
    anew: Vec<bool>,
}

impl std::fmt::Debug for Mask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Mask({} x {})", self.width, self.height)
    }
}

impl Mask {
    /// From a picture: white is drawn anew, black is kept.
    pub fn from_image(image: &Image) -> Self {
        let anew = image.pixels().chunks(3).map(|p| p.iter().map(|&v| u32::from(v)).sum::<u32>() / 3 >= WHITE).collect();
        Self { width: image.width(), height: image.height(), anew }
    }

    /// Draws a rectangle anew; what of it lies outside doesn't count.
    pub fn rectangle(size: (usize, usize), left: usize, top: usize, width: usize, height: usize) -> Self {
        let inside = |value: usize, from: usize, length: usize| value >= from && value - from < length;
        let row = |y: usize| (0..size.0).map(move |x| inside(x, left, width) && inside(y, top, height));
        Self { width: size.0, height: size.1, anew: (0..size.1).flat_map(row).collect() }
    }

    /// Which patches of `patch` pixels a side are kept whole, row by row.
    pub(crate) fn kept_patches(&self, patch: usize) -> Vec<bool> {
        let (columns, rows) = (self.width / patch, self.height / patch);
        let kept = |x: usize, y: usize| {
            let line = |dy: usize| &self.anew[(y * patch + dy) * self.width + x * patch..][..patch];
            (0..patch).all(|dy| !line(dy).contains(&true))
        };
        (0..rows).flat_map(|y| (0..columns).map(move |x| (x, y))).map(|(x, y)| kept(x, y)).collect()
    }
}

/// A picture to start from. The known part is told to the transformer scale by scale as the tokens it would have drawn, as VAR's
/// authors do without any training (arXiv 2404.02905, section 4.3); the rest is drawn to fit.
#[derive(Clone, Debug, PartialEq)]
pub struct FromImage {
    image: Image,
    mask: Option<Mask>,
    /// Left and top of the picture on the canvas.
    place: Option<(usize, usize)>,
    kept_scales: usize,
}

impl FromImage {
    /// Draws the masked part anew. The latent of the rest, patch by patch, stays exactly as the picture's own.
    pub fn inpaint(image: Image, mask: Mask) -> Self {
        Self { image, mask: Some(mask), place: None, kept_scales: 0 }
    }

    /// Draws around a picture that is smaller than the model's: it stays with its left top corner at a place of the canvas.
    pub fn outpaint(image: Image, left: usize, top: usize) -> Self {
        Self { image, mask: None, place: Some((left, top)), kept_scales: 0 }
    }

    /// Keeps the picture's coarsest scales, from 1 to all but the last, and draws the finer ones anew: few keep the layout only, many
    /// nearly everything.
    pub fn vary(image: Image, kept_scales: usize) -> Self {
        Self { image, mask: None, place: None, kept_scales }
    }

    /// Keeps the coarsest scales also where it draws anew, so that what was there shines through.
    pub fn keep_scales(mut self, kept_scales: usize) -> Self {
        self.kept_scales = kept_scales;
        self
    }

    /// In a word, for a picture's settings.
    pub(crate) fn name(&self) -> &'static str {
        match (&self.mask, self.place) {
            (Some(_), _) => "inpainting",
            (None, Some(_)) => "outpainting",
            (None, None) => "variation",
        }
    }

    /// How many of the coarsest scales are kept everywhere.
    pub(crate) fn kept_scales(&self) -> usize {
        self.kept_scales
    }

    /// Checks it against a model.
    pub(crate) fn check(&self, side: usize, scales: usize) -> Result<()> {
        let wrong = |problem: String| Err(Error::request("image to start from", problem));
        let (width, height) = (self.image.width(), self.image.height());
        match self.place {
            Some((left, top)) => {
                let fits = |place: usize, length: usize| place.checked_add(length).is_some_and(|end| end <= side);
                if !fits(left, width) || !fits(top, height) {
                    return wrong(format!(
                        "{width} x {height} pixels at ({left}, {top}) reach beyond the model's {side} x {side}: make it smaller"
                    ));
                }
                if (width, height) == (side, side) {
                    return wrong(format!("it fills the model's {side} x {side} pixels, nothing is left to draw around it"));
                }
            }
            None if (width, height) != (side, side) => {
                return wrong(format!("has {width} x {height} pixels, the model draws {side} x {side}: resize it"));
            }
            None => {}
        }
        if let Some(mask) = &self.mask {
            if (mask.width, mask.height) != (width, height) {
                return wrong(format!("it has {width} x {height} pixels, its mask {} x {}", mask.width, mask.height));
            }
            if !mask.anew.contains(&true) {
                return wrong("its mask keeps everything: make white what is to be drawn anew".into());
            }
        }
        let varies = self.mask.is_none() && self.place.is_none();
        if self.kept_scales >= scales || (varies && self.kept_scales == 0) {
            let from = usize::from(varies);
            return wrong(format!("{} scales are to be kept, expected {from} to {} of {scales}", self.kept_scales, scales - 1));
        }
        Ok(())
    }

    /// The whole canvas, and what of it is drawn anew; no mask: everything. Around a smaller picture its edge goes on, so that the
    /// encoder sees no border.
    pub(crate) fn canvas(&self, side: usize) -> Result<(Image, Option<Mask>)> {
        let Some((left, top)) = self.place else { return Ok((self.image.clone(), self.mask.clone())) };
        let (width, height) = (self.image.width(), self.image.height());
        let nearest = |value: usize, from: usize, length: usize| value.clamp(from, from + length - 1) - from;
        let pixel = |x: usize, y: usize| {
            let start = 3 * (nearest(y, top, height) * width + nearest(x, left, width));
            self.image.pixels()[start..start + 3].iter().copied()
        };
        let places = || (0..side).flat_map(|y| (0..side).map(move |x| (x, y)));
        let image = Image::from_rgb(side, side, places().flat_map(|(x, y)| pixel(x, y)).collect())?;
        let mut mask = Mask::rectangle((side, side), left, top, width, height);
        mask.anew.iter_mut().for_each(|anew| *anew = !*anew);
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
        assert_eq!(mask.kept_patches(2), [true, false, true, true, true, true]);
        let mut pixels = vec![0; 3 * 24];
        pixels[9..12].fill(200);
        pixels[27..30].fill(255);
        assert_eq!(Mask::from_image(&Image::from_rgb(6, 4, pixels).unwrap()), mask);
    }

    #[test]
    fn a_smaller_picture_is_laid_on_the_canvas_and_its_edge_goes_on() {
        let (canvas, mask) = FromImage::outpaint(image(2, 2), 1, 2).canvas(4).unwrap();
        let reds: Vec<u8> = canvas.pixels().iter().step_by(3).copied().collect();
        assert_eq!(reds, [0, 0, 3, 3, 0, 0, 3, 3, 0, 0, 3, 3, 6, 6, 9, 9]);
        let kept: Vec<usize> = mask.unwrap().anew.iter().enumerate().filter(|(_, anew)| !**anew).map(|(i, _)| i).collect();
        assert_eq!(kept, [9, 10, 13, 14]);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let problem = |from: FromImage| from.check(4, 3).unwrap_err().to_string();
        assert!(problem(FromImage::vary(image(2, 4), 1)).contains("has 2 x 4 pixels, the model draws 4 x 4"));
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
