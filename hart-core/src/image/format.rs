//! Formats of image files to write.

use std::path::Path;

use image_webp::WebPEncoder;
use jpeg_encoder::Encoder;

use super::Image;
use super::marks::exif_and_xmp;
use crate::error::{Error, Result};
use crate::files::write_file;

/// Quality of JPEG files unless another one is chosen.
const JPEG_QUALITY: u8 = 90;
/// Beginning of the segment of a JPEG file that holds an XMP packet.
const XMP_PREFIX: &[u8] = b"http://ns.adobe.com/xap/1.0/\0";
/// Longest side of a WebP file in pixels.
const MAX_WEBP_SIDE: usize = 1 << 14;
/// The valid endings of file names.
const ENDINGS: &str = ".png, .jpg, .jpeg or .webp";

/// The format of an image file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ImageFormat {
    /// PNG, without loss.
    #[default]
    Png,
    /// JPEG, with loss. The colours have half the resolution below a quality of 90.
    Jpeg {
        /// The quality, from 1 to 100.
        quality: u8,
    },
    /// WebP, without loss.
    WebP,
}

impl ImageFormat {
    /// JPEG with a quality of 90.
    pub const JPEG: Self = Self::Jpeg { quality: JPEG_QUALITY };

    /// Returns the format that the ending of a file name stands for: `.png`, `.jpg`, `.jpeg` or `.webp`, in upper or lower case.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] if the name has another ending or none.
    pub fn from_path(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let ending = path.extension().map(|ending| ending.to_string_lossy().into_owned());
        match ending.as_deref().map(str::to_ascii_lowercase).as_deref() {
            Some("png") => Ok(Self::Png),
            Some("jpg" | "jpeg") => Ok(Self::JPEG),
            Some("webp") => Ok(Self::WebP),
            _ => {
                let problem = match ending {
                    Some(ending) => format!("{} ends in .{ending}", path.display()),
                    None if path.as_os_str().is_empty() => "the name is empty".into(),
                    None => format!("{} has no ending", path.display()),
                };
                Err(Error::request("image file", format!("{problem}, expected a name that ends in {ENDINGS}")))
            }
        }
    }

    /// Returns the media type, such as `image/png`.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Png => "image/png",
            Self::Jpeg { .. } => "image/jpeg",
            Self::WebP => "image/webp",
        }
    }
}

impl Image {
    /// Encodes the image as a file with the marks of [`Self::marks`]: the settings, and that a model generated it. They are in text chunks
    /// of PNG files, and in EXIF data and XMP of JPEG and WebP files. In a JPEG file each has at most 64 KB. What does not fit is left
    /// out: the prompt of the parameters in EXIF data; in XMP first IPTC's prompt, then the settings.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] if the quality is not from 1 to 100, or a side is too long: 65,535 pixels in JPEG, 16,384 in WebP.
    pub fn encode(&self, format: ImageFormat) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let failed = |error: &dyn std::fmt::Display| Error::request("image", format!("can't be encoded: {error}"));
        match format {
            ImageFormat::Png => return self.to_png().map_err(|e| failed(&e)),
            ImageFormat::Jpeg { quality } => {
                if !(1..=100).contains(&quality) {
                    return Err(Error::request("quality", format!("{quality}, expected 1 to 100")));
                }
                let [width, height] = self.sides("JPEG", usize::from(u16::MAX))?.map(|side| side as u16);
                // Without optimised Huffman tables, the encoder writes all channels in one scan. zune-jpeg 0.5 can lose the last rows of a
                // scan that another one follows, and other programs use it too.
                let mut encoder = Encoder::new(&mut bytes, quality);
                let (exif, xmp) = exif_and_xmp(self, true);
                if let Some(exif) = exif {
                    encoder.add_exif_metadata(&exif).map_err(|e| failed(&e))?;
                }
                if let Some(xmp) = xmp {
                    encoder.add_app_segment(1, [XMP_PREFIX, xmp.as_bytes()].concat()).map_err(|e| failed(&e))?;
                }
                encoder.encode(&self.pixels, width, height, jpeg_encoder::ColorType::Rgb).map_err(|e| failed(&e))?;
            }
            ImageFormat::WebP => {
                let [width, height] = self.sides("WebP", MAX_WEBP_SIDE)?;
                let mut encoder = WebPEncoder::new(&mut bytes);
                let (exif, xmp) = exif_and_xmp(self, false);
                // Without bytes, the encoder writes no chunk.
                encoder.set_exif_metadata(exif.unwrap_or_default());
                encoder.set_xmp_metadata(xmp.unwrap_or_default().into_bytes());
                encoder.encode(&self.pixels, width, height, image_webp::ColorType::Rgb8).map_err(|e| failed(&e))?;
            }
        }
        Ok(bytes)
    }

    /// Writes a file atomically, in the format that its ending stands for: `.png`, `.jpg` or `.jpeg` (quality 90), or `.webp` (without
    /// loss). A failure leaves no partial file.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] if the ending is another one or missing, or like [`Self::encode`]; [`Error::Io`] with the path.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        self.save_as(&path, ImageFormat::from_path(&path)?)
    }

    /// Writes a file atomically in any format, whatever its ending. A failure leaves no partial file.
    ///
    /// # Errors
    ///
    /// Like [`Self::encode`], or [`Error::Io`] with the path.
    pub fn save_as(&self, path: impl AsRef<Path>, format: ImageFormat) -> Result<()> {
        let path = path.as_ref();
        write_file(path, &self.encode(format)?)
    }

    /// Returns width and height, or fails if one is longer than the format allows.
    fn sides(&self, format: &str, max: usize) -> Result<[u32; 2]> {
        let (width, height) = (self.width, self.height);
        if width.max(height) > max {
            let problem = format!("has {width} x {height} pixels, but a side of a {format} file has at most {max}: use PNG");
            return Err(Error::request("image", problem));
        }
        Ok([width as u32, height as u32])
    }
}

#[cfg(test)]
mod tests {
    use super::super::Provenance;
    use super::*;

    /// Returns a smooth image, as JPEG compresses well.
    fn gradient(width: usize, height: usize) -> Image {
        let pixels = (0..width * height).flat_map(|i| [i % width, i / width, (i % width + i / width) / 2].map(|v| (4 * v) as u8));
        Image::from_rgb(width, height, pixels.collect()).unwrap()
    }

    fn mean_square(a: &Image, b: &Image) -> f64 {
        let squares = a.pixels().iter().zip(b.pixels()).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2));
        squares.sum::<f64>() / a.pixels().len() as f64
    }

    #[test]
    fn the_ending_chooses_the_format_and_others_are_refused() {
        for (name, format) in [
            ("a.png", ImageFormat::Png),
            ("b/c.d.PNG", ImageFormat::Png),
            ("a.jpg", ImageFormat::JPEG),
            ("a.Jpeg", ImageFormat::JPEG),
            ("a.webp", ImageFormat::WebP),
        ] {
            assert_eq!(ImageFormat::from_path(name).unwrap(), format);
        }
        for (name, problem) in [
            ("a.bmp", "a.bmp ends in .bmp, expected a name that ends in .png, .jpg, .jpeg or .webp"),
            ("b.png/a", "b.png/a has no ending, expected"),
            (".png", ".png has no ending, expected"),
            ("a.", "a. ends in ., expected"),
            ("", "image file: the name is empty, expected"),
        ] {
            let error = gradient(2, 2).save(name).unwrap_err();
            assert!(matches!(error, Error::Request { .. }) && error.to_string().contains(problem), "{error}");
        }
    }

    #[test]
    fn every_format_keeps_the_image_and_its_provenance() {
        let folder = tempfile::tempdir().unwrap();
        let mut image = gradient(33, 17);
        image.provenance = Some(Provenance::new("a café 🦜 \"quoted\"\n", u64::MAX, "guidance 2, steps 8"));
        for name in ["a.png", "a.webp", "a.jpg", "A.JPEG"] {
            let path = folder.path().join(name);
            image.save(&path).unwrap();
            let read = Image::open(&path).unwrap();
            assert_eq!(read.provenance, image.provenance, "{name}");
            if name.to_lowercase().contains("jp") {
                assert_eq!((read.width(), read.height()), (33, 17));
                // 40 dB.
                assert!(mean_square(&read, &image) < 6.5, "{name}: {}", mean_square(&read, &image));
            } else {
                assert_eq!(read, image, "{name}");
            }
            let bytes = image.encode(ImageFormat::from_path(&path).unwrap()).unwrap();
            assert_eq!(bytes, std::fs::read(&path).unwrap());
            assert_eq!(Image::decode("memory", &bytes).unwrap(), read);
        }
        image.save_as(folder.path().join("other"), ImageFormat::WebP).unwrap();
        assert_eq!(Image::open(folder.path().join("other")).unwrap(), image);
    }

    #[test]
    fn a_flat_image_in_jpeg_is_read_to_its_last_row() {
        for side in [8, 16, 64] {
            let image = Image::from_rgb(side, side, vec![255; 3 * side * side]).unwrap();
            let read = Image::decode("memory", &image.encode(ImageFormat::JPEG).unwrap()).unwrap();
            assert_eq!(read.pixels(), image.pixels());
        }
    }

    #[test]
    fn a_higher_quality_is_closer_and_larger() {
        let noise = |i: usize| [(i * 37) as u8, (i * i) as u8, (i * 91 + i * i * 7) as u8];
        let image = Image::from_rgb(64, 64, (0..64 * 64).flat_map(noise).collect()).unwrap();
        let encoded = [1, 50, 89, 90, 100].map(|quality| image.encode(ImageFormat::Jpeg { quality }).unwrap());
        assert!(encoded.is_sorted_by_key(Vec::len));
        let distances = encoded.map(|bytes| mean_square(&Image::decode("memory", &bytes).unwrap(), &image));
        assert!(distances.is_sorted_by(|a, b| a > b), "{distances:?}");
        for quality in [0, 101] {
            let error = image.encode(ImageFormat::Jpeg { quality }).unwrap_err().to_string();
            assert!(error.contains("quality: ") && error.contains("expected 1 to 100"), "{error}");
        }
    }

    #[test]
    fn what_a_format_cannot_hold_is_refused_or_left_out() {
        let mut image = gradient(4, 4);
        image.provenance = Some(Provenance::new("é".repeat(65_000 / 6), 1, ""));
        let read = |format| Image::decode("memory", &image.encode(format).unwrap()).unwrap().provenance;
        assert_eq!(read(ImageFormat::JPEG), None);
        assert_eq!(read(ImageFormat::WebP), image.provenance);
        let long = Image::from_rgb(1, 70_000, vec![0; 3 * 70_000]).unwrap();
        for (format, max) in [(ImageFormat::JPEG, "65535"), (ImageFormat::WebP, "16384")] {
            let error = long.encode(format).unwrap_err().to_string();
            assert!(error.contains("1 x 70000") && error.contains(max), "{error}");
        }
        assert!(long.encode(ImageFormat::Png).is_ok());
    }
}
