//! The image that a request starts from.

use hart_core::{FromImage, Keep, Mask};

use crate::guard::guard;
use crate::handle::{get, get_optional};
use crate::image::{CImage, hart_image};
use crate::request::{hart_request, set};
use crate::request_parts::{Start, StartKind};
use crate::status::{Failure, hart_status};

/// The part of an image that an edit keeps outside the region it regenerates. Later versions may add values.
pub type hart_keep = i32;

/// The pixels are exactly those of the image. A soft edge within the regenerated region, 1/64 of the model's width,
/// blends into the generated pixels. The default.
pub const HART_KEEP_PIXELS: hart_keep = 0;
/// The latent of patches without a regenerated pixel is exactly that of the image. The decoder computes every pixel
/// from the whole latent, so pixels outside the region change too, especially near it.
pub const HART_KEEP_LATENT: hart_keep = 1;

/// Sets inpainting: regenerates the region of `image` where `mask` is white. A pixel of the mask is white if the mean
/// of its channels times its alpha is at least half of the maximum, so white on a transparent layer works as a mask.
/// For a mask whose transparent part is regenerated, use `hart_image_transparency`. The image must have the width and
/// height of the model. The mask must have the same proportions, at any resolution. All other pixels stay exactly the
/// same, unless `hart_request_set_keep` says otherwise. The coarsest `kept_scales` scales are kept everywhere, so that
/// the new content follows the layout of the old one; 0 keeps none. The request keeps references to the images. NULL
/// for `image` and `mask` removes the image from the request.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_set_inpaint(
    request: *mut hart_request,
    image: *const hart_image,
    mask: *const hart_image,
    kept_scales: u32,
) -> hart_status {
    if image.is_null() && !mask.is_null() {
        return guard(|| Err(Failure::null("image")));
    }
    start_from(request, image, |image| {
        let mask = get(mask, "mask")?;
        let from = FromImage::inpaint(image.image.clone(), Mask::from_image(&mask.image)).keep_scales(kept_scales as usize);
        Ok((from, StartKind::Inpaint { mask: mask.clone(), kept_scales }))
    })
}

/// Sets outpainting: generates the surroundings of an image that is smaller than the model's images. Its top left
/// corner is at (`left`, `top`) of the new image, in pixels. The pixels of the given image stay exactly the same,
/// unless `hart_request_set_keep` says otherwise. NULL for `image` removes the image from the request.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_set_outpaint(
    request: *mut hart_request,
    image: *const hart_image,
    left: u32,
    top: u32,
) -> hart_status {
    start_from(request, image, |image| {
        let from = FromImage::outpaint(image.image.clone(), left as usize, top as usize);
        Ok((from, StartKind::Outpaint { left, top }))
    })
}

/// Sets a variation: keeps the coarsest `kept_scales` scales of an image, from 1 to all but the last, and regenerates
/// the finer ones. NULL for `image` removes the image from the request.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_set_variation(
    request: *mut hart_request,
    image: *const hart_image,
    kept_scales: u32,
) -> hart_status {
    start_from(request, image, |image| {
        Ok((FromImage::vary(image.image.clone(), kept_scales as usize), StartKind::Variation { kept_scales }))
    })
}

/// Sets what inpainting and outpainting keep outside the region that they regenerate: `HART_KEEP_PIXELS`, the default,
/// or `HART_KEEP_LATENT`. It can be set before or after the image. Returns `HART_ERR_ARGUMENT` for other values.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_request_set_keep(request: *mut hart_request, keep: hart_keep) -> hart_status {
    set(request, |parts| {
        parts.keep = Some(match keep {
            HART_KEEP_PIXELS => Keep::Pixels,
            HART_KEEP_LATENT => Keep::Latent,
            _ => {
                return Err(Failure::argument(format!("`keep` is {keep}, expected HART_KEEP_PIXELS (0) or HART_KEEP_LATENT (1)")));
            }
        });
        Ok(())
    })
}

/// Sets or removes the image that a request starts from.
unsafe fn start_from(
    request: *mut hart_request,
    image: *const hart_image,
    start: impl FnOnce(&CImage) -> Result<(FromImage, StartKind), Failure>,
) -> hart_status {
    set(request, |parts| {
        parts.start = match get_optional(image, "image")? {
            None => None,
            Some(image) => {
                let (from, kind) = start(image)?;
                Some(Start { from, image: image.clone(), kind })
            }
        };
        Ok(())
    })
}
