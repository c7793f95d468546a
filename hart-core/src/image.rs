//! 8-bit RGB images, and PNG files that record how an image was generated.

use rayon::prelude::*;
use std::borrow::Borrow;
use std::fs;
use std::io::{self, BufRead, BufReader, Seek};
use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::files::write_file;

/// Maximum number of pixels of a PNG file to read.
const MAX_PIXELS: usize = 1 << 26;
/// Number of pixels that one task quantises.
const PIXELS_PER_TASK: usize = 1 << 14;
/// Maximum length in bytes of a text in a PNG file.
pub(crate) const MAX_TEXT_BYTES: usize = 1 << 20;
/// Value of the `Software` chunk in PNG files.
const SOFTWARE: &str = concat!("hart ", env!("CARGO_PKG_VERSION"));

/// The prompt, seed and settings of a generated image. Stored in the text chunks of PNG files.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Provenance {
    /// Prompt of the image.
    pub prompt: String,
    /// Seed of the image.
    pub seed: u64,
    /// The other settings in one line.
    pub settings: String,
}

/// An 8-bit RGB image. Clones share the pixels.
#[derive(Clone, PartialEq)]
pub struct Image {
    width: usize,
    height: usize,
    pixels: Arc<Vec<u8>>,
    /// The prompt, seed and settings, if hart generated the image.
    pub provenance: Option<Provenance>,
}

impl Provenance {
    /// Creates a provenance. `settings` can be any text of one line.
    pub fn new(prompt: impl Into<String>, seed: u64, settings: impl Into<String>) -> Self {
        Self { prompt: prompt.into(), seed, settings: settings.into() }
    }
}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Image({} x {}, {:?})", self.width, self.height, self.provenance)
    }
}

impl Image {
    /// Creates an image from its pixels: three bytes each, row by row from the top left.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] if the length is not `3 * width * height`, or 0.
    pub fn from_rgb(width: usize, height: usize, pixels: Vec<u8>) -> Result<Self> {
        let expected = width.checked_mul(height).and_then(|n| n.checked_mul(3));
        if expected != Some(pixels.len()) || pixels.is_empty() {
            let problem =
                format!("{} bytes for {width} x {height} pixels, expected 3 a pixel and at least one pixel", pixels.len());
            return Err(Error::request("image", problem));
        }
        Ok(Self { width, height, pixels: Arc::new(pixels), provenance: None })
    }

    /// Quantises planes `[3, height, width]` with values from -1 to 1 to the nearest levels.
    pub(crate) fn from_planes(planes: &[f32], width: usize, height: usize) -> Result<Self> {
        if !planes.iter().all(|v| v.is_finite()) {
            return Err(Error::Overflow { what: "the decoded pixels".into() });
        }
        let size = width * height;
        // Rounds halves up with comparisons, since `round` calls the C library on many processors.
        let level = |v: f32| {
            let level = ((v + 1.0) * 0.5 * 255.0).clamp(0.0, 255.0);
            let below = level as u8;
            below + u8::from(level - f32::from(below) >= 0.5)
        };
        let mut pixels = vec![0; 3 * size];
        pixels.par_chunks_mut(3 * PIXELS_PER_TASK).enumerate().for_each(|(part, pixels)| {
            for (i, pixel) in pixels.chunks_exact_mut(3).enumerate() {
                let at = part * PIXELS_PER_TASK + i;
                pixel.copy_from_slice(&[planes[at], planes[size + at], planes[2 * size + at]].map(level));
            }
        });
        Ok(Self { width, height, pixels: Arc::new(pixels), provenance: None })
    }

    /// Returns the planes `[3, height, width]` with values from -1 to 1.
    pub(crate) fn planes(&self) -> Vec<f32> {
        let plane = |channel: usize| self.pixels.iter().skip(channel).step_by(3).map(|&v| f32::from(v) / 127.5 - 1.0);
        (0..3).flat_map(plane).collect()
    }

    /// Returns the planes of several images, `[images, 3, height, width]`.
    pub(crate) fn planes_of(images: &[Self]) -> Vec<f32> {
        images.par_iter().flat_map_iter(Self::planes).collect()
    }

    pub(crate) fn with_provenance(mut self, provenance: Provenance) -> Self {
        self.provenance = Some(provenance);
        self
    }

    /// Returns the width in pixels.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Returns the height in pixels.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Returns the pixels: three bytes each, row by row from the top left.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// Arranges images of one size in rows of `columns`. Unused cells are white.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] if there is no image, the sizes differ, `columns` is 0, or there is not enough memory.
    pub fn grid<I: Borrow<Self>>(images: &[I], columns: usize) -> Result<Self> {
        let images: Vec<&Self> = images.iter().map(Borrow::borrow).collect();
        let Some(first) = images.first() else { return Err(Error::request("grid", "there is no image")) };
        if columns == 0 || images.iter().any(|i| (i.width, i.height) != (first.width, first.height)) {
            return Err(Error::request("grid", "expected images of one size and at least one column"));
        }
        let (width, columns) = (first.width, columns.min(images.len()));
        let rows = images.len().div_ceil(columns);
        let (whole, mut pixels) = (3 * width * columns * first.height * rows, Vec::new());
        let no_memory = |_| Error::request("grid", format!("there is no memory for {whole} bytes: use fewer images"));
        pixels.try_reserve_exact(whole).map_err(no_memory)?;
        pixels.resize(whole, 255);
        for (index, image) in images.iter().enumerate() {
            let (left, top) = (index % columns * width, index / columns * first.height);
            for (y, line) in image.pixels.chunks(3 * width).enumerate() {
                let start = 3 * ((top + y) * columns * width + left);
                pixels[start..start + line.len()].copy_from_slice(line);
            }
        }
        Ok(Self { width: width * columns, height: first.height * rows, pixels: Arc::new(pixels), provenance: None })
    }

    /// Encodes the image as a PNG file, with prompt, seed and settings in text chunks.
    ///
    /// # Errors
    ///
    /// The encoder's [`io::Error`].
    pub fn to_png(&self) -> io::Result<Vec<u8>> {
        let size = |n: usize| u32::try_from(n).map_err(io::Error::other);
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, size(self.width)?, size(self.height)?);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        encoder.add_text_chunk("Software".into(), SOFTWARE.into())?;
        if let Some(provenance) = &self.provenance {
            encoder.add_itxt_chunk("prompt".into(), provenance.prompt.clone())?;
            encoder.add_text_chunk("seed".into(), provenance.seed.to_string())?;
            encoder.add_itxt_chunk("settings".into(), provenance.settings.clone())?;
        }
        let mut writer = encoder.write_header()?;
        writer.write_image_data(&self.pixels)?;
        writer.finish()?;
        Ok(bytes)
    }

    /// Writes a PNG file atomically: a failure leaves no partial file.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] with the path.
    pub fn save_png(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let bytes = self.to_png().map_err(Error::io(path))?;
        write_file(path, &bytes).map_err(Error::io(path))
    }

    /// Reads a PNG file of any colour type. Transparent pixels are composited over white. Also reads prompt, seed and settings from a
    /// file that hart wrote.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the file cannot be read, [`Error::Image`] if it is not a PNG image.
    pub fn open_png(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if !path.metadata().map_err(Error::io(path))?.is_file() {
            return Err(Error::Image { path: path.to_path_buf(), problem: "expected a regular file".into() });
        }
        let file = fs::File::open(path).map_err(Error::io(path))?;
        Self::read_png(BufReader::new(file), path)
    }

    /// Decodes a PNG file in memory. `name` appears in error messages.
    ///
    /// # Errors
    ///
    /// [`Error::Image`] if it is not a PNG image.
    pub fn from_png(name: impl AsRef<Path>, bytes: &[u8]) -> Result<Self> {
        Self::read_png(io::Cursor::new(bytes), name.as_ref())
    }

    fn read_png(source: impl BufRead + Seek, path: &Path) -> Result<Self> {
        let invalid = |problem: String| Error::Image { path: path.to_path_buf(), problem };
        let damaged = |e: png::DecodingError| invalid(format!("not a PNG image: {e}"));
        let mut decoder = png::Decoder::new(source);
        decoder.set_transformations(png::Transformations::normalize_to_color8());
        let mut reader = decoder.read_info().map_err(damaged)?;
        let (width, height) = (reader.info().width as usize, reader.info().height as usize);
        let bytes = reader.output_buffer_size().filter(|_| width * height <= MAX_PIXELS);
        let Some(bytes) = bytes else {
            return Err(invalid(format!("has {width} x {height} pixels, expected at most {MAX_PIXELS} in total")));
        };
        let mut buffer = vec![0; bytes];
        let info = reader.next_frame(&mut buffer).map_err(damaged)?;
        buffer.truncate(info.buffer_size());
        let over_white = |v: u8, alpha: u8| ((u32::from(v) * u32::from(alpha) + 255 * (255 - u32::from(alpha)) + 127) / 255) as u8;
        let pixels = match info.color_type {
            png::ColorType::Grayscale => buffer.iter().flat_map(|&g| [g; 3]).collect(),
            png::ColorType::GrayscaleAlpha => buffer.chunks_exact(2).flat_map(|p| [over_white(p[0], p[1]); 3]).collect(),
            png::ColorType::Rgba => buffer.chunks_exact(4).flat_map(|p| [0, 1, 2].map(|i| over_white(p[i], p[3]))).collect(),
            _ => buffer,
        };
        let provenance = provenance(reader.info());
        Ok(Self { provenance, ..Self::from_rgb(width, height, pixels)? })
    }
}

/// Reads the provenance from the text chunks of a PNG file.
fn provenance(info: &png::Info<'_>) -> Option<Provenance> {
    // Texts may be compressed. The limit keeps a small file from expanding to gigabytes.
    let text = |key: &str| {
        let mut chunk = info.utf8_text.iter().find(|t| t.keyword == key)?.clone();
        chunk.decompress_text_with_limit(MAX_TEXT_BYTES).ok()?;
        chunk.get_text().ok()
    };
    let seed = info.uncompressed_latin1_text.iter().find(|t| t.keyword == "seed")?.text.parse().ok()?;
    Some(Provenance { prompt: text("prompt")?, seed, settings: text("settings")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checker() -> Image {
        let pixels = (0..4 * 3).flat_map(|i| [i as u8 * 20, 255 - i as u8, (i % 2) as u8 * 255]).collect();
        Image::from_rgb(4, 3, pixels).unwrap()
    }

    #[test]
    fn png_keeps_pixels_and_provenance() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("café 🦜.png");
        let mut image = checker();
        image.provenance = Some(Provenance { prompt: "a café 🦜".into(), seed: 7, settings: "guidance 2".into() });
        image.save_png(&path).unwrap();
        assert_eq!(Image::open_png(&path).unwrap(), image);
        assert_eq!(Image::from_png("memory", &fs::read(&path).unwrap()).unwrap(), image);
        assert!(Image::from_png("memory", b"no image").unwrap_err().to_string().starts_with("memory: not a PNG"));
        let decoder = png::Decoder::new(BufReader::new(fs::File::open(&path).unwrap()));
        let reader = decoder.read_info().unwrap();
        let info = reader.info();
        let texts: Vec<String> = info.utf8_text.iter().map(|t| t.get_text().unwrap()).collect();
        assert_eq!(texts, ["a café 🦜", "guidance 2"]);
        assert!(info.uncompressed_latin1_text.iter().any(|t| t.keyword == "seed" && t.text == "7"));
    }

    #[test]
    fn a_small_file_with_gigabytes_of_text_is_an_image_without_provenance() {
        let mut bytes = Vec::new();
        let mut info = png::Info::with_size(1, 1);
        info.color_type = png::ColorType::Rgb;
        info.uncompressed_latin1_text.push(png::text_metadata::TEXtChunk::new("seed", "7"));
        for (key, text) in [("settings", "guidance 2".to_string()), ("prompt", "a".repeat(MAX_TEXT_BYTES + 1))] {
            let mut chunk = png::text_metadata::ITXtChunk::new(key, text);
            chunk.compressed = true;
            chunk.compress_text().unwrap();
            info.utf8_text.push(chunk);
        }
        let mut writer = png::Encoder::with_info(&mut bytes, info).unwrap().write_header().unwrap();
        writer.write_image_data(&[1, 2, 3]).unwrap();
        drop(writer);
        assert!(bytes.len() < MAX_TEXT_BYTES / 20);
        let image = Image::from_png("memory", &bytes).unwrap();
        assert_eq!((image.pixels(), &image.provenance), (&[1, 2, 3][..], &None));
    }

    #[test]
    fn a_failed_write_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let error = checker().save_png(folder.path().join("missing").join("x.png")).unwrap_err();
        assert!(error.to_string().contains("missing"), "{error}");
        // A folder with that name is left alone.
        fs::create_dir(folder.path().join("x.png")).unwrap();
        let error = checker().save_png(folder.path().join("x.png")).unwrap_err();
        assert!(error.to_string().contains("not a regular file"), "{error}");
        let names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["x.png"]);
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_and_devices_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (real, link) = (folder.path().join("real.png"), folder.path().join("link.png"));
        fs::write(&real, "old").unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        checker().save_png(&link).unwrap();
        assert!(link.is_symlink() && Image::open_png(&real).unwrap() == checker());
        assert!(checker().save_png("/dev/null").unwrap_err().to_string().contains("not a regular file"));
        assert!(!Path::new("/dev/null").is_file());
    }

    #[test]
    fn planes_round_to_the_nearest_level_and_back() {
        let image = checker();
        assert_eq!(Image::from_planes(&image.planes(), 4, 3).unwrap(), image);
        assert!(Image::from_planes(&[f32::NAN; 3], 1, 1).is_err());
        assert!(Image::from_rgb(2, 2, vec![0; 11]).is_err());
        assert!(Image::from_rgb(usize::MAX, 2, vec![0; 12]).is_err());
    }

    #[test]
    fn grid_places_images_row_by_row() {
        let images = vec![checker(), checker(), checker()];
        let grid = Image::grid(&images, 2).unwrap();
        assert_eq!((grid.width(), grid.height()), (8, 6));
        assert_eq!(grid.pixels()[3 * 4..3 * 8], checker().pixels()[..12]);
        assert_eq!(grid.pixels()[3 * (3 * 8 + 4)..3 * (3 * 8 + 8)], [255; 12]);
        assert!(Image::grid::<Image>(&[], 2).is_err());
    }
}
