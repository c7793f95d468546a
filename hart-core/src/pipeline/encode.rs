//! Encoding of a request's prompts.

use std::ops::Range;

use super::{Hart, Model};
use crate::error::{Error, Result};
use crate::progress::{Observer, Progress};
use crate::request::Request;
use crate::text::{Context, PromptContext, PromptSettings, SystemPrompt, Tokens};

impl Hart {
    /// Encodes the prompts of a request with its system prompt, for any number of requests with the same prompts. The other settings
    /// have no effect, except for the filter and the cancel token. If the request has a context already, returns that one.
    ///
    /// # Errors
    ///
    /// - Before any work: [`Error::Request`], [`Error::Refused`], [`Error::Memory`], [`Error::Threads`], or [`Error::State`] if this process
    ///   was forked during a call.
    /// - During the work: [`Error::Cancelled`], or [`Error::Device`] if a GPU fails.
    pub fn encode(&self, request: &Request) -> Result<PromptContext> {
        self.encode_with(request, &mut ())
    }

    /// Encodes the prompts of a request and reports to an observer, which may cancel the work. The observer is called on the current
    /// thread.
    ///
    /// # Errors
    ///
    /// Like [`Self::encode`].
    pub fn encode_with(&self, request: &Request, observer: &mut dyn Observer) -> Result<PromptContext> {
        let Model { threads, device, config, budget, .. } = &*self.model;
        threads.observe(observer, |observer| {
            self.check_prompts(request)?;
            if let Some(context) = &request.context {
                return Ok(context.clone());
            }
            budget.allow_text(config, request.prompts.len(), self.system_prompt_tokens(request))?;
            device.catch_backend_panic(|| self.encode_all(request, observer))
        })
    }

    /// Checks the values of a request, that its context belongs to this model, and that its filter accepts its prompts.
    pub(super) fn check_prompts(&self, request: &Request) -> Result<()> {
        request.validate()?;
        if let Some(other) = request.context.as_ref().map(PromptContext::model).filter(|model| **model != self.model.id) {
            let (other, own) = (other.name(), self.model.id.name());
            let problem = format!("belongs to another model, opened from {other}: encode the prompts with this one, {own}");
            return Err(Error::request("context", problem));
        }
        request.filter.as_ref().map_or(Ok(()), |filter| filter.check(&request.prompts))
    }

    /// Encodes the prompts one by one, so that a context does not depend on the rest of the request, to the last bit.
    fn encode_all(&self, request: &Request, observer: &mut dyn Observer) -> Result<PromptContext> {
        let Model { id, device, .. } = &*self.model;
        let tokens = self.tokens(request)?;
        let mut progress = Progress::new(observer, request.cancel.as_ref(), self.text_work(&tokens));
        let rows = self.model.encode(&tokens, 0..tokens.ids.len(), &mut progress)?;
        let settings = PromptSettings {
            prompts: request.prompts.clone(),
            system_prompt: request.system_prompt.clone(),
            truncated: tokens.truncated,
        };
        Ok(PromptContext::new(id.clone(), device.clone(), settings, rows))
    }

    /// Tokenizes the prompts of a request.
    pub(super) fn tokens(&self, request: &Request) -> Result<Tokens> {
        let Model { text, config, .. } = &*self.model;
        text.tokenizer().tokenize(&request.prompts, self.system_prompt(request), config.transformer.context_tokens)
    }

    /// Returns the number of tokens of a request's system prompt.
    pub(super) fn system_prompt_tokens(&self, request: &Request) -> usize {
        let Model { text, config, .. } = &*self.model;
        let tokens = |system| text.tokenizer().tokenize(&[""], Some(system), config.transformer.context_tokens).ok();
        self.system_prompt(request).and_then(tokens).map_or(0, |tokens| tokens.system.len())
    }

    /// Returns the system prompt of a request.
    pub(super) fn system_prompt<'a>(&'a self, request: &'a Request) -> Option<&'a str> {
        let text = match &request.system_prompt {
            SystemPrompt::Checkpoint => self.model.system_prompt.as_deref(),
            SystemPrompt::Off => None,
            SystemPrompt::Text(text) => Some(text.as_str()),
        };
        text.filter(|t| !t.is_empty())
    }

    /// Estimates the multiply-adds of encoding token rows.
    pub(super) fn text_work(&self, tokens: &Tokens) -> f64 {
        let length = tokens.system.len() + self.model.config.transformer.context_tokens;
        tokens.ids.len() as f64 * self.model.text.work(length)
    }
}

impl Model {
    /// Encodes some prompts one by one, then releases the memory of the text model.
    pub(super) fn encode(&self, tokens: &Tokens, prompts: Range<usize>, progress: &mut Progress<'_>) -> Result<Vec<Context>> {
        let contexts = prompts.map(|prompt| self.text.encode(&tokens.row(prompt), progress)).collect();
        self.text.release();
        contexts
    }
}

impl PromptContext {
    /// Returns whether a model, or one of its clones, has encoded the context, so that it can be used with the model.
    #[must_use]
    pub fn is_of(&self, model: &Hart) -> bool {
        *self.model() == model.model.id
    }
}
