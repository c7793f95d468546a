//! Small pictures, made large enough to see.

use hart_core::Image;
use image::RgbImage;
use image::imageops::{FilterType, resize};

/// The picture in the crate `image`'s type.
pub fn rgb(picture: &Image) -> RgbImage {
    let side = |pixels: usize| u32::try_from(pixels).expect("pictures have fewer than 2^32 pixels a side");
    RgbImage::from_raw(side(picture.width()), side(picture.height()), picture.pixels().to_vec()).expect("three bytes a pixel")
}

/// The picture enlarged by the smallest whole number that gives it a side of at least `least` pixels: every pixel becomes a square.
pub fn at_least(picture: &Image, least: u32) -> RgbImage {
    let picture = rgb(picture);
    let factor = least.div_ceil(picture.width().max(picture.height())).max(1);
    if factor == 1 { picture } else { exactly(&picture, picture.width() * factor, picture.height() * factor) }
}

/// The picture at this size, its pixels repeated.
pub fn exactly(picture: &RgbImage, width: u32, height: u32) -> RgbImage {
    resize(picture, width, height, FilterType::Nearest)
}
