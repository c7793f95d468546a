//! Token rows of the encoder: truncated, padded, with mask, positions and system prompt (spec section 1).

use super::tokenizer::{Encoded, Side, TextTokenizer, Truncation};
use crate::error::Result;

/// The text before the prompts (spec section 1).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum SystemPrompt {
    /// The checkpoint's `llm/system_prompt.txt`, if it has one.
    #[default]
    Checkpoint,
    /// No system prompt.
    Off,
    /// This text.
    Text(String),
}

impl SystemPrompt {
    /// Returns whether there is certainly no system prompt.
    pub(crate) fn is_empty(&self) -> bool {
        match self {
            Self::Checkpoint => false,
            Self::Off => true,
            Self::Text(text) => text.is_empty(),
        }
    }
}

/// Prompts as token ids: B rows of exactly T ids.
#[derive(Clone, Debug)]
pub struct Tokens {
    /// Ids `[B][T]`, padded.
    pub ids: Vec<Vec<u32>>,
    /// True where the id is not the pad token, `[B][T]`.
    pub mask: Vec<Vec<bool>>,
    /// Position of each token, `[B][T]`: the running count of text tokens minus one, -1 for left padding.
    pub positions: Vec<Vec<i64>>,
    /// Ids of the system prompt, which precede every row; not padded, empty without one.
    pub system: Vec<u32>,
    /// The texts that were longer than T.
    pub truncated: Vec<Truncation>,
}

impl Tokens {
    /// Returns one row alone, with the system prompt.
    pub fn row(&self, index: usize) -> Self {
        Self {
            ids: vec![self.ids[index].clone()],
            mask: vec![self.mask[index].clone()],
            positions: vec![self.positions[index].clone()],
            system: self.system.clone(),
            truncated: self.truncated.iter().filter(|t| t.prompt.is_none_or(|p| p == index)).cloned().collect(),
        }
    }
}

impl TextTokenizer {
    /// Tokenizes prompts to rows of exactly `length` ids.
    ///
    /// # Errors
    ///
    /// [`Error::Request`](crate::Error::Request) if the tokenizer fails on a text.
    pub fn tokenize<S: AsRef<str>>(&self, prompts: &[S], system_prompt: Option<&str>, length: usize) -> Result<Tokens> {
        let mut truncated = vec![];
        let mut tokens = Tokens { ids: vec![], mask: vec![], positions: vec![], system: vec![], truncated: vec![] };
        let mut read = |prompt: Option<usize>, text: &str| {
            let Encoded { ids, cut } = self.encode(text, length)?;
            truncated.extend(cut.map(|(tokens, cut)| Truncation { prompt, tokens, kept: ids.len(), cut }));
            Ok(ids)
        };
        if let Some(text) = system_prompt {
            tokens.system = read(None, text)?;
        }
        for (prompt, text) in prompts.iter().enumerate() {
            let ids = read(Some(prompt), text.as_ref())?;
            let ids = pad(ids, self.pad(), self.padding_side(), length);
            let mask: Vec<bool> = ids.iter().map(|&id| id != self.pad()).collect();
            tokens.positions.push(positions(&mask));
            tokens.mask.push(mask);
            tokens.ids.push(ids);
        }
        tokens.truncated = truncated;
        Ok(tokens)
    }
}

/// Pads ids to a length.
fn pad(mut ids: Vec<u32>, pad: u32, side: Side, length: usize) -> Vec<u32> {
    let padding = vec![pad; length.saturating_sub(ids.len())];
    match side {
        Side::Right => {
            ids.extend(padding);
            ids
        }
        Side::Left => padding.into_iter().chain(ids).collect(),
    }
}

/// Returns `cumsum(mask) - 1`: left padding is at -1, right padding repeats the last text position.
fn positions(mask: &[bool]) -> Vec<i64> {
    let next = |position: &mut i64, &is_text: &bool| {
        *position += i64::from(is_text);
        Some(*position)
    };
    mask.iter().scan(-1, next).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_on_both_sides_gives_the_published_positions() {
        let right = pad(vec![5, 6], 0, Side::Right, 4);
        let left = pad(vec![5, 6], 0, Side::Left, 4);
        assert_eq!((right.as_slice(), left.as_slice()), (&[5, 6, 0, 0][..], &[0, 0, 5, 6][..]));
        assert_eq!(positions(&[true, true, false, false]), [0, 1, 1, 1]);
        assert_eq!(positions(&[false, false, true, true]), [-1, -1, 0, 1]);
    }
}
