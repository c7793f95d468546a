//! Text chunks of PNG files.

use super::super::{DigitalSource, Image, MAX_TEXT_BYTES, Provenance};
use super::{SOFTWARE, parameters, settings, xmp};

/// Keywords of the chunks.
const PARAMETERS: &str = "parameters";
const SETTINGS: &str = "hart";
const XMP: &str = "XML:com.adobe.xmp";

/// Returns the keywords and texts of an image's chunks.
pub(in super::super) fn png_texts(image: &Image) -> Vec<(&'static str, String)> {
    let marks = image.marks;
    let texts = [
        ("Software", marks.source.then(|| SOFTWARE.to_string())),
        (PARAMETERS, parameters::text(image, marks)),
        (SETTINGS, settings::json(image, marks)),
        (XMP, xmp::packet(image, marks, None)),
    ];
    texts.into_iter().filter_map(|(keyword, text)| Some((keyword, text?))).collect()
}

/// Reads the marks of a PNG file, including the chunks `prompt`, `seed` and `settings` of earlier versions.
pub(in super::super) fn read_png(info: &png::Info<'_>) -> (Option<Provenance>, Option<DigitalSource>) {
    let xmp = text(info, XMP).and_then(|packet| xmp::read(packet.as_bytes())).unwrap_or_default();
    let provenance = text(info, SETTINGS).or(xmp.settings).as_deref().and_then(settings::read);
    (provenance.or_else(|| old_provenance(info)), xmp.source)
}

fn old_provenance(info: &png::Info<'_>) -> Option<Provenance> {
    Some(Provenance::new(text(info, "prompt")?, text(info, "seed")?.parse().ok()?, text(info, "settings")?))
}

/// Returns the text of a keyword. Texts may be compressed: the limit keeps a small file from expanding to gigabytes.
fn text(info: &png::Info<'_>, keyword: &str) -> Option<String> {
    if let Some(chunk) = info.utf8_text.iter().find(|chunk| chunk.keyword == keyword) {
        let mut chunk = chunk.clone();
        chunk.decompress_text_with_limit(MAX_TEXT_BYTES).ok()?;
        return chunk.get_text().ok();
    }
    info.uncompressed_latin1_text.iter().find(|chunk| chunk.keyword == keyword).map(|chunk| chunk.text.clone())
}
