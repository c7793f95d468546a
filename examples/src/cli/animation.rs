//! Animated GIF and PNG files.

use std::error::Error;
use std::path::Path;

use hart_core::Provenance;
use image::codecs::gif::{GifEncoder, Repeat};
use image::{Delay, DynamicImage, Frame, RgbImage};

/// How long a frame is seen, in milliseconds.
pub const FRAME_MS: u16 = 350;
/// How long the last one is.
pub const LAST_MS: u16 = 2500;

/// Kind of file, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// At most 256 colours a frame.
    Gif,
    /// Animated PNG, with all colours.
    Apng,
}

impl Format {
    /// The format that a file name asks for.
    ///
    /// # Errors
    ///
    /// It asks for another.
    pub fn of(path: &Path) -> Result<Self, String> {
        match path.extension().map(|extension| extension.to_string_lossy().to_lowercase()).as_deref() {
            Some("gif") => Ok(Self::Gif),
            Some("png" | "apng") => Ok(Self::Apng),
            _ => Err(format!("--animation {}: expected a name that ends in .gif, .png or .apng", path.display())),
        }
    }

    /// The file's bytes: the frames, the last one held longer, again and again.
    ///
    /// # Errors
    ///
    /// There is no frame, or the encoder's own.
    pub fn encode(self, frames: &[RgbImage], made: Option<&Provenance>) -> Result<Vec<u8>, Box<dyn Error>> {
        let Some(last) = frames.last() else { return Err("there is no frame".into()) };
        let delays = (1..=frames.len()).map(|n| if n == frames.len() { LAST_MS } else { FRAME_MS });
        match self {
            Self::Gif => gif(frames.iter().zip(delays)),
            Self::Apng => apng(frames.iter().zip(delays), frames.len(), last, made),
        }
    }
}

fn gif<'a>(frames: impl Iterator<Item = (&'a RgbImage, u16)>) -> Result<Vec<u8>, Box<dyn Error>> {
    let mut bytes = Vec::new();
    let mut encoder = GifEncoder::new(&mut bytes);
    encoder.set_repeat(Repeat::Infinite)?;
    for (frame, ms) in frames {
        let rgba = DynamicImage::ImageRgb8(frame.clone()).to_rgba8();
        encoder.encode_frame(Frame::from_parts(rgba, 0, 0, Delay::from_numer_denom_ms(ms.into(), 1)))?;
    }
    drop(encoder);
    Ok(bytes)
}

/// The finished picture comes first: programs that know no animation show it, the others leave it out.
fn apng<'a>(
    frames: impl Iterator<Item = (&'a RgbImage, u16)>,
    count: usize,
    finished: &RgbImage,
    made: Option<&Provenance>,
) -> Result<Vec<u8>, Box<dyn Error>> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, finished.width(), finished.height());
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_animated(u32::try_from(count)?, 0)?;
    encoder.set_sep_def_img(true)?;
    if let Some(made) = made {
        encoder.add_itxt_chunk("prompt".into(), made.prompt.clone())?;
        encoder.add_text_chunk("seed".into(), made.seed.to_string())?;
        encoder.add_itxt_chunk("settings".into(), made.settings.clone())?;
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(finished)?;
    for (frame, ms) in frames {
        writer.set_frame_delay(ms, 1000)?;
        writer.write_image_data(frame)?;
    }
    writer.finish()?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_says_the_format() {
        assert_eq!(Format::of(Path::new("a.GIF")), Ok(Format::Gif));
        assert_eq!(Format::of(Path::new("a.apng")), Ok(Format::Apng));
        assert_eq!(Format::of(Path::new("a.b.png")), Ok(Format::Apng));
        assert!(Format::of(Path::new("a.webp")).unwrap_err().contains(".gif, .png or .apng"));
        assert!(Format::of(Path::new("gif")).is_err());
    }
}
