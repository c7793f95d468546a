//! The settings of hart as JSON.

use serde::{Deserialize, Serialize};

use super::super::{GenerationSettings, Image, Provenance};
use super::Marks;

/// The JSON object.
#[derive(Serialize, Deserialize)]
struct Settings {
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt: Option<String>,
    seed: u64,
    /// The other settings in one line.
    settings: String,
    #[serde(flatten)]
    generation: Option<GenerationSettings>,
}

/// Returns the settings of an image. `None` if the mark is left out or nothing is known.
pub(super) fn json(image: &Image, marks: Marks) -> Option<String> {
    let Provenance { prompt, seed, settings, mut generation } = image.provenance.clone().filter(|_| marks.settings)?;
    if let Some(generation) = generation.as_mut().filter(|_| !marks.prompt) {
        // An empty text says that there is none, which is no secret.
        let text = generation.system_prompt.take_if(|text| !text.is_empty());
        generation.system_prompt_omitted |= text.is_some();
    }
    let settings = Settings { prompt: Some(prompt).filter(|_| marks.prompt), seed, settings, generation };
    serde_json::to_string(&settings).ok()
}

/// Reads the settings of an image. Fields of later versions are ignored.
pub(super) fn read(json: &str) -> Option<Provenance> {
    let Settings { prompt, seed, settings, generation } = serde_json::from_str(json).ok()?;
    Some(Provenance { prompt: prompt.unwrap_or_default(), seed, settings, generation })
}

/// Replaces the characters of a JSON text that are not ASCII by escapes.
pub(super) fn ascii(json: &str) -> String {
    let escape = |c: char| c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")).collect();
    json.chars().map(|c| if c.is_ascii() { c.to_string() } else { escape(c) }).collect()
}
