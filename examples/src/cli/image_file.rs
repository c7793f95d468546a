//! Reads image files of the usual formats for a model, and converts and compares images.

use std::error::Error;
use std::fs;
use std::path::Path;

use hart_core::Image;
use image::imageops::{FilterType, crop_imm, resize};
use image::{DynamicImage, ImageDecoder, ImageReader, Pixel, RgbImage, Rgba};

/// Maximum number of pixels of a file, the same as hart-core's for PNG files.
const MAX_PIXELS: u64 = 1 << 26;

/// Reads an image file, crops its central square and resizes it to `side` x `side` pixels. Transparent pixels are blended with
/// white.
///
/// # Errors
///
/// Returns an error if the file can't be read, is not a PNG, JPEG, WebP, BMP or GIF image, or has more than 2^26 pixels.
pub fn open_square(path: &Path, side: usize) -> Result<Image, Box<dyn Error>> {
    let error = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    // Opening a pipe would block until something writes to it.
    if !fs::metadata(path).map_err(|e| error(&e))?.is_file() {
        return Err(error(&"not a regular file, expected a PNG, JPEG, WebP, BMP or GIF image").into());
    }
    let reader = ImageReader::open(path).map_err(|e| error(&e))?.with_guessed_format().map_err(|e| error(&e))?;
    let decoder = reader.into_decoder().map_err(|e| error(&e))?;
    let (width, height) = decoder.dimensions();
    // A small file can decompress to gigabytes.
    if u64::from(width) * u64::from(height) > MAX_PIXELS {
        return Err(error(&format!("has {width} x {height} pixels, expected at most {MAX_PIXELS} in all; make it smaller")).into());
    }
    let image = DynamicImage::from_decoder(decoder).map_err(|e| error(&e))?;
    let length = width.min(height);
    let mut square = crop_imm(&image, (width - length) / 2, (height - length) / 2, length, length).to_image();
    drop(image);
    for pixel in square.pixels_mut() {
        let mut over_white = Rgba([255; 4]);
        over_white.blend(pixel);
        *pixel = over_white;
    }
    let resized = resize(&square, side as u32, side as u32, FilterType::Lanczos3);
    let pixels = resized.pixels().flat_map(|p| [p[0], p[1], p[2]]).collect();
    Ok(Image::from_rgb(side, side, pixels)?)
}

/// Converts an image to the type of the crate `image`.
pub fn rgb(image: &Image) -> RgbImage {
    let side = |pixels: usize| u32::try_from(pixels).expect("each side of an image has fewer than 2^32 pixels");
    RgbImage::from_raw(side(image.width()), side(image.height()), image.pixels().to_vec()).expect("three bytes per pixel")
}

/// Returns the peak signal-to-noise ratio of two 8-bit images of the same size, in decibels.
pub fn psnr(a: &Image, b: &Image) -> f64 {
    let squares = a.pixels().iter().zip(b.pixels()).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2));
    let mean = squares.sum::<f64>() / a.pixels().len() as f64;
    20.0 * 255f64.log10() - 10.0 * mean.log10()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_central_square_is_blended_with_white() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("wide.png");
        // Black edges; the central square is red on the left and transparent on the right.
        let colour = |x: u32| [Rgba([0, 0, 0, 255]), Rgba([255, 0, 0, 255]), Rgba([0; 4]), Rgba([0, 0, 0, 255])][x as usize];
        image::RgbaImage::from_fn(4, 2, |x, _| colour(x)).save(&path).unwrap();
        assert_eq!(open_square(&path, 2).unwrap().pixels(), [255u8, 0, 0, 255, 255, 255].repeat(2));
    }

    #[test]
    fn a_large_image_or_a_folder_is_refused_before_decoding() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("large.bmp");
        image::RgbImage::new(1, 1).save(&path).unwrap();
        // Width and height in the header.
        let mut bytes = fs::read(&path).unwrap();
        bytes[18..26].copy_from_slice(&[9000i32.to_le_bytes(); 2].concat());
        fs::write(&path, bytes).unwrap();
        let error = open_square(&path, 2).unwrap_err().to_string();
        assert!(error.contains("large.bmp: has 9000 x 9000 pixels, expected at most 67108864"), "{error}");
        let error = open_square(folder.path(), 2).unwrap_err().to_string();
        assert!(error.contains("not a regular file"), "{error}");
    }
}
