//! Images to edit, as clients upload them.

use std::sync::Arc;

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use hart_core::{FromImage, Hart, Image, Mask};
use hart_examples::cli::image_file;
use image::GrayImage;
use image::imageops::{self, FilterType};
use tokio::sync::Semaphore;

use crate::api_error::ApiError;
use crate::output::{Original, bounded, stretch};

/// Images that are decoded at the same time; others wait. This bounds the memory for them.
static DECODERS: Semaphore = Semaphore::const_new(2);
/// Base64 with or without padding.
const BASE64: GeneralPurpose =
    GeneralPurpose::new(&alphabet::STANDARD, GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent));

/// The region of an image that is drawn again.
pub enum Region {
    /// The transparent part of a mask's file.
    Transparent(Vec<u8>),
    /// The white part of a mask's file.
    White(Vec<u8>),
    /// The black part of a mask's file.
    Black(Vec<u8>),
    /// The transparent part of the image itself, or all of it if it has none.
    Own,
}

/// An image to edit.
pub struct Upload {
    /// The file.
    pub file: Vec<u8>,
    /// The region that is drawn again.
    pub region: Region,
    /// Number of coarsest scales of the image that the region keeps.
    pub kept_scales: usize,
    /// Number of coarsest scales that are kept if all of the image is drawn again. 0 keeps nothing of the image.
    pub varied_scales: usize,
    /// Name of the field with the image, for errors.
    pub field: &'static str,
}

/// An image that is ready to be edited.
pub struct Source {
    /// The request's image; `None` if nothing of it is kept.
    pub from: Option<FromImage>,
    /// The image in its own proportions.
    pub original: Original,
    /// The prompt with which hart drew the image.
    pub prompt: Option<String>,
    /// The file.
    pub file: Arc<[u8]>,
}

impl Upload {
    /// Decodes the image and its mask on a thread of its own.
    ///
    /// # Errors
    ///
    /// Returns an error that names the field whose file is invalid.
    pub async fn open(self, hart: &Hart) -> Result<Source, ApiError> {
        let side = hart.config().resolution();
        let _permit = DECODERS.acquire().await;
        let opened = tokio::task::spawn_blocking(move || self.decode(side)).await;
        opened.map_err(|_| ApiError::internal("can't decode the image: see the server's output"))?
    }

    fn decode(self, side: usize) -> Result<Source, ApiError> {
        let decode = |field: &'static str, bytes: &[u8]| {
            Image::decode(field, bytes).map_err(|error| ApiError::bad_request(field, error.to_string()))
        };
        let image = decode(self.field, &self.file)?;
        let (width, height) = bounded(image.width(), image.height());
        let pixels = stretch(&image_file::rgb(&image), width as u32, height as u32);
        let square = stretch(&pixels, side as u32, side as u32);
        let square = Image::from_rgb(side, side, square.into_raw())?;
        let region = match self.region {
            Region::Own => Some(levels(&image.transparency())).filter(is_marked),
            Region::Transparent(file) => Some(marked("mask", levels(&decode("mask", &file)?.transparency()), "transparent")?),
            Region::White(file) => Some(marked("mask", light(&decode("mask", &file)?), "white")?),
            Region::Black(file) => {
                let mut region = light(&decode("mask", &file)?);
                imageops::invert(&mut region);
                Some(marked("mask", region, "black")?)
            }
        };
        let weights = region.as_ref().map(|region| Arc::new(weights(region, side as u32, width as u32, height as u32)));
        let from = match &region {
            Some(region) => {
                let mask = hard(region, side as u32, side as u32);
                let rgb = Image::from_rgb(side, side, mask.pixels().flat_map(|p| [p.0[0]; 3]).collect())?;
                if !is_marked(&mask) {
                    return Err(ApiError::bad_request("mask", "the region to redraw is too small for the model: enlarge it"));
                }
                Some(FromImage::inpaint(square, Mask::from_image(&rgb)).keep_scales(self.kept_scales))
            }
            None => (self.varied_scales > 0).then(|| FromImage::vary(square, self.varied_scales)),
        };
        let prompt = image.provenance.map(|provenance| provenance.prompt).filter(|prompt| !prompt.trim().is_empty());
        Ok(Source { from, original: Original { pixels: Arc::new(pixels), weights }, prompt, file: self.file.into() })
    }
}

/// Returns the first channel.
fn levels(image: &Image) -> GrayImage {
    grey(image, |pixel| pixel[0])
}

/// Returns the mean of the channels, which is black where the image is transparent.
fn light(image: &Image) -> GrayImage {
    let transparency = levels(&image.transparency());
    let mut light = grey(image, |pixel| (pixel.iter().map(|&v| u32::from(v)).sum::<u32>() / 3) as u8);
    // Transparent pixels have been laid over white.
    for (own, transparency) in light.pixels_mut().zip(transparency.pixels()) {
        own.0[0] = own.0[0].saturating_sub(transparency.0[0]);
    }
    light
}

fn grey(image: &Image, level: impl Fn(&[u8]) -> u8) -> GrayImage {
    let levels = image.pixels().chunks_exact(3).map(level).collect();
    GrayImage::from_raw(image.width() as u32, image.height() as u32, levels).expect("one level per pixel")
}

/// Returns whether a mask marks any pixel.
fn is_marked(mask: &GrayImage) -> bool {
    mask.pixels().any(|pixel| pixel.0[0] >= 128)
}

fn marked(field: &'static str, mask: GrayImage, kind: &str) -> Result<GrayImage, ApiError> {
    if is_marked(&mask) {
        return Ok(mask);
    }
    Err(ApiError::bad_request(field, format!("no pixel is {kind}, so that nothing would be drawn again")))
}

/// Scales a mask; each pixel is 0 or 255.
fn hard(mask: &GrayImage, width: u32, height: u32) -> GrayImage {
    let mut scaled = imageops::resize(mask, width, height, FilterType::Triangle);
    scaled.pixels_mut().for_each(|pixel| pixel.0[0] = if pixel.0[0] >= 128 { 255 } else { 0 });
    scaled
}

/// Returns the weight of the drawn image at each pixel: 0 outside the mask, and rising inside it over a pixel of the model.
fn weights(mask: &GrayImage, side: u32, width: u32, height: u32) -> GrayImage {
    let soft = imageops::resize(&hard(mask, side, side), width, height, FilterType::Triangle);
    let mut weights = imageops::resize(mask, width, height, FilterType::Nearest);
    for (weight, soft) in weights.pixels_mut().zip(soft.pixels()) {
        weight.0[0] = if weight.0[0] >= 128 { soft.0[0] } else { 0 };
    }
    weights
}

/// Decodes an image that is sent as text: base64, or a `data:` URL.
///
/// # Errors
///
/// Returns an error that names the field for other text. Addresses are not fetched.
pub fn decode_text(field: &'static str, text: &str) -> Result<Vec<u8>, ApiError> {
    if text.starts_with("http://") || text.starts_with("https://") {
        return Err(ApiError::bad_request(field, "addresses are not fetched: send the image as base64 or as a data: URL"));
    }
    let encoded = match text.strip_prefix("data:") {
        Some(rest) => rest.split_once(";base64,").map_or("", |(_, encoded)| encoded),
        None => text,
    };
    let encoded: String = encoded.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    match BASE64.decode(encoded) {
        Ok(bytes) if !bytes.is_empty() => Ok(bytes),
        _ => Err(ApiError::bad_request(field, "expected an image as base64 or as a data: URL")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upload(file: Vec<u8>, region: Region) -> Upload {
        Upload { file, region, kept_scales: 0, varied_scales: 3, field: "image" }
    }

    fn png(width: usize, height: usize, pixel: impl Fn(usize, usize) -> [u8; 4]) -> Vec<u8> {
        let mut bytes = std::io::Cursor::new(Vec::new());
        let image = image::RgbaImage::from_fn(width as u32, height as u32, |x, y| image::Rgba(pixel(x as usize, y as usize)));
        image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
        bytes.into_inner()
    }

    #[test]
    fn every_kind_of_mask_marks_the_same_region() {
        let photo = || png(8, 4, |x, _| [x as u8, 0, 0, 255]);
        let mask = |inside: [u8; 4], outside: [u8; 4]| png(16, 8, |x, _| if x < 8 { inside } else { outside });
        let (white, black, clear) = ([255; 4], [0, 0, 0, 255], [0; 4]);
        let regions = [
            Region::White(mask(white, black)),
            Region::White(mask(white, clear)),
            Region::Black(mask(black, white)),
            Region::Transparent(mask(clear, black)),
        ];
        for region in regions {
            let source = upload(photo(), region).decode(16).unwrap();
            let weights = source.original.weights.unwrap();
            assert!((0..8).all(|x| (weights.get_pixel(x, 1).0[0] > 0) == (x < 4)), "{weights:?}");
            assert_eq!(source.original.pixels.dimensions(), (8, 4));
            assert!(source.from.is_some());
        }
        let own = upload(png(8, 8, |x, _| [9, 9, 9, if x < 4 { 0 } else { 255 }]), Region::Own).decode(16).unwrap();
        assert!(own.original.weights.is_some());
        assert!(upload(photo(), Region::Own).decode(16).unwrap().original.weights.is_none());
    }

    #[test]
    fn invalid_files_are_refused() {
        let photo = || png(8, 4, |_, _| [1, 2, 3, 255]);
        assert!(upload(b"no image".to_vec(), Region::Own).decode(16).is_err());
        assert!(upload(photo(), Region::White(photo())).decode(16).is_err());
        assert!(upload(photo(), Region::Transparent(photo())).decode(16).is_err());
        for text in ["", "https://example.com/x.png", "data:image/png,abc", "***", "data:image/png;base64,"] {
            assert!(decode_text("image", text).is_err(), "{text}");
        }
        assert_eq!(decode_text("image", "data:image/png;base64,AQI").unwrap(), [1, 2]);
        assert_eq!(decode_text("image", "AQ\nI=").unwrap(), [1, 2]);
    }
}
