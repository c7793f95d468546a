//! Enlarges small images for display.

use hart_core::Image;
use image::RgbImage;
use image::imageops::{FilterType, resize};

/// Converts an image to the type of the crate `image`.
pub fn rgb(image: &Image) -> RgbImage {
    let side = |pixels: usize| u32::try_from(pixels).expect("an image has fewer than 2^32 pixels a side");
    RgbImage::from_raw(side(image.width()), side(image.height()), image.pixels().to_vec()).expect("three bytes a pixel")
}

/// Enlarges an image by the smallest integer factor that makes its longer side at least `least` pixels. Each pixel becomes a square.
pub fn at_least(image: &Image, least: u32) -> RgbImage {
    let image = rgb(image);
    let factor = least.div_ceil(image.width().max(image.height())).max(1);
    if factor == 1 { image } else { resize(&image, image.width() * factor, image.height() * factor, FilterType::Nearest) }
}
