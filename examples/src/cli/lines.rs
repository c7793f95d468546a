//! Text files with one entry per line: prompts, and the words of a filter.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use hart_core::MAX_PROMPT_BYTES;

/// Maximum size of such a file in bytes, enough for several 100,000 prompts.
const MAX_FILE_BYTES: usize = 64 << 20;

/// Reads the lines of a UTF-8 file, or of standard input if `path` is `-`. Skips blank lines and lines that start with `#`.
///
/// # Errors
///
/// Returns a message with flag, file and line if the file can't be read, is too large, isn't UTF-8, or has no entry.
pub fn read(flag: &str, path: &Path) -> Result<Vec<String>, String> {
    let name = if path == "-" { "standard input".into() } else { path.display().to_string() };
    let error = |problem: String| format!("{flag} {name}: {problem}");
    if path.is_dir() {
        return Err(error("is a folder, expected a text file".into()));
    }
    let mut bytes = Vec::new();
    let mut read_limited = |source: &mut dyn Read| source.take(MAX_FILE_BYTES as u64 + 1).read_to_end(&mut bytes);
    let read =
        if path == "-" { read_limited(&mut io::stdin()) } else { File::open(path).and_then(|mut file| read_limited(&mut file)) };
    read.map_err(|e| error(e.to_string()))?;
    if bytes.len() > MAX_FILE_BYTES {
        return Err(error(format!("has more than {} MB", MAX_FILE_BYTES >> 20)));
    }
    let lines = parse(&bytes).map_err(error)?;
    if lines.is_empty() { Err(error("contains no line of text".into())) } else { Ok(lines) }
}

fn parse(bytes: &[u8]) -> Result<Vec<String>, String> {
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        return Err("is in UTF-16, expected UTF-8: save it as UTF-8".into());
    }
    // Some editors write a byte order mark.
    let bytes = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes);
    let mut lines = Vec::new();
    for (index, line) in bytes.split(|&b| b == b'\n').enumerate() {
        let entry = entry(line).map_err(|problem| format!("line {} {problem}", index + 1))?;
        lines.extend(entry.map(str::to_string));
    }
    Ok(lines)
}

/// Returns the entry of a line, or `None` if it is blank or a comment.
///
/// # Errors
///
/// Returns the problem of a line that is not UTF-8 or too long.
pub fn entry(line: &[u8]) -> Result<Option<&str>, String> {
    let text = utf8(line)?.trim();
    if text.len() > MAX_PROMPT_BYTES {
        return Err(format!("has {} bytes, expected at most {MAX_PROMPT_BYTES}", text.len()));
    }
    Ok(Some(text).filter(|text| !text.is_empty() && !text.starts_with('#')))
}

/// Returns a line as text.
///
/// # Errors
///
/// Returns a problem with the first byte that is not UTF-8.
pub fn utf8(line: &[u8]) -> Result<&str, String> {
    str::from_utf8(line).map_err(|e| format!("is not UTF-8 from byte {}: save it as UTF-8", e.valid_up_to() + 1))
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
    fn an_invalid_line_is_named() {
        assert!(parse(b"a\n\nb \xff").unwrap_err().starts_with("line 3 is not UTF-8 from byte 3: save it as UTF-8"));
        assert!(parse(b"\xff\xfea\0\n\0").unwrap_err().contains("is in UTF-16"));
        let long = format!("a\n{}", "x".repeat(MAX_PROMPT_BYTES + 1));
        assert!(parse(long.as_bytes()).unwrap_err().starts_with("line 2 has 1048577 bytes"));
    }
}
