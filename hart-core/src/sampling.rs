//! Logits to codes: guidance, top-k and top-p, the draw, and soft codes (spec section 3).
//!
//! Rows of logits are independent, so this is plain Rust over slices, all cores at once.

use burn::prelude::*;
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::kernels;
use crate::rng::{Draws, Place};
use crate::scales::Scale;

/// How the tokens of one scale are sampled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rule {
    /// How many codes are kept.
    pub top_k: usize,
    /// Probability of the codes that are kept; 0 keeps all.
    pub top_p: f64,
    /// Soft sampling's logit factor and temperature; a token is then a mix of codes.
    pub soft: Option<Soft>,
}

/// Soft sampling of one scale: weights are `softmax((factor * logits + gumbel) / temperature)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Soft {
    /// `1 + ratio`.
    pub factor: f64,
    /// tau.
    pub temperature: f64,
}

impl Soft {
    /// The published settings for a scale.
    pub fn of(scale: &Scale) -> Self {
        Self { factor: 1.0 + scale.ratio(), temperature: scale.temperature() }
    }
}

/// The codes of one scale.
#[derive(Clone, Debug)]
pub struct Codes {
    /// Drawn codebook rows, `[B, L]`.
    pub indices: Tensor<2, Int>,
    /// What enters the latent, `[B, L, Z]`: the drawn rows, or their soft mix.
    pub features: Tensor<3>,
}

impl Codes {
    /// The drawn codebook rows on the host, `[B][L]`.
    pub fn drawn(&self) -> Vec<Vec<u32>> {
        let [_, length] = self.indices.dims();
        let indices: Vec<u32> = self.indices.to_data().iter::<i64>().map(|i| i as u32).collect();
        indices.chunks(length.max(1)).map(<[u32]>::to_vec).collect()
    }
}

/// The codebook: V rows of Z values, on the host and on the device.
#[derive(Clone, Debug)]
pub struct CodebookRows {
    values: Vec<f32>,
    width: usize,
    #[cfg_attr(not(any(feature = "cuda", feature = "wgpu")), expect(dead_code, reason = "read on GPUs"))]
    table: Tensor<2>,
}

impl CodebookRows {
    /// Of a table `[V, Z]`.
    pub fn new(table: Tensor<2>) -> Self {
        let [_, width] = table.dims();
        Self { values: kernels::values(table.clone()), width, table }
    }

    fn row(&self, index: usize) -> &[f32] {
        &self.values[index * self.width..][..self.width]
    }

    /// How many rows there are, V.
    pub fn len(&self) -> usize {
        self.values.len() / self.width
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }
}

/// Classifier-free guidance, `(1 + t) conditional - t unconditional`.
///
/// # Shapes
///
/// - logits: `[2B, L, V]`, conditional rows first
/// - output: `[B, L, V]`
pub fn guide(logits: Tensor<3>, t: f64) -> Tensor<3> {
    let rows = logits.dims()[0] / 2;
    let (conditional, unconditional) = (logits.clone().narrow(0, 0, rows), logits.narrow(0, rows, rows));
    conditional * (1.0 + t) - unconditional * t
}

/// Draws the codes of one scale.
///
/// # Shapes
///
/// - logits: `[B, L, V]`, guided
///
/// # Errors
///
/// [`Error::Overflow`] if a logit is not finite. On a GPU, which isn't waited for, the features are then not finite either.
pub fn sample(logits: Tensor<3>, rule: &Rule, codebook: &CodebookRows, scale: &Scale, draws: &dyn Draws) -> Result<Codes> {
    let device = logits.device();
    let [batch, length, vocab] = logits.dims();
    #[cfg(any(feature = "cuda", feature = "wgpu"))]
    if let Some(seeds) = draws.seeds() {
        let soft = rule.soft.map(|soft| [soft.factor, soft.temperature]);
        let choice = kernels::cube::Choice { top_k: rule.top_k, top_p: rule.top_p, soft };
        if let Some((indices, features)) = kernels::cube::sample(&logits, &codebook.table, choice, scale.index, seeds) {
            return Ok(Codes { indices, features });
        }
    }
    let mut logits = kernels::values(logits);
    let width = codebook.width;
    let mut features = vec![0.0; batch * length * width];
    let drawn = logits
        .par_chunks_mut(vocab)
        .zip(features.par_chunks_mut(width))
        .enumerate()
        .map(|(token, (row, feature))| {
            let place = Place { image: token / length, scale: scale.index, position: token % length };
            sample_row(row, rule, codebook, place, draws, feature)
        })
        .collect::<Option<Vec<u32>>>();
    let Some(drawn) = drawn else {
        return Err(Error::Overflow { what: format!("the logits of scale {} of {}", scale.index + 1, scale.count) });
    };
    Ok(Codes {
        indices: kernels::integers(drawn, [batch, length], &device),
        features: kernels::tensor(features, [batch, length, width], &device),
    })
}

/// One token: masks its logits in place, draws its code and writes its feature. None if a logit is not finite.
fn sample_row(
    logits: &mut [f32],
    rule: &Rule,
    codebook: &CodebookRows,
    place: Place,
    draws: &dyn Draws,
    feature: &mut [f32],
) -> Option<u32> {
    if !logits.iter().all(|l| l.is_finite()) {
        return None;
    }
    keep_top_k(logits, rule.top_k);
    keep_top_p(logits, rule.top_p);
    let mut probabilities = logits.to_vec();
    softmax(&mut probabilities);
    let index = draws.code(place, &probabilities);
    match rule.soft {
        None => feature.copy_from_slice(codebook.row(index)),
        Some(soft) => {
            let mut gumbel = probabilities;
            draws.gumbel(place, &mut gumbel);
            mix(&soft_weights(logits, &gumbel, soft), codebook, feature);
        }
    }
    Some(index as u32)
}

/// Soft sampling's weights of the codes that are kept. In f64: a low temperature magnifies rounding.
fn soft_weights(logits: &[f32], gumbel: &[f32], soft: Soft) -> Vec<(usize, f64)> {
    let kept = logits.iter().zip(gumbel).enumerate().filter(|(_, (logit, _))| logit.is_finite());
    let sharp = |(&logit, &noise): (&f32, &f32)| (f64::from(logit) * soft.factor + f64::from(noise)) / soft.temperature;
    let mut weights: Vec<(usize, f64)> = kept.map(|(index, pair)| (index, sharp(pair))).collect();
    let largest = weights.iter().map(|(_, w)| *w).fold(f64::NEG_INFINITY, f64::max);
    weights.iter_mut().for_each(|(_, w)| *w = (*w - largest).exp());
    let sum: f64 = weights.iter().map(|(_, w)| w).sum();
    weights.iter_mut().for_each(|(_, w)| *w /= sum);
    weights
}

/// Removes (sets to minus infinity) every logit below the k-th largest; logits equal to it stay.
pub fn keep_top_k(logits: &mut [f32], k: usize) {
    if k == 0 || k >= logits.len() {
        return;
    }
    let mut order = logits.to_vec();
    let (_, &mut threshold, _) = order.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
    logits.iter_mut().filter(|l| **l < threshold).for_each(|l| *l = f32::NEG_INFINITY);
}

/// Removes the least likely logits whose probabilities, added from the smallest, stay within `1 - p`; never the largest one.
/// 0 removes none.
pub fn keep_top_p(logits: &mut [f32], p: f64) {
    if p <= 0.0 {
        return;
    }
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[a].total_cmp(&logits[b]));
    let mut probabilities = logits.to_vec();
    softmax(&mut probabilities);
    let mut sum = 0.0f64;
    order.pop();
    for index in order {
        sum += f64::from(probabilities[index]);
        if sum > 1.0 - p {
            break;
        }
        logits[index] = f32::NEG_INFINITY;
    }
}

/// Softmax in place; at least one value must be finite.
fn softmax(values: &mut [f32]) {
    let largest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0f64;
    for value in values.iter_mut() {
        *value = (*value - largest).exp();
        sum += f64::from(*value);
    }
    let scale = (1.0 / sum) as f32;
    values.iter_mut().for_each(|v| *v *= scale);
}

/// Weighted sum of codebook rows.
fn mix(weights: &[(usize, f64)], codebook: &CodebookRows, feature: &mut [f32]) {
    feature.fill(0.0);
    for &(index, weight) in weights {
        for (sum, &value) in feature.iter_mut().zip(codebook.row(index)) {
            *sum += weight as f32 * value;
        }
    }
}

/// On the device that the kernels for GPUs are tested on.
#[cfg(all(test, any(feature = "cuda", feature = "wgpu")))]
mod tests {
    use super::*;
    use crate::kernels::cube::tests::{device, on, wave, waves};
    use crate::kernels::{tensor, values};
    use crate::rng::Seeded;

    /// Codes are the host's, but for those that rounding decides, and so are their features.
    #[test]
    fn sampling_equals_the_hosts() {
        let (gpu, cpu) = (device(), Device::flex());
        let scale = Scale { index: 2, count: 4, side: 8, last_side: 8 };
        let seeds = Seeded::new(vec![11, 12]);
        for (vocabulary, channels) in [(100, 5), (1000, 32)] {
            let logits = wave([2, 64, vocabulary], 1.7, &cpu) * 4.0 + wave([2, 64, vocabulary], 0.013, &cpu);
            let table = wave([vocabulary, channels], 0.9, &cpu);
            let soft = Some(Soft { factor: 1.6, temperature: 0.1 });
            for rule in [
                Rule { top_k: 0, top_p: 0.0, soft: None },
                Rule { top_k: 30, top_p: 0.0, soft: None },
                Rule { top_k: 30, top_p: 0.0, soft },
                Rule { top_k: 50, top_p: 0.4, soft: None },
                Rule { top_k: 0, top_p: 0.9, soft },
            ] {
                let host = sample(logits.clone(), &rule, &CodebookRows::new(table.clone()), &scale, &seeds).unwrap();
                let there = sample(on(&logits, &gpu), &rule, &CodebookRows::new(on(&table, &gpu)), &scale, &seeds).unwrap();
                let (got, want) = (there.drawn().concat(), host.drawn().concat());
                let other = got.iter().zip(&want).filter(|(g, w)| g != w).count();
                println!("{rule:?}: {other} of {} codes differ", got.len());
                assert!(other <= 1, "{rule:?}: {other} of {} codes differ", got.len());
                let (got, want) = (values(there.features), values(host.features));
                let far = got.chunks(channels).zip(want.chunks(channels));
                let far = far.filter(|(g, w)| g.iter().zip(*w).any(|(g, w)| (g - w).abs() > 2e-3)).count();
                assert!(far <= 1, "{rule:?}: the features of {far} tokens differ");
            }
        }
    }

    /// Logits that are not finite make features that are not, and nothing else.
    #[test]
    fn broken_logits_are_seen() {
        let gpu = device();
        let mut logits = waves(4 * 100, 0.3);
        logits[250] = f32::NAN;
        let logits = tensor(logits, [1, 4, 100], &gpu);
        let table = wave([100, 3], 0.9, &gpu);
        let rule = Rule { top_k: 30, top_p: 0.0, soft: None };
        let scale = Scale { index: 0, count: 4, side: 2, last_side: 8 };
        let codes = sample(logits, &rule, &CodebookRows::new(table), &scale, &Seeded::new(vec![1])).unwrap();
        let features = values(codes.features);
        assert!(features[6..9].iter().all(|v| v.is_nan()), "{features:?}");
        assert!(features[..6].iter().chain(&features[9..]).all(|v| v.is_finite()), "{features:?}");
    }
}
