//! The text of prompt and settings that A1111's web UI writes (`modules/infotext_utils.py`), read by many programs.

use serde_json::Value;

use super::super::{Image, Provenance};
use super::{Marks, SOFTWARE};

/// Returns the text of an image: its prompt, and a line of settings. `None` if the mark is left out or nothing is known.
pub(super) fn text(image: &Image, marks: Marks) -> Option<String> {
    let provenance = image.provenance.as_ref().filter(|_| marks.parameters)?;
    Some(describe(provenance, image.width(), image.height(), marks.prompt))
}

impl Provenance {
    /// Returns the text of parameters, as files of an image of this size contain it: the prompt, and a line of settings in the form of
    /// A1111's web UI.
    pub fn parameters(&self, width: usize, height: usize) -> String {
        describe(self, width, height, true)
    }
}

fn describe(provenance: &Provenance, width: usize, height: usize, with_prompt: bool) -> String {
    let mut fields: Vec<(&str, String)> = Vec::new();
    let generation = provenance.generation.as_ref();
    if let Some(generation) = generation {
        fields.push(("Steps", generation.step_count.to_string()));
    }
    fields.push(("Sampler", "HART".into()));
    if let Some(generation) = generation {
        fields.push(("CFG scale", generation.guidance.to_string()));
    }
    fields.push(("Seed", provenance.seed.to_string()));
    fields.push(("Size", format!("{width}x{height}")));
    // Ten digits, as of the files that the web UI hashes.
    if let Some(hash) = generation.and_then(|generation| generation.model_fingerprint.get(..10)) {
        fields.push(("Model hash", quoted(hash)));
    }
    if let Some(generation) = generation.filter(|generation| !generation.model.is_empty()) {
        fields.push(("Model", quoted(&generation.model)));
    }
    fields.push(("Version", SOFTWARE.into()));
    let line = fields.iter().map(|(name, value)| format!("{name}: {value}")).collect::<Vec<_>>().join(", ");
    // Text chunks end at a NUL.
    let prompt = if with_prompt { provenance.prompt.replace('\0', "\u{fffd}") } else { String::new() };
    if prompt.is_empty() { line } else { format!("{prompt}\n{line}") }
}

/// Quotes a value as JSON if readers would take a part of it for the next field.
fn quoted(value: &str) -> String {
    let is_plain = !value.chars().any(|c| matches!(c, ',' | ':' | '"') || c.is_control());
    if is_plain { value.into() } else { Value::from(value).to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_quoted_like_those_of_the_web_ui() {
        for (value, expected) in
            [("hart-emoji", "hart-emoji"), ("a, b", "\"a, b\""), ("a: \"b\"", "\"a: \\\"b\\\"\""), ("a\nb", "\"a\\nb\"")]
        {
            assert_eq!(quoted(value), expected);
        }
    }
}
