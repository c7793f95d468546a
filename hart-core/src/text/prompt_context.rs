//! [`PromptContext`]: encoded prompts that any number of requests can share.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use burn::prelude::*;

use super::{Context, SystemPrompt, Truncation};
use crate::device::OpenDevice;
use crate::error::{Error, Result};
use crate::kernels;

/// The encoded prompts of a request, for any number of further requests.
///
/// [`Hart::encode`](crate::Hart::encode) creates it, and [`Request::context`](crate::Request::context) uses it: the run then skips the
/// text stage. It never changes, and clones share its memory. It belongs to one model and its clones, but does not keep the model's
/// weights in memory.
///
/// ```
/// use hart_core::{Hart, OpenOptions, Request};
///
/// # fn main() -> Result<(), hart_core::Error> {
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tiny-a");
/// # // A published package has no weights to open.
/// # if std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml.orig")).exists() { return Ok(()) }
/// let hart = Hart::open(folder, OpenOptions::new())?;
/// let request = Request::new("a parrot");
/// let context = hart.encode(&request)?;
///
/// // Generate with several settings, without encoding the prompt again.
/// let request = request.context(context);
/// for guidance in [2.0, 4.5, 7.0] {
///     let image = hart.generate(&request.clone().guidance(guidance))?.images.remove(0);
///     # let _ = image;
/// }
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct PromptContext(Arc<Contents>);

struct Contents {
    model: ModelId,
    device: OpenDevice,
    settings: PromptSettings,
    /// One row for each prompt.
    rows: Vec<Context>,
}

/// The settings that determine a context.
pub(crate) struct PromptSettings {
    pub(crate) prompts: Vec<String>,
    pub(crate) system_prompt: SystemPrompt,
    pub(crate) truncated: Vec<Truncation>,
}

/// The identity of an open model, with its name for error messages. Clones are equal.
#[derive(Clone, Debug)]
pub(crate) struct ModelId(Arc<str>);

impl ModelId {
    /// Creates an identity that differs from all others. An empty path stands for files in memory.
    pub(crate) fn new(root: &Path) -> Self {
        let name = if root.as_os_str().is_empty() { "files in memory".into() } else { root.display().to_string() };
        Self(name.into())
    }

    /// Returns the name of the model.
    pub(crate) fn name(&self) -> &str {
        &self.0
    }
}

impl PartialEq for ModelId {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl PromptContext {
    /// Creates the context of a model's prompts from one row for each of them.
    pub(crate) fn new(model: ModelId, device: OpenDevice, settings: PromptSettings, rows: Vec<Context>) -> Self {
        // A row may be a view that keeps the system prompt's hidden states in memory.
        let owned = |row: Context| {
            let (device, dtype) = (row.hidden.device(), row.hidden.dtype());
            Context { hidden: Tensor::from_data(row.hidden.into_data(), (&device, dtype)), ..row }
        };
        Self(Arc::new(Contents { model, device, settings, rows: rows.into_iter().map(owned).collect() }))
    }

    /// Returns a context for each prompt, in order. They share its memory.
    ///
    /// Prompts that were encoded together, which is faster with a text model whose weights are converted for every request, can then be
    /// used in separate requests.
    #[must_use]
    pub fn split(&self) -> Vec<Self> {
        let Contents { model, device, settings, rows } = &*self.0;
        let one = |(index, row): (usize, &Context)| {
            let of_prompt = |truncation: &&Truncation| truncation.prompt.is_none_or(|prompt| prompt == index);
            let truncated = settings.truncated.iter().filter(of_prompt).cloned();
            let settings = PromptSettings {
                prompts: vec![settings.prompts[index].clone()],
                system_prompt: settings.system_prompt.clone(),
                truncated: truncated.map(|truncation| Truncation { prompt: truncation.prompt.map(|_| 0), ..truncation }).collect(),
            };
            Self(Arc::new(Contents { model: model.clone(), device: device.clone(), settings, rows: vec![row.clone()] }))
        };
        rows.iter().enumerate().map(one).collect()
    }

    /// Returns the prompts.
    pub fn prompts(&self) -> &[String] {
        &self.0.settings.prompts
    }

    /// Returns the system prompt that the prompts were encoded with.
    pub fn system_prompt(&self) -> &SystemPrompt {
        &self.0.settings.system_prompt
    }

    /// Returns the prompts that were cut because they have more tokens than the model reads, including the system prompt.
    pub fn truncated(&self) -> &[Truncation] {
        &self.0.settings.truncated
    }

    /// Returns the number of tokens of each prompt, including padding.
    pub fn tokens(&self) -> usize {
        self.0.rows.first().map_or(0, |row| row.hidden.dims()[1])
    }

    /// Returns the number of channels of a token's hidden state.
    pub fn channels(&self) -> usize {
        self.0.rows.first().map_or(0, |row| row.hidden.dims()[2])
    }

    /// Copies the hidden states of a prompt, counted from 0: `[tokens, channels]` in row-major order. They are the text encoder's
    /// outputs after its final norm, without those of the system prompt. Padding has hidden states too.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] if there is no such prompt, [`Error::Device`] if a GPU fails.
    pub fn hidden(&self, prompt: usize) -> Result<Vec<f32>> {
        let hidden = self.find(prompt)?.hidden.clone();
        self.0.device.catch_backend_panic(|| Ok(kernels::values(hidden)))
    }

    /// Returns the mask of a prompt, counted from 0: `[tokens]`, true for text tokens and false for padding.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] if there is no such prompt.
    pub fn mask(&self, prompt: usize) -> Result<&[bool]> {
        Ok(&self.find(prompt)?.mask[0])
    }

    /// Returns the number of bytes that the context takes in the memory of the program and of the device.
    pub fn bytes(&self) -> u64 {
        let of_row = |row: &Context| {
            let hidden = row.hidden.dims().iter().product::<usize>() * row.hidden.dtype().size();
            hidden + row.mask.concat().len() * size_of::<bool>() + row.positions.concat().len() * size_of::<i64>()
        };
        let texts: usize = self.prompts().iter().map(String::len).sum();
        (self.0.rows.iter().map(of_row).sum::<usize>() + texts) as u64
    }

    /// Returns the model.
    pub(crate) fn model(&self) -> &ModelId {
        &self.0.model
    }

    /// Returns the rows, one for each prompt.
    pub(crate) fn rows(&self) -> &[Context] {
        &self.0.rows
    }

    fn find(&self, prompt: usize) -> Result<&Context> {
        let count = self.0.rows.len();
        let missing = || {
            let last = count.saturating_sub(1);
            Error::request(
                "prompt",
                format!("index {prompt} does not exist, expected 0 to {last}: the context has {count} prompts"),
            )
        };
        self.0.rows.get(prompt).ok_or_else(missing)
    }
}

impl fmt::Debug for PromptContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PromptContext")
            .field("model", &self.model().name())
            .field("prompts", &self.prompts())
            .field("system_prompt", self.system_prompt())
            .field("tokens", &self.tokens())
            .field("channels", &self.channels())
            .finish()
    }
}
