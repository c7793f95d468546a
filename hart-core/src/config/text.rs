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
    /// Channels between layers, D.
    pub hidden_size: usize,
    /// Channels inside a feed-forward layer.
    pub intermediate_size: usize,
    /// How many layers.
    pub num_layers: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; each serves `num_heads / num_kv_heads` query heads.
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
    /// The file can't be read, or as [`Self::parse`].
    pub fn read(path: &Path) -> Result<Self> {
        Self::read_in(&Storage::Disk { memory_map: false }, path)
    }

    pub(crate) fn read_in(storage: &Storage, path: &Path) -> Result<Self> {
        Self::of(Fields::read(storage, path)?)
    }

    /// Checks the text of a `config.json`; `path` is for messages.
    ///
    /// # Errors
    ///
    /// It is no JSON object, or [`Error::Config`](crate::Error::Config) naming the first value that won't do.
    pub fn parse(path: &Path, text: &[u8]) -> Result<Self> {
        Self::of(Fields::parse(path, text)?)
    }

    fn of(outer: Fields) -> Result<Self> {
        // Newer exports of the vision-language model keep the decoder's values one level down.
        let fields = outer.object("text_config").unwrap_or(outer);
        let kinds = ["qwen2", "qwen2_vl", "qwen2_vl_text"];
        fields.one_of("model_type", kinds[0], &kinds, "the text encoder is a Qwen2 decoder")?;
        // What the two kinds take where a file says nothing.
        let (usual_eps, usual_theta) = if fields.text_or("model_type", kinds[0])? == kinds[0] { (1e-6, 1e4) } else { (1e-5, 1e6) };
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
            rms_norm_eps: fields.number_or("rms_norm_eps", usual_eps, 1e-12..=1.0)?,
            rope_theta: rope.number_or("rope_theta", usual_theta, 1.0..=1e12)?,
        })
    }
}

/// `mrope` gives text the same three coordinates, so it is the plain rotary embedding here; a scaled one is not.
fn check_rope(fields: &Fields) -> Result<()> {
    for name in ["rope_scaling", "rope_parameters"] {
        let Some(rope) = fields.object(name) else { continue };
        let kind = if rope.get("rope_type").is_some() { "rope_type" } else { "type" };
        rope.one_of(kind, "default", &["default", "mrope"], "positions are not scaled")?;
    }
    Ok(())
}
