//! The text model's `config.json`: a Qwen2 decoder.

use std::path::Path;

use super::{Fields, MAX_DEPTH, MAX_VOCABULARY, MAX_WIDTH};
use crate::error::Result;
use crate::files::Storage;

/// Sizes of the Qwen2 text encoder.
#[derive(Clone, Debug)]
pub struct TextConfig {
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Channels of the hidden states, D.
    pub hidden_size: usize,
    /// Channels inside a feed-forward layer.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_layers: usize,
    /// Number of query heads.
    pub num_heads: usize,
    /// Number of key and value heads, each shared by `num_heads / num_kv_heads` query heads.
    pub num_kv_heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// Epsilon of the norms.
    pub rms_norm_eps: f64,
    /// Base of the rotary embedding.
    pub rope_theta: f64,
}

impl TextConfig {
    /// Reads and checks `config.json` in the text model's folder.
    ///
    /// # Errors
    ///
    /// The file cannot be read, and those of [`Self::parse`].
    pub fn read(path: &Path) -> Result<Self> {
        Self::read_in(&Storage::Disk { memory_map: false }, path)
    }

    pub(crate) fn read_in(storage: &Storage, path: &Path) -> Result<Self> {
        Self::from_fields(Fields::read(storage, path)?)
    }

    /// Parses and checks the contents of a `config.json`; `path` is for error messages.
    ///
    /// # Errors
    ///
    /// It is not a JSON object, or [`Error::Config`](crate::Error::Config) naming the first invalid value.
    pub fn parse(path: &Path, text: &[u8]) -> Result<Self> {
        Self::from_fields(Fields::parse(path, text)?)
    }

    fn from_fields(outer: Fields) -> Result<Self> {
        // Newer exports of the vision-language model have a nested object for the decoder.
        let fields = outer.object("text_config").unwrap_or(outer);
        let kinds = ["qwen2", "qwen2_vl", "qwen2_vl_text"];
        fields.one_of("model_type", kinds[0], &kinds, "the text encoder is a Qwen2 decoder")?;
        // The defaults of the two model types.
        let (default_eps, default_theta) =
            if fields.text_or("model_type", kinds[0])? == kinds[0] { (1e-6, 1e4) } else { (1e-5, 1e6) };
        fields.one_of("hidden_act", "silu", &["silu"], "Qwen2 has no other")?;
        check_rope(&fields)?;
        if fields.flag_or("use_sliding_window", false)? {
            return Err(fields.wrong("use_sliding_window", "false (the encoder sees the whole prompt)"));
        }
        let hidden_size = fields.size("hidden_size", 1..=MAX_WIDTH)?;
        let num_heads = fields.size("num_attention_heads", 1..=hidden_size)?;
        let num_kv_heads = fields.size_or("num_key_value_heads", num_heads, 1..=num_heads)?;
        if num_heads % num_kv_heads != 0 {
            return Err(fields.wrong("num_key_value_heads", format!("a divisor of num_attention_heads, {num_heads}")));
        }
        if fields.get("head_dim").is_none() && hidden_size % num_heads != 0 {
            return Err(fields.wrong("num_attention_heads", format!("a divisor of hidden_size, {hidden_size}")));
        }
        let head_dim = fields.size_or("head_dim", hidden_size / num_heads, 2..=MAX_WIDTH)?;
        if head_dim % 2 != 0 {
            return Err(fields.wrong("head_dim", "an even number of channels in a head, since the rotary embedding turns pairs"));
        }
        let rope = fields.object("rope_parameters");
        let rope = rope.as_ref().filter(|r| r.get("rope_theta").is_some()).unwrap_or(&fields);
        Ok(Self {
            vocab_size: fields.size("vocab_size", 1..=MAX_VOCABULARY)?,
            hidden_size,
            intermediate_size: fields.size("intermediate_size", 1..=MAX_WIDTH)?,
            num_layers: fields.size("num_hidden_layers", 1..=MAX_DEPTH)?,
            num_heads,
            num_kv_heads,
            head_dim,
            rms_norm_eps: fields.number_or("rms_norm_eps", default_eps, 1e-12..=1.0)?,
            rope_theta: rope.number_or("rope_theta", default_theta, 1.0..=1e12)?,
        })
    }
}

/// Checks that the rotary embedding is not scaled. `mrope` is allowed: its three coordinates are equal for text.
fn check_rope(fields: &Fields) -> Result<()> {
    for name in ["rope_scaling", "rope_parameters"] {
        let Some(rope) = fields.object(name) else { continue };
        let kind = if rope.get("rope_type").is_some() { "rope_type" } else { "type" };
        rope.one_of(kind, "default", &["default", "mrope"], "positions are not scaled")?;
    }
    Ok(())
}
