//! A byte-level BPE tokenizer of one's own captions, in the files that Qwen2's has.

use std::path::Path;

use serde_json::json;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, TokenizerBuilder, TokenizerImpl};

use crate::config::MAX_VOCABULARY;
use crate::error::{Error, Result};
use crate::files::write_file;

/// Pads captions, as in Qwen2.
const PAD: &str = "<|endoftext|>";
/// All bytes and what pads.
const LEAST: usize = 257;

type ByteLevelBpe = TokenizerImpl<BPE, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, ByteLevel>;

/// Learns a tokenizer from captions and writes `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json`, each whole or
/// not at all. Every text can be read with it, since all 256 bytes are in the vocabulary. Returns how many tokens it has; `most` is
/// a limit.
///
/// # Errors
///
/// [`Error::Request`] if `most` is below 257 or far too large, or if nothing can be learned from the captions; a file can't be
/// written.
pub fn train_text_tokenizer(captions: &[String], most: usize, folder: &Path) -> Result<usize> {
    if !(LEAST..=MAX_VOCABULARY).contains(&most) {
        // Memory for all of them is taken before any is learned.
        return Err(Error::request("vocab_size", format!("is {most}, expected a number from {LEAST} to {MAX_VOCABULARY}")));
    }
    let wrong = |e: tokenizers::Error| Error::request("captions", format!("no tokenizer can be learned from them: {e}"));
    let byte_level = ByteLevel::default().add_prefix_space(false);
    let builder: TokenizerBuilder<BPE, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, ByteLevel> =
        TokenizerBuilder::new();
    let builder = builder.with_model(BPE::default()).with_pre_tokenizer(Some(byte_level.into()));
    let builder = builder.with_post_processor(Some(byte_level.into())).with_decoder(Some(byte_level));
    let mut tokenizer: ByteLevelBpe = builder.build().map_err(wrong)?;
    let mut trainer = BpeTrainer::builder()
        .show_progress(false)
        .vocab_size(most)
        .min_frequency(2)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(vec![AddedToken::from(PAD, true)])
        .build();
    tokenizer.train(&mut trainer, captions.iter().map(String::as_str)).map_err(wrong)?;
    let text = tokenizer.to_string(false).map_err(wrong)?;
    let save = |name: &str, text: &[u8]| {
        let path = folder.join(name);
        write_file(&path, text).map_err(Error::io(&path))
    };
    save("tokenizer.json", text.as_bytes())?;
    let settings = json!({
        "clean_up_tokenization_spaces": false, "eos_token": PAD, "pad_token": PAD, "padding_side": "right",
        "tokenizer_class": "PreTrainedTokenizerFast",
    });
    save("tokenizer_config.json", format!("{settings:#}\n").as_bytes())?;
    save("special_tokens_map.json", format!("{:#}\n", json!({ "eos_token": PAD, "pad_token": PAD })).as_bytes())?;
    Ok(tokenizer.get_vocab_size(true))
}
