//! Image-to-image, inpainting and outpainting. Known tokens replace sampled tokens scale by scale. Known features then replace
//! those of the final latent, and known pixels replace the decoded ones.

use burn::prelude::*;
use burn::tensor::IntDType;

use super::codebook::Metric;
use super::resample::downsample;
use super::{Codebook, Latent, VisualTokenizer};
use crate::error::Result;
use crate::from_image::{FromImage, KnownPixels, soft_edge};
use crate::image::Image;
use crate::kernels;
use crate::sampling::Codes;
use crate::scales::Scale;

/// Share of a token's area that must be known for the token to count as known.
const MIN_KNOWN_AREA: f32 = 0.5;
/// The latent's side divided by the width of the blend, which is 4 of 64 positions at 1024 pixels.
const BLEND_DIVISOR: usize = 16;

/// The known tokens of an image to start from.
#[derive(Clone, Debug)]
pub struct KnownTokens {
    /// The encoder's features, `[1, Z, h, w]`.
    features: Tensor<4>,
    /// Known region, 1 for a known position and 0 for any other, `[1, 1, h, w]`; `None` without a mask.
    known: Option<Tensor<4>>,
    /// Weight of the generated features in the final latent, `[1, 1, h, w]`: 0 in the known region, rising to 1 away from it.
    blend: Option<Tensor<4>>,
    /// Pixels that replace the decoded ones; `None` if only the latent is kept.
    pixels: Option<KnownPixels>,
    /// Number of coarse scales whose tokens are all known.
    scales: usize,
}

impl VisualTokenizer {
    /// Encodes an image to start from.
    ///
    /// # Errors
    ///
    /// [`Error::Request`](crate::Error::Request) if the image, its mask or its settings do not fit the model.
    pub fn known_tokens(&self, from: &FromImage) -> Result<KnownTokens> {
        let side = self.resolution();
        from.check(side, self.config.sides.len())?;
        let (canvas, mask) = from.canvas(side)?;
        let device = self.quant_conv.weight.lazy_device();
        let features = self.encode(kernels::tensor(canvas.planes(), [1, 3, side, side], &device));
        let pixels = from.known_pixels(&canvas, mask.as_ref());
        let known = mask.map(|mask| mask.known_patches(self.config.downsample()));
        let [_, _, height, width] = features.dims();
        let map = |values: Vec<f32>| kernels::tensor(values, [1, 1, height, width], &device);
        Ok(KnownTokens {
            blend: known.as_ref().map(|known| map(soft_edge(known, width, width / BLEND_DIVISOR))),
            known: known.map(|known| map(known.iter().map(|&k| f32::from(u8::from(k))).collect())),
            features,
            pixels,
            scales: from.kept_scales(),
        })
    }
}

impl KnownTokens {
    /// Replaces the sampled codes of one scale by known ones. The code of a token that is known is the nearest to the difference between
    /// the known features and the latent so far.
    pub fn replace(&self, codes: Codes, latent: &Latent, codebook: &Codebook, scale: &Scale) -> Codes {
        let known = match &self.known {
            _ if scale.index < self.scales => self.features.ones_like().narrow(1, 0, 1),
            Some(known) => known.clone(),
            None => return codes,
        };
        let residual = self.features.clone() - latent.0.clone().narrow(0, 0, 1);
        // Average the residual over the known part of each token.
        let area = downsample(known.clone(), scale.side); // [1, tokens, 1]
        let target = downsample(residual * known, scale.side) / area.clone().clamp_min(f32::EPSILON);
        let nearest = codebook.nearest_codes(target, Metric::Distance).cast(IntDType::from(codes.indices.dtype())); // [1, tokens]
        let is_known = area.greater_equal_elem(MIN_KNOWN_AREA);
        let (indices, features) = (codes.indices.dims(), codes.features.dims());
        let rows = codebook.rows_of(nearest.clone());
        Codes {
            indices: codes.indices.mask_where(is_known.clone().squeeze_dim::<2>(2).expand(indices), nearest.expand(indices)),
            features: codes.features.mask_where(is_known.expand(features), rows.expand(features)),
        }
    }

    /// Lays the known pixels over a decoded image. Returns the decoded image if there are none, see [`Keep`](crate::Keep).
    #[must_use]
    pub fn lay_over(&self, decoded: Image) -> Image {
        match &self.pixels {
            Some(pixels) => pixels.lay_over(&decoded),
            None => decoded,
        }
    }

    /// Blends the final latent with the known features. In the known region the result is equal to them bit by bit.
    pub fn blend(&self, latent: Latent) -> Latent {
        match &self.blend {
            None => latent,
            Some(weight) => Latent(latent.0 * weight.clone() + self.features.clone() * (weight.clone().neg() + 1.0)),
        }
    }
}
