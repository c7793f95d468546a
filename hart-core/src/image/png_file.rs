//! PNG files that record how an image was generated.

use std::io::{self, BufRead, Seek};
use std::path::Path;

use super::marks::{orientation, png_texts, read_exif, read_png};
use super::read::{TRUNCATED, check_size, open_file};
use super::{Image, ImageFormat};
use crate::error::{Error, Result};
use crate::files::check_download;

impl Image {
    /// Encodes the image as a PNG file, with the marks of [`Self::marks`] in text chunks.
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
        for (keyword, text) in png_texts(self) {
            // A text chunk holds Latin-1. Every program reads it, but only some read UTF-8.
            if text.chars().all(|c| c != '\r' && u32::from(c) < 256) {
                encoder.add_text_chunk(keyword.into(), text)?;
            } else {
                encoder.add_itxt_chunk(keyword.into(), text)?;
            }
        }
        let mut writer = encoder.write_header()?;
        writer.write_image_data(&self.pixels)?;
        writer.finish()?;
        Ok(bytes)
    }

    /// Writes a PNG file atomically, whatever its ending: a failure leaves no partial file.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] with the path, like [`write_file`](crate::write_file).
    pub fn save_png(&self, path: impl AsRef<Path>) -> Result<()> {
        self.save_as(path, ImageFormat::Png)
    }

    /// Reads a PNG file, like [`Self::open`].
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the file cannot be read, [`Error::Image`] if it is not a PNG image or is truncated.
    pub fn open_png(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::read_png(open_file(path)?, path)
    }

    /// Decodes a PNG file in memory. `name` appears in error messages.
    ///
    /// # Errors
    ///
    /// [`Error::Image`] if it is not a PNG image.
    pub fn from_png(name: impl AsRef<Path>, bytes: &[u8]) -> Result<Self> {
        Self::read_png(io::Cursor::new(bytes), name.as_ref())
    }

    pub(super) fn read_png(mut source: impl BufRead + Seek, path: &Path) -> Result<Self> {
        let invalid = |problem: String| Error::Image { path: path.to_path_buf(), problem };
        let start = source.fill_buf().map_err(Error::io(path))?;
        if !start.is_empty()
            && let Err(Error::Checkpoint { problem, .. }) = check_download(path, start)
        {
            return Err(invalid(problem));
        }
        let damaged = |e: png::DecodingError| invalid(format!("not a PNG image: {e}"));
        let mut decoder = png::Decoder::new(source);
        decoder.set_transformations(png::Transformations::normalize_to_color8());
        let mut reader = decoder.read_info().map_err(damaged)?;
        let (width, height) = (reader.info().width as usize, reader.info().height as usize);
        check_size(width, height).map_err(invalid)?;
        let mut buffer = vec![0; reader.output_buffer_size().unwrap_or_default()];
        let info = reader.next_frame(&mut buffer).map_err(|error| match error {
            png::DecodingError::IoError(e) if e.kind() == io::ErrorKind::UnexpectedEof => invalid(TRUNCATED.into()),
            error => damaged(error),
        })?;
        buffer.truncate(info.buffer_size());
        let image = match info.color_type {
            png::ColorType::Grayscale => Self::from_rgb(width, height, buffer.iter().flat_map(|&g| [g; 3]).collect())?,
            png::ColorType::GrayscaleAlpha => {
                let pixels: Vec<u8> = buffer.chunks_exact(2).flat_map(|p| [p[0], p[0], p[0], p[1]]).collect();
                Self::from_rgba(width, height, &pixels)?
            }
            png::ColorType::Rgba => Self::from_rgba(width, height, &buffer)?,
            _ => Self::from_rgb(width, height, buffer)?,
        };
        // The chunks after the pixels may have an orientation too. The pixels are complete, whatever follows them.
        let _ = reader.finish();
        let exif = reader.info().exif_metadata.as_deref().and_then(read_exif);
        Ok(image.upright(orientation(exif.as_ref())).with_marks_read(read_png(reader.info())))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::BufReader;

    use super::super::marks::EXIF_PREFIX;
    use super::super::tests::checker;
    use super::super::{MAX_TEXT_BYTES, Provenance};
    use super::*;

    #[test]
    fn a_failed_download_is_named() {
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n";
        for (contents, words) in [(&pointer[..], "git lfs pull"), (b"<!DOCTYPE html>", "web page")] {
            let error = Image::from_png("a.png", contents).unwrap_err();
            assert!(matches!(error, Error::Image { .. }) && error.to_string().contains(words), "{error}");
        }
    }

    #[test]
    fn png_keeps_pixels_and_provenance() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("café 🦜.png");
        let mut image = checker();
        image.provenance = Some(Provenance::new("a café 🦜", 7, "guidance 2"));
        image.save_png(&path).unwrap();
        assert_eq!(Image::open_png(&path).unwrap(), image);
        assert_eq!(Image::from_png("memory", &fs::read(&path).unwrap()).unwrap(), image);
        assert!(Image::from_png("memory", b"no image").unwrap_err().to_string().starts_with("memory: not a PNG"));
        let decoder = png::Decoder::new(BufReader::new(fs::File::open(&path).unwrap()));
        let reader = decoder.read_info().unwrap();
        let info = reader.info();
        let texts: Vec<(&str, String)> = info.utf8_text.iter().map(|t| (t.keyword.as_str(), t.get_text().unwrap())).collect();
        assert_eq!(texts[0].0, "parameters");
        assert!(texts[0].1.starts_with("a café 🦜\nSampler: HART, Seed: 7, Size: 4x3, Version: hart "), "{texts:?}");
        assert_eq!(texts[1], ("hart", r#"{"prompt":"a café 🦜","seed":7,"settings":"guidance 2"}"#.to_string()));
        assert_eq!((texts[2].0, texts.len()), ("XML:com.adobe.xmp", 3));
        // Readers take these for ComfyUI's.
        assert!(info.uncompressed_latin1_text.iter().all(|t| t.keyword == "Software"));
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

    /// Encodes an image with an alpha channel, and an EXIF chunk with an orientation before or after the pixels.
    fn turned_png(width: u32, height: u32, pixels: &[u8], orientation: u8, after: bool) -> Vec<u8> {
        let entry = [0x01, 0x12, 0, 3, 0, 0, 0, 1, 0, orientation, 0, 0];
        let prefix = if after { EXIF_PREFIX } else { &[] };
        let exif = [prefix, b"MM\0*\0\0\0\x08\0\x01", &entry, &[0; 4]].concat();
        let mut bytes = Vec::new();
        let mut info = png::Info::with_size(width, height);
        info.color_type = png::ColorType::Rgba;
        if !after {
            info.exif_metadata = Some(exif.clone().into());
        }
        let mut writer = png::Encoder::with_info(&mut bytes, info).unwrap().write_header().unwrap();
        writer.write_image_data(pixels).unwrap();
        if after {
            writer.write_chunk(png::chunk::eXIf, &exif).unwrap();
        }
        writer.finish().unwrap();
        bytes
    }

    #[test]
    fn every_orientation_is_turned_upright() {
        // 3 x 2 pixels, numbered from the top left of the upright image, as a camera stores them.
        let stored: [(u8, [u8; 6]); 10] = [
            (0, [1, 2, 3, 4, 5, 6]),
            (1, [1, 2, 3, 4, 5, 6]),
            (2, [3, 2, 1, 6, 5, 4]),
            (3, [6, 5, 4, 3, 2, 1]),
            (4, [4, 5, 6, 1, 2, 3]),
            (5, [1, 4, 2, 5, 3, 6]),
            (6, [3, 6, 2, 5, 1, 4]),
            (7, [6, 3, 5, 2, 4, 1]),
            (8, [4, 1, 5, 2, 6, 3]),
            (9, [1, 2, 3, 4, 5, 6]),
        ];
        for (orientation, levels) in stored {
            let (width, height) = if (5..=8).contains(&orientation) { (2, 3) } else { (3, 2) };
            let pixels: Vec<u8> = levels.iter().flat_map(|&level| [level, level, level, 254 + level % 2]).collect();
            for after in [false, true] {
                let image = Image::from_png("turned", &turned_png(width, height, &pixels, orientation, after)).unwrap();
                let upright: Vec<u8> = (1..=6).flat_map(|level: u8| [level, level, level, 254 + level % 2]).collect();
                assert_eq!(image, Image::from_rgba(3, 2, &upright).unwrap(), "orientation {orientation}");
            }
        }
    }

    #[test]
    fn a_truncated_file_is_refused_by_name() {
        let bytes = checker().to_png().unwrap();
        for length in 0..bytes.len() - 16 {
            let error = Image::from_png("half.png", &bytes[..length]).unwrap_err().to_string();
            assert!(error.starts_with("half.png: "), "{length}: {error}");
        }
        let error = Image::from_png("half.png", &bytes[..bytes.len() - 20]).unwrap_err().to_string();
        assert_eq!(error, "half.png: the file is truncated, its end is missing: copy or download it again");
    }
}
