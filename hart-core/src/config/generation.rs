//! `llm/generation_config.json`: how a model wants to be sampled where a request doesn't say.

use std::path::Path;

use super::Fields;
use crate::error::Result;
use crate::files::Storage;

/// Guidance lies within plus and minus this; from about 20 on pictures only get harsher.
pub const MAX_GUIDANCE: f64 = 100.0;

/// A model's own sampling settings. The file is ours; its names are those of Hugging Face's generation settings and of the published
/// tools. Published checkpoints have none and are sampled as the published tools do.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationConfig {
    /// Strength of classifier-free guidance, `guidance_scale`.
    pub guidance: Option<f64>,
    /// Whether a token is a mix of codes, `more_smooth`.
    pub smoothing: Option<bool>,
    /// Codes kept in sampling, `top_k`.
    pub top_k: Option<usize>,
    /// Probability of the codes kept, `top_p`.
    pub top_p: Option<f64>,
}

impl GenerationConfig {
    pub(crate) fn read_in(storage: &Storage, path: &Path) -> Result<Self> {
        Self::of(&Fields::read(storage, path)?)
    }

    /// Checks the text of a `generation_config.json`; `path` is for messages.
    ///
    /// # Errors
    ///
    /// It is no JSON object, or [`Error::Config`](crate::Error::Config) naming the first value that won't do.
    pub fn parse(path: &Path, text: &[u8]) -> Result<Self> {
        Self::of(&Fields::parse(path, text)?)
    }

    fn of(fields: &Fields) -> Result<Self> {
        Ok(Self {
            guidance: fields.given("guidance_scale", |name| fields.number_or(name, 0.0, -MAX_GUIDANCE..=MAX_GUIDANCE))?,
            smoothing: fields.given("more_smooth", |name| fields.flag_or(name, true))?,
            top_k: fields.given("top_k", |name| fields.size(name, 1..=usize::MAX))?,
            top_p: fields.given("top_p", |name| fields.number_or(name, 0.0, 0.0..=1.0))?,
        })
    }
}
