//! Reads image files of the usual formats for a model, and converts and compares images.

use std::error::Error;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Seek};
use std::path::Path;

use hart_core::Image;
use image::imageops::{FilterType, crop_imm, resize};
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Pixel, RgbImage, Rgba, RgbaImage};

/// Maximum number of pixels of a file, the same as hart-core's for PNG files.
const MAX_PIXELS: u64 = 1 << 26;
/// Prefix that some programs write before the EXIF data of a WebP file.
const EXIF_PREFIX: &[u8] = b"Exif\0\0";

/// Reads an image file, turns it upright as its EXIF orientation says, crops its central square and resizes it to `side` x `side`
/// pixels. Transparent pixels are blended with white.
///
/// # Errors
///
/// Returns an error if the file can't be read, is not a PNG, JPEG, WebP, BMP or GIF image, is truncated, or has more than 2^26
/// pixels.
pub fn open_square(path: &Path, side: usize) -> Result<Image, Box<dyn Error>> {
    let mut square = central_square(open(path)?);
    for pixel in square.pixels_mut() {
        let mut over_white = Rgba([255; 4]);
        over_white.blend(pixel);
        *pixel = over_white;
    }
    let resized = resize(&square, side as u32, side as u32, FilterType::Lanczos3);
    let pixels = resized.pixels().flat_map(|p| [p[0], p[1], p[2]]).collect();
    Ok(Image::from_rgb(side, side, pixels)?)
}

/// Reads the mask of an image file, turns it upright and crops its central square, but does not resize it. The result has the alpha of
/// the file.
///
/// # Errors
///
/// Like [`open_square`]. Returns an error that names both sizes if mask and image have different proportions. If their sizes
/// differ, one pixel and one percent of rounding are allowed.
pub fn open_mask(path: &Path, image: &Path) -> Result<Image, Box<dyn Error>> {
    let mask = open(path)?;
    let (mask_size, size) = ((mask.width(), mask.height()), upright_size(image)?);
    if !same_proportions(mask_size, size) {
        return Err(format!(
            "{}: has {} x {} pixels, but {} has {} x {}: expected a mask of the same proportions",
            path.display(),
            mask_size.0,
            mask_size.1,
            image.display(),
            size.0,
            size.1
        )
        .into());
    }
    let square = central_square(mask);
    let side = square.width() as usize;
    Ok(Image::from_rgba(side, side, &square)?)
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
fn same_proportions(a: (u32, u32), b: (u32, u32)) -> bool {
    let (one, other) = (u64::from(a.0) * u64::from(b.1), u64::from(a.1) * u64::from(b.0));
    let difference = one.abs_diff(other);
    // A pixel of either image changes a product by a side of the other.
    let pixel = u64::from(a.0.max(a.1).max(b.0).max(b.1));
    a == b || (difference <= pixel && difference * 100 <= one)
}

/// Crops the central square.
fn central_square(image: DynamicImage) -> RgbaImage {
    let (width, height) = (image.width(), image.height());
    let length = width.min(height);
    crop_imm(&image, (width - length) / 2, (height - length) / 2, length, length).to_image()
}

/// Reads an image file and turns it upright.
fn open(path: &Path) -> Result<DynamicImage, Box<dyn Error>> {
    read(path).map_err(|problem| format!("{}: {problem}", path.display()).into())
}

/// Returns the width and height of an image file that is turned upright.
fn upright_size(path: &Path) -> Result<(u32, u32), Box<dyn Error>> {
    let (decoder, orientation) = decoder(path).map_err(|problem| format!("{}: {problem}", path.display()))?;
    let (width, height) = decoder.dimensions();
    Ok(if orientation.to_exif() < 5 { (width, height) } else { (height, width) })
}

/// Reads an image file and turns it upright. An error is the problem without the path.
fn read(path: &Path) -> Result<DynamicImage, Box<dyn Error>> {
    let (decoder, orientation) = decoder(path)?;
    let mut image = DynamicImage::from_decoder(decoder)?;
    image.apply_orientation(orientation);
    Ok(image)
}

/// Returns the decoder of a complete file, and the orientation in its EXIF data.
fn decoder(path: &Path) -> Result<(impl ImageDecoder, Orientation), Box<dyn Error>> {
    // Opening a pipe would block until something writes to it.
    if !fs::metadata(path)?.is_file() {
        return Err("not a regular file, expected a PNG, JPEG, WebP, BMP or GIF image".into());
    }
    let mut file = BufReader::new(fs::File::open(path)?);
    let start = file.fill_buf()?;
    if !start.is_empty()
        && let Err(hart_core::Error::Checkpoint { problem, .. }) = hart_core::check_download(path, start)
    {
        return Err(problem.into());
    }
    let mut reader = ImageReader::new(file).with_guessed_format()?;
    if let Some(format) = reader.format() {
        let mut file = reader.into_inner();
        // The decoders of these formats fill the missing part of an image.
        if !is_complete(format, &mut file)? {
            return Err("the file is truncated, its end is missing: copy or download it again".into());
        }
        file.rewind()?;
        reader = ImageReader::with_format(file, format);
    }
    let format = reader.format();
    let mut decoder = reader.into_decoder()?;
    let (width, height) = decoder.dimensions();
    // A small file can decompress to gigabytes.
    if u64::from(width) * u64::from(height) > MAX_PIXELS {
        return Err(format!("has {width} x {height} pixels, expected at most {MAX_PIXELS} in all; make it smaller").into());
    }
    let mut exif = decoder.exif_metadata()?.unwrap_or_default();
    if exif.is_empty() && format == Some(ImageFormat::Png) {
        exif = exif_after_pixels(path)?;
    }
    let orientation = Orientation::from_exif_chunk(exif.strip_prefix(EXIF_PREFIX).unwrap_or(&exif));
    Ok((decoder, orientation.unwrap_or(Orientation::NoTransforms)))
}

/// Returns the EXIF data of a PNG file that stand after the pixels, where some programs write them; empty if there are none. The
/// crate `image` reads only those before the pixels.
fn exif_after_pixels(path: &Path) -> io::Result<Vec<u8>> {
    let Ok(mut reader) = png::Decoder::new(BufReader::new(fs::File::open(path)?)).read_info() else { return Ok(Vec::new()) };
    // Damage is reported when the pixels are decoded.
    let _ = reader.finish();
    Ok(reader.info().exif_metadata.as_deref().unwrap_or_default().to_vec())
}

/// Returns whether a file has all its bytes, for formats whose decoders accept a truncated file. `true` for all others.
fn is_complete(format: ImageFormat, file: &mut (impl Read + Seek)) -> io::Result<bool> {
    match format {
        ImageFormat::Jpeg => {
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            Ok(has_end_of_image(&bytes))
        }
        ImageFormat::WebP => {
            // "RIFF", and the number of bytes that follow. Some encoders omit the padding at the end.
            let mut header = [0; 8];
            file.read_exact(&mut header)?;
            let size = u64::from(u32::from_le_bytes([header[4], header[5], header[6], header[7]]));
            Ok(file.seek(io::SeekFrom::End(0))? + 1 >= 8 + size)
        }
        _ => Ok(true),
    }
}

/// Returns whether a JPEG file has the marker that ends its image. Skips segments with contents of their own, such as a thumbnail.
fn has_end_of_image(bytes: &[u8]) -> bool {
    let mut at = 0;
    while let [first, marker, ..] = bytes[at..] {
        match (first, marker) {
            (0xff, 0xd9) => return true,
            // Stuffing, fill bytes, and markers without contents.
            (0xff, 0x00 | 0x01 | 0xd0..=0xd8) => at += 2,
            (0xff, 0xff) => at += 1,
            (0xff, _) => match bytes[at + 2..] {
                // The length includes its own two bytes.
                [high, low, ..] => at = (at + 2 + usize::from(u16::from_be_bytes([high, low]))).min(bytes.len()),
                _ => return false,
            },
            _ => at += 1,
        }
    }
    false
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
    use image::ImageEncoder;
    use image::codecs::{jpeg::JpegEncoder, png::PngEncoder, webp::WebPEncoder};

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
                let image = read(&path).unwrap().to_rgb8();
                assert_eq!(image.dimensions(), (8, 6), "{format:?}, orientation {orientation}");
                let differences = image.as_raw().iter().zip(upright.as_bytes()).map(|(a, b)| u64::from(a.abs_diff(*b)));
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
        assert_eq!(read(&path).unwrap().to_rgb8(), quarters().to_rgb8());
        assert_eq!(upright_size(&path).unwrap(), (8, 6));
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
        let square = open_mask(&mask, &image).unwrap();
        assert_eq!((square.width(), square.height()), (12, 12));
        assert_eq!(square.transparency().pixels()[..3 * 12 * 6], [255; 3 * 12 * 6]);
        assert_eq!(hart_core::Mask::from_image(&square), hart_core::Mask::rectangle((12, 12), 0, 6, 12, 6));
        image::RgbImage::new(16, 12).save(&mask).unwrap();
        let error = open_mask(&mask, &image).unwrap_err().to_string();
        assert!(error.contains("mask.png: has 16 x 12 pixels, but ") && error.contains("photo.jpg has 6 x 8: expected"), "{error}");
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
                let mut bytes = io::Cursor::new(Vec::new());
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
