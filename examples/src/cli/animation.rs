//! Animated GIF and PNG files.

use std::error::Error;
use std::path::Path;

use hart_core::Image;
use image::codecs::gif::{GifEncoder, Repeat};
use image::{Delay, DynamicImage, Frame};

use super::image_file::rgb;

/// Duration of a frame in milliseconds.
pub const FRAME_MS: u16 = 350;
/// Keyword of the text chunk with the XMP packet in a PNG file.
const XMP_KEYWORD: &str = "XML:com.adobe.xmp";
/// Last byte of a GIF file.
const GIF_TRAILER: u8 = 0x3b;
/// Duration of the last frame in milliseconds.
pub const LAST_MS: u16 = 2500;

/// Format of an animation file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// GIF, with at most 256 colours per frame.
    Gif,
    /// Animated PNG, in 24-bit colour.
    Apng,
}

impl Format {
    /// Returns the format of a file name's extension.
    ///
    /// # Errors
    ///
    /// Returns a message if the extension belongs to neither format.
    pub fn of(path: &Path) -> Result<Self, String> {
        match path.extension().map(|extension| extension.to_string_lossy().to_lowercase()).as_deref() {
            Some("gif") => Ok(Self::Gif),
            Some("png" | "apng") => Ok(Self::Apng),
            _ => Err(format!("--animation {}: expected a file name that ends in .gif, .png or .apng", path.display())),
        }
    }

    /// Encodes an animation that loops and shows the last frame longer. The file gets the marks of `image`; a GIF file only those that are
    /// in XMP.
    ///
    /// # Errors
    ///
    /// Returns an error if there is no frame or the encoder fails.
    pub fn encode(self, frames: &[Image], image: &Image) -> Result<Vec<u8>, Box<dyn Error>> {
        let Some(last) = frames.last() else { return Err("the animation has no frames".into()) };
        let delays = (1..=frames.len()).map(|n| if n == frames.len() { LAST_MS } else { FRAME_MS });
        match self {
            Self::Gif => {
                let texts = image.png_texts();
                let xmp = texts.iter().find(|(keyword, _)| *keyword == XMP_KEYWORD).map(|(_, packet)| packet.as_str());
                let bytes = gif(frames.iter().zip(delays))?;
                Ok(match xmp {
                    Some(packet) => with_xmp(&bytes, packet),
                    None => bytes,
                })
            }
            Self::Apng => apng(frames.iter().zip(delays), frames.len(), last, image),
        }
    }
}

fn gif<'a>(frames: impl Iterator<Item = (&'a Image, u16)>) -> Result<Vec<u8>, Box<dyn Error>> {
    let mut bytes = Vec::new();
    let mut encoder = GifEncoder::new(&mut bytes);
    encoder.set_repeat(Repeat::Infinite)?;
    for (frame, ms) in frames {
        let rgba = DynamicImage::ImageRgb8(rgb(frame)).to_rgba8();
        encoder.encode_frame(Frame::from_parts(rgba, 0, 0, Delay::from_numer_denom_ms(ms.into(), 1)))?;
    }
    drop(encoder);
    Ok(bytes)
}

/// Adds an XMP packet at the end of a GIF file.
///
/// The packet is not divided into sub-blocks. Readers that skip it take some byte of it for the length of a block and land in the bytes
/// after the packet, which count down so that each of them leads to the end.
fn with_xmp(gif: &[u8], packet: &str) -> Vec<u8> {
    let blocks = gif.strip_suffix(&[GIF_TRAILER]).unwrap_or(gif);
    let mut bytes = [blocks, b"\x21\xff\x0bXMP DataXMP", packet.as_bytes(), &[1]].concat();
    bytes.extend((0..=255).rev());
    bytes.extend([0, GIF_TRAILER]);
    bytes
}

/// Encodes an animated PNG whose default image is the finished one: programs without support for animations show it, others skip it.
fn apng<'a>(
    frames: impl Iterator<Item = (&'a Image, u16)>,
    count: usize,
    finished: &Image,
    image: &Image,
) -> Result<Vec<u8>, Box<dyn Error>> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, u32::try_from(finished.width())?, u32::try_from(finished.height())?);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_animated(u32::try_from(count)?, 0)?;
    encoder.set_sep_def_img(true)?;
    for (keyword, text) in image.png_texts() {
        encoder.add_itxt_chunk(keyword.into(), text)?;
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(finished.pixels())?;
    for (frame, ms) in frames {
        writer.set_frame_delay(ms, 1000)?;
        writer.write_image_data(frame.pixels())?;
    }
    writer.finish()?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_extension_selects_the_format() {
        assert_eq!(Format::of(Path::new("a.GIF")), Ok(Format::Gif));
        assert_eq!(Format::of(Path::new("a.apng")), Ok(Format::Apng));
        assert_eq!(Format::of(Path::new("a.b.png")), Ok(Format::Apng));
        assert!(Format::of(Path::new("a.webp")).unwrap_err().contains(".gif, .png or .apng"));
        assert!(Format::of(Path::new("gif")).is_err());
    }
}
