//! Ids of images.

use hart_core::windows_name_problem;

use crate::hash::hash;

/// Maximum length of an id in bytes.
const MAX_BYTES: usize = 128;

/// The id of an image, which is also the name of its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Id {
    text: String,
    hash: u64,
}

impl Id {
    /// Creates an id.
    ///
    /// # Errors
    ///
    /// Returns a message if a system can't store a file with this name.
    pub fn new(text: &str) -> Result<Self, String> {
        let is_allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if text.is_empty() || text.len() > MAX_BYTES || !text.chars().all(is_allowed) || text.starts_with('.') {
            return Err(format!(
                "id: \"{}\", expected 1 to {MAX_BYTES} letters, digits, `.`, `_` and `-` of ASCII that don't start with a dot, because it \
                 names a file",
                text.escape_debug()
            ));
        }
        match windows_name_problem(&format!("{text}.png")) {
            Some(problem) => Err(format!("id: \"{text}\": {problem}: choose another id")),
            None => Ok(Self { hash: hash(text.as_bytes()), text: text.into() }),
        }
    }

    /// Returns the id of a line that has none.
    pub fn of_line(number: u64) -> Self {
        let text = format!("line-{number:08}");
        Self { hash: hash(text.as_bytes()), text }
    }

    /// Returns the id as text.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns the first 8 bytes of the id's SHA-256 as a number. It is the seed of a line without one, and chooses the line's shard.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Returns a hash that is the same for all ids whose files have the same name: some systems ignore case.
    pub fn file_hash(&self) -> u64 {
        let ignores_case = cfg!(any(windows, target_os = "macos"));
        if ignores_case { hash(self.text.to_ascii_lowercase().as_bytes()) } else { self.hash }
    }

    /// Returns the name of the image's file.
    pub fn file_name(&self) -> String {
        format!("{}.png", self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_file_names_of_every_system() {
        for text in ["a", "A-1_b.c", "0", "line-00000001", "console", "a.", &"x".repeat(128)] {
            assert_eq!(Id::new(text).unwrap().file_name(), format!("{text}.png"));
        }
        for text in ["", ".", "..", ".a", "a/b", "a\\b", "é", "a b", "a\n", "a:b", &"x".repeat(129), "nul", "COM1", "aux.x"] {
            assert!(Id::new(text).unwrap_err().starts_with("id: "), "{text}");
        }
    }

    #[test]
    fn the_hash_of_an_id_is_the_start_of_its_sha_256() {
        assert_eq!(Id::new("a").unwrap().hash(), 0xca97_8112_ca1b_bdca);
        assert_eq!(Id::of_line(7), Id::new("line-00000007").unwrap());
    }
}
