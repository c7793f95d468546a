//! The text tokenizer: the byte-level BPE of `tokenizer.json`, with the settings of `tokenizer_config.json` (spec section 1).

use std::path::Path;

use serde_json::Value;

use crate::config::Fields;
use crate::error::{Error, Result};
use crate::files::{Storage, decode_text};

/// A side of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Before the text.
    Left,
    /// After the text; the default for padding and for truncation.
    Right,
}

/// A text that was longer than the checkpoint's limit.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Truncation {
    /// Index of the prompt in the request, from 0; `None` for the system prompt.
    pub prompt: Option<usize>,
    /// Number of tokens of the whole text.
    pub tokens: usize,
    /// Number of tokens that are used.
    pub kept: usize,
    /// The text that is cut off.
    pub cut: String,
}

/// Maximum size of `tokenizer.json` in bytes; the published one has 7 million.
const MAX_FILE_BYTES: u64 = 256 << 20;

/// The tokenizer of a text model's folder.
pub struct TextTokenizer {
    bpe: tokenizers::Tokenizer,
    pad: u32,
    padding_side: Side,
    truncation_side: Side,
    vocab_size: usize,
}

impl std::fmt::Debug for TextTokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut debug = f.debug_struct("TextTokenizer");
        debug.field("vocabulary", &self.bpe.get_vocab_size(true)).field("pad", &self.pad).finish_non_exhaustive()
    }
}

/// Token ids of one text, truncated to a limit.
pub(super) struct Encoded {
    pub(super) ids: Vec<u32>,
    /// Number of tokens of the whole text, and the text that was cut off.
    pub(super) cut: Option<(usize, String)>,
}

impl TextTokenizer {
    /// Reads `tokenizer.json` and `tokenizer_config.json` (and `special_tokens_map.json` for a pad token that the second lacks).
    ///
    /// # Errors
    ///
    /// A file is missing or damaged, the pad token is unknown, or an id reaches beyond the model's `vocab_size`.
    pub fn open(folder: &Path, vocab_size: usize) -> Result<Self> {
        Self::open_in(&Storage::Disk { memory_map: false }, folder, vocab_size)
    }

    pub(crate) fn open_in(storage: &Storage, folder: &Path, vocab_size: usize) -> Result<Self> {
        let path = folder.join("tokenizer.json");
        let bpe = storage.read(&path, MAX_FILE_BYTES, false)?;
        let settings = Fields::read(storage, &folder.join("tokenizer_config.json"))?;
        let special = folder.join("special_tokens_map.json");
        let is_needed = token_name(&settings, "pad_token").is_none() && storage.is_file(&special);
        let special = is_needed.then(|| Fields::read(storage, &special)).transpose()?;
        Self::of(&path, &bpe, &settings, special.as_ref(), vocab_size)
    }

    /// Parses the contents of `tokenizer.json` and `tokenizer_config.json`; `folder` is for error messages.
    ///
    /// # Errors
    ///
    /// Like [`Self::open`].
    pub fn parse(folder: &Path, bpe: &[u8], settings: &[u8], vocab_size: usize) -> Result<Self> {
        let settings = Fields::parse(&folder.join("tokenizer_config.json"), settings)?;
        Self::of(&folder.join("tokenizer.json"), bpe, &settings, None, vocab_size)
    }

    fn of(path: &Path, bpe: &[u8], settings: &Fields, special: Option<&Fields>, vocab_size: usize) -> Result<Self> {
        let bpe = parse(path, bpe)?;
        let side = |name| match settings.text_or(name, "right")? {
            "left" => Ok(Side::Left),
            "right" => Ok(Side::Right),
            _ => Err(settings.wrong(name, "\"left\" or \"right\"")),
        };
        let (padding_side, truncation_side) = (side("padding_side")?, side("truncation_side")?);
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
        Ok(Self { bpe, pad, padding_side, truncation_side, vocab_size })
    }

    /// Returns the id of the padding token.
    pub fn pad(&self) -> u32 {
        self.pad
    }

    /// Returns the side on which short prompts are padded.
    pub fn padding_side(&self) -> Side {
        self.padding_side
    }

    /// Tokenizes one text to at most `limit` ids.
    pub(super) fn encode(&self, text: &str, limit: usize) -> Result<Encoded> {
        let failed = |problem: String| Error::request("prompt", format!("the tokenizer can't read it: {problem}"));
        // The library panics on some of its own settings. Those that are known are refused when the tokenizer is opened, because in wasm
        // no panic is caught.
        let encoding = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.bpe.encode(text, true)));
        let damaged = |_| failed("a part of tokenizer.json is damaged; download it again".into());
        let encoding = encoding.map_err(damaged)?.map_err(|e| failed(e.to_string()))?;
        let (ids, offsets) = (encoding.get_ids(), encoding.get_offsets());
        // A template may add a token that is not in the vocabulary.
        if let Some(id) = ids.iter().find(|id| **id as usize >= self.vocab_size) {
            let problem =
                format!("tokenizer.json gives it the token id {id}, beyond the text model's vocab_size {}", self.vocab_size);
            return Err(Error::request("prompt", problem));
        }
        let count = ids.len();
        if count <= limit {
            return Ok(Encoded { ids: ids.to_vec(), cut: None });
        }
        let (kept, cut) = match self.truncation_side {
            Side::Right => (&ids[..limit], text.get(offsets[limit].0..)),
            Side::Left => (&ids[count - limit..], text.get(..offsets[count - limit].0)),
        };
        Ok(Encoded { ids: kept.to_vec(), cut: Some((count, cut.unwrap_or_default().trim().to_string())) })
    }
}

/// Parses `tokenizer.json`, without its truncation, padding, dropout and decoder.
fn parse(path: &Path, bytes: &[u8]) -> Result<tokenizers::Tokenizer> {
    let wrong = |problem: String| Error::checkpoint(path, problem);
    let mut json: Value = serde_json::from_str(decode_text(path, bytes)?).map_err(|e| wrong(format!("not valid JSON: {e}")))?;
    check_bpe(&json["model"]).map_err(wrong)?;
    check_normalizer(&json["normalizer"]).map_err(wrong)?;
    check_pre_tokenizer(&json["pre_tokenizer"]).map_err(wrong)?;
    check_post_processor(&json["post_processor"]).map_err(wrong)?;
    check_added_tokens(&json["added_tokens"]).map_err(wrong)?;
    // The checkpoint sets the length, dropout is for training, and nothing is decoded.
    for unwanted in ["truncation", "padding", "decoder"] {
        json[unwanted] = Value::Null;
    }
    json["model"]["dropout"] = Value::Null;
    // The library panics on some damaged components. Those that are known are checked above.
    let parsed = std::panic::catch_unwind(|| serde_json::from_value::<tokenizers::Tokenizer>(json));
    let parsed = parsed.map_err(|_| wrong("not a tokenizer.json: a component is damaged".into()))?;
    parsed.map_err(|e| wrong(format!("not a tokenizer.json: {e}")))
}

/// Checks that a model is a byte-level BPE, and that the parts and the result of every merge are in its vocabulary, which the library
/// takes for granted.
fn check_bpe(model: &Value) -> std::result::Result<(), String> {
    let kind = &model["type"];
    if !(kind == "BPE" || kind.is_null() && model["merges"].is_array()) {
        return Err(format!("its model is {kind}, expected a byte-level \"BPE\": take the tokenizer.json of a Qwen2 model"));
    }
    for affix in ["continuing_subword_prefix", "end_of_word_suffix"] {
        if model[affix].as_str().is_some_and(|text| !text.is_empty()) {
            return Err(format!(
                "its model has the {affix} {}, expected none, as in a byte-level BPE: take the tokenizer.json of a Qwen2 model",
                model[affix]
            ));
        }
    }
    let known = |token: &str| model["vocab"].get(token).is_some();
    for merge in model["merges"].as_array().into_iter().flatten() {
        let parts = match merge {
            Value::String(text) => text.split_once(' '),
            pair => pair[0].as_str().zip(pair[1].as_str()),
        };
        if !parts.is_some_and(|(a, b)| known(a) && known(b) && known(&format!("{a}{b}"))) {
            return Err(format!("its merge {merge} has a part or a result that is not in its vocabulary: download the file again"));
        }
    }
    Ok(())
}

/// Checks that a normalizer changes Unicode forms only. The library's others can panic on texts or on their own settings, and no
/// byte-level BPE has them.
fn check_normalizer(normalizer: &Value) -> std::result::Result<(), String> {
    match normalizer["type"].as_str() {
        _ if normalizer.is_null() => Ok(()),
        Some("NFC" | "NFD" | "NFKC" | "NFKD" | "Lowercase") => Ok(()),
        Some("Sequence") => normalizer["normalizers"].as_array().into_iter().flatten().try_for_each(check_normalizer),
        _ => Err(format!("its normalizer is {}, expected NFC, NFD, NFKC, NFKD, Lowercase or none", normalizer["type"])),
    }
}

/// Checks that a pre-tokenizer is of a kind that byte-level BPEs have. Some of the library's others panic on their own settings.
fn check_pre_tokenizer(pre_tokenizer: &Value) -> std::result::Result<(), String> {
    match pre_tokenizer["type"].as_str() {
        _ if pre_tokenizer.is_null() => Ok(()),
        Some("ByteLevel" | "Split" | "Digits" | "Punctuation" | "Whitespace" | "WhitespaceSplit") => Ok(()),
        Some("Sequence") => pre_tokenizer["pretokenizers"].as_array().into_iter().flatten().try_for_each(check_pre_tokenizer),
        _ => Err(format!("its pre_tokenizer is {}, expected ByteLevel, Split, Digits or several of them", pre_tokenizer["type"])),
    }
}

/// Checks that a post-processor adds nothing to a text, or only tokens that it defines.
fn check_post_processor(processor: &Value) -> std::result::Result<(), String> {
    match processor["type"].as_str() {
        _ if processor.is_null() => Ok(()),
        Some("ByteLevel") => Ok(()),
        Some("Sequence") => processor["processors"].as_array().into_iter().flatten().try_for_each(check_post_processor),
        Some("TemplateProcessing") => {
            let known = |id: &Value| id.as_str().is_some_and(|id| processor["special_tokens"].get(id).is_some());
            let fits = |piece: &Value| piece["Sequence"]["id"] == "A" || known(&piece["SpecialToken"]["id"]);
            match processor["single"].as_array().into_iter().flatten().find(|piece| !fits(piece)) {
                None => Ok(()),
                Some(piece) => Err(format!("its post_processor has {piece}, expected the text \"A\" and its special_tokens")),
            }
        }
        _ => Err(format!("its post_processor is {}, expected ByteLevel, TemplateProcessing or none", processor["type"])),
    }
}

/// Checks that no added token is made of spaces and also takes the spaces before it. After a token that takes the spaces behind it, the
/// library would cut such a token out of spaces that are already taken.
fn check_added_tokens(tokens: &Value) -> std::result::Result<(), String> {
    let is_blank = |token: &&Value| token["content"].as_str().is_some_and(|text| text.trim().is_empty());
    match tokens.as_array().into_iter().flatten().filter(is_blank).find(|token| token["lstrip"] == true) {
        None => Ok(()),
        Some(token) => Err(format!("its added_tokens have {} with `lstrip`, expected a token with letters", token["content"])),
    }
}

/// Returns the text of a token, which is a string or an object with `content`.
fn token_name(fields: &Fields, name: &str) -> Option<String> {
    match fields.get(name)? {
        Value::String(text) => Some(text.clone()),
        Value::Object(token) => token.get("content")?.as_str().map(str::to_string),
        _ => None,
    }
}
