//! What a run keeps of a picture that it starts from: tokens scale by scale, and in the end the features themselves.

use burn::prelude::*;
use burn::tensor::IntDType;

use super::codebook::Metric;
use super::resample::shrink;
use super::{Codebook, Latent, VisualTokenizer};
use crate::error::Result;
use crate::from_image::FromImage;
use crate::kernels;
use crate::sampling::Codes;
use crate::scales::Scale;

/// Share of a token's area that must be known for the token to be given.
const KNOWN_SHARE: f32 = 0.5;
/// Width of the blend between what is kept and what is new, as a part of the latent's side: 4 of 64 positions at 1024 pixels.
const BLEND_PART: usize = 16;

/// The kept part of a picture.
#[derive(Clone, Debug)]
pub struct KnownTokens {
    /// The encoder's features, `[1, Z, h, w]`.
    features: Tensor<4>,
    /// 1 where a position is kept, else 0, `[1, 1, h, w]`; none: nowhere in particular.
    known: Option<Tensor<4>>,
    /// Share of what is new in the final latent, `[1, 1, h, w]`: 0 where a position is kept, rising to 1 away from there.
    share_of_new: Option<Tensor<4>>,
    /// How many of the coarsest scales are kept everywhere.
    scales: usize,
}

impl VisualTokenizer {
    /// Encodes a picture to start from.
    ///
    /// # Errors
    ///
    /// [`Error::Request`](crate::Error::Request) if it doesn't fit the model.
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
            share_of_new: known.as_ref().map(|known| map(shares_of_new(known, width))),
            known: known.map(|known| map(known.iter().map(|&k| f32::from(u8::from(k))).collect())),
            features,
            scales: from.kept_scales(),
        })
    }
}

impl KnownTokens {
    /// Puts the picture's tokens of one scale in the place of those drawn: where enough of a token is known, the nearest code to what
    /// the latent so far lacks of the features there.
    pub fn replace(&self, codes: Codes, latent: &Latent, codebook: &Codebook, scale: &Scale) -> Codes {
        let known = match &self.known {
            _ if scale.index < self.scales => self.features.ones_like().narrow(1, 0, 1),
            Some(known) => known.clone(),
            None => return codes,
        };
        let rest = self.features.clone() - latent.0.clone().narrow(0, 0, 1);
        let share = shrink(known.clone(), scale.side); // [1, tokens, 1]
        let wanted = shrink(rest * known, scale.side) / share.clone().clamp_min(f32::EPSILON);
        let nearest = codebook.nearest_codes(wanted, Metric::Distance).cast(IntDType::from(codes.indices.dtype())); // [1, tokens]
        let replaced = share.greater_equal_elem(KNOWN_SHARE);
        let (drawn, features) = (codes.indices.dims(), codes.features.dims());
        let rows = codebook.rows_of(nearest.clone());
        Codes {
            indices: codes.indices.mask_where(replaced.clone().squeeze_dim::<2>(2).expand(drawn), nearest.expand(drawn)),
            features: codes.features.mask_where(replaced.expand(features), rows.expand(features)),
        }
    }

    /// The final latent: the picture's own features where it is kept, to the last bit, and a blend beyond its edge.
    pub fn blend(&self, latent: Latent) -> Latent {
        match &self.share_of_new {
            None => latent,
            Some(new) => Latent(latent.0 * new.clone() + self.features.clone() * (new.clone().neg() + 1.0)),
        }
    }
}

/// 0 where a position is kept; elsewhere its distance from there, in positions, over the width of the blend, up to 1.
fn shares_of_new(known: &[bool], width: usize) -> Vec<f32> {
    let blend = width / BLEND_PART;
    let mut reached = known.to_vec();
    let mut shares: Vec<f32> = known.iter().map(|known| if *known { 0.0 } else { 1.0 }).collect();
    for distance in 1..=blend {
        let grown = grow(&reached, width);
        for (share, _) in shares.iter_mut().zip(grown.iter().zip(&reached)).filter(|(_, (now, before))| **now && !**before) {
            *share = distance as f32 / (blend + 1) as f32;
        }
        reached = grown;
    }
    shares
}

/// Every place that is there or beside one that is, diagonally too.
fn grow(places: &[bool], width: usize) -> Vec<bool> {
    let beside = |i: usize| i.saturating_sub(1)..=i + 1;
    let rows: Vec<&[bool]> = places.chunks(width).collect();
    let near =
        |x: usize, y: usize| beside(y).filter_map(|y| rows.get(y)).any(|row| beside(x).filter_map(|x| row.get(x)).any(|p| *p));
    (0..places.len()).map(|i| near(i % width, i / width)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_blend_rises_away_from_what_is_kept() {
        let known: Vec<bool> = (0..32 * 32).map(|i| i % 32 < 4).collect();
        let shares = shares_of_new(&known, 32);
        assert_eq!(shares[..8], [0.0, 0.0, 0.0, 0.0, 1.0 / 3.0, 2.0 / 3.0, 1.0, 1.0]);
        assert_eq!(shares_of_new(&[true, false, false, false], 2), [0.0, 1.0, 1.0, 1.0]);
        assert_eq!(shares_of_new(&[false; 4], 2), [1.0; 4]);
    }
}
