//! The smallest filter of prompts: a list of words. It is easily evaded; a classifier such as ShieldGemma goes in the same place, as
//! another [`PromptFilter`].

use std::path::Path;

use hart_core::PromptFilter;

use super::lines;

/// Refuses prompts that hold a word or phrase of a list: whole words, in capitals or not.
pub struct WordFilter {
    /// Each as it was written, and as it is compared.
    phrases: Vec<(String, String)>,
    list: String,
}

impl WordFilter {
    /// Reads a list, one word or phrase a line.
    ///
    /// # Errors
    ///
    /// What is wrong, naming file and line.
    pub fn open(file: &Path) -> Result<Self, String> {
        let filter = Self::new(lines::read("--filter", file)?, &file.display().to_string());
        match filter.phrases.iter().find(|(_, words)| words.trim().is_empty()) {
            Some((text, _)) => Err(format!("--filter {}: \"{text}\" holds no word", filter.list)),
            None => Ok(filter),
        }
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

/// The words of a text in small letters, with a space before and after each: a phrase that is in it stands there as it is.
fn words(text: &str) -> String {
    let lower = text.to_lowercase();
    let words: Vec<&str> = lower.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
    format!(" {} ", words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_words_are_found_in_capitals_or_not() {
        let filter = WordFilter::new(vec!["Gun".into(), "red heart".into(), "Straße".into()], "list.txt");
        for refused in ["a gun", "GUN!", "two (gun)s", "a red,  Heart", "eine STRAßE"] {
            assert!(filter.refuse(refused).is_some(), "{refused}");
        }
        for drawn in ["a gunner", "a begun house", "a red big heart", "red", ""] {
            assert_eq!(filter.refuse(drawn), None, "{drawn}");
        }
        assert_eq!(filter.refuse("my gun").unwrap(), "\"Gun\" is on the list list.txt");
    }
}
