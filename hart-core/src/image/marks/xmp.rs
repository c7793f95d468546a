//! XMP packets: IPTC's marks of AI (Photo Metadata Standard 2025.1), and hart's settings in JPEG and WebP files.

use std::fmt::Write;

use roxmltree::Document;

use super::super::{DigitalSource, Image};
use super::settings::ascii;
use super::{Marks, SOFTWARE, VERSION};

/// Beginning of IPTC's digital source types.
const SOURCE_TYPES: &str = "http://cv.iptc.org/newscodes/digitalsourcetype/";
/// The namespaces of properties and their prefixes.
const XMP: (&str, &str) = ("xmp", "http://ns.adobe.com/xap/1.0/");
const IPTC: (&str, &str) = ("Iptc4xmpExt", "http://iptc.org/std/Iptc4xmpExt/2008-02-29/");
const HART: (&str, &str) = ("hart", concat!(env!("CARGO_PKG_REPOSITORY"), "/ns/1.0/"));
/// Maximum length of a packet that is read.
const MAX_BYTES: usize = 1 << 24;
/// Maximum number of elements and attributes of a packet that is read.
const MAX_NODES: u32 = 1 << 16;

/// The properties of a packet that hart reads.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Read {
    /// Part of AI in the image.
    pub(super) source: Option<DigitalSource>,
    /// Settings of hart as JSON.
    pub(super) settings: Option<String>,
}

impl DigitalSource {
    /// Returns the name in IPTC's vocabulary.
    fn name(self) -> &'static str {
        match self {
            Self::Generated => "trainedAlgorithmicMedia",
            Self::Composite => "compositeWithTrainedAlgorithmicMedia",
        }
    }
}

/// Returns the packet of an image; `None` if nothing is to be written.
pub(super) fn packet(image: &Image, marks: Marks, settings: Option<String>) -> Option<String> {
    let mut properties = Vec::new();
    if let Some(source) = image.digital_source().filter(|_| marks.source) {
        let generation = image.provenance.as_ref().and_then(|provenance| provenance.generation.as_ref());
        let system = match generation.map(|generation| generation.model.as_str()) {
            None | Some("") => "hart".into(),
            Some(model) => format!("hart, model {model}"),
        };
        let version = generation.map_or(VERSION, |generation| generation.version.as_str());
        properties.push((XMP, "CreatorTool", SOFTWARE.into()));
        properties.push((IPTC, "DigitalSourceType", format!("{SOURCE_TYPES}{}", source.name())));
        properties.push((IPTC, "AISystemUsed", system));
        properties.push((IPTC, "AISystemVersionUsed", version.into()));
        let prompt = image.provenance.as_ref().map(|provenance| provenance.prompt.as_str());
        if let Some(prompt) = prompt.filter(|prompt| marks.prompt && !prompt.is_empty()) {
            properties.push((IPTC, "AIPromptInformation", prompt.into()));
        }
    }
    if let Some(settings) = settings {
        // XML can't hold all characters, ASCII can escape them.
        properties.push((HART, "Settings", ascii(&settings)));
    }
    if properties.is_empty() {
        return None;
    }
    let mut out = String::from(
        "<?xpacket begin=\"\u{feff}\" id=\"W5M0MpCehiHzreSzNTczkc9d\"?>\n<x:xmpmeta xmlns:x=\"adobe:ns:meta/\">\
         <rdf:RDF xmlns:rdf=\"http://www.w3.org/1999/02/22-rdf-syntax-ns#\">\n<rdf:Description rdf:about=\"\"",
    );
    for (prefix, uri) in [XMP, IPTC, HART] {
        let _ = write!(out, " xmlns:{prefix}=\"{uri}\"");
    }
    out.push_str(">\n");
    for ((prefix, _), name, value) in properties {
        let _ = writeln!(out, "<{prefix}:{name}>{}</{prefix}:{name}>", escaped(&value));
    }
    out.push_str("</rdf:Description>\n</rdf:RDF></x:xmpmeta>\n<?xpacket end=\"w\"?>");
    Some(out)
}

/// Escapes a text for XML. Characters that XML can't hold are replaced.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\r' => out.push_str("&#13;"),
            '\t' | '\n' => out.push(c),
            '\0'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            _ => out.push(c),
        }
    }
    out
}

/// Reads a packet, whose properties are elements or attributes. `None` if it is damaged. Entities of the document's own are refused, so
/// none expands.
pub(super) fn read(packet: &[u8]) -> Option<Read> {
    let text = std::str::from_utf8(packet.get(..packet.len().min(MAX_BYTES))?).ok()?;
    // Some programs pad the packet or end it with NUL.
    let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
    let options = roxmltree::ParsingOptions { nodes_limit: MAX_NODES, ..Default::default() };
    let document = Document::parse_with_options(text, options).ok()?;
    let property = |(_, uri): (&str, &str), name: &str| {
        document.descendants().find_map(|node| {
            let attribute = node.attribute((uri, name));
            attribute.or_else(|| node.text().filter(|_| node.has_tag_name((uri, name)))).map(str::to_string)
        })
    };
    let source = property(IPTC, "DigitalSourceType");
    let is =
        |source_type: DigitalSource| source.as_deref().is_some_and(|uri| uri.trim().ends_with(&format!("/{}", source_type.name())));
    let source = [DigitalSource::Generated, DigitalSource::Composite].into_iter().find(|source| is(*source));
    Some(Read { source, settings: property(HART, "Settings") })
}

#[cfg(test)]
mod tests {
    use super::super::super::Provenance;
    use super::*;

    #[test]
    fn every_text_is_read_back_and_escaped() {
        let mut image = Image::from_rgb(1, 1, vec![0; 3]).unwrap();
        let json = "{\"a\":\"<b> & ]]> \u{fffe} 🦜 \\u0000\"}";
        image.provenance = Some(Provenance::new("</x>&\0\r\n<!--\u{ffff}", 1, ""));
        let packet = packet(&image, Marks::ALL, Some(json.into())).unwrap();
        let read = read(packet.as_bytes()).unwrap();
        assert_eq!(read, Read { source: Some(DigitalSource::Generated), settings: Some(ascii(json)) });
        let document = Document::parse(&packet).unwrap();
        let prompt = document.descendants().find(|node| node.has_tag_name((IPTC.1, "AIPromptInformation"))).unwrap();
        assert_eq!(prompt.text(), Some("</x>&\u{fffd}\r\n<!--\u{fffd}"));
    }

    #[test]
    fn attributes_are_read_and_hostile_packets_refused() {
        let packet = |before: &str, attribute: &str| {
            format!(
                "{before}<r:RDF xmlns:r=\"http://www.w3.org/1999/02/22-rdf-syntax-ns#\"><r:Description xmlns:i=\"{}\" \
                 i:DigitalSourceType=\"{attribute}\"/></r:RDF>",
                IPTC.1
            )
        };
        let composite = format!("{SOURCE_TYPES}compositeWithTrainedAlgorithmicMedia");
        let expected = Read { source: Some(DigitalSource::Composite), settings: None };
        assert_eq!(read(packet("", &composite).as_bytes()), Some(expected));
        assert_eq!(read(packet("", "digitalCapture").as_bytes()), Some(Read::default()));
        let mut bomb = String::from("<!DOCTYPE x [<!ENTITY e0 \"bomb\">");
        for i in 1..30 {
            let _ = write!(bomb, "<!ENTITY e{i} \"&e{0};&e{0};\">", i - 1);
        }
        assert_eq!(read(packet(&(bomb + "]>"), "&e29;").as_bytes()), None);
        let deep = "<a>".repeat(1 << 20);
        let many = format!("<a>{}</a>", "<b/>".repeat(1 << 17));
        for damaged in [deep.as_bytes(), many.as_bytes(), b"<", b"", b"\xff\xfe", &packet("", &composite).as_bytes()[..200]] {
            assert_eq!(read(damaged), None);
        }
    }
}
