//! A prompt filter that compares words with a list.
//!
//! It is easy to evade. A classifier such as ShieldGemma can take its place as another [`PromptFilter`].

use std::path::Path;

use hart_core::{Error, PromptFilter};

use super::lines;

/// A filter that refuses prompts with a word or phrase of a list. It matches whole words and ignores case.
pub struct WordFilter {
    /// Each phrase as written in the list, and normalised by [`words`].
    phrases: Vec<(String, String)>,
    /// Name of the list, for messages.
    list: String,
}

impl WordFilter {
    /// Reads a list with one word or phrase per line.
    ///
    /// # Errors
    ///
    /// Returns a message with file and line if the list can't be read or an entry has no word.
    pub fn open(file: &Path) -> Result<Self, String> {
        let filter = Self::new(lines::read("--filter", file)?, &file.display().to_string());
        match filter.phrases.iter().find(|(_, words)| words.trim().is_empty()) {
            Some((text, _)) => Err(format!("--filter {}: \"{text}\" contains no word", filter.list)),
            None => Ok(filter),
        }
    }

    /// Checks prompts before a model is opened.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] for the first prompt that is refused.
    pub fn check(&self, prompts: &[String]) -> Result<(), Error> {
        let refused = |prompt: &String| self.refuse(prompt).map(|reason| Error::Refused { prompt: prompt.clone(), reason });
        prompts.iter().find_map(refused).map_or(Ok(()), Err)
    }

    fn new(phrases: Vec<String>, list: &str) -> Self {
        let phrases = phrases.into_iter().map(|text| (text.clone(), words(&text))).collect();
        Self { phrases, list: list.into() }
    }
}

impl PromptFilter for WordFilter {
    fn refuse(&self, prompt: &str) -> Option<String> {
        let prompt = words(prompt);
        let (text, _) = self.phrases.iter().find(|(_, words)| prompt.contains(words))?;
        Some(format!("\"{text}\" is on the list {}", self.list))
    }
}

/// Returns the words of a text in lower case, separated and surrounded by single spaces. A phrase is then a substring exactly where its
/// words are in the text.
fn words(text: &str) -> String {
    let lower = text.to_lowercase();
    let words: Vec<&str> = lower.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
    format!(" {} ", words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_words_are_found_in_any_case() {
        let filter = WordFilter::new(vec!["Gun".into(), "red heart".into(), "Straße".into()], "list.txt");
        for refused in ["a gun", "GUN!", "two (gun)s", "a red,  Heart", "eine STRAßE"] {
            assert!(filter.refuse(refused).is_some(), "{refused}");
        }
        for accepted in ["a gunner", "a begun house", "a red big heart", "red", ""] {
            assert_eq!(filter.refuse(accepted), None, "{accepted}");
        }
        assert_eq!(filter.refuse("my gun").unwrap(), "\"Gun\" is on the list list.txt");
    }
}
