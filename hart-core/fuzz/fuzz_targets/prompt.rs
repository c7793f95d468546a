//! Any text becomes rows of exactly the length asked for, with mask and positions that agree; any tokenizer file becomes a tokenizer
//! or an error. The first byte chooses.
#![no_main]

use std::path::Path;
use std::sync::OnceLock;

use hart_core::stages::TextTokenizer;
use libfuzzer_sys::fuzz_target;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/tiny-a/text");
const VOCABULARY: usize = 700;

fn tokenizer() -> &'static TextTokenizer {
    static TOKENIZER: OnceLock<TextTokenizer> = OnceLock::new();
    TOKENIZER.get_or_init(|| TextTokenizer::open(Path::new(FOLDER), VOCABULARY).expect("the fixture's tokenizer opens"))
}

fuzz_target!(|data: &[u8]| {
    let Some((&choice, bytes)) = data.split_first() else { return };
    if choice >= 0xf0 {
        // A pair of files, with a zero byte between.
        let (bpe, settings) = bytes.split_at(bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len()));
        let _ = TextTokenizer::parse(Path::new("text"), bpe, settings.get(1..).unwrap_or_default(), VOCABULARY);
        return;
    }
    let length = 1 + usize::from(choice) % 64;
    let text = String::from_utf8_lossy(bytes);
    for system in [None, Some(text.as_ref())] {
        let tokens = tokenizer().tokenize(&[text.as_ref(), "a parrot"], system, length).expect("any text has tokens");
        assert!(tokens.system.len() <= length);
        for ((ids, mask), positions) in tokens.ids.iter().zip(&tokens.mask).zip(&tokens.positions) {
            assert!(ids.len() == length && mask.len() == length && positions.len() == length);
            assert!(ids.iter().all(|&id| (id as usize) < VOCABULARY));
            let mut seen = -1;
            for (&text, &position) in mask.iter().zip(positions) {
                seen += i64::from(text);
                assert_eq!(position, seen);
            }
        }
        assert!(tokens.truncated.iter().all(|t| t.kept == length && t.tokens > length));
    }
});
