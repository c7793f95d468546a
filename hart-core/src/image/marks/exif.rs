//! EXIF data: the program, the text of parameters, and the orientation of an image.

use std::io::Cursor;

use exif::experimental::Writer;
use exif::{Exif, Field, In, Reader, Tag, Value};

use super::super::{Image, Provenance};
use super::{Marks, SOFTWARE, parameters};

/// Prefix that some programs write before EXIF data in PNG and WebP files, as in JPEG files.
pub(in super::super) const EXIF_PREFIX: &[u8] = b"Exif\0\0";
/// Character codes of a comment in EXIF data.
const UNICODE: &[u8] = b"UNICODE\0";
const ASCII: &[u8] = b"ASCII\0\0\0";

/// Returns the EXIF data of a JPEG or WebP file: the tag `Software`, and the parameters as the comment (`UserComment`), in the form
/// that A1111's web UI writes and other programs expect: big-endian UTF-16. `None` if there is nothing to write.
pub(super) fn data(image: &Image, marks: Marks) -> Option<Vec<u8>> {
    let mut fields = Vec::new();
    if marks.source {
        let value = Value::Ascii(vec![SOFTWARE.into()]);
        fields.push(Field { tag: Tag::Software, ifd_num: In::PRIMARY, value });
    }
    if let Some(text) = parameters::text(image, marks) {
        let value = Value::Undefined([UNICODE, &text.encode_utf16().flat_map(u16::to_be_bytes).collect::<Vec<_>>()].concat(), 0);
        fields.push(Field { tag: Tag::UserComment, ifd_num: In::PRIMARY, value });
    }
    if fields.is_empty() {
        return None;
    }
    let (mut writer, mut bytes) = (Writer::new(), Cursor::new(Vec::new()));
    fields.iter().for_each(|field| writer.push_field(field));
    writer.write(&mut bytes, false).expect("the fields are valid, and memory can be written");
    Some(bytes.into_inner())
}

/// Reads EXIF data as far as they are not damaged.
pub(in super::super) fn read_exif(bytes: &[u8]) -> Option<Exif> {
    let bytes = bytes.strip_prefix(EXIF_PREFIX).unwrap_or(bytes);
    let parsed = Reader::new().continue_on_error(true).read_raw(bytes.to_vec());
    parsed.or_else(|error| error.distill_partial_result(|_| ())).ok()
}

/// Returns the orientation of an image, from 1 to 8; 1 if its EXIF data have none.
pub(in super::super) fn orientation(exif: Option<&Exif>) -> u8 {
    let value = exif.and_then(|exif| exif.get_field(Tag::Orientation, In::PRIMARY)?.value.get_uint(0));
    value.and_then(|value| u8::try_from(value).ok()).filter(|value| (1..=8).contains(value)).unwrap_or(1)
}

/// Reads the provenance from the comment of a file of an earlier version: `prompt`, `seed` and `settings` as a JSON object in ASCII.
pub(super) fn old_provenance(exif: &Exif) -> Option<Provenance> {
    let Value::Undefined(comment, _) = &exif.get_field(Tag::UserComment, In::PRIMARY)?.value else { return None };
    let json: serde_json::Value = serde_json::from_slice(comment.strip_prefix(ASCII)?).ok()?;
    let text = |key: &str| json.get(key)?.as_str();
    Some(Provenance::new(text("prompt")?, json.get("seed")?.as_u64()?, text("settings")?))
}
