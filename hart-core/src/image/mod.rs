//! 8-bit RGB images.

mod format;
mod marks;
mod orientation;
mod pixels;
mod png_file;
mod provenance;
mod read;

pub use format::ImageFormat;
pub use marks::Marks;
pub use pixels::PixelFormat;
pub use provenance::{DigitalSource, GenerationSettings, Provenance};

use rayon::prelude::*;
use std::borrow::Borrow;
use std::sync::Arc;

use crate::error::{Error, Result};

/// Number of pixels that one task quantises.
const PIXELS_PER_TASK: usize = 1 << 14;
/// Maximum length in bytes of a text in an image file.
pub(crate) const MAX_TEXT_BYTES: usize = 1 << 20;

/// An 8-bit RGB image. Clones share the pixels. Transparent pixels are composited over white; their alpha remains known to
/// [`Mask::from_image`](crate::Mask::from_image) and [`Self::transparency`].
#[derive(Clone, PartialEq)]
pub struct Image {
    width: usize,
    height: usize,
    pixels: Arc<Vec<u8>>,
    /// Alpha of each pixel, from 0 (transparent) to 255; `None` if all pixels are opaque.
    alpha: Option<Arc<Vec<u8>>>,
    /// The prompt, seed and settings, if hart generated the image.
    pub provenance: Option<Provenance>,
    /// The marks that files of this image get. Defaults to all.
    pub marks: Marks,
    /// The part of AI in an image without a provenance, such as a grid of generated images.
    source: Option<DigitalSource>,
}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Image({} x {}, {:?})", self.width, self.height, self.provenance)
    }
}

impl Image {
    /// Creates an image from its pixels: three bytes each, row by row from the top left.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] if the length is not `3 * width * height`, or 0.
    pub fn from_rgb(width: usize, height: usize, pixels: Vec<u8>) -> Result<Self> {
        let expected = width.checked_mul(height).and_then(|n| n.checked_mul(3));
        if expected != Some(pixels.len()) || pixels.is_empty() {
            let problem =
                format!("{} bytes for {width} x {height} pixels, expected 3 a pixel and at least one pixel", pixels.len());
            return Err(Error::request("image", problem));
        }
        Ok(Self { width, height, pixels: Arc::new(pixels), alpha: None, provenance: None, marks: Marks::ALL, source: None })
    }

    /// Creates an image from pixels with alpha: four bytes each, row by row from the top left. Transparent pixels are composited over
    /// white.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] if the length is not `4 * width * height`, or 0.
    pub fn from_rgba(width: usize, height: usize, pixels: &[u8]) -> Result<Self> {
        let expected = width.checked_mul(height).and_then(|n| n.checked_mul(4));
        if expected != Some(pixels.len()) {
            let problem =
                format!("{} bytes for {width} x {height} pixels, expected 4 a pixel and at least one pixel", pixels.len());
            return Err(Error::request("image", problem));
        }
        let over_white = |v: u8, alpha: u8| ((u32::from(v) * u32::from(alpha) + 255 * (255 - u32::from(alpha)) + 127) / 255) as u8;
        let colours = pixels.chunks_exact(4).flat_map(|p| [0, 1, 2].map(|i| over_white(p[i], p[3])));
        let mut image = Self::from_rgb(width, height, colours.collect())?;
        if pixels.iter().skip(3).step_by(4).any(|alpha| *alpha < 255) {
            image.alpha = Some(Arc::new(pixels.iter().skip(3).step_by(4).copied().collect()));
        }
        Ok(image)
    }

    /// Quantises planes `[3, height, width]` with values from -1 to 1 to the nearest levels.
    pub(crate) fn from_planes(planes: &[f32], width: usize, height: usize) -> Result<Self> {
        if !planes.iter().all(|v| v.is_finite()) {
            return Err(Error::Overflow { what: "the decoded pixels".into() });
        }
        let size = width * height;
        // Rounds halves up with comparisons, since `round` calls the C library on many processors.
        let level = |v: f32| {
            let level = ((v + 1.0) * 0.5 * 255.0).clamp(0.0, 255.0);
            let below = level as u8;
            below + u8::from(level - f32::from(below) >= 0.5)
        };
        let mut pixels = vec![0; 3 * size];
        pixels.par_chunks_mut(3 * PIXELS_PER_TASK).enumerate().for_each(|(part, pixels)| {
            for (i, pixel) in pixels.chunks_exact_mut(3).enumerate() {
                let at = part * PIXELS_PER_TASK + i;
                pixel.copy_from_slice(&[planes[at], planes[size + at], planes[2 * size + at]].map(level));
            }
        });
        Ok(Self { width, height, pixels: Arc::new(pixels), alpha: None, provenance: None, marks: Marks::ALL, source: None })
    }

    /// Returns the planes `[3, height, width]` with values from -1 to 1.
    pub(crate) fn planes(&self) -> Vec<f32> {
        let plane = |channel: usize| self.pixels.iter().skip(channel).step_by(3).map(|&v| f32::from(v) / 127.5 - 1.0);
        (0..3).flat_map(plane).collect()
    }

    /// Returns the planes of several images, `[images, 3, height, width]`.
    pub(crate) fn planes_of(images: &[Self]) -> Vec<f32> {
        images.par_iter().flat_map_iter(Self::planes).collect()
    }

    /// Blends the image with another one of the same size. A weight of 0 takes the pixel of `other`, a weight of 1 that of this image.
    pub(crate) fn blend(&self, other: &Self, weights: &[f32]) -> Self {
        let pixels = self.pixels.chunks_exact(3).zip(other.pixels.chunks_exact(3)).zip(weights);
        let mix = |own: u8, other: u8, weight: f32| (f32::from(other) + weight * (f32::from(own) - f32::from(other)) + 0.5) as u8;
        let pixels = pixels.flat_map(|((own, other), &weight)| [0, 1, 2].map(|i| mix(own[i], other[i], weight))).collect();
        Self { pixels: Arc::new(pixels), ..self.clone() }
    }

    pub(crate) fn with_provenance(self, provenance: Provenance, marks: Marks) -> Self {
        Self { provenance: Some(provenance), marks, source: None, ..self }
    }

    /// Marks an image without a provenance as AI's work, such as a preview.
    pub(crate) fn with_source(self, source: DigitalSource, marks: Marks) -> Self {
        Self { marks, source: Some(source), ..self }
    }

    /// Marks an image that was made of others as AI's work if one of them is. It gets the marks that all of them get.
    #[must_use]
    pub fn with_marks_of<I: Borrow<Self>>(self, images: &[I]) -> Self {
        let sources = || images.iter().filter_map(|image| image.borrow().digital_source());
        let source = sources().find(|source| *source == DigitalSource::Composite).or(sources().next());
        let marks = images.iter().fold(Marks::ALL, |marks, image| marks.without(Marks::ALL.without(image.borrow().marks)));
        Self { marks, source, ..self }
    }

    /// Returns the part of AI in the image; `None` if it is not known to have one.
    pub fn digital_source(&self) -> Option<DigitalSource> {
        self.provenance.as_ref().map(Provenance::digital_source).or(self.source)
    }

    /// Sets what was read from a file. A provenance contains the source.
    fn with_marks_read(self, (provenance, source): (Option<Provenance>, Option<DigitalSource>)) -> Self {
        let source = source.filter(|_| provenance.is_none());
        Self { provenance, source, ..self }
    }

    /// Returns the keywords and texts of the chunks with which [`Self::to_png`] marks a PNG file, for programs that write other PNG files,
    /// such as animations.
    pub fn png_texts(&self) -> Vec<(&'static str, String)> {
        marks::png_texts(self)
    }

    /// Returns the width in pixels.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Returns the height in pixels.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Returns the pixels: three bytes each, row by row from the top left.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// Returns an image of the same size that is white where this one is transparent and black where it is opaque. It makes a mask of an
    /// image with a transparent hole.
    #[must_use]
    pub fn transparency(&self) -> Self {
        let pixels = match &self.alpha {
            Some(alpha) => alpha.iter().flat_map(|alpha| [255 - alpha; 3]).collect(),
            None => vec![0; self.pixels.len()],
        };
        Self {
            width: self.width,
            height: self.height,
            pixels: Arc::new(pixels),
            alpha: None,
            provenance: None,
            marks: Marks::ALL,
            source: None,
        }
    }

    /// Returns the mean of each pixel's channels times its alpha, from 0 to 255.
    pub(crate) fn light(&self) -> Vec<u8> {
        let mean = |pixel: &[u8]| pixel.iter().map(|&v| u32::from(v)).sum::<u32>() / 3;
        let means = self.pixels.chunks_exact(3).map(mean);
        match &self.alpha {
            // Compositing over white added what the alpha lacks.
            Some(alpha) => means.zip(&**alpha).map(|(mean, &alpha)| mean.saturating_sub(255 - u32::from(alpha)) as u8).collect(),
            None => means.map(|mean| mean as u8).collect(),
        }
    }

    /// Returns a part of the image, with its alpha and without its provenance. The top left corner is at (`left`, `top`).
    ///
    /// # Errors
    ///
    /// [`Error::Request`] if the part has no pixels or reaches beyond the image.
    pub fn crop(&self, left: usize, top: usize, width: usize, height: usize) -> Result<Self> {
        let fits = |start: usize, length: usize, all: usize| length > 0 && start.checked_add(length).is_some_and(|end| end <= all);
        if !fits(left, width, self.width) || !fits(top, height, self.height) {
            let part = format!("{width} x {height} pixels at ({left}, {top})");
            let problem = format!("{part}, expected a part of the {} x {} pixels", self.width, self.height);
            return Err(Error::request("image", problem));
        }
        let part = |values: &[u8], channels: usize| {
            let rows = values.chunks_exact(channels * self.width).skip(top).take(height);
            Arc::new(rows.flat_map(|row| &row[channels * left..][..channels * width]).copied().collect::<Vec<u8>>())
        };
        let alpha = self.alpha.as_ref().map(|alpha| part(alpha, 1));
        let (marks, source) = (self.marks, self.digital_source());
        Ok(Self { width, height, pixels: part(&self.pixels, 3), alpha, provenance: None, marks, source })
    }

    /// Arranges images of one size in rows of `columns`. Unused cells are white.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] if there is no image, the sizes differ, `columns` is 0, or there is not enough memory.
    pub fn grid<I: Borrow<Self>>(images: &[I], columns: usize) -> Result<Self> {
        let images: Vec<&Self> = images.iter().map(Borrow::borrow).collect();
        let Some(first) = images.first() else { return Err(Error::request("grid", "there is no image")) };
        if columns == 0 || images.iter().any(|i| (i.width, i.height) != (first.width, first.height)) {
            return Err(Error::request("grid", "expected images of one size and at least one column"));
        }
        let (width, columns) = (first.width, columns.min(images.len()));
        let rows = images.len().div_ceil(columns);
        let (whole, mut pixels) = (3 * width * columns * first.height * rows, Vec::new());
        let no_memory = |_| Error::request("grid", format!("there is no memory for {whole} bytes: use fewer images"));
        pixels.try_reserve_exact(whole).map_err(no_memory)?;
        pixels.resize(whole, 255);
        for (index, image) in images.iter().enumerate() {
            let (left, top) = (index % columns * width, index / columns * first.height);
            for (y, line) in image.pixels.chunks(3 * width).enumerate() {
                let start = 3 * ((top + y) * columns * width + left);
                pixels[start..start + line.len()].copy_from_slice(line);
            }
        }
        Ok(Self::from_rgb(width * columns, first.height * rows, pixels)?.with_marks_of(&images))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a small image with distinct pixels.
    pub(super) fn checker() -> Image {
        let pixels = (0..4 * 3).flat_map(|i| [i as u8 * 20, 255 - i as u8, (i % 2) as u8 * 255]).collect();
        Image::from_rgb(4, 3, pixels).unwrap()
    }

    #[test]
    fn planes_round_to_the_nearest_level_and_back() {
        let image = checker();
        assert_eq!(Image::from_planes(&image.planes(), 4, 3).unwrap(), image);
        assert!(Image::from_planes(&[f32::NAN; 3], 1, 1).is_err());
        assert!(Image::from_rgb(2, 2, vec![0; 11]).is_err());
        assert!(Image::from_rgb(usize::MAX, 2, vec![0; 12]).is_err());
    }

    #[test]
    fn light_is_that_of_the_colour_times_alpha() {
        let pixels = [[255, 255, 255, 255], [255, 255, 255, 0], [0, 0, 0, 0], [255, 255, 255, 100], [90, 120, 150, 255]];
        let image = Image::from_rgba(5, 1, pixels.as_flattened()).unwrap();
        assert_eq!(image.pixels()[..12], [255; 12]);
        assert_eq!(image.light(), [255, 0, 0, 100, 120]);
        let holes: Vec<u8> = image.transparency().pixels().iter().step_by(3).copied().collect();
        assert_eq!(holes, [0, 255, 255, 155, 0]);
        let opaque = Image::from_rgba(1, 1, &[1, 2, 3, 255]).unwrap();
        assert_eq!(opaque, Image::from_rgb(1, 1, vec![1, 2, 3]).unwrap());
        assert_eq!(opaque.transparency().pixels(), [0; 3]);
        assert!(Image::from_rgba(2, 1, &[0; 7]).unwrap_err().to_string().contains("7 bytes for 2 x 1 pixels, expected 4"));
        assert!(Image::from_rgba(0, 1, &[]).is_err());
    }

    #[test]
    fn a_part_has_the_colours_and_the_alpha_of_the_image() {
        let pixels: Vec<[u8; 4]> = (0..12).map(|i| [i, 2 * i, 3 * i, if i == 6 { 9 } else { 255 }]).collect();
        let image = Image::from_rgba(4, 3, pixels.as_flattened()).unwrap();
        let part = image.crop(1, 1, 2, 2).unwrap();
        let expected = [5, 6, 9, 10].map(|i: usize| pixels[i]);
        assert_eq!(part, Image::from_rgba(2, 2, expected.as_flattened()).unwrap());
        for (left, top, width, height) in [(3, 0, 2, 1), (0, 2, 1, 2), (0, 0, 0, 1), (usize::MAX, 0, 2, 1)] {
            assert!(image.crop(left, top, width, height).unwrap_err().to_string().contains("expected a part of the 4 x 3 pixels"));
        }
    }

    #[test]
    fn grid_places_images_row_by_row() {
        let images = vec![checker(), checker(), checker()];
        let grid = Image::grid(&images, 2).unwrap();
        assert_eq!((grid.width(), grid.height()), (8, 6));
        assert_eq!(grid.pixels()[3 * 4..3 * 8], checker().pixels()[..12]);
        assert_eq!(grid.pixels()[3 * (3 * 8 + 4)..3 * (3 * 8 + 8)], [255; 12]);
        assert!(Image::grid::<Image>(&[], 2).is_err());
    }
}
