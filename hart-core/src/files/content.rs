//! Contents of files: detection of failed downloads, and decoding of text.

use std::path::Path;

use crate::error::{Error, Result};

/// Number of bytes at the start of a file that [`check_download`] looks at.
pub(crate) const CHECKED_BYTES: usize = 512;

/// First line of a Git LFS pointer, and of the older form of it.
const LFS_POINTERS: [&[u8]; 2] = [b"version https://git-lfs.github.com/spec/", b"version https://hawser.github.com/spec/"];
/// Beginnings of the pages that servers send instead of a file, in lower case.
const PAGES: [&[u8]; 3] = [b"<!doctype", b"<html", b"<?xml"];
/// Byte order mark of UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Checks that the contents of a file, or their first bytes, are not what a failed download leaves: nothing, a Git LFS pointer, or a
/// page in HTML or XML.
///
/// # Errors
///
/// [`Error::Checkpoint`] naming what was found and what to do.
pub fn check_download(path: &Path, contents: &[u8]) -> Result<()> {
    let start = contents.strip_prefix(BYTE_ORDER_MARK).unwrap_or(contents).trim_ascii_start();
    let begins_with = |text: &[u8]| start.get(..text.len()).is_some_and(|bytes| bytes.eq_ignore_ascii_case(text));
    let problem = if contents.is_empty() {
        "is empty: its download failed; download it again"
    } else if LFS_POINTERS.into_iter().any(begins_with) {
        "is a Git LFS pointer, not the file itself: install Git LFS and run `git lfs pull` in its folder, or download the file"
    } else if PAGES.into_iter().any(begins_with) {
        "is a web page, not the file itself: its download failed or needs a login; download it again"
    } else {
        return Ok(());
    };
    Err(Error::checkpoint(path, problem))
}

/// Decodes the contents of a text file as UTF-8, without a byte order mark.
///
/// # Errors
///
/// [`Error::Checkpoint`] if the contents are in UTF-16 or otherwise not in UTF-8.
pub fn decode_text<'a>(path: &Path, contents: &'a [u8]) -> Result<&'a str> {
    let problem = |text: &str| Error::checkpoint(path, text);
    if contents.starts_with(b"\xff\xfe") || contents.starts_with(b"\xfe\xff") {
        return Err(problem("is in UTF-16, expected UTF-8: save it as UTF-8"));
    }
    let text = contents.strip_prefix(BYTE_ORDER_MARK).unwrap_or(contents);
    std::str::from_utf8(text).map_err(|_| problem("is not UTF-8 text: save it as UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_downloads_are_named() {
        let check = |contents: &[u8]| check_download(Path::new("llm/model.safetensors"), contents).map_err(|e| e.to_string());
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n";
        for (contents, words) in [
            (&b""[..], "is empty"),
            (pointer, "git lfs pull"),
            (b"<!DOCTYPE html><html></html>", "is a web page"),
            (b"\xef\xbb\xbf\r\n <HTML lang=en>", "is a web page"),
            (b"<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code></Error>", "is a web page"),
        ] {
            let error = check(contents).unwrap_err();
            assert!(error.contains(words) && error.starts_with("llm/model.safetensors: "), "{error}");
        }
        // A prompt may begin with a bracket, and no file is refused for a word.
        for contents in [&b"<|im_start|>system"[..], b"{}", b"version 2", b"<", b"PK\x03\x04", b" "] {
            assert_eq!(check(contents), Ok(()));
        }
    }

    #[test]
    fn a_byte_order_mark_is_no_text() {
        let decode = |contents| decode_text(Path::new("x.txt"), contents).map_err(|e| e.to_string());
        assert_eq!(decode(b"\xef\xbb\xbfa\n"), Ok("a\n"));
        assert_eq!(decode("ä\u{feff}".as_bytes()), Ok("ä\u{feff}"));
        assert_eq!(decode(b""), Ok(""));
        for utf16 in [&b"\xff\xfea\0"[..], b"\xfe\xff\0a"] {
            assert!(decode(utf16).unwrap_err().contains("x.txt: is in UTF-16"));
        }
        assert!(decode(b"caf\xe9").unwrap_err().contains("not UTF-8"));
    }
}
