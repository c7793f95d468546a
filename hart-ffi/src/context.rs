//! Encoded prompts.

use std::ptr;
use std::sync::{Arc, OnceLock};

use hart_core::{PromptContext, with_enough_stack};

use crate::guard::guard;
use crate::handle::{Handle, free, get, number_of, share};
use crate::model::{hart_model, with_model};
use crate::out::{self, Out};
use crate::request::hart_request;
use crate::request_parts::Run;
use crate::status::{Failure, hart_status};

/// Encoded prompts of a request, for any number of further requests with the same prompts.
pub struct hart_context(());

impl Handle for hart_context {
    type Value = Arc<Encoded>;
    const NAME: &'static str = "hart_context";
}

pub(crate) struct Encoded {
    pub(crate) context: PromptContext,
    /// Values that C has asked for, one entry for each prompt.
    prompts: Vec<EncodedPrompt>,
}

/// Copies that C holds pointers to.
#[derive(Default)]
struct EncodedPrompt {
    hidden: OnceLock<Vec<f32>>,
    mask: OnceLock<Vec<u8>>,
}

/// Encodes the prompts of a request with its system prompt and returns when all are encoded. Pass the context to
/// `hart_request_set_context`. Of the other settings, only the observer and the cancel token have an effect. The
/// context does not keep the model in memory. Free it with `hart_context_free`.
///
/// Returns `HART_CANCELLED` if the observer or the token has cancelled the work. Returns `HART_ERR_REQUEST` if the
/// request has no prompt, `HART_ERR_STATE` if it is already running, `HART_ERR_MEMORY` if encoding needs more memory
/// than allowed, and `HART_ERR_DEVICE` if a GPU fails.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_encode(
    model: *const hart_model,
    request: *const hart_request,
    context: *mut *mut hart_context,
) -> hart_status {
    guard(|| {
        let out = Out::<hart_context>::new(context, "context")?;
        let mut run: Run = get(request, "request")?.run()?;
        let context = with_model(model, |hart| Ok(hart.encode_with(&run.request, &mut run.callback)?))?;
        let prompts = context.prompts().iter().map(|_| EncodedPrompt::default()).collect();
        out.write(Arc::new(Encoded { context, prompts }));
        Ok(())
    })
}

/// Creates another handle of the same context, which is freed separately. Pointers into the context are valid until the
/// last handle is freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_context_share(context: *const hart_context, shared: *mut *mut hart_context) -> hart_status {
    share(context, "context", shared)
}

/// Frees the context. Does nothing if `context` is NULL. Requests that use the context keep what they need of it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_context_free(context: *mut hart_context) {
    free(context);
}

/// Returns the number of prompts. Returns 0 if `context` is NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_context_count(context: *const hart_context) -> usize {
    number_of(context, "context", |encoded| encoded.prompts.len())
}

/// Returns the number of bytes that the context takes in the memory of the program and of the device, without the
/// copies of `hart_context_hidden` and `hart_context_mask`. Returns 0 if `context` is NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_context_bytes(context: *const hart_context) -> u64 {
    number_of(context, "context", |encoded| encoded.context.bytes())
}

/// Returns the hidden states of prompt `index`, counted from 0: those of the text encoder after its final norm, without
/// those of the system prompt. They are tokens * channels values, token by token. Padding has hidden states too. The
/// values are copied at the first call and valid until the context is freed. Returns `HART_ERR_ARGUMENT` if there is no
/// such prompt, and `HART_ERR_DEVICE` if a GPU fails.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_context_hidden(
    context: *const hart_context,
    index: usize,
    hidden: *mut *const f32,
    tokens: *mut usize,
    channels: *mut usize,
) -> hart_status {
    guard(|| {
        out::set(hidden, ptr::null(), "hidden")?;
        out::set(tokens, 0, "tokens")?;
        out::set(channels, 0, "channels")?;
        let encoded = get(context, "context")?;
        let copies = encoded.prompt(index)?;
        let values = match copies.hidden.get() {
            Some(values) => values,
            None => {
                let values = with_enough_stack(|| encoded.context.hidden(index))??;
                copies.hidden.get_or_init(|| values)
            }
        };
        out::set(hidden, values.as_ptr(), "hidden")?;
        out::set(tokens, encoded.context.tokens(), "tokens")?;
        out::set(channels, encoded.context.channels(), "channels")
    })
}

/// Returns the mask of prompt `index`, counted from 0: 1 for a token of the text, 0 for padding. It is valid until the
/// context is freed. Returns `HART_ERR_ARGUMENT` if there is no such prompt.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_context_mask(
    context: *const hart_context,
    index: usize,
    mask: *mut *const u8,
    tokens: *mut usize,
) -> hart_status {
    guard(|| {
        out::set(mask, ptr::null(), "mask")?;
        out::set(tokens, 0, "tokens")?;
        let encoded = get(context, "context")?;
        let copies = encoded.prompt(index)?;
        let is_text = encoded.context.mask(index)?;
        let values = copies.mask.get_or_init(|| is_text.iter().map(|&is_text| is_text.into()).collect());
        out::set(mask, values.as_ptr(), "mask")?;
        out::set(tokens, values.len(), "tokens")
    })
}

impl Encoded {
    fn prompt(&self, index: usize) -> Result<&EncodedPrompt, Failure> {
        let count = self.prompts.len();
        self.prompts.get(index).ok_or_else(|| Failure::argument(format!("`index` is {index}, but the context has {count} prompts")))
    }
}
