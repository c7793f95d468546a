//! Text files with one thing a line: prompts, and the words of a filter.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use hart_core::MAX_PROMPT_BYTES;

/// Most bytes of such a file, far above 1024 prompts of usual length.
const MAX_FILE_BYTES: usize = 16 << 20;

/// The lines of a UTF-8 file, `-` for standard input, without blank ones and those that begin with #.
///
/// # Errors
///
/// What is wrong, naming flag, file and line.
pub fn read(flag: &str, path: &Path) -> Result<Vec<String>, String> {
    let name = if path == "-" { "standard input".into() } else { path.display().to_string() };
    let wrong = |problem: String| format!("{flag} {name}: {problem}");
    if path.is_dir() {
        return Err(wrong("that is a folder; give a text file".into()));
    }
    let mut bytes = Vec::new();
    let mut most = |source: &mut dyn Read| source.take(MAX_FILE_BYTES as u64 + 1).read_to_end(&mut bytes);
    let read = if path == "-" { most(&mut io::stdin()) } else { File::open(path).and_then(|mut file| most(&mut file)) };
    read.map_err(|e| wrong(e.to_string()))?;
    if bytes.len() > MAX_FILE_BYTES {
        return Err(wrong(format!("has more than {} MB", MAX_FILE_BYTES >> 20)));
    }
    let lines = parse(&bytes).map_err(wrong)?;
    if lines.is_empty() { Err(wrong("holds no line of text".into())) } else { Ok(lines) }
}

fn parse(bytes: &[u8]) -> Result<Vec<String>, String> {
    // Some editors begin a file with a byte order mark.
    let bytes = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes);
    let mut lines = Vec::new();
    for (index, line) in bytes.split(|&b| b == b'\n').enumerate() {
        let number = index + 1;
        let text =
            str::from_utf8(line).map_err(|e| format!("line {number} is not UTF-8 from byte {} on", e.valid_up_to() + 1))?.trim();
        if text.len() > MAX_PROMPT_BYTES {
            return Err(format!("line {number} has {} bytes, at most {MAX_PROMPT_BYTES} are read", text.len()));
        }
        if !text.is_empty() && !text.starts_with('#') {
            lines.push(text.to_string());
        }
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blank_lines_and_comments_are_skipped() {
        let text = "\u{feff}a parrot\r\n\n  \n# birds\n  a café # with a terrace\nlast";
        assert_eq!(parse(text.as_bytes()).unwrap(), ["a parrot", "a café # with a terrace", "last"]);
    }

    #[test]
    fn the_line_that_is_wrong_is_named() {
        assert!(parse(b"a\n\nb \xff").unwrap_err().starts_with("line 3 is not UTF-8 from byte 3"));
        let long = format!("a\n{}", "x".repeat(MAX_PROMPT_BYTES + 1));
        assert!(parse(long.as_bytes()).unwrap_err().starts_with("line 2 has 1048577 bytes"));
    }
}
