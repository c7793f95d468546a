//! Scaled dot-product attention: by itself, and with all that stands between the two linear layers of a block's self-attention.

use burn::prelude::*;
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{DType, module};

#[cfg(feature = "cpu")]
use super::cpu;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
use super::gpu;
use super::kv::{Extend, Group, Seen};
use super::to_f32;
use crate::device::is_cpu;
use crate::nn::Rotation;

/// Smallest norm that L2 normalisation divides by, PyTorch's default.
pub(super) const SMALLEST_NORM: f32 = 1e-12;

/// `softmax(scale * q k^T + bias) v`.
///
/// # Shapes
///
/// - query: `[B, H, L, d]`
/// - key, value: `[B, G, K, d]`, H a multiple of G
/// - bias: broadcast to `[B, H, L, K]`
/// - output: `[B, H, L, d]`
pub(crate) fn attention(query: Tensor<4>, key: Tensor<4>, value: Tensor<4>, bias: Option<Tensor<4>>, scale: f64) -> Tensor<4> {
    #[cfg(feature = "cpu")]
    if bias.is_none()
        && let Some(mixed) = cpu::attention(&query, &key, &value, scale)
    {
        return mixed;
    }
    #[cfg(any(feature = "cuda", feature = "wgpu"))]
    if let Some(mixed) = gpu::attention([&query, &key, &value], bias.as_ref(), scale) {
        return mixed;
    }
    // Softmax in f32, whatever the type.
    let kind = query.dtype();
    let mixed = plain_attention(to_f32(query), to_f32(key), to_f32(value), bias, scale);
    if kind == DType::F32 { mixed } else { mixed.cast(kind) }
}

fn plain_attention(query: Tensor<4>, key: Tensor<4>, value: Tensor<4>, bias: Option<Tensor<4>>, scale: f64) -> Tensor<4> {
    // burn's matrix units would round f32 to ten bits.
    #[cfg(any(feature = "cuda", feature = "wgpu"))]
    if let Some(mixed) = gpu::attention([&query, &key, &value], bias.as_ref(), scale) {
        return mixed;
    }
    // The GPU backend takes as many keys as there are queries.
    let shared = if is_cpu(&query.device()) { 1 } else { query.dims()[1] / key.dims()[1].max(1) };
    let (key, value) = (repeat(key, shared), repeat(value, shared));
    let options = AttentionModuleOptions { scale: Some(scale), ..Default::default() };
    module::attention(query, key, value, None, bias, options)
}

/// Every head so many times, one beside the other.
fn repeat(x: Tensor<4>, times: usize) -> Tensor<4> {
    if times <= 1 {
        return x;
    }
    let [batch, heads, length, channels] = x.dims();
    x.reshape([batch, heads, 1, length * channels]).repeat_dim(2, times).reshape([batch, heads * times, length, channels])
}

/// What a block's self-attention knows besides its two linear layers.
#[derive(Debug)]
pub(crate) struct SelfAttention {
    /// Heads, H.
    pub(crate) heads: usize,
    /// Added to the queries, `[C]`.
    pub(crate) query_bias: Tensor<1>,
    /// Added to the values, `[C]`.
    pub(crate) value_bias: Tensor<1>,
    /// With normalised queries and keys: norm of each head's queries, `[1, H, 1, 1]`.
    pub(crate) norms: Option<Tensor<4>>,
    /// Factor of the scores.
    pub(crate) scale: f64,
}

impl SelfAttention {
    /// From the product that holds queries, keys and values to the mixed values: biases, norms, rotation, the cache, softmax.
    ///
    /// # Shapes
    ///
    /// - qkv: `[R, L, 3C]`, or `[1, N, 3C]` where rows differ in length: the tokens of all groups, one row behind the other
    /// - rotation: of `[R or 1, L]`, or of `[1, N]` tokens
    /// - bias: broadcast to `[R, H, L, keys]`
    /// - output: as qkv, C wide
    pub(crate) fn forward(
        &self,
        qkv: Tensor<3>,
        rotation: &Rotation,
        groups: &[Group],
        mut cache: Extend<'_>,
        bias: Option<Tensor<4>>,
    ) -> Tensor<3> {
        #[cfg(feature = "cpu")]
        if bias.is_none()
            && let Some(mixed) = cpu::self_attention(self, &qkv, rotation, groups, &mut cache)
        {
            return mixed;
        }
        #[cfg(any(feature = "cuda", feature = "wgpu"))]
        if bias.is_none()
            && let Some(mixed) = gpu::self_attention(self, &qkv, rotation, groups, &mut cache)
        {
            return mixed;
        }
        self.plain(to_f32(qkv), rotation, groups, cache, bias)
    }

    fn plain(
        &self,
        qkv: Tensor<3>,
        rotation: &Rotation,
        groups: &[Group],
        cache: Extend<'_>,
        bias: Option<Tensor<4>>,
    ) -> Tensor<3> {
        let [rows, length, width] = qkv.dims();
        let (width, channels) = (width / 3, width / 3 / self.heads);
        let biases = vec![self.query_bias.clone(), self.query_bias.zeros_like(), self.value_bias.clone()];
        let qkv = qkv + Tensor::cat(biases, 0).unsqueeze();
        let part = |index: usize| {
            let part = qkv.clone().narrow(2, index * width, width);
            part.reshape([rows, length, self.heads, channels]).swap_dims(1, 2) // [rows, heads, seq, dim]
        };
        let (mut query, mut key, value) = (part(0), part(1), part(2));
        if let Some(norms) = &self.norms {
            query = l2_norm(query) * norms.clone();
            key = l2_norm(key);
        }
        let (query, key) = (rotation.apply(query), rotation.apply(key));
        let new = each(groups, &key).into_iter().zip(each(groups, &value)).zip(groups);
        let new = new.map(|((key, value), group)| {
            let log_weights = vec![(group.times as f32).ln(); group.tokens];
            Seen { key, value, log_weights }
        });
        let seen = cache.with(new.collect());
        let mixed = each(groups, &query).into_iter().zip(seen).map(|(query, seen)| {
            let [rows, heads, tokens, channels] = query.dims();
            let bias = bias.clone().or_else(|| weights_bias(&seen.log_weights, &query.device()));
            let mixed = plain_attention(query, seen.key, seen.value, bias, self.scale);
            mixed.swap_dims(1, 2).reshape([1, rows * tokens, heads * channels]) // [1, seq of all rows, channels]
        });
        Tensor::cat(mixed.collect(), 1).reshape([rows, length, width])
    }
}

/// The groups of `[rows, heads, seq, dim]`, or of `[1, heads, seq of all rows, dim]` where rows differ in length.
fn each(groups: &[Group], x: &Tensor<4>) -> Vec<Tensor<4>> {
    let [rows, heads, _, channels] = x.dims();
    let packed = rows != groups.iter().map(|group| group.rows).sum::<usize>();
    let mut first = 0;
    let of = |group: &Group| {
        let size = if packed { group.total() } else { group.rows };
        let part = x.clone().narrow(if packed { 2 } else { 0 }, first, size);
        first += size;
        if !packed {
            return part;
        }
        let part = part.reshape([heads, group.rows, group.tokens, channels]);
        part.swap_dims(0, 1) // [rows, heads, seq, dim]
    };
    groups.iter().map(of).collect()
}

/// Bias of scores `[1, 1, 1, keys]` for keys of which some count several times.
fn weights_bias(log_weights: &[f32], device: &Device) -> Option<Tensor<4>> {
    let some = log_weights.iter().any(|&log_weight| log_weight != 0.0);
    some.then(|| super::tensor(log_weights.to_vec(), [1, 1, 1, log_weights.len()], device))
}

fn l2_norm(x: Tensor<4>) -> Tensor<4> {
    let norm = x.clone().powf_scalar(2.0).sum_dim(3).sqrt().clamp_min(SMALLEST_NORM);
    x / norm
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Precision;
    use crate::kernels::kv::{Cache, Memory};
    use crate::kernels::{tensor, values};

    /// burn's CPU backend takes another body for `queries * keys` above this, one that never holds all scores.
    const ALL_SCORES: usize = 256 * 1024;

    fn waves(count: usize, speed: f32) -> Vec<f32> {
        (0..count).map(|i| (i as f32 * speed).sin()).collect()
    }

    /// Both bodies against a plain softmax in f64, with grouped heads, with and without bias. A row that may look nowhere averages
    /// all values.
    #[test]
    fn attention_is_a_softmax_whatever_the_length() {
        let device = Device::flex();
        let (heads, groups, dim) = (4, 2, 8);
        for (queries, keys) in [(3, 5), (100, 3000)] {
            assert!((queries, keys) == (3, 5) || queries * keys > ALL_SCORES);
            let (q, k, v) = (waves(heads * queries * dim, 0.7), waves(groups * keys * dim, 0.31), waves(groups * keys * dim, 1.3));
            let mut bias: Vec<f32> = waves(queries * keys, 0.11).iter().map(|b| if *b > 0.5 { f32::MIN } else { *b }).collect();
            bias[..keys].fill(f32::MIN);
            for bias in [None, Some(bias)] {
                let scale = 0.4;
                let got = values(attention(
                    tensor(q.clone(), [1, heads, queries, dim], &device),
                    tensor(k.clone(), [1, groups, keys, dim], &device),
                    tensor(v.clone(), [1, groups, keys, dim], &device),
                    bias.clone().map(|bias| tensor(bias, [1, 1, queries, keys], &device)),
                    scale,
                ));
                for (row, got) in got.chunks(dim).enumerate() {
                    let (head, query) = (row / queries, row % queries);
                    let group = head / (heads / groups);
                    let key = |index: usize| &k[(group * keys + index) * dim..][..dim];
                    let score = |index: usize| {
                        let dot: f64 = q[row * dim..][..dim].iter().zip(key(index)).map(|(a, b)| f64::from(a * b)).sum();
                        let bias = bias.as_ref().map_or(0.0, |bias| bias[query * keys + index]);
                        // The most negative float swallows any score added to it.
                        if bias == f32::MIN { f64::from(f32::MIN) } else { dot * scale + f64::from(bias) }
                    };
                    let scores: Vec<f64> = (0..keys).map(score).collect();
                    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
                    let sum: f64 = weights.iter().sum();
                    for (channel, got) in got.iter().enumerate() {
                        let value = |index: usize| f64::from(v[(group * keys + index) * dim + channel]);
                        let want = weights.iter().enumerate().map(|(i, w)| w * value(i)).sum::<f64>() / sum;
                        assert!((f64::from(*got) - want).abs() < 1e-5, "{queries} x {keys}, row {row}: {got} and not {want}");
                    }
                }
            }
        }
    }

    /// Three scales with the cache, the first packed: conditional rows, then one token of each unconditional row for seven.
    #[test]
    fn faster_self_attention_equals_the_plain_one() {
        let device = Device::flex();
        let (heads, channels) = (3, 8);
        let width = heads * channels;
        let bias = |speed| tensor(waves(width, speed), [1, 1, width], &device).reshape([width]);
        let group = |rows, tokens, times| Group { rows, tokens, times };
        for normalised in [false, true] {
            let layer = SelfAttention {
                heads,
                query_bias: bias(0.3),
                value_bias: bias(0.5),
                norms: normalised.then(|| tensor(vec![3.0, 4.0, 5.0], [1, heads, 1, 1], &device)),
                scale: if normalised { 1.0 } else { 0.3 },
            };
            for precision in [Precision::F32, Precision::Bf16] {
                let (mut fast, mut plain) = (Cache::new(precision, 11), Cache::new(precision, 11));
                let mut memory = Memory::default();
                let scales = [
                    (vec![group(2, 7, 1), group(2, 1, 7)], [1, 16]),
                    (vec![group(2, 4, 1), group(2, 4, 1)], [4, 4]),
                    (vec![group(2, 49, 1), group(2, 49, 1)], [4, 49]),
                ];
                for (index, (groups, [rows, length])) in scales.into_iter().enumerate() {
                    let qkv = tensor(waves(rows * length * 3 * width, 0.37 + index as f32), [rows, length, 3 * width], &device);
                    let positions: Vec<Vec<f32>> =
                        (0..rows).map(|row| (0..length).map(|p| (p * 2 + row) as f32).collect()).collect();
                    let rotation = Rotation::sequence(&positions, channels, 100.0, &device);
                    let (fast, plain) =
                        if index == 2 { (fast.finish(&mut memory), plain.extend()) } else { (fast.extend(), plain.extend()) };
                    let mut fast = fast;
                    let got = cpu::self_attention(&layer, &qkv, &rotation, &groups, &mut fast).expect("it is the CPU backend");
                    let want = layer.plain(qkv, &rotation, &groups, plain, None);
                    assert_eq!(got.dims(), want.dims());
                    let tolerance = if precision == Precision::F32 { 1e-5 } else { 3e-2 };
                    let error = values((got - want).abs().max())[0];
                    assert!(error < tolerance, "normalised {normalised}, {precision}, scale {index}: off by {error}");
                }
            }
        }
    }

    /// Channels before places, as a picture's map has them: the answer lies so too.
    #[test]
    fn attention_over_a_map() {
        let device = Device::flex();
        let map = tensor(waves(2 * 3 * 16 * 70, 0.7), [2, 3, 16, 70], &device);
        let part = |index: usize| map.clone().narrow(1, index, 1).swap_dims(2, 3);
        let want = plain_attention(part(0), part(1), part(2), None, 0.25);
        let got = cpu::attention(&part(0), &part(1), &part(2), 0.25).expect("it is the CPU backend");
        assert!(values((got - want).abs().max())[0] < 1e-5);
    }
}
