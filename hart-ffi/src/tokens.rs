//! Conversion of images to tokens and back.

use std::ptr;
use std::sync::Arc;

use hart_core::Hart;
use hart_core::stages::{ImageTokens, Progress};

use crate::guard::guard;
use crate::handle::{Handle, free, get, number_of, share};
use crate::image::{CImage, hart_image};
use crate::model::{hart_model, with_model};
use crate::out::{self, Out};
use crate::status::{Failure, hart_status};

/// An image encoded as tokens of a model: the codes of every scale, and the residual that the codes do not represent.
pub struct hart_tokens(());

impl Handle for hart_tokens {
    type Value = Arc<Tokenized>;
    const NAME: &'static str = "hart_tokens";
}

pub(crate) struct Tokenized {
    tokens: ImageTokens,
    /// The model that encoded the tokens, the only one that can decode them.
    hart: Hart,
}

/// Encodes an image as tokens. Free the tokens with `hart_tokens_free`; they keep the model's weights in memory.
/// Returns `HART_ERR_REQUEST` if the image does not have the width and height of the model.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_model_tokenize(
    model: *const hart_model,
    image: *const hart_image,
    tokens: *mut *mut hart_tokens,
) -> hart_status {
    guard(|| {
        let tokens = Out::<hart_tokens>::new(tokens, "tokens")?;
        let images = [get(image, "image")?.image.clone()];
        with_model(model, |hart| {
            let encoded = hart.try_install(|| hart.visual().tokenize_images(&images))?;
            tokens.write(Arc::new(Tokenized { tokens: encoded, hart: hart.clone() }));
            Ok(())
        })
    })
}

/// Creates another handle of the same tokens, which is freed separately. Pointers into the tokens are valid until the
/// last handle is freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_tokens_share(tokens: *const hart_tokens, shared: *mut *mut hart_tokens) -> hart_status {
    share(tokens, "tokens", shared)
}

/// Frees the tokens. Does nothing if `tokens` is NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_tokens_free(tokens: *mut hart_tokens) {
    free(tokens);
}

/// Returns the number of scales. Returns 0 if `tokens` is NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_tokens_scales(tokens: *const hart_tokens) -> usize {
    number_of(tokens, "tokens", |tokens| tokens.tokens.codes.len())
}

/// Returns the codes of one scale, counted from 0, coarse to fine: side * side codes, row by row. They are valid until
/// the tokens are freed. Returns `HART_ERR_ARGUMENT` if there is no such scale.
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
        let of_scale = all
            .get(scale)
            .ok_or_else(|| Failure::argument(format!("`scale` is {scale}, but the tokens have {} scales", all.len())))?;
        out::set(codes, of_scale[0].as_ptr(), "codes")?;
        out::set(count, of_scale[0].len(), "count")
    })
}

/// Decodes tokens to an image, with the residual (nonzero) or from the codes alone (0). With the residual, the image is
/// the best reconstruction of the autoencoder. Free the image with `hart_image_free`. Returns `HART_ERR_ARGUMENT` if
/// the tokens belong to another model.
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
        with_model(model, |hart| {
            if !hart.is_same_model(&tokenized.hart) {
                return Err(Failure::argument("`tokens` belong to another model"));
            }
            let decoded = hart.try_install(|| {
                let visual = hart.visual();
                let tokens = &tokenized.tokens;
                let latent = if with_residual != 0 { tokens.hybrid() } else { visual.discrete(tokens) };
                visual.decode_images(&latent, &mut Progress::silent())
            });
            image.write(CImage::new(decoded?.swap_remove(0)));
            Ok(())
        })
    })
}
