//! Image-to-image, inpainting and outpainting: known tokens replace sampled ones scale by scale, and known features replace those of the
//! final latent.

use burn::prelude::*;
use burn::tensor::IntDType;

use super::codebook::Metric;
use super::resample::downsample;
use super::{Codebook, Latent, VisualTokenizer};
use crate::error::Result;
use crate::from_image::FromImage;
use crate::kernels;
use crate::sampling::Codes;
use crate::scales::Scale;

/// Share of a token's area that must be known for the token to count as known.
const MIN_KNOWN_AREA: f32 = 0.5;
/// The latent's side divided by the width of the blend: 4 of 64 positions at 1024 pixels.
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
        let known = mask.map(|mask| mask.known_patches(self.config.downsample()));
        let [_, _, height, width] = features.dims();
        let map = |values: Vec<f32>| kernels::tensor(values, [1, 1, height, width], &device);
        Ok(KnownTokens {
            blend: known.as_ref().map(|known| map(blend_weights(known, width))),
            known: known.map(|known| map(known.iter().map(|&k| f32::from(u8::from(k))).collect())),
            features,
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

    /// Blends the final latent with the known features. In the known region the result is equal to them bit by bit.
    pub fn blend(&self, latent: Latent) -> Latent {
        match &self.blend {
            None => latent,
            Some(weight) => Latent(latent.0 * weight.clone() + self.features.clone() * (weight.clone().neg() + 1.0)),
        }
    }
}

/// Returns the weight of the generated features at each position: 0 in the known region, rising with the distance from it to 1 over the
/// width of the blend.
fn blend_weights(known: &[bool], width: usize) -> Vec<f32> {
    let blend = width / BLEND_DIVISOR;
    let mut reached = known.to_vec();
    let mut weights: Vec<f32> = known.iter().map(|known| if *known { 0.0 } else { 1.0 }).collect();
    for distance in 1..=blend {
        let dilated = dilate(&reached, width);
        for (weight, _) in weights.iter_mut().zip(dilated.iter().zip(&reached)).filter(|(_, (now, before))| **now && !**before) {
            *weight = distance as f32 / (blend + 1) as f32;
        }
        reached = dilated;
    }
    weights
}

/// Dilates a region by one position in all directions, diagonals included.
fn dilate(region: &[bool], width: usize) -> Vec<bool> {
    let around = |i: usize| i.saturating_sub(1)..=i + 1;
    let rows: Vec<&[bool]> = region.chunks(width).collect();
    let touches =
        |x: usize, y: usize| around(y).filter_map(|y| rows.get(y)).any(|row| around(x).filter_map(|x| row.get(x)).any(|p| *p));
    (0..region.len()).map(|i| touches(i % width, i / width)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_blend_rises_away_from_the_known_region() {
        let known: Vec<bool> = (0..32 * 32).map(|i| i % 32 < 4).collect();
        let weights = blend_weights(&known, 32);
        assert_eq!(weights[..8], [0.0, 0.0, 0.0, 0.0, 1.0 / 3.0, 2.0 / 3.0, 1.0, 1.0]);
        assert_eq!(blend_weights(&[true, false, false, false], 2), [0.0, 1.0, 1.0, 1.0]);
        assert_eq!(blend_weights(&[false; 4], 2), [1.0; 4]);
    }
}
