//! Reads image files of the usual formats for a model, and converts and compares images.

use std::error::Error;
use std::fs;
use std::io::{BufReader, Read};
use std::path::Path;

use hart_core::Image;
use image::imageops::{FilterType, resize};
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, RgbImage};

/// Maximum number of pixels of a file, the same as hart-core's.
const MAX_PIXELS: u64 = 1 << 26;

/// Reads an image file, turns it upright as its EXIF orientation says, crops its central square and resizes it to `side` x `side`
/// pixels. Transparent pixels are blended with white.
///
/// # Errors
///
/// Like [`open`].
pub fn open_square(path: &Path, side: usize) -> Result<Image, Box<dyn Error>> {
    square(&open(path)?, side)
}

/// Crops the central square of an image and resizes it to `side` x `side` pixels.
///
/// # Errors
///
/// Returns an error if `side` is 0.
pub fn square(image: &Image, side: usize) -> Result<Image, Box<dyn Error>> {
    let resized = resize(&rgb(&central_square(image)?), side as u32, side as u32, FilterType::Lanczos3);
    Ok(Image::from_rgb(side, side, resized.into_raw())?)
}

/// Reads the mask of an image and crops its central square, but does not resize it. The result has the alpha of the file.
///
/// # Errors
///
/// Like [`open`]. Returns an error that names both sizes if mask and image have different proportions. If their sizes differ, one pixel
/// and one percent of rounding are allowed.
pub fn open_mask(path: &Path, image: &Image) -> Result<Image, Box<dyn Error>> {
    let mask = open(path)?;
    let [mask_size, size] = [&mask, image].map(|image| (image.width(), image.height()));
    if !same_proportions(mask_size, size) {
        return Err(format!(
            "{}: has {} x {} pixels, but the image has {} x {}: expected a mask of the same proportions",
            path.display(),
            mask_size.0,
            mask_size.1,
            size.0,
            size.1
        )
        .into());
    }
    Ok(central_square(&mask)?)
}

/// Returns whether a mask looks like those of OpenAI's image API: opaque, except for a transparent part. Its opaque part is the image, or
/// of one colour. An opaque part that is white could also be a layer with the region that is to be regenerated, unless it is all around
/// the image.
pub fn has_hole(mask: &Image) -> bool {
    const OPAQUE: u8 = 0;
    /// Least mean of the channels of white.
    const WHITE: u32 = 250;
    let transparency = mask.transparency();
    let transparencies: Vec<u8> = transparency.pixels().iter().step_by(3).copied().collect();
    let (width, height) = (mask.width(), mask.height());
    let is_edge = |index: usize| {
        let (x, y) = (index % width, index / width);
        x == 0 || y == 0 || x + 1 == width || y + 1 == height
    };
    let is_white = |pixel: &[u8]| pixel.iter().map(|&value| u32::from(value)).sum::<u32>() >= 3 * WHITE;
    let opaque = || transparencies.iter().zip(mask.pixels().chunks_exact(3)).filter(|(transparency, _)| **transparency == OPAQUE);
    let is_opaque_around =
        transparencies.iter().enumerate().all(|(index, &transparency)| !is_edge(index) || transparency == OPAQUE);
    transparencies.contains(&u8::MAX) && (is_opaque_around || opaque().any(|(_, pixel)| !is_white(pixel)))
}

/// Returns whether two sizes have the same proportions, up to the rounding of a resized image.
fn same_proportions(a: (usize, usize), b: (usize, usize)) -> bool {
    let (one, other) = (a.0 * b.1, a.1 * b.0);
    let difference = one.abs_diff(other);
    // A pixel of either image changes a product by a side of the other.
    let pixel = a.0.max(a.1).max(b.0).max(b.1);
    a == b || (difference <= pixel && difference * 100 <= one)
}

/// Crops the central square.
fn central_square(image: &Image) -> Result<Image, hart_core::Error> {
    let (width, height) = (image.width(), image.height());
    let side = width.min(height);
    image.crop((width - side) / 2, (height - side) / 2, side, side)
}

/// Reads an image file: PNG, JPEG or WebP as the library does, and also BMP and GIF.
///
/// # Errors
///
/// Returns an error if the file can't be read, is no such image, is truncated, or has more than 2^26 pixels.
pub fn open(path: &Path) -> Result<Image, Box<dyn Error>> {
    // Opening a pipe would block until something writes to it.
    if fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
        return Err(format!("{}: not a regular file, expected a PNG, JPEG, WebP, BMP or GIF image", path.display()).into());
    }
    match other_format(path) {
        Some(format) => read(path, format).map_err(|problem| format!("{}: {problem}", path.display()).into()),
        None => Ok(Image::open(path)?),
    }
}

/// Returns the format of a file that the library does not read.
fn other_format(path: &Path) -> Option<ImageFormat> {
    let mut start = [0; 4];
    fs::File::open(path).ok()?.read_exact(&mut start).ok()?;
    match &start {
        [b'B', b'M', ..] => Some(ImageFormat::Bmp),
        b"GIF8" => Some(ImageFormat::Gif),
        _ => None,
    }
}

/// Reads a file that the library does not read. An error is the problem without the path.
fn read(path: &Path, format: ImageFormat) -> Result<Image, Box<dyn Error>> {
    let decoder = ImageReader::with_format(BufReader::new(fs::File::open(path)?), format).into_decoder()?;
    let (width, height) = decoder.dimensions();
    // A small file can decompress to gigabytes.
    if u64::from(width) * u64::from(height) > MAX_PIXELS {
        return Err(format!("has {width} x {height} pixels, expected at most {MAX_PIXELS} in all; make it smaller").into());
    }
    let image = DynamicImage::from_decoder(decoder)?.into_rgba8();
    Ok(Image::from_rgba(width as usize, height as usize, &image)?)
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
    use image::codecs::{jpeg::JpegEncoder, png::PngEncoder, webp::WebPEncoder};
    use image::{ImageEncoder, Rgba};

    /// Prefix that some programs write before the EXIF data of a WebP file.
    const EXIF_PREFIX: &[u8] = b"Exif\0\0";

    #[test]
    fn a_git_lfs_pointer_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("photo.jpg");
        fs::write(&path, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n").unwrap();
        let error = open_square(&path, 2).unwrap_err().to_string();
        assert!(error.contains("photo.jpg: is a Git LFS pointer") && error.contains("git lfs pull"), "{error}");
    }

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
    /// An image whose four quarters differ, 8 pixels wide and 6 high.
    fn quarters() -> DynamicImage {
        let colour =
            |x: u32, y: u32| if y < 3 { [220, 30 + 150 * u8::from(x >= 4), 30] } else { [30, 40, 220 - 150 * u8::from(x >= 4)] };
        DynamicImage::ImageRgb8(image::RgbImage::from_fn(8, 6, |x, y| image::Rgb(colour(x, y))))
    }

    /// EXIF data that consists of an orientation.
    fn exif(orientation: u8) -> Vec<u8> {
        let entry = [0x12, 0x01, 3, 0, 1, 0, 0, 0, orientation, 0, 0, 0];
        [&b"II*\0\x08\0\0\0\x01\0"[..], &entry, &[0; 4]].concat()
    }

    /// Encodes an image with EXIF data.
    fn encode(image: &DynamicImage, format: ImageFormat, exif: Vec<u8>) -> Vec<u8> {
        fn with(image: &DynamicImage, mut encoder: impl ImageEncoder, exif: Vec<u8>) {
            if !exif.is_empty() {
                encoder.set_exif_metadata(exif).unwrap();
            }
            image.write_with_encoder(encoder).unwrap();
        }
        let mut bytes = Vec::new();
        match format {
            ImageFormat::Png => with(image, PngEncoder::new(&mut bytes), exif),
            ImageFormat::Jpeg => with(image, JpegEncoder::new_with_quality(&mut bytes, 100), exif),
            _ => with(image, WebPEncoder::new_lossless(&mut bytes), exif),
        }
        bytes
    }

    #[test]
    fn every_orientation_is_turned_upright() {
        let folder = tempfile::tempdir().unwrap();
        let upright = quarters();
        // The stored image is turned such that the orientation in EXIF undoes it.
        let stored = |orientation: u8| match orientation {
            2 => upright.fliph(),
            3 => upright.rotate180(),
            4 => upright.flipv(),
            5 => upright.rotate90().fliph(),
            6 => upright.rotate270(),
            7 => upright.rotate270().fliph(),
            8 => upright.rotate90(),
            _ => upright.clone(),
        };
        for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP] {
            for (orientation, prefix) in (0..=9).flat_map(|orientation| [(orientation, &b""[..]), (orientation, EXIF_PREFIX)]) {
                if !prefix.is_empty() && format != ImageFormat::WebP {
                    continue;
                }
                let path = folder.path().join("turned");
                fs::write(&path, encode(&stored(orientation), format, [prefix, &exif(orientation)].concat())).unwrap();
                let image = open(&path).unwrap();
                assert_eq!((image.width(), image.height()), (8, 6), "{format:?}, orientation {orientation}");
                let differences = image.pixels().iter().zip(upright.as_bytes()).map(|(a, b)| u64::from(a.abs_diff(*b)));
                let mean = differences.sum::<u64>() as f64 / 144.0;
                assert!(mean < 6.0, "{format:?}, orientation {orientation}: {mean}");
            }
        }
    }

    #[test]
    fn an_orientation_after_the_pixels_of_a_png_file_counts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("turned.png");
        let (stored, mut bytes) = (quarters().rotate270().to_rgb8(), Vec::new());
        let mut encoder = png::Encoder::new(&mut bytes, stored.width(), stored.height());
        encoder.set_color(png::ColorType::Rgb);
        let mut writer = encoder.write_header().unwrap();
        writer.write_image_data(&stored).unwrap();
        writer.write_chunk(png::chunk::eXIf, &exif(6)).unwrap();
        writer.finish().unwrap();
        fs::write(&path, bytes).unwrap();
        assert_eq!(rgb(&open(&path).unwrap()), quarters().to_rgb8());
    }

    #[test]
    fn masks_have_the_proportions_of_their_image() {
        for (a, b) in [((64, 64), (64, 64)), ((64, 64), (512, 512)), ((1200, 801), (600, 400)), ((4000, 3000), (1024, 768))] {
            assert!(same_proportions(a, b) && same_proportions(b, a), "{a:?}, {b:?}");
        }
        for (a, b) in [((64, 64), (128, 64)), ((64, 64), (64, 63)), ((1000, 1000), (1000, 1010)), ((3, 4), (64, 64))] {
            assert!(!same_proportions(a, b) && !same_proportions(b, a), "{a:?}, {b:?}");
        }
        let folder = tempfile::tempdir().unwrap();
        let (image, mask) = (folder.path().join("photo.jpg"), folder.path().join("mask.png"));
        // Stored with 8 x 6 pixels; 6 x 8 if upright.
        fs::write(&image, encode(&quarters(), ImageFormat::Jpeg, exif(6))).unwrap();
        let white_below = |_, y| Rgba(if y < 8 { [255, 255, 255, 0] } else { [255; 4] });
        image::RgbaImage::from_fn(12, 16, white_below).save(&mask).unwrap();
        let image = open(&image).unwrap();
        let square = open_mask(&mask, &image).unwrap();
        assert_eq!((square.width(), square.height()), (12, 12));
        assert_eq!(square.transparency().pixels()[..3 * 12 * 6], [255; 3 * 12 * 6]);
        assert_eq!(hart_core::Mask::from_image(&square), hart_core::Mask::rectangle((12, 12), 0, 6, 12, 6));
        image::RgbImage::new(16, 12).save(&mask).unwrap();
        let error = open_mask(&mask, &image).unwrap_err().to_string();
        assert!(error.contains("mask.png: has 16 x 12 pixels, but the image has 6 x 8: expected"), "{error}");
    }

    #[test]
    fn masks_with_a_hole_are_recognised() {
        let mask = |around: [u8; 4], inside: [u8; 4]| {
            let pixel = |i: usize| if (2..6).contains(&(i % 8)) && (2..6).contains(&(i / 8)) { inside } else { around };
            Image::from_rgba(8, 8, (0..64).map(pixel).collect::<Vec<_>>().as_flattened()).unwrap()
        };
        let (clear, white, black, blue) = ([0; 4], [255; 4], [0, 0, 0, 255], [0, 0, 255, 255]);
        for around in [white, black, blue] {
            assert!(has_hole(&mask(around, clear)), "{around:?}");
        }
        // White on black, and white on a transparent layer.
        for (around, inside) in [(black, white), (clear, white), (white, black), (blue, black)] {
            assert!(!has_hole(&mask(around, inside)), "{around:?}, {inside:?}");
        }
        // The left half of a photo is cut out.
        let half = Image::from_rgba(2, 1, &[0, 0, 0, 0, 0, 0, 255, 255]).unwrap();
        assert!(has_hole(&half));
    }

    #[test]
    fn a_truncated_file_is_refused_by_name() {
        let noise = |x: u32, y: u32| [(x * 37 + y * 91 + x * y) as u8, (x * x + 3 * y) as u8, (y * y * 7 + x) as u8];
        let image = DynamicImage::ImageRgb8(image::RgbImage::from_fn(32, 32, |x, y| image::Rgb(noise(x, y))));
        let thumbnail = encode(&quarters(), ImageFormat::Jpeg, Vec::new());
        let folder = tempfile::tempdir().unwrap();
        for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP, ImageFormat::Bmp, ImageFormat::Gif] {
            let bytes = if format == ImageFormat::Jpeg {
                // The thumbnail has an end of its own.
                encode(&image, format, [exif(1), thumbnail.clone()].concat())
            } else {
                let mut bytes = std::io::Cursor::new(Vec::new());
                image.write_to(&mut bytes, format).unwrap();
                bytes.into_inner()
            };
            let path = folder.path().join(format!("cut.{}", format.extensions_str()[0]));
            let lengths = (0..16).map(|part| bytes.len() * part / 16).chain((5..40).map(|missing| bytes.len() - missing));
            for length in lengths.chain((1..5).filter(|_| format == ImageFormat::Jpeg).map(|missing| bytes.len() - missing)) {
                fs::write(&path, &bytes[..length]).unwrap();
                let Err(error) = open_square(&path, 8) else { panic!("{length} of {} bytes are a {format:?} image", bytes.len()) };
                assert!(error.to_string().contains(&*path.to_string_lossy()), "{error}");
            }
            // Phones append videos and other images.
            fs::write(&path, [&bytes[..], &[0; 100]].concat()).unwrap();
            open_square(&path, 8).unwrap();
        }
        fs::write(folder.path().join("half.jpg"), &encode(&image, ImageFormat::Jpeg, Vec::new())[..1000]).unwrap();
        let error = open_square(&folder.path().join("half.jpg"), 8).unwrap_err().to_string();
        assert!(error.ends_with("half.jpg: the file is truncated, its end is missing: copy or download it again"), "{error}");
    }
}
