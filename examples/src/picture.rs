//! Picture files of the usual kinds, cut and resized for a model; and how alike two pictures are.

use std::error::Error;
use std::path::Path;

use hart_core::Image;
use image::imageops::FilterType;

/// A picture's middle square with `side` pixels a side; transparency is laid over white.
///
/// # Errors
///
/// The file can't be read or is no PNG, JPEG, WebP, BMP or GIF picture.
pub fn open_square(path: &Path, side: usize) -> Result<Image, Box<dyn Error>> {
    let named = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    let reader = image::ImageReader::open(path).map_err(|e| named(&e))?;
    let picture = reader.with_guessed_format().map_err(|e| named(&e))?.decode().map_err(|e| named(&e))?;
    let mut over_white = image::RgbaImage::from_pixel(picture.width(), picture.height(), image::Rgba([255; 4]));
    image::imageops::overlay(&mut over_white, &picture.to_rgba8(), 0, 0);
    let square = over_white.width().min(over_white.height());
    let (left, top) = ((over_white.width() - square) / 2, (over_white.height() - square) / 2);
    let cropped = image::imageops::crop_imm(&over_white, left, top, square, square).to_image();
    let resized = image::imageops::resize(&cropped, side as u32, side as u32, FilterType::Lanczos3);
    let pixels = resized.pixels().flat_map(|p| [p[0], p[1], p[2]]).collect();
    Ok(Image::from_rgb(side, side, pixels)?)
}

/// Peak signal-to-noise ratio of 8-bit pictures of one size, in decibels.
pub fn psnr(a: &Image, b: &Image) -> f64 {
    let squares = a.pixels().iter().zip(b.pixels()).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2));
    let mean = squares.sum::<f64>() / a.pixels().len() as f64;
    20.0 * 255f64.log10() - 10.0 * mean.log10()
}
