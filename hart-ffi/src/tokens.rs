//! Pictures as tokens, and back.

use std::ptr;
use std::sync::Arc;

use hart_core::stages::{ImageTokens, Progress};

use crate::guard::guard;
use crate::handle::{Handle, free, get, number_of};
use crate::image::{Picture, hart_image};
use crate::model::{Model, hart_model, using};
use crate::out::{self, Out};
use crate::status::{Failure, hart_status};

/// A picture as the model's tokens: codes scale by scale, and the residual that they lose.
pub struct hart_tokens(());

impl Handle for hart_tokens {
    type Value = Tokenized;
    const NAME: &'static str = "hart_tokens";
}

pub(crate) struct Tokenized {
    tokens: ImageTokens,
    /// Tokens mean something to their own model only.
    model: Arc<Model>,
}

/// A picture to tokens. It must have the model's width and height. Free the tokens with `hart_tokens_free`; they keep the model's
/// weights in memory.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_model_tokenize(
    model: *const hart_model,
    image: *const hart_image,
    tokens: *mut *mut hart_tokens,
) -> hart_status {
    guard(|| {
        let tokens = Out::<hart_tokens>::new(tokens, "tokens")?;
        let picture = get(image, "image")?;
        using(model, |model| {
            let images = [hart_core::Image::clone(&picture.image)];
            let made = model.hart.attempt(|| model.hart.visual().tokenize_images(&images))?;
            tokens.give(Tokenized { tokens: made, model: model.clone() });
            Ok(())
        })
    })
}

/// Frees the tokens; NULL is nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_tokens_free(tokens: *mut hart_tokens) {
    free(tokens);
}

/// How many scales the tokens have, coarse to fine; 0 for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_tokens_scales(tokens: *const hart_tokens) -> usize {
    number_of(tokens, "tokens", |tokens| tokens.tokens.codes.len())
}

/// The codes of scale `scale`, from 0: side * side numbers, row by row; valid until the tokens are freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_tokens_codes(
    tokens: *const hart_tokens,
    scale: usize,
    codes: *mut *const u32,
    count: *mut usize,
) -> hart_status {
    guard(|| {
        out::set(codes, ptr::null(), "codes")?;
        out::set(count, 0, "count")?;
        let all = &get(tokens, "tokens")?.tokens.codes;
        let of_scale =
            all.get(scale).ok_or_else(|| Failure::argument(format!("`scale` is {scale}, the tokens have {} scales", all.len())))?;
        out::set(codes, of_scale[0].as_ptr(), "codes")?;
        out::set(count, of_scale[0].len(), "count")
    })
}

/// Tokens to a picture: with the residual (not 0), which is all that the autoencoder can do, or from the codes alone (0). Free the
/// image with `hart_image_free`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_model_reconstruct(
    model: *const hart_model,
    tokens: *const hart_tokens,
    with_residual: i32,
    image: *mut *mut hart_image,
) -> hart_status {
    guard(|| {
        let image = Out::<hart_image>::new(image, "image")?;
        let tokenized = get(tokens, "tokens")?;
        using(model, |model| {
            if !Arc::ptr_eq(model, &tokenized.model) {
                return Err(Failure::argument("`tokens` are another model's"));
            }
            let made = model.hart.attempt(|| {
                let visual = model.hart.visual();
                let tokens = &tokenized.tokens;
                let latent = if with_residual != 0 { tokens.hybrid() } else { visual.discrete(tokens) };
                visual.decode_images(&latent, &mut Progress::silent())
            });
            image.give(Picture::new(made?.swap_remove(0)));
            Ok(())
        })
    })
}
