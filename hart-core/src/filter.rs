//! A say for the embedding program before any work: which prompts are refused.

use std::fmt;
use std::sync::Arc;

use crate::error::{Error, Result};

/// Decides which prompts are refused: a word list, a classifier such as ShieldGemma, or a question to a service.
/// [`Hart::generate`](crate::Hart::generate) asks it for every prompt, on the calling thread, before any work.
///
/// Any `Fn(&str) -> Option<String>` that is `Send + Sync` is one:
///
/// ```
/// use hart_core::Request;
/// let request = Request::new("a parrot").filter(|prompt: &str| prompt.contains("parrot").then(|| "no birds here".into()));
/// ```
pub trait PromptFilter: Send + Sync {
    /// Why the prompt is refused, in a few words for the user; none: it may be drawn.
    fn refuse(&self, prompt: &str) -> Option<String>;
}

impl<F: Fn(&str) -> Option<String> + Send + Sync> PromptFilter for F {
    fn refuse(&self, prompt: &str) -> Option<String> {
        self(prompt)
    }
}

/// A request's filter: clones share it.
#[derive(Clone)]
pub(crate) struct Filter(Arc<dyn PromptFilter>);

impl Filter {
    pub(crate) fn new(filter: impl PromptFilter + 'static) -> Self {
        Self(Arc::new(filter))
    }

    /// Asks for each prompt.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] for the first that is refused.
    pub(crate) fn check(&self, prompts: &[String]) -> Result<()> {
        let refused = |prompt: &String| self.0.refuse(prompt).map(|reason| Error::Refused { prompt: prompt.clone(), reason });
        prompts.iter().find_map(refused).map_or(Ok(()), Err)
    }
}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Filter")
    }
}
