//! The prompt, seed and settings in image files, and the orientation of an image.

use std::io::Cursor;

use exif::experimental::Writer;
use exif::{Exif, Field, In, Reader, Tag, Value};
use serde_json::json;

use super::{MAX_TEXT_BYTES, Provenance};

/// Name of the program in image files.
const SOFTWARE: &str = concat!("hart ", env!("CARGO_PKG_VERSION"));
/// Prefix that some programs write before EXIF data in PNG and WebP files, as in JPEG files.
pub(super) const EXIF_PREFIX: &[u8] = b"Exif\0\0";
/// Character code of a comment in EXIF data.
const ASCII: &[u8] = b"ASCII\0\0\0";

/// Adds the text chunks of a PNG file: `Software`, and `prompt`, `seed` and `settings` if there is a provenance.
pub(super) fn add_png_texts<W: std::io::Write>(
    encoder: &mut png::Encoder<'_, W>,
    provenance: Option<&Provenance>,
) -> Result<(), png::EncodingError> {
    encoder.add_text_chunk("Software".into(), SOFTWARE.into())?;
    if let Some(provenance) = provenance {
        encoder.add_itxt_chunk("prompt".into(), provenance.prompt.clone())?;
        encoder.add_text_chunk("seed".into(), provenance.seed.to_string())?;
        encoder.add_itxt_chunk("settings".into(), provenance.settings.clone())?;
    }
    Ok(())
}

/// Reads the provenance from the text chunks of a PNG file.
pub(super) fn png_provenance(info: &png::Info<'_>) -> Option<Provenance> {
    // Texts may be compressed. The limit keeps a small file from expanding to gigabytes.
    let text = |key: &str| {
        let mut chunk = info.utf8_text.iter().find(|t| t.keyword == key)?.clone();
        chunk.decompress_text_with_limit(MAX_TEXT_BYTES).ok()?;
        chunk.get_text().ok()
    };
    let seed = info.uncompressed_latin1_text.iter().find(|t| t.keyword == "seed")?.text.parse().ok()?;
    Some(Provenance { prompt: text("prompt")?, seed, settings: text("settings")? })
}

/// Returns the EXIF data of a JPEG or WebP file: the tag `Software`, and a comment (`UserComment`) with `prompt`, `seed` and `settings`
/// as a JSON object in ASCII if there is a provenance.
pub(super) fn exif_of(provenance: Option<&Provenance>) -> Vec<u8> {
    let mut fields = vec![Field { tag: Tag::Software, ifd_num: In::PRIMARY, value: Value::Ascii(vec![SOFTWARE.into()]) }];
    if let Some(Provenance { prompt, seed, settings }) = provenance {
        let json = json!({"prompt": prompt, "seed": seed, "settings": settings}).to_string();
        let value = Value::Undefined([ASCII, ascii(&json).as_bytes()].concat(), 0);
        fields.push(Field { tag: Tag::UserComment, ifd_num: In::PRIMARY, value });
    }
    let (mut writer, mut bytes) = (Writer::new(), Cursor::new(Vec::new()));
    fields.iter().for_each(|field| writer.push_field(field));
    writer.write(&mut bytes, false).expect("the fields are valid, and memory can be written");
    bytes.into_inner()
}

/// Replaces the characters of a JSON text that are not ASCII by escapes.
fn ascii(json: &str) -> String {
    let escape = |c: char| c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")).collect();
    json.chars().map(|c| if c.is_ascii() { c.to_string() } else { escape(c) }).collect()
}

/// Reads EXIF data as far as they are not damaged.
pub(super) fn read_exif(bytes: &[u8]) -> Option<Exif> {
    let bytes = bytes.strip_prefix(EXIF_PREFIX).unwrap_or(bytes);
    let parsed = Reader::new().continue_on_error(true).read_raw(bytes.to_vec());
    parsed.or_else(|error| error.distill_partial_result(|_| ())).ok()
}

/// Returns the orientation of an image, from 1 to 8; 1 if its EXIF data have none.
pub(super) fn orientation(exif: Option<&Exif>) -> u8 {
    let value = exif.and_then(|exif| exif.get_field(Tag::Orientation, In::PRIMARY)?.value.get_uint(0));
    value.and_then(|value| u8::try_from(value).ok()).filter(|value| (1..=8).contains(value)).unwrap_or(1)
}

/// Reads the provenance from the EXIF data of a JPEG or WebP file.
pub(super) fn exif_provenance(exif: &Exif) -> Option<Provenance> {
    let Value::Undefined(comment, _) = &exif.get_field(Tag::UserComment, In::PRIMARY)?.value else { return None };
    let json: serde_json::Value = serde_json::from_slice(comment.strip_prefix(ASCII)?).ok()?;
    let text = |key: &str| Some(json.get(key)?.as_str()?.to_string());
    Some(Provenance { prompt: text("prompt")?, seed: json.get("seed")?.as_u64()?, settings: text("settings")? })
}
