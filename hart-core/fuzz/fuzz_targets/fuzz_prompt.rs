//! Promise: any prompt becomes rows of exactly the asked length whose masks and positions agree with their ids, with and without a
//! system prompt. A damaged tokenizer file is an error, or a tokenizer that keeps the same promise; nothing panics.
//!
//! The first byte chooses: 0 the rest is prompts, 1 a `tokenizer_config.json`, 2 a `tokenizer.json`. The second sets the length of the
//! rows. A byte 0xFF, which no text has, ends a prompt; the first prompt is the system prompt too.
#![cfg_attr(fuzzing, no_main)]

use std::alloc::System;
use std::path::Path;
use std::sync::OnceLock;

use cap::Cap;
use hart_core::stages::{TextTokenizer, Tokens};
use hart_fuzz::fuzz_target;

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, 256 << 20);

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/tiny-a/text");
const VOCABULARY: usize = 700;
const SETTINGS: &[u8] = br#"{"pad_token": "<|endoftext|>", "padding_side": "left"}"#;
const PROMPTS: [&str; 3] = ["", "a red heart", "a\u{301} \u{1F99C}<|endoftext|>\0"];

fuzz_target!(|input: &[u8]| {
    let [choice, length, rest @ ..] = input else { return };
    let length = 1 + usize::from(length % 64);
    let folder = Path::new(FOLDER);
    if choice % 3 == 0 {
        static FIXTURE: OnceLock<TextTokenizer> = OnceLock::new();
        let fixture = FIXTURE.get_or_init(|| TextTokenizer::open(folder, VOCABULARY).unwrap());
        let texts: Vec<_> = rest.split(|&byte| byte == 0xFF).map(String::from_utf8_lossy).collect();
        assert!(check(fixture, &texts, length), "the fixture's tokenizer reads every text");
        return;
    }
    static BPE: OnceLock<Vec<u8>> = OnceLock::new();
    let bpe = BPE.get_or_init(|| std::fs::read(folder.join("tokenizer.json")).unwrap());
    let (bpe, settings) = if choice % 3 == 1 { (bpe.as_slice(), rest) } else { (rest, SETTINGS) };
    match TextTokenizer::parse(folder, bpe, settings, VOCABULARY) {
        Ok(tokenizer) => _ = check(&tokenizer, &PROMPTS, length),
        Err(e) => assert!(!e.to_string().is_empty()),
    }
});

/// Tokenizes the texts and checks every row; false if the tokenizer can't read them.
fn check<S: AsRef<str>>(tokenizer: &TextTokenizer, texts: &[S], length: usize) -> bool {
    let system = texts[0].as_ref();
    let (Ok(plain), Ok(with)) = (tokenizer.tokenize(texts, None, length), tokenizer.tokenize(texts, Some(system), length)) else {
        return false;
    };
    assert!(plain.system.is_empty() && with.system.len() <= length);
    assert_eq!(&plain.ids, &with.ids);
    check_rows(tokenizer, &plain, texts.len(), length);
    check_rows(tokenizer, &with, texts.len(), length);
    true
}

fn check_rows(tokenizer: &TextTokenizer, tokens: &Tokens, rows: usize, length: usize) {
    assert_eq!([tokens.ids.len(), tokens.mask.len(), tokens.positions.len()], [rows; 3]);
    for ((ids, mask), positions) in tokens.ids.iter().zip(&tokens.mask).zip(&tokens.positions) {
        assert_eq!([ids.len(), mask.len(), positions.len()], [length; 3]);
        let mut position = -1;
        for ((&id, &text), &at) in ids.iter().zip(mask).zip(positions) {
            position += i64::from(text);
            assert!((id as usize) < VOCABULARY && text == (id != tokenizer.pad()) && at == position);
        }
    }
    assert!(tokens.truncated.iter().all(|t| t.prompt.is_none_or(|p| p < rows) && t.kept == length && t.tokens > length));
}
