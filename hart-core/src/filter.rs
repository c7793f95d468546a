//! Prompt filters of the embedding program.

use std::fmt;
use std::sync::Arc;

use crate::error::{Error, Result};

/// Decides which prompts are refused, for example with a word list, a classifier such as ShieldGemma, or a remote service.
/// [`Hart::generate`](crate::Hart::generate) calls it for every prompt, on the calling thread, before any work.
///
/// Any `Fn(&str) -> Option<String>` that is `Send + Sync` is a filter:
///
/// ```
/// use hart_core::Request;
/// let request = Request::new("a parrot").filter(|prompt: &str| prompt.contains("parrot").then(|| "no birds here".into()));
/// ```
pub trait PromptFilter: Send + Sync {
    /// Returns the reason for refusing the prompt, in a few words for the user, or `None` to accept it.
    fn refuse(&self, prompt: &str) -> Option<String>;
}

impl<F: Fn(&str) -> Option<String> + Send + Sync> PromptFilter for F {
    fn refuse(&self, prompt: &str) -> Option<String> {
        self(prompt)
    }
}

/// A request's filter, shared by clones of the request.
#[derive(Clone)]
pub(crate) struct Filter(Arc<dyn PromptFilter>);

impl Filter {
    pub(crate) fn new(filter: impl PromptFilter + 'static) -> Self {
        Self(Arc::new(filter))
    }

    /// Checks every prompt.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] for the first prompt that is refused.
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
