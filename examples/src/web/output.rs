//! Finished files: an image in the size and the format that the client asked for.

use std::sync::Arc;

use hart_core::{Image, ImageFormat};
use hart_examples::cli::image_file;
use hart_examples::cli::sign::Signing;
use image::imageops::{self, FilterType};
use image::{GrayImage, RgbImage};

/// Longest side of an image, in pixels.
pub const MAX_SIDE: usize = 4096;
/// Maximum number of pixels of an image.
pub const MAX_PIXELS: usize = 1 << 22;

/// The form of a job's files.
#[derive(Clone, Debug, Default)]
pub struct Output {
    /// Format of the files.
    pub format: ImageFormat,
    /// Width and height; `None` is the size of the drawn image or of the edited one.
    pub size: Option<(usize, usize)>,
    /// The image that is edited.
    pub original: Option<Original>,
    /// How the files are signed.
    pub signing: Signing,
}

/// An image that is edited, in its own proportions. The model edits it stretched to a square.
#[derive(Clone)]
pub struct Original {
    /// The pixels.
    pub pixels: Arc<RgbImage>,
    /// Weight of the drawn image at each pixel: 0 in the part that is kept. `None` keeps no pixel.
    pub weights: Option<Arc<GrayImage>>,
}

impl std::fmt::Debug for Original {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Original({} x {})", self.pixels.width(), self.pixels.height())
    }
}

impl Output {
    /// Returns the width and height of the files of a model that draws `side` x `side` pixels.
    pub fn size(&self, side: usize) -> (usize, usize) {
        let original = self.original.as_ref().map(|original| (original.pixels.width() as usize, original.pixels.height() as usize));
        self.size.or(original).unwrap_or((side, side))
    }

    /// Scales an image and encodes it. An image of the right size keeps its pixels.
    ///
    /// # Errors
    ///
    /// Returns an error if the format can't store the image.
    pub fn render(&self, image: &Image) -> hart_core::Result<Vec<u8>> {
        let (width, height) = self.size(image.width());
        if self.original.is_none() && (width, height) == (image.width(), image.height()) {
            return self.signing.encode(image, self.format);
        }
        let mut pixels = image_file::rgb(image);
        if let Some(original) = &self.original {
            pixels = original.paste(&pixels);
        }
        let pixels = cover(&pixels, width as u32, height as u32);
        let mut scaled = Image::from_rgb(width, height, pixels.into_raw())?.with_marks_of(&[image]);
        scaled.provenance.clone_from(&image.provenance);
        self.signing.encode(&scaled, self.format)
    }
}

impl Original {
    /// Stretches a drawn square to the proportions of the original and lays the pixels that are kept over it.
    fn paste(&self, drawn: &RgbImage) -> RgbImage {
        let mut pixels = stretch(drawn, self.pixels.width(), self.pixels.height());
        if let Some(weights) = &self.weights {
            for ((own, kept), weight) in pixels.pixels_mut().zip(self.pixels.pixels()).zip(weights.pixels()) {
                let weight = u32::from(weight.0[0]);
                for (own, &kept) in own.0.iter_mut().zip(&kept.0) {
                    *own = ((u32::from(*own) * weight + u32::from(kept) * (255 - weight) + 127) / 255) as u8;
                }
            }
        }
        pixels
    }
}

/// Scales an image without keeping its proportions.
pub fn stretch(image: &RgbImage, width: u32, height: u32) -> RgbImage {
    if image.dimensions() == (width, height) { image.clone() } else { imageops::resize(image, width, height, FilterType::Lanczos3) }
}

/// Scales an image such that it covers a size, and cuts off what is beyond it on both sides alike.
fn cover(image: &RgbImage, width: u32, height: u32) -> RgbImage {
    let (own_width, own_height) = image.dimensions();
    // The largest part with the new proportions.
    let part = |side: u32, other: u32, this: u32, that: u32| {
        let scaled = (f64::from(other) * f64::from(this) / f64::from(that)).round() as u32;
        scaled.clamp(1, side)
    };
    let (part_width, part_height) = (part(own_width, own_height, width, height), part(own_height, own_width, height, width));
    let (left, top) = ((own_width - part_width) / 2, (own_height - part_height) / 2);
    stretch(&imageops::crop_imm(image, left, top, part_width, part_height).to_image(), width, height)
}

/// Scales a size down to the limits of the server. The proportions stay.
pub fn bounded(width: usize, height: usize) -> (usize, usize) {
    let (w, h) = (width as f64, height as f64);
    let scale = (MAX_SIDE as f64 / w.max(h)).min((MAX_PIXELS as f64 / (w * h)).sqrt()).min(1.0);
    let side = |length: f64| ((length * scale).floor() as usize).max(1);
    if scale < 1.0 { (side(w), side(h)) } else { (width, height) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A square of four columns: black, red, green, white.
    fn columns() -> Image {
        let colours = [[0, 0, 0], [255, 0, 0], [0, 255, 0], [255, 255, 255]];
        Image::from_rgb(4, 4, (0..16).flat_map(|i| colours[i % 4]).collect()).unwrap()
    }

    fn render(output: &Output) -> Image {
        Image::decode("image", &output.render(&columns()).unwrap()).unwrap()
    }

    #[test]
    fn an_image_of_the_right_size_keeps_its_pixels() {
        for size in [None, Some((4, 4))] {
            assert_eq!(render(&Output { size, ..Output::default() }).pixels(), columns().pixels());
        }
    }

    #[test]
    fn other_proportions_are_cropped_at_the_centre() {
        let tall = render(&Output { size: Some((2, 4)), ..Output::default() });
        assert_eq!((tall.width(), tall.height()), (2, 4));
        assert_eq!(tall.pixels()[..6], [255, 0, 0, 0, 255, 0]);
        for size in [(9, 3), (1, 50), (37, 41), (1, 1)] {
            let image = render(&Output { size: Some(size), ..Output::default() });
            assert_eq!((image.width(), image.height()), size);
        }
    }

    #[test]
    fn the_kept_part_of_an_edited_image_stays_the_same() {
        let pixels = RgbImage::from_fn(8, 2, |x, _| image::Rgb([x as u8; 3]));
        let weights = GrayImage::from_fn(8, 2, |x, _| image::Luma([if x < 4 { 0 } else { 255 }]));
        let original = Original { pixels: Arc::new(pixels), weights: Some(Arc::new(weights)) };
        let image = render(&Output { original: Some(original), ..Output::default() });
        assert_eq!((image.width(), image.height()), (8, 2));
        assert_eq!(image.pixels()[..12], [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]);
        assert!(image.pixels()[21..24].iter().all(|&v| v > 200), "{:?}", image.pixels());
    }

    #[test]
    fn sizes_are_bounded() {
        assert_eq!(bounded(1024, 768), (1024, 768));
        for size in [(10_000, 10), (5_000, 5_000), (1, 100_000)] {
            let (width, height) = bounded(size.0, size.1);
            assert!(width.max(height) <= MAX_SIDE && width * height <= MAX_PIXELS && width.min(height) > 0, "{size:?}");
        }
    }
}
