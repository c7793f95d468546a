//! `llm/generation_config.json`: the sampling parameters of requests that do not set their own.

use std::path::Path;

use super::Fields;
use crate::error::Result;
use crate::files::Storage;

/// Maximum absolute value of guidance. Values above about 20 only make images harsher.
pub const MAX_GUIDANCE: f64 = 100.0;

/// Default sampling parameters of a model, named as in Hugging Face's generation settings and in the published tools. Published
/// checkpoints do not have this file; they are sampled with the values of the published tools.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationConfig {
    /// Scale of classifier-free guidance, `guidance_scale`.
    pub guidance: Option<f64>,
    /// True for Gumbel-softmax smoothing, `more_smooth`.
    pub smoothing: Option<bool>,
    /// Number of most likely codes that are kept, `top_k`.
    pub top_k: Option<usize>,
    /// Total probability of the most likely codes that are kept, `top_p`.
    pub top_p: Option<f64>,
}

impl GenerationConfig {
    pub(crate) fn read_in(storage: &Storage, path: &Path) -> Result<Self> {
        Self::from_fields(&Fields::read(storage, path)?)
    }

    /// Parses and checks the contents of a `generation_config.json`; `path` is for error messages.
    ///
    /// # Errors
    ///
    /// It is not a JSON object, or [`Error::Config`](crate::Error::Config) naming the first invalid value.
    pub fn parse(path: &Path, text: &[u8]) -> Result<Self> {
        Self::from_fields(&Fields::parse(path, text)?)
    }

    fn from_fields(fields: &Fields) -> Result<Self> {
        Ok(Self {
            guidance: fields.optional("guidance_scale", |name| fields.number_or(name, 0.0, -MAX_GUIDANCE..=MAX_GUIDANCE))?,
            smoothing: fields.optional("more_smooth", |name| fields.flag_or(name, true))?,
            top_k: fields.optional("top_k", |name| fields.size(name, 1..=usize::MAX))?,
            top_p: fields.optional("top_p", |name| fields.number_or(name, 0.0, 0.0..=1.0))?,
        })
    }
}
