//! The marks in image files: how an image was generated, and that a model generated it.
//!
//! | mark | PNG | JPEG and WebP |
//! |---|---|---|
//! | A1111's text of parameters | text chunk `parameters` | EXIF `UserComment` |
//! | hart's settings as JSON | text chunk `hart` | XMP `hart:Settings` |
//! | IPTC's digital source type, AI system, program | XMP, and text chunk `Software` | XMP, and EXIF `Software` |

mod exif;
mod parameters;
mod png_texts;
mod settings;
mod xmp;

use std::fmt;
use std::str::FromStr;

pub(super) use exif::{orientation, read_exif};
pub(super) use png_texts::{png_texts, read_png};

use ::exif::Exif;

use super::{DigitalSource, Image, Provenance};
use crate::error::Error;

#[cfg(test)]
pub(super) use exif::EXIF_PREFIX;

/// Name of the program in image files.
const SOFTWARE: &str = concat!("hart ", env!("CARGO_PKG_VERSION"));
/// Version of the program in image files.
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Maximum length of an XMP packet in a JPEG file, which is one segment.
const MAX_JPEG_XMP: usize = 65_502;
/// Maximum length of the EXIF data in a JPEG file, which are one segment.
const MAX_JPEG_EXIF: usize = 65_000;

/// The marks that image files get. The default is all of them.
///
/// ```
/// use hart_core::{Marks, Request};
/// let private = Request::new("a red heart").marks(Marks { prompt: false, ..Marks::ALL });
/// assert_eq!("prompt".parse::<Marks>()?, Marks { prompt: true, ..Marks::NONE });
/// # drop(private);
/// # Ok::<(), hart_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Marks {
    /// The prompt, and a system prompt that replaced the model's, in all other marks.
    pub prompt: bool,
    /// The text of prompt and settings that A1111's web UI writes, which many programs read.
    pub parameters: bool,
    /// The settings of hart as JSON, from which the image can be generated again.
    pub settings: bool,
    /// IPTC's digital source type, the AI system and its version in XMP, and the name of the program.
    pub source: bool,
}

impl Marks {
    /// All marks.
    pub const ALL: Self = Self { prompt: true, parameters: true, settings: true, source: true };
    /// No mark: the file contains only pixels.
    pub const NONE: Self = Self { prompt: false, parameters: false, settings: false, source: false };

    /// Returns these marks without those of `others`.
    #[must_use]
    pub fn without(self, others: Self) -> Self {
        Self {
            prompt: self.prompt && !others.prompt,
            parameters: self.parameters && !others.parameters,
            settings: self.settings && !others.settings,
            source: self.source && !others.source,
        }
    }
}

impl Default for Marks {
    fn default() -> Self {
        Self::ALL
    }
}

impl FromStr for Marks {
    type Err = Error;

    /// Parses `all`, `none`, or names of marks with commas between them: `prompt`, `parameters`, `settings` and `source`.
    fn from_str(names: &str) -> Result<Self, Error> {
        match names {
            "all" => return Ok(Self::ALL),
            "none" => return Ok(Self::NONE),
            _ => {}
        }
        names.split(',').try_fold(Self::NONE, |marks, name| match name.trim() {
            "prompt" => Ok(Self { prompt: true, ..marks }),
            "parameters" => Ok(Self { parameters: true, ..marks }),
            "settings" => Ok(Self { settings: true, ..marks }),
            "source" => Ok(Self { source: true, ..marks }),
            _ => {
                let expected = "expected all, none, or names of prompt, parameters, settings and source with commas";
                Err(Error::request("marks", format!("`{name}` is unknown, {expected}")))
            }
        })
    }
}

impl fmt::Display for Marks {
    /// Writes the names that are parsed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = ["prompt", "parameters", "settings", "source"];
        let marks = names.into_iter().zip([self.prompt, self.parameters, self.settings, self.source]);
        let names: Vec<&str> = marks.filter_map(|(name, is_written)| is_written.then_some(name)).collect();
        match *self {
            Self::ALL => f.write_str("all"),
            Self::NONE => f.write_str("none"),
            _ => f.write_str(&names.join(",")),
        }
    }
}

/// Returns the EXIF data and the XMP packet of a JPEG or WebP file; none where there is nothing to write. What is too long for a JPEG
/// file is left out: the prompt of the parameters; of the XMP packet, first IPTC's prompt and then the settings.
pub(super) fn exif_and_xmp(image: &Image, is_jpeg: bool) -> (Option<Vec<u8>>, Option<String>) {
    let (max_exif, max_xmp) = if is_jpeg { (MAX_JPEG_EXIF, MAX_JPEG_XMP) } else { (usize::MAX, usize::MAX) };
    let marks = image.marks;
    let exif = exif::data(image, marks).filter(|exif| exif.len() <= max_exif);
    let exif = exif.or_else(|| exif::data(image, Marks { prompt: false, ..marks }));
    let settings = || settings::json(image, marks);
    let packets = [(true, true), (false, true), (false, false)];
    let mut packets = packets.map(|(prompt, with_settings)| {
        move || xmp::packet(image, Marks { prompt: marks.prompt && prompt, ..marks }, with_settings.then(settings).flatten())
    });
    (exif, packets.iter_mut().find_map(|packet| packet().filter(|packet| packet.len() <= max_xmp)))
}

/// Reads the marks of a JPEG or WebP file.
pub(super) fn read(exif: Option<&Exif>, xmp: Option<&[u8]>) -> (Option<Provenance>, Option<DigitalSource>) {
    let xmp = xmp.and_then(xmp::read).unwrap_or_default();
    let provenance = xmp.settings.as_deref().and_then(settings::read);
    (provenance.or_else(|| exif.and_then(exif::old_provenance)), xmp.source)
}

#[cfg(test)]
mod tests;
