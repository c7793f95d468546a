//! Scaled dot-product attention, alone and with everything between the two linear layers of a block's self-attention.

use burn::prelude::*;

use super::kv::{KvAppend, RowGroup};
use super::{cpu, gpu, reference};

/// Smallest norm that L2 normalisation divides by, PyTorch's default.
pub(super) const MIN_NORM: f32 = 1e-12;

/// Parameters of self-attention besides its two linear layers.
#[derive(Debug)]
pub(crate) struct AttentionParams {
    /// Number of heads, H.
    pub(crate) heads: usize,
    /// Added to the queries, `[C]`.
    pub(crate) query_bias: Tensor<1>,
    /// Added to the values, `[C]`.
    pub(crate) value_bias: Tensor<1>,
    /// With L2-normalised queries and keys: the norm of each head's queries, `[1, H, 1, 1]`.
    pub(crate) norms: Option<Tensor<4>>,
    /// Factor of the scores.
    pub(crate) scale: f64,
}

/// Cosines and sines of a rotary embedding, both `[rows or 1, 1, tokens, head_dim]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rotary<'a> {
    pub(crate) cos: &'a Tensor<4>,
    pub(crate) sin: &'a Tensor<4>,
}

/// Applies RoPE: `x cos + (-x2, x1) sin`, where x1 and x2 are the halves of each head.
///
/// # Shapes
///
/// - x, output: `[batch, heads, tokens, head_dim]`
pub(crate) fn rotate(x: Tensor<4>, rotary: Rotary<'_>) -> Tensor<4> {
    reference::rotate(x, rotary)
}

/// Computes `softmax(scale * q k^T + bias) v`. The softmax is f32 whatever the type.
///
/// # Shapes
///
/// - query: `[batch, heads, tokens, head_dim]`
/// - key, value: `[batch, kv_heads, keys, head_dim]`, `heads` a multiple of `kv_heads`
/// - bias: broadcast to `[batch, heads, tokens, keys]`
/// - output: `[batch, heads, tokens, head_dim]`
pub(crate) fn attention(query: Tensor<4>, key: Tensor<4>, value: Tensor<4>, bias: Option<&Tensor<4>>, scale: f64) -> Tensor<4> {
    cpu::attention([&query, &key, &value], bias, scale)
        .or_else(|| gpu::attention([&query, &key, &value], bias, scale))
        .unwrap_or_else(|| reference::attention([query, key, value], bias, scale))
}

/// Computes self-attention from the product that holds queries, keys and values to the mixed values: biases, norms, RoPE, the
/// KV cache, softmax.
///
/// # Shapes
///
/// - qkv: `[R, L, 3 C]`, or `[1, N, 3 C]` where rows differ in length: the tokens of all groups, one row after the other
/// - rotary: of `[R or 1, L]`, or of `[1, N]` tokens
/// - bias: broadcast to `[R, H, L, keys]`
/// - output: like qkv, C wide
pub(crate) fn self_attention(
    qkv: Tensor<3>,
    params: &AttentionParams,
    rotary: Rotary<'_>,
    groups: &[RowGroup],
    mut kv: KvAppend<'_>,
    bias: Option<&Tensor<4>>,
) -> Tensor<3> {
    cpu::self_attention(&qkv, params, rotary, groups, &mut kv, bias)
        .or_else(|| gpu::self_attention(&qkv, params, rotary, groups, &mut kv, bias))
        .unwrap_or_else(|| reference::self_attention(qkv, params, rotary, groups, kv, bias))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Precision;
    use crate::kernels::testing::waves;
    use crate::kernels::{KvScratch, KvStore, tensor, values};
    use crate::nn::RotaryEmbedding;

    /// burn's CPU backend takes another body for `queries * keys` above this, one that never holds all scores.
    const ALL_SCORES: usize = 256 * 1024;

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
                    bias.clone().map(|bias| tensor(bias, [1, 1, queries, keys], &device)).as_ref(),
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
    fn faster_self_attention_equals_the_reference() {
        let device = Device::flex();
        let (heads, head_dim) = (3, 8);
        let width = heads * head_dim;
        let bias = |speed| tensor(waves(width, speed), [width], &device);
        let group = |rows, tokens, multiplicity| RowGroup { rows, tokens, multiplicity };
        for normalized in [false, true] {
            let params = AttentionParams {
                heads,
                query_bias: bias(0.3),
                value_bias: bias(0.5),
                norms: normalized.then(|| tensor(vec![3.0, 4.0, 5.0], [1, heads, 1, 1], &device)),
                scale: if normalized { 1.0 } else { 0.3 },
            };
            for precision in [Precision::F32, Precision::Bf16] {
                let (mut fast, mut plain) = (KvStore::new(precision, 11), KvStore::new(precision, 11));
                let mut scratch = KvScratch::default();
                let scales = [
                    (vec![group(2, 7, 1), group(2, 1, 7)], [1, 16]),
                    (vec![group(2, 4, 1), group(2, 4, 1)], [4, 4]),
                    (vec![group(2, 49, 1), group(2, 49, 1)], [4, 49]),
                ];
                for (index, (groups, [rows, length])) in scales.into_iter().enumerate() {
                    let qkv = tensor(waves(rows * length * 3 * width, 0.37 + index as f32), [rows, length, 3 * width], &device);
                    let positions: Vec<Vec<f32>> =
                        (0..rows).map(|row| (0..length).map(|p| (p * 2 + row) as f32).collect()).collect();
                    let rotation = RotaryEmbedding::sequence(&positions, head_dim, 100.0, &device);
                    let rotary = rotation.tables();
                    let mut kv = if index == 2 { fast.append_last(&mut scratch) } else { fast.append() };
                    let got = cpu::self_attention(&qkv, &params, rotary, &groups, &mut kv, None).expect("it is the CPU backend");
                    let want = reference::self_attention(qkv, &params, rotary, &groups, plain.append(), None);
                    assert_eq!(got.dims(), want.dims());
                    let tolerance = if precision == Precision::F32 { 1e-5 } else { 3e-2 };
                    let error = values((got - want).abs().max())[0];
                    assert!(error < tolerance, "normalized {normalized}, {precision}, scale {index}: off by {error}");
                }
            }
        }
    }

    /// Channels before positions, as in a feature map: the output has the same layout.
    #[test]
    fn attention_over_a_map() {
        let device = Device::flex();
        let map = tensor(waves(2 * 3 * 16 * 70, 0.7), [2, 3, 16, 70], &device);
        let part = |index: usize| map.clone().narrow(1, index, 1).swap_dims(2, 3);
        let want = reference::attention([part(0), part(1), part(2)], None, 0.25);
        let got = cpu::attention([&part(0), &part(1), &part(2)], None, 0.25).expect("it is the CPU backend");
        assert!(values((got - want).abs().max())[0] < 1e-5);
    }
}
