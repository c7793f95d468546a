//! Logits to codes: classifier-free guidance, top-k and top-p filtering, sampling, and Gumbel-softmax smoothing (spec section 3).
//!
//! Tokens are independent. On the CPU they are sampled in parallel, with plain Rust over slices.

use burn::prelude::*;
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::kernels;
use crate::pruning::Pruning;
use crate::rng::{RandomKey, RandomSource};
use crate::scales::Scale;
use crate::schedule::Respacing;

/// Sampling parameters of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Strength of classifier-free guidance.
    pub guidance: f64,
    /// Whether a token is a weighted mix of codebook rows (Gumbel-softmax smoothing) or a single row.
    pub smoothing: bool,
    /// Number of codes kept for sampling. `None` uses [`Scale::top_k`].
    pub top_k: Option<usize>,
    /// Total probability of the codes kept for sampling. 0 keeps all.
    pub top_p: f64,
    /// Steps of the residual diffusion.
    pub steps: Respacing,
    /// Shares of tokens that the transformer leaves out of the last scales. `None` computes all tokens.
    pub pruning: Option<Pruning>,
}

impl SamplingParams {
    /// Returns whether guidance has an effect. Without it, nothing reads the unconditional half of a batch.
    pub fn is_guided(&self) -> bool {
        self.guidance != 0.0
    }

    /// Returns the parameters of one scale's tokens.
    pub fn of_scale(&self, scale: &Scale) -> TokenSampling {
        TokenSampling {
            top_k: self.top_k.unwrap_or(scale.top_k()),
            top_p: self.top_p,
            smoothing: self.smoothing.then(|| GumbelSoftmax::of_scale(scale)),
        }
    }
}

/// Sampling parameters of one scale's tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenSampling {
    /// Number of codes kept. 0 keeps all.
    pub top_k: usize,
    /// Total probability of the codes kept. 0 keeps all.
    pub top_p: f64,
    /// Gumbel-softmax smoothing: a token becomes a mix of codebook rows. `None` uses the sampled row.
    pub smoothing: Option<GumbelSoftmax>,
}

/// Gumbel-softmax smoothing. The weights of a mix are `softmax((factor * logits + gumbel) / temperature)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GumbelSoftmax {
    /// Factor of the logits.
    pub factor: f64,
    /// Temperature of the softmax.
    pub temperature: f64,
}

impl GumbelSoftmax {
    /// Returns the published parameters of a scale: `factor = 1 + ratio`, `temperature = tau`.
    pub fn of_scale(scale: &Scale) -> Self {
        Self { factor: 1.0 + scale.ratio(), temperature: scale.temperature() }
    }
}

/// The codes of one scale.
#[derive(Clone, Debug)]
pub struct Codes {
    /// Indices of the sampled codebook rows, `[B, L]`.
    pub indices: Tensor<2, Int>,
    /// Features added to the latent, `[B, L, Z]`: the sampled rows, or the smoothed mix.
    pub features: Tensor<3>,
}

impl Codes {
    /// Copies the indices to the host, `[B][L]`.
    pub fn host_indices(&self) -> Vec<Vec<u32>> {
        indices_on_host(self.indices.clone())
    }
}

/// Copies code indices `[B, L]` to the host, `[B][L]`.
pub(crate) fn indices_on_host(indices: Tensor<2, Int>) -> Vec<Vec<u32>> {
    let [_, length] = indices.dims();
    let flat: Vec<u32> = indices.into_data().iter::<i64>().map(|index| index as u32).collect();
    flat.chunks(length.max(1)).map(<[u32]>::to_vec).collect()
}

/// The codebook's V rows of Z values, on the host and on the device.
#[derive(Clone, Debug)]
pub struct CodebookRows {
    values: Vec<f32>,
    width: usize,
    table: Tensor<2>,
}

impl CodebookRows {
    /// Copies a table `[V, Z]` to the host.
    pub fn new(table: Tensor<2>) -> Self {
        let [_, width] = table.dims();
        Self { values: kernels::values(table.clone()), width, table }
    }

    fn row(&self, index: usize) -> &[f32] {
        &self.values[index * self.width..][..self.width]
    }

    /// Returns the number of rows, V.
    pub fn len(&self) -> usize {
        self.values.len() / self.width
    }

    /// Returns whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }
}

/// Applies classifier-free guidance: `(1 + t) * conditional - t * unconditional`.
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

/// Samples the codes of one scale.
///
/// # Shapes
///
/// - logits: `[B, L, V]`, guided
///
/// # Errors
///
/// [`Error::Overflow`] if a logit is not finite. On a GPU, whose results are not read back here, the features are NaN instead.
pub fn sample(
    logits: Tensor<3>,
    sampling: &TokenSampling,
    codebook: &CodebookRows,
    scale: &Scale,
    random: &dyn RandomSource,
) -> Result<Codes> {
    let device = logits.device();
    let [batch, length, vocab] = logits.dims();
    if let Some(seeds) = random.seeds() {
        let TokenSampling { top_k, top_p, smoothing } = *sampling;
        let smoothing = smoothing.map(|smoothing| [smoothing.factor, smoothing.temperature]);
        let codes = kernels::sample(&logits, &codebook.table, top_k, top_p, smoothing, scale.index, seeds);
        if let Some((indices, features)) = codes {
            return Ok(Codes { indices, features });
        }
    }
    let mut logits = kernels::values(logits);
    let width = codebook.width;
    let mut features = vec![0.0; batch * length * width];
    let indices = logits
        .par_chunks_mut(vocab)
        .zip(features.par_chunks_mut(width))
        .enumerate()
        .map(|(token, (row, feature))| {
            let key = RandomKey { image: token / length, scale: scale.index, position: token % length };
            sample_token(row, sampling, codebook, key, random, feature)
        })
        .collect::<Option<Vec<u32>>>();
    let Some(indices) = indices else {
        return Err(Error::Overflow { what: format!("the logits of scale {} of {}", scale.index + 1, scale.count) });
    };
    Ok(Codes {
        indices: kernels::integers(indices, [batch, length], &device),
        features: kernels::tensor(features, [batch, length, width], &device),
    })
}

/// Samples one token: filters its logits in place, samples its code and writes its feature. Returns `None` if a logit is not finite.
fn sample_token(
    logits: &mut [f32],
    sampling: &TokenSampling,
    codebook: &CodebookRows,
    key: RandomKey,
    random: &dyn RandomSource,
    feature: &mut [f32],
) -> Option<u32> {
    if !logits.iter().all(|l| l.is_finite()) {
        return None;
    }
    keep_top_k(logits, sampling.top_k);
    keep_top_p(logits, sampling.top_p);
    let mut probabilities = logits.to_vec();
    softmax(&mut probabilities);
    let index = random.code(key, &probabilities);
    match sampling.smoothing {
        None => feature.copy_from_slice(codebook.row(index)),
        Some(smoothing) => {
            let mut gumbel = probabilities;
            random.gumbel(key, &mut gumbel);
            mix(&gumbel_softmax(logits, &gumbel, smoothing), codebook, feature);
        }
    }
    Some(index as u32)
}

/// Returns the codes that are kept, with their Gumbel-softmax weights. Computed in f64, since a low temperature amplifies rounding.
fn gumbel_softmax(logits: &[f32], gumbel: &[f32], smoothing: GumbelSoftmax) -> Vec<(usize, f64)> {
    let GumbelSoftmax { factor, temperature } = smoothing;
    let kept = logits.iter().zip(gumbel).enumerate().filter(|(_, (logit, _))| logit.is_finite());
    let scaled = |(&logit, &noise): (&f32, &f32)| (f64::from(logit) * factor + f64::from(noise)) / temperature;
    let mut weights: Vec<(usize, f64)> = kept.map(|(index, pair)| (index, scaled(pair))).collect();
    let largest = weights.iter().map(|(_, w)| *w).fold(f64::NEG_INFINITY, f64::max);
    weights.iter_mut().for_each(|(_, w)| *w = (*w - largest).exp());
    let sum: f64 = weights.iter().map(|(_, w)| w).sum();
    weights.iter_mut().for_each(|(_, w)| *w /= sum);
    weights
}

/// Sets every logit below the k-th largest to minus infinity. Logits equal to the k-th largest stay. 0 keeps all.
pub fn keep_top_k(logits: &mut [f32], k: usize) {
    if k == 0 || k >= logits.len() {
        return;
    }
    let mut order = logits.to_vec();
    let (_, &mut threshold, _) = order.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
    logits.iter_mut().filter(|l| **l < threshold).for_each(|l| *l = f32::NEG_INFINITY);
}

/// Sets the least likely logits, whose probabilities add up to at most `1 - p`, to minus infinity. The largest logit always stays.
/// 0 keeps all.
pub fn keep_top_p(logits: &mut [f32], p: f64) {
    if p <= 0.0 {
        return;
    }
    // Codes that top-k has left out have no probability.
    let mut order: Vec<usize> = (0..logits.len()).filter(|&index| logits[index] != f32::NEG_INFINITY).collect();
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

/// Applies softmax in place. At least one value must be finite.
fn softmax(values: &mut [f32]) {
    let largest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0f64;
    for value in values.iter_mut() {
        // Most values are often left out.
        *value = if *value == f32::NEG_INFINITY { 0.0 } else { crate::math::expf(*value - largest) };
        sum += f64::from(*value);
    }
    let scale = (1.0 / sum) as f32;
    values.iter_mut().for_each(|v| *v *= scale);
}

/// Writes the weighted sum of codebook rows to `feature`.
fn mix(weights: &[(usize, f64)], codebook: &CodebookRows, feature: &mut [f32]) {
    feature.fill(0.0);
    for &(index, weight) in weights {
        for (sum, &value) in feature.iter_mut().zip(codebook.row(index)) {
            *sum += weight as f32 * value;
        }
    }
}

/// Tests on the device that the tests of the GPU kernels use.
#[cfg(all(test, any(feature = "cuda", feature = "wgpu")))]
mod tests {
    use super::*;
    use crate::kernels::testing::{gpu as device, on, wave, waves};
    use crate::kernels::{tensor, values};
    use crate::rng::Philox;

    /// Codes and features on the GPU equal those on the CPU, except for one that rounding changes.
    #[test]
    fn sampling_equals_the_cpu() {
        let (gpu, cpu) = (device(), Device::flex());
        let scale = Scale { index: 2, count: 4, side: 8, last_side: 8 };
        let seeds = Philox::new(vec![11, 12]);
        for (vocabulary, channels) in [(100, 5), (1000, 32)] {
            let logits = wave([2, 64, vocabulary], 1.7, &cpu) * 4.0 + wave([2, 64, vocabulary], 0.013, &cpu);
            let table = wave([vocabulary, channels], 0.9, &cpu);
            let smoothing = Some(GumbelSoftmax { factor: 1.6, temperature: 0.1 });
            for sampling in [
                TokenSampling { top_k: 0, top_p: 0.0, smoothing: None },
                TokenSampling { top_k: 30, top_p: 0.0, smoothing: None },
                TokenSampling { top_k: 30, top_p: 0.0, smoothing },
                TokenSampling { top_k: 50, top_p: 0.4, smoothing: None },
                TokenSampling { top_k: 0, top_p: 0.9, smoothing },
            ] {
                let on_cpu = sample(logits.clone(), &sampling, &CodebookRows::new(table.clone()), &scale, &seeds).unwrap();
                let on_gpu = sample(on(&logits, &gpu), &sampling, &CodebookRows::new(on(&table, &gpu)), &scale, &seeds).unwrap();
                let (got, want) = (on_gpu.host_indices().concat(), on_cpu.host_indices().concat());
                let other = got.iter().zip(&want).filter(|(g, w)| g != w).count();
                println!("{sampling:?}: {other} of {} codes differ", got.len());
                assert!(other <= 1, "{sampling:?}: {other} of {} codes differ", got.len());
                let (got, want) = (values(on_gpu.features), values(on_cpu.features));
                let far = got.chunks(channels).zip(want.chunks(channels));
                let far = far.filter(|(g, w)| g.iter().zip(*w).any(|(g, w)| (g - w).abs() > 2e-3)).count();
                assert!(far <= 1, "{sampling:?}: the features of {far} tokens differ");
            }
        }
    }

    /// Logits that are not finite give features that are not finite, for their own token only.
    #[test]
    fn non_finite_logits_give_non_finite_features() {
        let gpu = device();
        let mut logits = waves(4 * 100, 0.3);
        logits[250] = f32::NAN;
        let logits = tensor(logits, [1, 4, 100], &gpu);
        let table = wave([100, 3], 0.9, &gpu);
        let sampling = TokenSampling { top_k: 30, top_p: 0.0, smoothing: None };
        let scale = Scale { index: 0, count: 4, side: 2, last_side: 8 };
        let codes = sample(logits, &sampling, &CodebookRows::new(table), &scale, &Philox::new(vec![1])).unwrap();
        let features = values(codes.features);
        assert!(features[6..9].iter().all(|v| v.is_nan()), "{features:?}");
        assert!(features[..6].iter().chain(&features[9..]).all(|v| v.is_finite()), "{features:?}");
    }
}
