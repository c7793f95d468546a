//! Encoded prompts that are kept for repeated requests.

use hart_core::{PromptContext, SystemPrompt};

/// Maximum number of kept contexts. One of the published models takes 1.8 MB.
const MAX_CONTEXTS: usize = 32;

/// The most recently used contexts, each of one prompt and one system prompt.
#[derive(Default)]
pub struct Contexts {
    /// The most recently used one is last.
    contexts: Vec<PromptContext>,
}

impl Contexts {
    /// Returns the context of a prompt with a system prompt, if it is kept.
    pub fn find(&mut self, prompt: &str, system_prompt: &SystemPrompt) -> Option<PromptContext> {
        let is_same = |c: &PromptContext| c.prompts() == [prompt] && c.system_prompt() == system_prompt;
        let found = self.contexts.remove(self.contexts.iter().position(is_same)?);
        self.contexts.push(found.clone());
        Some(found)
    }

    /// Keeps a context and drops the least recently used one beyond the limit.
    pub fn insert(&mut self, context: PromptContext) {
        // Another worker may have encoded the same prompt meanwhile.
        self.contexts.retain(|c| c.prompts() != context.prompts() || c.system_prompt() != context.system_prompt());
        self.contexts.push(context);
        if self.contexts.len() > MAX_CONTEXTS {
            self.contexts.remove(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hart_core::{Hart, OpenOptions, Request};

    #[test]
    fn the_least_recently_used_context_is_dropped() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../hart-core/tests/fixtures/slim-b");
        let hart = Hart::open(folder, OpenOptions::new()).unwrap();
        let mut contexts = Contexts::default();
        let has = |contexts: &mut Contexts, prompt: &str| contexts.find(prompt, &SystemPrompt::Checkpoint).is_some();
        for number in 0..MAX_CONTEXTS {
            contexts.insert(hart.encode(&Request::new(format!("prompt {number}"))).unwrap());
        }
        let off = Request::new("prompt 1").system_prompt(SystemPrompt::Off);
        assert!(contexts.find("prompt 1", &SystemPrompt::Off).is_none(), "the system prompt differs");
        assert!(has(&mut contexts, "prompt 0") && !has(&mut contexts, "prompt"));
        contexts.insert(hart.encode(&off).unwrap());
        assert!(has(&mut contexts, "prompt 0") && !has(&mut contexts, "prompt 1") && has(&mut contexts, "prompt 2"));
        assert_eq!(contexts.find("prompt 1", &SystemPrompt::Off).unwrap().prompts(), ["prompt 1"]);
        assert_eq!(contexts.contexts.len(), MAX_CONTEXTS);
    }
}
