//! Prompts to token ids: the byte-level BPE of `tokenizer.json`, with `tokenizer_config.json` honoured (spec section 1).

use std::path::Path;

use serde_json::Value;

use crate::config::Fields;
use crate::error::{Error, Result};

/// On which side short prompts are padded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PaddingSide {
    /// Padding comes before the text.
    Left,
    /// Padding comes after the text; the default.
    Right,
}

/// A prompt that was longer than the checkpoint reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Truncation {
    /// Which prompt of the request, from 0.
    pub prompt: usize,
    /// Tokens of the whole prompt.
    pub tokens: usize,
    /// Tokens that are read.
    pub kept: usize,
    /// The text that is not read.
    pub cut: String,
}

/// The tokenizer of a text model's folder.
pub struct TextTokenizer {
    bpe: tokenizers::Tokenizer,
    pad: u32,
    padding_side: PaddingSide,
}

/// Token ids of one text, cut to a limit.
pub(super) struct Encoded {
    pub(super) ids: Vec<u32>,
    /// Tokens before the cut, and the text behind it.
    pub(super) cut: Option<(usize, String)>,
}

impl TextTokenizer {
    /// Reads `tokenizer.json` and `tokenizer_config.json` (and `special_tokens_map.json` for a pad token that the second lacks).
    ///
    /// # Errors
    ///
    /// A file is missing or damaged, the pad token is unknown, or an id reaches beyond the model's `vocab_size`.
    pub fn open(folder: &Path, vocab_size: usize) -> Result<Self> {
        let path = folder.join("tokenizer.json");
        let bpe = std::fs::read(&path).map_err(Error::io(&path))?;
        let settings = Fields::read(&folder.join("tokenizer_config.json"))?;
        let special = Fields::read(&folder.join("special_tokens_map.json")).ok();
        Self::of(&path, &bpe, &settings, special.as_ref(), vocab_size)
    }

    /// As [`Self::open`], from the texts of `tokenizer.json` and `tokenizer_config.json`; `folder` is for messages.
    ///
    /// # Errors
    ///
    /// As [`Self::open`].
    pub fn parse(folder: &Path, bpe: &[u8], settings: &[u8], vocab_size: usize) -> Result<Self> {
        let settings = Fields::parse(&folder.join("tokenizer_config.json"), settings)?;
        Self::of(&folder.join("tokenizer.json"), bpe, &settings, None, vocab_size)
    }

    fn of(path: &Path, bpe: &[u8], settings: &Fields, special: Option<&Fields>, vocab_size: usize) -> Result<Self> {
        let bpe = parse(path, bpe)?;
        let padding_side = match settings.text_or("padding_side", "right")? {
            "left" => PaddingSide::Left,
            "right" => PaddingSide::Right,
            _ => return Err(settings.wrong("padding_side", "\"left\" or \"right\"")),
        };
        let name = token_name(settings, "pad_token").or_else(|| token_name(special?, "pad_token"));
        let name = name.ok_or_else(|| settings.wrong("pad_token", "the text of the padding token"))?;
        let Some(pad) = bpe.token_to_id(&name) else {
            return Err(settings.wrong("pad_token", "a token that tokenizer.json knows"));
        };
        let highest = bpe.get_vocab(true).into_values().max().unwrap_or(0) as usize;
        if highest >= vocab_size {
            let problem = format!(
                "has token id {highest}, but the text model's vocab_size is {vocab_size}: take tokenizer.json and config.json from the same model"
            );
            return Err(Error::checkpoint(path, problem));
        }
        Ok(Self { bpe, pad, padding_side })
    }

    /// Id of the padding token.
    pub fn pad(&self) -> u32 {
        self.pad
    }

    /// On which side short prompts are padded.
    pub fn padding_side(&self) -> PaddingSide {
        self.padding_side
    }

    /// The ids of one text, at most `limit` of them.
    pub(super) fn encode(&self, text: &str, limit: usize) -> Result<Encoded> {
        let failed = |e: tokenizers::Error| Error::request("prompt", format!("the tokenizer can't read it: {e}"));
        let encoding = self.bpe.encode(text, true).map_err(failed)?;
        let mut ids = encoding.get_ids().to_vec();
        let cut = (ids.len() > limit).then(|| {
            let rest = self.bpe.decode(&ids[limit..], true).unwrap_or_default();
            (ids.len(), rest.trim().to_string())
        });
        ids.truncate(limit);
        Ok(Encoded { ids, cut })
    }
}

/// Parses tokenizer.json. Its own truncation and padding are switched off: lengths are the checkpoint's matter.
fn parse(path: &Path, bytes: &[u8]) -> Result<tokenizers::Tokenizer> {
    let damaged = |e: tokenizers::Error| Error::checkpoint(path, format!("not a tokenizer.json: {e}"));
    let mut bpe = tokenizers::Tokenizer::from_bytes(bytes).map_err(damaged)?;
    bpe.with_truncation(None).map_err(damaged)?;
    bpe.with_padding(None);
    Ok(bpe)
}

/// A token is written as its text or as an object with `content`.
fn token_name(fields: &Fields, name: &str) -> Option<String> {
    match fields.get(name)? {
        Value::String(text) => Some(text.clone()),
        Value::Object(token) => token.get("content")?.as_str().map(str::to_string),
        _ => None,
    }
}
