//! Training of a byte-level BPE text tokenizer on captions, saved in the files of Qwen2's tokenizer.

use std::path::Path;

use serde_json::json;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{
    AddedToken, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, SplitDelimiterBehavior, TokenizerBuilder,
    TokenizerImpl,
};

use crate::config::MAX_VOCABULARY;
use crate::error::{Error, Result};
use crate::files::write_file;

/// Pattern by which Qwen2 splits texts before merging bytes.
const SPLIT: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Padding token of Qwen2.
const PAD: &str = "<|endoftext|>";
/// Smallest vocabulary: all bytes and the padding token.
const MIN_VOCABULARY: usize = 257;

type ByteLevelBpe = TokenizerImpl<BPE, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, ByteLevel>;

/// Trains a text tokenizer on captions and returns the size of its vocabulary, at most `max_vocabulary`.
///
/// Writes `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json` to `folder`, each one atomically. The vocabulary
/// contains all 256 bytes, so the tokenizer can encode every text. Texts are normalised and split like those of Qwen2, so that libraries
/// that recognise the files as Qwen2's tokenize equally.
///
/// # Errors
///
/// [`Error::Request`] if `max_vocabulary` is below 257 or too large, or if training fails on the captions; [`Error::Io`] if a file
/// cannot be written.
pub fn train_text_tokenizer(captions: &[String], max_vocabulary: usize, folder: &Path) -> Result<usize> {
    if !(MIN_VOCABULARY..=MAX_VOCABULARY).contains(&max_vocabulary) {
        // The trainer allocates memory for the whole vocabulary first.
        return Err(Error::request(
            "vocab_size",
            format!("is {max_vocabulary}, expected a number from {MIN_VOCABULARY} to {MAX_VOCABULARY}"),
        ));
    }
    let failed = |e: tokenizers::Error| Error::request("captions", format!("a tokenizer cannot be trained on them: {e}"));
    let byte_level = ByteLevel::new(false, false, false);
    let split = Split::new(SplitPattern::Regex(SPLIT.into()), SplitDelimiterBehavior::Isolated, false).map_err(failed)?;
    let splitting = Sequence::new(vec![split.into(), byte_level.into()]);
    let builder: TokenizerBuilder<BPE, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, ByteLevel> =
        TokenizerBuilder::new();
    let builder = builder.with_model(BPE::default()).with_normalizer(Some(NFC.into()));
    let builder = builder.with_pre_tokenizer(Some(splitting.into()));
    let builder = builder.with_post_processor(Some(byte_level.into())).with_decoder(Some(byte_level));
    let mut tokenizer: ByteLevelBpe = builder.build().map_err(failed)?;
    let mut trainer = BpeTrainer::builder()
        .show_progress(false)
        .vocab_size(max_vocabulary)
        .min_frequency(2)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(vec![AddedToken::from(PAD, true)])
        .build();
    tokenizer.train(&mut trainer, captions.iter().map(String::as_str)).map_err(failed)?;
    let text = tokenizer.to_string(false).map_err(failed)?;
    let save = |name: &str, text: &[u8]| write_file(folder.join(name), text);
    save("tokenizer.json", text.as_bytes())?;
    let settings = json!({
        "clean_up_tokenization_spaces": false, "eos_token": PAD, "pad_token": PAD, "padding_side": "right",
        "tokenizer_class": "PreTrainedTokenizerFast",
    });
    save("tokenizer_config.json", format!("{settings:#}\n").as_bytes())?;
    save("special_tokens_map.json", format!("{:#}\n", json!({ "eos_token": PAD, "pad_token": PAD })).as_bytes())?;
    Ok(tokenizer.get_vocab_size(true))
}
