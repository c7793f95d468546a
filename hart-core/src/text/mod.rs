//! From prompts to the context: tokenizer, padding and masks, and a Qwen2 decoder used as text encoder (spec section 1).

mod encoder;
mod prompt;
mod prompt_context;
mod qwen2;
mod tokenizer;

pub use encoder::TextEncoder;
pub(crate) use encoder::{TextMemory, TextSource};
pub use prompt::{SystemPrompt, Tokens};
pub use prompt_context::PromptContext;
pub(crate) use prompt_context::{ModelId, PromptSettings};
pub use qwen2::Qwen2;
pub use tokenizer::{Side, TextTokenizer, Truncation};

use burn::prelude::*;

/// Encoded prompts: R rows of T tokens with D channels.
#[derive(Clone, Debug)]
pub struct Context {
    /// Hidden states of the text encoder after its final norm, `[R, T, D]`.
    pub hidden: Tensor<3>,
    /// True for text tokens, false for padding, `[R][T]`.
    pub mask: Vec<Vec<bool>>,
    /// Position of each token, `[R][T]`.
    pub positions: Vec<Vec<i64>>,
    /// Number of unconditional rows at the end, added by [`Self::with_unconditional`]. All tokens of such a row are equal, so only
    /// one of them has to be computed.
    pub unconditional: usize,
}

impl Context {
    /// Returns the number of rows, R.
    pub fn rows(&self) -> usize {
        self.mask.len()
    }

    /// Appends one unconditional row for each row, for classifier-free guidance. The hidden states of an unconditional row are
    /// zeros, all at position 0, and only its first token counts as text.
    pub fn with_unconditional(self) -> Self {
        let (rows, length) = (self.rows(), self.mask.first().map_or(0, Vec::len));
        let mut only_first = vec![false; length];
        if let Some(first) = only_first.first_mut() {
            *first = true;
        }
        let zeros = self.hidden.zeros_like();
        Self {
            hidden: Tensor::cat(vec![self.hidden, zeros], 0),
            mask: [self.mask, vec![only_first; rows]].concat(),
            positions: [self.positions, vec![vec![0; length]; rows]].concat(),
            unconditional: rows,
        }
    }
}
