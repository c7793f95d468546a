//! Picture files of the usual kinds, cut and resized for a model; and how alike two pictures are.

use std::error::Error;
use std::fs;
use std::path::Path;

use hart_core::Image;
use image::imageops::{FilterType, crop_imm, resize};
use image::{DynamicImage, ImageDecoder, ImageReader, Pixel, Rgba};

/// Most pixels of a file that is read, as hart-core has it for PNG files.
const MAX_PIXELS: u64 = 1 << 26;

/// A picture's middle square with `side` pixels a side; transparency is laid over white.
///
/// # Errors
///
/// The file can't be read, is no PNG, JPEG, WebP, BMP or GIF picture, or has more than 2^26 pixels.
pub fn open_square(path: &Path, side: usize) -> Result<Image, Box<dyn Error>> {
    let named = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    // A pipe would have the program wait for its writer.
    if !fs::metadata(path).map_err(|e| named(&e))?.is_file() {
        return Err(named(&"is no plain file; name a PNG, JPEG, WebP, BMP or GIF picture").into());
    }
    let reader = ImageReader::open(path).map_err(|e| named(&e))?.with_guessed_format().map_err(|e| named(&e))?;
    let decoder = reader.into_decoder().map_err(|e| named(&e))?;
    let (width, height) = decoder.dimensions();
    // A small file may hold gigabytes of one colour.
    if u64::from(width) * u64::from(height) > MAX_PIXELS {
        return Err(named(&format!("{width} x {height} pixels, at most {MAX_PIXELS} in all are read: make it smaller")).into());
    }
    let picture = DynamicImage::from_decoder(decoder).map_err(|e| named(&e))?;
    let length = width.min(height);
    let mut square = crop_imm(&picture, (width - length) / 2, (height - length) / 2, length, length).to_image();
    drop(picture);
    for pixel in square.pixels_mut() {
        let mut over_white = Rgba([255; 4]);
        over_white.blend(pixel);
        *pixel = over_white;
    }
    let resized = resize(&square, side as u32, side as u32, FilterType::Lanczos3);
    let pixels = resized.pixels().flat_map(|p| [p[0], p[1], p[2]]).collect();
    Ok(Image::from_rgb(side, side, pixels)?)
}

/// Peak signal-to-noise ratio of 8-bit pictures of one size, in decibels.
pub fn psnr(a: &Image, b: &Image) -> f64 {
    let squares = a.pixels().iter().zip(b.pixels()).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2));
    let mean = squares.sum::<f64>() / a.pixels().len() as f64;
    20.0 * 255f64.log10() - 10.0 * mean.log10()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_square_is_laid_over_white() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("wide.png");
        // Black at the sides; between them the left half is red and the right one can be seen through.
        let colour = |x: u32| [Rgba([0, 0, 0, 255]), Rgba([255, 0, 0, 255]), Rgba([0; 4]), Rgba([0, 0, 0, 255])][x as usize];
        image::RgbaImage::from_fn(4, 2, |x, _| colour(x)).save(&path).unwrap();
        assert_eq!(open_square(&path, 2).unwrap().pixels(), [255u8, 0, 0, 255, 255, 255].repeat(2));
    }

    #[test]
    fn what_is_too_large_or_no_file_is_refused_unread() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("large.bmp");
        image::RgbImage::new(1, 1).save(&path).unwrap();
        // Width and height, as the header has them.
        let mut bytes = fs::read(&path).unwrap();
        bytes[18..26].copy_from_slice(&[9000i32.to_le_bytes(); 2].concat());
        fs::write(&path, bytes).unwrap();
        let error = open_square(&path, 2).unwrap_err().to_string();
        assert!(error.contains("large.bmp: 9000 x 9000 pixels, at most 67108864"), "{error}");
        let error = open_square(folder.path(), 2).unwrap_err().to_string();
        assert!(error.contains("is no plain file"), "{error}");
    }
}
