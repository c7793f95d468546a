//! Reading of image files: PNG, JPEG or WebP, whatever their name.

use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Read};
use std::path::Path;

use image_webp::WebPDecoder;
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::Image;
use super::metadata::{exif_provenance, orientation, read_exif};
use crate::error::{Error, Result};
use crate::files::check_download;

/// Maximum number of pixels of an image file.
const MAX_PIXELS: usize = 1 << 26;
/// Maximum number of bytes of a JPEG or WebP file.
const MAX_BYTES: u64 = 1 << 30;
/// The problem of a file without its end.
pub(super) const TRUNCATED: &str = "the file is truncated, its end is missing: copy or download it again";

impl Image {
    /// Reads a PNG, JPEG or WebP file of any colour type and turns the image upright as its EXIF orientation says. Transparent pixels are
    /// composited over white, and count as black in a [`Mask`](crate::Mask). Of an animation, reads the first image. Also reads prompt,
    /// seed and settings from a file that hart wrote.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the file cannot be read, [`Error::Image`] if it is no such image, is truncated, or has more than 2^26 pixels.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let mut file = open_file(path)?;
        let start = file.fill_buf().map_err(Error::io(path))?;
        match Format::of(start) {
            Some(Format::Jpeg | Format::WebP) => {
                let mut bytes = Vec::new();
                file.take(MAX_BYTES).read_to_end(&mut bytes).map_err(Error::io(path))?;
                Self::decode(path, &bytes)
            }
            Some(Format::Png) => Self::read_png(file, path),
            None => Err(unknown(path, start)),
        }
    }

    /// Decodes a file in memory, like [`Self::open`]. `name` appears in error messages.
    ///
    /// # Errors
    ///
    /// [`Error::Image`] like [`Self::open`].
    pub fn decode(name: impl AsRef<Path>, bytes: &[u8]) -> Result<Self> {
        let name = name.as_ref();
        let invalid = |problem: String| Error::Image { path: name.to_path_buf(), problem };
        let (image, exif) = match Format::of(bytes) {
            Some(Format::Png) => return Self::from_png(name, bytes),
            Some(Format::Jpeg) => jpeg(bytes).map_err(invalid)?,
            Some(Format::WebP) => webp(bytes).map_err(invalid)?,
            None => return Err(unknown(name, bytes)),
        };
        let exif = read_exif(&exif);
        let provenance = exif.as_ref().and_then(exif_provenance);
        Ok(Self { provenance, ..image.upright(orientation(exif.as_ref())) })
    }
}

/// Opens a regular file: opening a pipe would block until something writes to it.
pub(super) fn open_file(path: &Path) -> Result<BufReader<File>> {
    if !path.metadata().map_err(Error::io(path))?.is_file() {
        return Err(Error::Image { path: path.to_path_buf(), problem: "expected a regular file".into() });
    }
    File::open(path).map(BufReader::new).map_err(Error::io(path))
}

/// The formats that can be read.
enum Format {
    Png,
    Jpeg,
    WebP,
}

impl Format {
    /// Returns the format of a file that starts with these bytes.
    fn of(start: &[u8]) -> Option<Self> {
        match start {
            [0x89, b'P', b'N', b'G', ..] => Some(Self::Png),
            [0xff, 0xd8, 0xff, ..] => Some(Self::Jpeg),
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some(Self::WebP),
            _ => None,
        }
    }
}

/// Returns the error of a file in another format.
fn unknown(path: &Path, start: &[u8]) -> Error {
    let problem = match check_download(path, start) {
        Err(Error::Checkpoint { problem, .. }) => problem,
        _ if is_cut_signature(start) => TRUNCATED.into(),
        _ => "not a PNG, JPEG or WebP image".into(),
    };
    Error::Image { path: path.to_path_buf(), problem }
}

/// Returns whether a file ends within the bytes that identify its format.
fn is_cut_signature(start: &[u8]) -> bool {
    let is_webp = start.starts_with(b"RIFF") && start.len() < 12 && b"WEBP".starts_with(start.get(8..).unwrap_or_default());
    let signatures: [&[u8]; 3] = [b"\x89PNG", b"\xff\xd8\xff", b"RIFF"];
    !start.is_empty() && (is_webp || signatures.iter().any(|signature| signature.starts_with(start)))
}

/// Returns the problem of an image that is too large: a small file can decompress to gigabytes.
pub(super) fn check_size(width: usize, height: usize) -> Result<(), String> {
    if width.checked_mul(height).is_some_and(|pixels| pixels <= MAX_PIXELS) {
        return Ok(());
    }
    Err(format!("has {width} x {height} pixels, expected at most {MAX_PIXELS} in total"))
}

/// Decodes a JPEG file. Returns the image as stored, and its EXIF data.
fn jpeg(bytes: &[u8]) -> Result<(Image, Vec<u8>), String> {
    // The decoder fills the missing part of an image.
    if !has_end_of_image(bytes) {
        return Err(TRUNCATED.into());
    }
    if has_a_scan_per_channel(bytes) {
        return Err(
            "a JPEG file with a scan for each colour channel can't be read: save it again as a progressive JPEG or a PNG".into()
        );
    }
    let damaged = |error: &dyn std::fmt::Display| format!("not a JPEG image: {error}");
    let options = DecoderOptions::default().set_strict_mode(false).set_max_width(usize::MAX).set_max_height(usize::MAX);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(|e| damaged(&e))?;
    let (width, height) = decoder.dimensions().unwrap_or_default();
    check_size(width, height)?;
    let is_grey = decoder.input_colorspace() == Some(ColorSpace::Luma);
    decoder.set_options(options.jpeg_set_out_colorspace(if is_grey { ColorSpace::Luma } else { ColorSpace::RGB }));
    let pixels = decoder.decode().map_err(|e| damaged(&e))?;
    let pixels = if is_grey { pixels.iter().flat_map(|&grey| [grey; 3]).collect() } else { pixels };
    let image = Image::from_rgb(width, height, pixels).map_err(|e| e.to_string())?;
    Ok((image, decoder.exif().cloned().unwrap_or_default()))
}

/// Decodes a WebP file. Returns the image as stored, and its EXIF data.
fn webp(bytes: &[u8]) -> Result<(Image, Vec<u8>), String> {
    // "RIFF", and the number of bytes that follow. Some encoders omit the padding at the end.
    let size = bytes.get(4..8).map_or(u32::MAX, |size| u32::from_le_bytes([size[0], size[1], size[2], size[3]]));
    if (bytes.len() as u64) + 1 < 8 + u64::from(size) {
        return Err(TRUNCATED.into());
    }
    let damaged = |error: image_webp::DecodingError| format!("not a WebP image: {error}");
    let mut decoder = WebPDecoder::new(Cursor::new(bytes)).map_err(damaged)?;
    let (width, height) = decoder.dimensions();
    let (width, height) = (width as usize, height as usize);
    check_size(width, height)?;
    let mut pixels = vec![0; decoder.output_buffer_size().unwrap_or_default()];
    decoder.read_image(&mut pixels).map_err(damaged)?;
    let image = if decoder.has_alpha() { Image::from_rgba(width, height, &pixels) } else { Image::from_rgb(width, height, pixels) };
    // Damaged EXIF data do not matter.
    Ok((image.map_err(|e| e.to_string())?, decoder.exif_metadata().ok().flatten().unwrap_or_default()))
}

/// Returns whether a sequential JPEG file stores its channels in several scans. zune-jpeg 0.5 loses the last rows of such scans.
fn has_a_scan_per_channel(bytes: &[u8]) -> bool {
    let (mut at, mut channels) = (2, None);
    while let Some(&[0xff, marker, ref segment @ ..]) = bytes.get(at..) {
        match marker {
            // A fill byte.
            0xff => {
                at += 1;
                continue;
            }
            // Size of the segment, bits, height, width, channels.
            0xc0 | 0xc1 => channels = segment.get(7),
            // Size of the segment, channels of the scan.
            0xda => return channels.zip(segment.get(2)).is_some_and(|(all, scan)| scan < all),
            _ => {}
        }
        let &[high, low, ..] = segment else { return false };
        at += 2 + usize::from(u16::from_be_bytes([high, low]));
    }
    false
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

#[cfg(test)]
mod tests {
    use super::super::ImageFormat;
    use super::super::tests::checker;
    use super::*;

    #[test]
    fn a_truncated_file_is_refused_by_name() {
        let noise = |i: usize| [(i * 37) as u8, (i * i) as u8, (i * 91 + i * i * 7) as u8];
        let image = Image::from_rgb(32, 32, (0..32 * 32).flat_map(noise).collect()).unwrap();
        for format in [ImageFormat::Png, ImageFormat::JPEG, ImageFormat::WebP] {
            let bytes = image.encode(format).unwrap();
            for length in (0..bytes.len() - 40).step_by(7).chain(bytes.len() - 40..bytes.len() - 16) {
                let error = Image::decode("half", &bytes[..length]).unwrap_err().to_string();
                assert!(error.starts_with("half: "), "{format:?}, {length}: {error}");
            }
            let error = Image::decode("half", &bytes[..bytes.len() / 2]).unwrap_err().to_string();
            assert_eq!(error, format!("half: {TRUNCATED}"), "{format:?}");
            // Phones append videos and other images.
            Image::decode("longer", &[&bytes[..], &[0; 100]].concat()).unwrap();
        }
    }

    #[test]
    fn a_scan_per_channel_is_refused() {
        let rgb = vec![255; 3 * 16 * 16];
        for several_scans in [false, true] {
            let mut bytes = Vec::new();
            let mut encoder = jpeg_encoder::Encoder::new(&mut bytes, 90);
            // With tables of its own, the encoder writes a scan per channel.
            encoder.set_optimized_huffman_tables(several_scans);
            encoder.encode(&rgb, 16, 16, jpeg_encoder::ColorType::Rgb).unwrap();
            match Image::decode("white", &bytes) {
                Ok(image) => assert!(!several_scans && image.pixels().iter().all(|&level| level > 250)),
                Err(error) => assert!(several_scans && error.to_string().contains("save it again"), "{error}"),
            }
        }
    }

    #[test]
    fn damaged_files_are_images_or_errors() {
        let image = checker();
        for format in [ImageFormat::Png, ImageFormat::Jpeg { quality: 50 }, ImageFormat::WebP] {
            let bytes = image.encode(format).unwrap();
            for (at, value) in (0..bytes.len()).flat_map(|at| [0, 1, 0x7f, 0xff].map(|value| (at, value))) {
                let mut damaged = bytes.clone();
                damaged[at] ^= value;
                // The result does not matter, but a panic would.
                let _ = Image::decode("damaged", &damaged);
            }
        }
    }

    #[test]
    fn files_of_other_kinds_are_named() {
        let folder = tempfile::tempdir().unwrap();
        for (contents, words) in [
            (&b"GIF89a and more than that"[..], "not a PNG, JPEG or WebP image"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
            (b"<!DOCTYPE html><html>", "web page"),
            (b"", "empty"),
            (b"text", "not a PNG, JPEG or WebP image"),
            (b"RIFF\x04\0\0\0WAVE", "not a PNG, JPEG or WebP image"),
            (b"RIFF\x04\0\0\0WE", "truncated"),
            (b"\x89P", "truncated"),
            (b"\xff\xd8\xff\xe0", "truncated"),
            (b"\xff\xd8\xff\xff\xff\xff\xff\xff\xd9", "not a JPEG image"),
            (b"RIFF\x04\0\0\0WEBP", "not a WebP image"),
        ] {
            let path = folder.path().join("image.jpg");
            std::fs::write(&path, contents).unwrap();
            for error in [Image::decode(&path, contents).unwrap_err(), Image::open(&path).unwrap_err()] {
                let message = error.to_string();
                assert!(
                    matches!(error, Error::Image { .. }) && message.contains(words) && message.contains("image.jpg"),
                    "{message}"
                );
            }
        }
        assert!(Image::open(folder.path()).unwrap_err().to_string().contains("expected a regular file"));
        assert!(matches!(Image::open(folder.path().join("none.jpg")).unwrap_err(), Error::Io { .. }));
    }

    #[test]
    fn jpeg_and_webp_files_are_turned_upright() {
        // An orientation of 6: the stored image is turned to the right.
        let exif = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
        let (image, mut webp, mut jpeg) = (checker(), Vec::new(), Vec::new());
        let (width, height) = (image.width(), image.height());
        let mut encoder = image_webp::WebPEncoder::new(&mut webp);
        encoder.set_exif_metadata(exif.to_vec());
        encoder.encode(image.pixels(), width as u32, height as u32, image_webp::ColorType::Rgb8).unwrap();
        let mut encoder = jpeg_encoder::Encoder::new(&mut jpeg, 100);
        encoder.add_exif_metadata(exif).unwrap();
        encoder.encode(image.pixels(), width as u16, height as u16, jpeg_encoder::ColorType::Rgb).unwrap();
        let upright = image.upright(6);
        assert_eq!(Image::decode("webp", &webp).unwrap(), upright);
        let read = Image::decode("jpeg", &jpeg).unwrap();
        assert_eq!((read.width(), read.height()), (height, width));
        assert!(read.pixels().iter().zip(upright.pixels()).all(|(a, b)| a.abs_diff(*b) < 20), "{:?}", read.pixels());
    }

    #[test]
    fn grey_and_transparent_images_become_rgb() {
        let (mut jpeg, mut webp) = (Vec::new(), Vec::new());
        jpeg_encoder::Encoder::new(&mut jpeg, 100).encode(&[200; 64], 8, 8, jpeg_encoder::ColorType::Luma).unwrap();
        let grey = Image::decode("grey", &jpeg).unwrap();
        assert!(grey.pixels().len() == 3 * 64 && grey.pixels().iter().all(|&level| level.abs_diff(200) < 2));
        let pixels = [[255, 0, 0, 255], [0, 0, 0, 0]];
        image_webp::WebPEncoder::new(&mut webp).encode(pixels.as_flattened(), 2, 1, image_webp::ColorType::Rgba8).unwrap();
        assert_eq!(Image::decode("holes", &webp).unwrap(), Image::from_rgba(2, 1, pixels.as_flattened()).unwrap());
    }
}
