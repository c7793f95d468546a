//! Images to start from: the known part, and the part to regenerate. Plain pixels, no tensors.

use crate::error::{Error, Result};
use crate::image::Image;

/// The side in pixels divided by the width of the soft edge between known and generated pixels.
const EDGE_DIVISOR: usize = 64;
/// Minimum light of a mask pixel for it to count as white: the mean of its channels times its alpha.
const WHITE: u8 = 128;

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
    /// Converts an image to a mask: white pixels are regenerated, black and transparent pixels are kept. Precisely, a pixel is
    /// regenerated if the mean of its channels times its alpha is at least half of the maximum. White painted on a transparent layer
    /// is therefore a mask.
    ///
    /// For a mask whose transparent part is regenerated, as in OpenAI's image API, pass [`Image::transparency`].
    pub fn from_image(image: &Image) -> Self {
        let regenerated = image.light().into_iter().map(|light| light >= WHITE).collect();
        Self { width: image.width(), height: image.height(), regenerated }
    }

    /// Creates a mask of a size (width, height) that regenerates a rectangle. The part of the rectangle outside the mask is ignored.
    pub fn rectangle(size: (usize, usize), left: usize, top: usize, width: usize, height: usize) -> Self {
        let inside = |value: usize, from: usize, length: usize| value >= from && value - from < length;
        let row = |y: usize| (0..size.0).map(move |x| inside(x, left, width) && inside(y, top, height));
        Self { width: size.0, height: size.1, regenerated: (0..size.1).flat_map(row).collect() }
    }

    /// Scales the mask to a size of the same proportions. A pixel is regenerated if it covers any part of a pixel that was.
    fn scaled(&self, width: usize, height: usize) -> Self {
        if (width, height) == (self.width, self.height) {
            return self.clone();
        }
        let span = |at: usize, to: usize, from: usize| at * from / to..((at + 1) * from).div_ceil(to);
        let columns: Vec<_> = (0..width).map(|x| span(x, width, self.width)).collect();
        let row = |y: usize| {
            let lines = &self.regenerated[self.width * span(y, height, self.height).start..];
            let lines = &lines[..self.width * span(y, height, self.height).len()];
            columns.iter().map(move |columns| lines.chunks(self.width).any(|line| line[columns.clone()].contains(&true)))
        };
        Self { width, height, regenerated: (0..height).flat_map(row).collect() }
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

/// The part of an image that an edit keeps outside the regenerated region. Outside is where the mask is not white or, in
/// outpainting, inside the smaller image. A variation has no such region.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Keep {
    /// The pixels are exactly those of the image. A soft edge within the regenerated region blends them into the generated pixels;
    /// the edge's width is 1/64 of the model's side, 16 pixels at 1024 and 1 pixel at 64.
    #[default]
    Pixels,
    /// The latent of patches without a regenerated pixel is exactly that of the image (its features in
    /// [`ImageTokens`](crate::stages::ImageTokens)). The decoder computes all pixels from the whole latent, so that they change outside
    /// the region too, most of all near it.
    Latent,
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
    keep: Keep,
}

impl FromImage {
    /// Regenerates the masked part. The mask has the image's proportions and any resolution.
    pub fn inpaint(image: Image, mask: Mask) -> Self {
        Self { image, mask: Some(mask), offset: None, kept_scales: 0, keep: Keep::default() }
    }

    /// Extends an image that is smaller than the model's. `left` and `top` are the position of its top left corner on the canvas.
    pub fn outpaint(image: Image, left: usize, top: usize) -> Self {
        Self { image, mask: None, offset: Some((left, top)), kept_scales: 0, keep: Keep::default() }
    }

    /// Keeps the coarsest scales of an image, from 1 to all but the last, and regenerates the finer ones. Few scales keep only the
    /// layout, many keep nearly everything.
    pub fn vary(image: Image, kept_scales: usize) -> Self {
        Self { image, mask: None, offset: None, kept_scales, keep: Keep::default() }
    }

    /// Keeps the coarsest scales in the regenerated part as well, so that it resembles the original.
    #[must_use]
    pub fn keep_scales(mut self, kept_scales: usize) -> Self {
        self.kept_scales = kept_scales;
        self
    }

    /// Sets what stays the same outside the regenerated region. Defaults to [`Keep::Pixels`].
    #[must_use]
    pub fn keep(mut self, keep: Keep) -> Self {
        self.keep = keep;
        self
    }

    /// Returns a description of the editing, for [`Provenance::settings`](crate::Provenance::settings).
    pub(crate) fn description(&self) -> String {
        let kind = match (&self.mask, self.offset) {
            (Some(_), _) => "inpainting",
            (None, Some(_)) => "outpainting",
            (None, None) => return "variation of an image".into(),
        };
        let keep = if self.keep == Keep::Latent { ", keep latent" } else { "" };
        format!("{kind} of an image{keep}")
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
            if mask.width as u128 * height as u128 != mask.height as u128 * width as u128 {
                return invalid(format!(
                    "it has {width} x {height} pixels, its mask {} x {}: expected a mask of the same proportions",
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

    /// Returns the pixels to keep, given the canvas and its mask; `None` if only the latent is kept or no region is masked.
    pub(crate) fn known_pixels(&self, canvas: &Image, mask: Option<&Mask>) -> Option<KnownPixels> {
        let mask = mask.filter(|_| self.keep == Keep::Pixels)?;
        let known: Vec<bool> = mask.regenerated.iter().map(|regenerated| !regenerated).collect();
        let weights = soft_edge(&known, mask.width, mask.width.div_ceil(EDGE_DIVISOR));
        Some(KnownPixels { image: canvas.clone(), weights })
    }

    /// Returns the whole canvas and its mask; `None` if no region is masked. The edge pixels of a smaller image are repeated over the
    /// rest of the canvas, so that the encoder sees no border.
    pub(crate) fn canvas(&self, side: usize) -> Result<(Image, Option<Mask>)> {
        let Some((left, top)) = self.offset else {
            return Ok((self.image.clone(), self.mask.as_ref().map(|mask| mask.scaled(side, side))));
        };
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

/// The known pixels of an image to start from.
#[derive(Clone)]
pub(crate) struct KnownPixels {
    image: Image,
    /// Weight of each generated pixel: 0 in the known region, rising to 1 away from it.
    weights: Vec<f32>,
}

impl std::fmt::Debug for KnownPixels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KnownPixels({:?})", self.image)
    }
}

impl KnownPixels {
    /// Lays the known pixels over a generated image of the same size.
    pub(crate) fn lay_over(&self, generated: &Image) -> Image {
        generated.blend(&self.image, &self.weights)
    }
}

/// Returns the weight of what is generated at each position: 0 in the known region, rising with the distance from it to 1 beyond `edge`
/// positions. Diagonal neighbours have the distance 1.
pub(crate) fn soft_edge(known: &[bool], width: usize, edge: usize) -> Vec<f32> {
    let far = edge + 1;
    let mut distances: Vec<usize> = known.iter().map(|known| if *known { 0 } else { far }).collect();
    // The first pass propagates distances to the right and down, the second to the left and up.
    let relax = |distances: &mut [usize], at: usize, neighbours: [Option<usize>; 4]| {
        let nearest = neighbours.into_iter().flatten().map(|neighbour| distances[neighbour] + 1).min();
        distances[at] = distances[at].min(nearest.unwrap_or(far));
    };
    let height = known.len() / width;
    for at in 0..known.len() {
        let (left, right, up) = (at % width > 0, at % width + 1 < width, at >= width);
        let above = |offset: usize, exists: bool| (up && exists).then(|| at + offset - width - 1);
        relax(&mut distances, at, [left.then(|| at - 1), above(0, left), above(1, true), above(2, right)]);
    }
    for at in (0..known.len()).rev() {
        let (left, right, down) = (at % width > 0, at % width + 1 < width, at / width + 1 < height);
        let below = |offset: usize, exists: bool| (down && exists).then(|| at + width - 1 + offset);
        relax(&mut distances, at, [right.then(|| at + 1), below(0, left), below(1, true), below(2, right)]);
    }
    distances.into_iter().map(|distance| distance as f32 / far as f32).collect()
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
    fn white_on_a_transparent_layer_and_a_transparent_hole_are_masks() {
        let layer = |left: [u8; 4], right: [u8; 4]| Image::from_rgba(2, 1, [left, right].as_flattened()).unwrap();
        let left = Mask::rectangle((2, 1), 0, 0, 1, 1);
        for nothing in [[0, 0, 0, 0], [255, 255, 255, 0], [0, 0, 0, 255], [255, 255, 255, 127], [127, 127, 127, 255]] {
            for white in [[255; 4], [255, 255, 255, 128], [128, 128, 128, 255]] {
                assert_eq!(Mask::from_image(&layer(white, nothing)), left, "{white:?}, {nothing:?}");
            }
        }
        assert_eq!(Mask::from_image(&layer([9, 9, 9, 0], [250, 250, 250, 255]).transparency()), left);
    }

    #[test]
    fn a_mask_of_another_resolution_is_scaled() {
        let mask = Mask::rectangle((6, 4), 3, 0, 1, 2);
        assert_eq!(mask.scaled(12, 8), Mask::rectangle((12, 8), 6, 0, 2, 4));
        assert_eq!(mask.scaled(3, 2), Mask::rectangle((3, 2), 1, 0, 1, 1));
        assert_eq!(Mask::rectangle((3, 3), 1, 1, 1, 1).scaled(4, 4), Mask::rectangle((4, 4), 1, 1, 2, 2));
        let (_, scaled) = FromImage::inpaint(image(4, 4), Mask::rectangle((8, 8), 2, 4, 4, 4)).canvas(4).unwrap();
        assert_eq!(scaled, Some(Mask::rectangle((4, 4), 1, 2, 2, 2)));
    }

    #[test]
    fn the_edge_rises_away_from_the_known_region() {
        let known: Vec<bool> = (0..32 * 32).map(|i| i % 32 < 4).collect();
        let weights = soft_edge(&known, 32, 2);
        assert!(weights.chunks(32).all(|row| row[..8] == [0.0, 0.0, 0.0, 0.0, 1.0 / 3.0, 2.0 / 3.0, 1.0, 1.0]));
        assert_eq!(soft_edge(&[true, false, false, false], 2, 0), [0.0, 1.0, 1.0, 1.0]);
        assert_eq!(soft_edge(&[false; 4], 2, 1), [1.0; 4]);
        // From every side, diagonals included.
        let middle: Vec<bool> = (0..35).map(|i| i == 17).collect();
        let half = soft_edge(&middle, 7, 1);
        let near = |i: usize| (i % 7).abs_diff(3).max((i / 7).abs_diff(2));
        assert!((0..35).all(|i| half[i] == near(i).min(2) as f32 / 2.0), "{half:?}");
    }

    #[test]
    fn known_pixels_are_laid_over_the_generated_ones() {
        let (grey, black) = (|level| Image::from_rgb(4, 4, vec![level; 48]).unwrap(), Mask::rectangle((4, 4), 0, 0, 3, 4));
        let from = FromImage::inpaint(grey(200), black.clone());
        let result = from.known_pixels(&grey(200), Some(&black)).unwrap().lay_over(&grey(100));
        assert!(result.pixels().chunks(12).all(|row| row == [100, 100, 100, 100, 100, 100, 150, 150, 150, 200, 200, 200]));
        assert!(from.keep(Keep::Latent).known_pixels(&grey(200), Some(&black)).is_none());
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
        let wide = Mask::rectangle((8, 4), 0, 0, 1, 1);
        assert!(problem(FromImage::inpaint(image(4, 4), wide)).contains("has 4 x 4 pixels, its mask 8 x 4"));
        assert!(FromImage::inpaint(image(4, 4), mask(5)).check(4, 3).is_ok());
        assert!(problem(FromImage::inpaint(image(4, 4), Mask::rectangle((4, 4), 9, 0, 1, 1))).contains("keeps everything"));
        assert!(problem(FromImage::inpaint(image(4, 4), mask(4)).keep_scales(3)).contains("expected 0 to 2 of 3"));
        assert!(FromImage::inpaint(image(4, 4), mask(4)).check(4, 3).is_ok());
        assert!(FromImage::outpaint(image(2, 3), 2, 1).check(4, 3).is_ok());
    }
}
