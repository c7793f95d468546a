//! `llm/generation_config.json`: how a model wants to be sampled where a request doesn't say.

use std::path::Path;

use super::Fields;
use crate::error::Result;
use crate::files::Storage;
use crate::request::MAX_GUIDANCE;

/// A model's own sampling settings. The file is ours; its names are those of Hugging Face's generation settings and of the published
/// tools. Published checkpoints have none and are sampled as the published tools do.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationConfig {
    /// Strength of classifier-free guidance, `guidance_scale`.
    pub guidance: Option<f64>,
    /// Whether a token is a mix of codes, `more_smooth`.
    pub soft: Option<bool>,
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
        let given = |name: &str| fields.get(name).is_some();
        Ok(Self {
            guidance: given("guidance_scale")
                .then(|| fields.number_or("guidance_scale", 0.0, -MAX_GUIDANCE..=MAX_GUIDANCE))
                .transpose()?,
            soft: given("more_smooth").then(|| fields.flag_or("more_smooth", true)).transpose()?,
            top_k: given("top_k").then(|| fields.size("top_k", 1..=usize::MAX)).transpose()?,
            top_p: given("top_p").then(|| fields.number_or("top_p", 0.0, 0.0..=1.0)).transpose()?,
        })
    }
}
