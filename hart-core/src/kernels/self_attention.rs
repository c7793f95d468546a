//! Scaled dot-product attention, and a block's self-attention between its two linear layers.

use burn::prelude::*;

use super::kv::{KvAppend, PlainKv};
use super::params::{AttentionParams, MIN_NORM, Rotary, RowGroup};
use super::tensors::{tensor, to_f32};
use super::{cpu, gpu, reference};

/// Applies RoPE: `x * cos + (-x2, x1) * sin`, where x1 and x2 are the halves of each head.
///
/// # Shapes
///
/// - x, output: `[batch, heads, tokens, head_dim]`
pub(crate) fn rotate(x: Tensor<4>, rotary: Rotary<'_>) -> Tensor<4> {
    reference::rotate(x, rotary)
}

/// Computes `softmax(scale * q k^T + bias) v`. The softmax is f32 whatever the type of the operands.
///
/// # Shapes
///
/// - query: `[batch, heads, tokens, head_dim]`
/// - key, value: `[batch, kv_heads, keys, head_dim]`; `heads` is a multiple of `kv_heads`
/// - bias: broadcast to `[batch, heads, tokens, keys]`
/// - output: `[batch, heads, tokens, head_dim]`
pub(crate) fn attention(query: Tensor<4>, key: Tensor<4>, value: Tensor<4>, bias: Option<&Tensor<4>>, scale: f64) -> Tensor<4> {
    cpu::attention([&query, &key, &value], bias, scale)
        .or_else(|| gpu::attention([&query, &key, &value], bias, scale))
        .unwrap_or_else(|| reference::attention([query, key, value], bias, scale))
}

/// Computes a block's self-attention from the output of the QKV projection to the input of the output projection: biases, L2
/// norms, RoPE, KV cache and attention.
///
/// # Shapes
///
/// - qkv: `[rows, tokens, 3 * channels]`, or `[1, tokens of all rows, 3 * channels]` if rows differ in length
/// - rotary: tables of `[rows or 1, tokens]`, or of `[1, tokens of all rows]`
/// - bias: broadcast to `[rows, heads, tokens, keys]`
/// - output: `[rows, tokens, channels]`, or `[1, tokens of all rows, channels]`
pub(crate) fn self_attention(
    qkv: Tensor<3>,
    params: &AttentionParams,
    rotary: Rotary<'_>,
    groups: &[RowGroup],
    mut kv: KvAppend<'_>,
    bias: Option<&Tensor<4>>,
) -> Tensor<3> {
    let from_cpu = kv.cpu().and_then(|kv| cpu::self_attention(&qkv, params, rotary, groups, kv, bias));
    from_cpu
        .or_else(|| gpu::self_attention(&qkv, params, rotary, groups, kv.gpu()?, bias))
        .unwrap_or_else(|| compose(qkv, params, rotary, groups, kv, bias))
}

/// Composes self-attention from the operations of this module.
fn compose(
    qkv: Tensor<3>,
    params: &AttentionParams,
    rotary: Rotary<'_>,
    groups: &[RowGroup],
    kv: KvAppend<'_>,
    bias: Option<&Tensor<4>>,
) -> Tensor<3> {
    let qkv = to_f32(qkv);
    let [rows, length, width] = qkv.dims();
    let (width, head_dim) = (width / 3, width / 3 / params.heads);
    // Add the biases and split the heads.
    let biases = vec![params.query_bias.clone(), params.query_bias.zeros_like(), params.value_bias.clone()];
    let qkv = qkv + Tensor::cat(biases, 0).unsqueeze();
    let part = |index: usize| {
        let part = qkv.clone().narrow(2, index * width, width);
        part.reshape([rows, length, params.heads, head_dim]).swap_dims(1, 2) // [rows, heads, tokens, head_dim]
    };
    let (mut query, mut key, value) = (part(0), part(1), part(2));
    if let Some(norms) = &params.norms {
        query = l2_normalize(query) * norms.clone();
        key = l2_normalize(key);
    }
    let (query, key) = (rotate(query, rotary), rotate(key, rotary));
    // Append to the KV cache.
    let new = split_groups(groups, &key).into_iter().zip(split_groups(groups, &value)).zip(groups);
    let new = new.map(|((key, value), group)| {
        let log_multiplicities = vec![(group.multiplicity as f32).ln(); group.tokens];
        PlainKv { key, value, log_multiplicities }
    });
    let all = kv.append(new.collect());
    // Attend and merge the heads.
    let outputs = split_groups(groups, &query).into_iter().zip(all).map(|(query, kv)| {
        let [rows, heads, tokens, head_dim] = query.dims();
        let bias = bias.cloned().or_else(|| multiplicity_bias(&kv.log_multiplicities, &query.device()));
        let output = attention(query, kv.key, kv.value, bias.as_ref(), params.scale);
        output.swap_dims(1, 2).reshape([1, rows * tokens, heads * head_dim]) // [1, tokens of all rows, channels]
    });
    Tensor::cat(outputs.collect(), 1).reshape([rows, length, width]) // [rows, tokens, channels]
}

/// Splits `[rows, heads, tokens, head_dim]` into groups of rows. If rows differ in length, x is
/// `[1, heads, tokens of all rows, head_dim]`.
fn split_groups(groups: &[RowGroup], x: &Tensor<4>) -> Vec<Tensor<4>> {
    let [rows, heads, _, head_dim] = x.dims();
    let packed = rows != groups.iter().map(|group| group.rows).sum::<usize>();
    let mut first = 0;
    let split = |group: &RowGroup| {
        let size = if packed { group.total() } else { group.rows };
        let part = x.clone().narrow(if packed { 2 } else { 0 }, first, size);
        first += size;
        if !packed {
            return part;
        }
        let part = part.reshape([heads, group.rows, group.tokens, head_dim]);
        part.swap_dims(0, 1) // [rows, heads, tokens, head_dim]
    };
    groups.iter().map(split).collect()
}

/// Returns the bias `[1, 1, 1, keys]` that applies the multiplicities; `None` if all of them are 1.
fn multiplicity_bias(log_multiplicities: &[f32], device: &Device) -> Option<Tensor<4>> {
    let needed = log_multiplicities.iter().any(|&log_multiplicity| log_multiplicity != 0.0);
    needed.then(|| tensor(log_multiplicities.to_vec(), [1, 1, 1, log_multiplicities.len()], device))
}

fn l2_normalize(x: Tensor<4>) -> Tensor<4> {
    let norm = x.clone().powf_scalar(2.0).sum_dim(3).sqrt().clamp_min(MIN_NORM);
    x / norm
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Precision;
    use crate::kernels::testing::{assert_close, wave, waves};
    use crate::kernels::{KvScratch, KvStore, tensor, values};
    use crate::nn::RotaryEmbedding;

    /// Above this product of queries and keys, burn's CPU backend uses a kernel that does not store all scores.
    const ALL_SCORES: usize = 256 * 1024;

    /// Compares both kernels with a plain softmax in f64, with grouped queries, with and without a bias. A row that is masked
    /// everywhere averages all values.
    #[test]
    fn attention_is_a_softmax_whatever_the_length() {
        let device = Device::flex();
        let (heads, kv_heads, dim) = (4, 2, 8);
        for (queries, keys) in [(3, 5), (100, 3000)] {
            assert!((queries, keys) == (3, 5) || queries * keys > ALL_SCORES);
            let (q, k, v) =
                (waves(heads * queries * dim, 0.7), waves(kv_heads * keys * dim, 0.31), waves(kv_heads * keys * dim, 1.3));
            let mut bias: Vec<f32> = waves(queries * keys, 0.11).iter().map(|b| if *b > 0.5 { f32::MIN } else { *b }).collect();
            bias[..keys].fill(f32::MIN);
            for bias in [None, Some(bias)] {
                let scale = 0.4;
                let got = values(attention(
                    tensor(q.clone(), [1, heads, queries, dim], &device),
                    tensor(k.clone(), [1, kv_heads, keys, dim], &device),
                    tensor(v.clone(), [1, kv_heads, keys, dim], &device),
                    bias.clone().map(|bias| tensor(bias, [1, 1, queries, keys], &device)).as_ref(),
                    scale,
                ));
                for (row, got) in got.chunks(dim).enumerate() {
                    let (head, query) = (row / queries, row % queries);
                    let kv_head = head / (heads / kv_heads);
                    let key = |index: usize| &k[(kv_head * keys + index) * dim..][..dim];
                    let score = |index: usize| {
                        let dot: f64 = q[row * dim..][..dim].iter().zip(key(index)).map(|(a, b)| f64::from(a * b)).sum();
                        let bias = bias.as_ref().map_or(0.0, |bias| bias[query * keys + index]);
                        // The most negative float absorbs any score added to it.
                        if bias == f32::MIN { f64::from(f32::MIN) } else { dot * scale + f64::from(bias) }
                    };
                    let scores: Vec<f64> = (0..keys).map(score).collect();
                    let row_max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let probabilities: Vec<f64> = scores.iter().map(|s| (s - row_max).exp()).collect();
                    let row_sum: f64 = probabilities.iter().sum();
                    for (channel, got) in got.iter().enumerate() {
                        let value = |index: usize| f64::from(v[(kv_head * keys + index) * dim + channel]);
                        let want = probabilities.iter().enumerate().map(|(i, p)| p * value(i)).sum::<f64>() / row_sum;
                        assert!((f64::from(*got) - want).abs() < 1e-5, "{queries} x {keys}, row {row}: got {got}, expected {want}");
                    }
                }
            }
        }
    }

    /// The bias is a causal mask with padding in front, which leaves the first queries without a visible key, and has ordinary
    /// values elsewhere. All rows share it, or each row has a separate one.
    #[test]
    fn attention_with_a_bias_equals_the_reference() {
        let device = Device::flex();
        let (heads, kv_heads, dim) = (4, 2, 8);
        for (tokens, keys, rows) in [(1, 1, 1), (7, 7, 2), (70, 70, 1), (150, 150, 2), (50, 300, 2)] {
            let [query, key, value] = [(heads, tokens, 0.7), (kv_heads, keys, 0.9), (kv_heads, keys, 1.3)]
                .map(|(heads, tokens, speed)| wave::<4>([2, heads, tokens, dim], speed, &device) * 3.0);
            let mask = |i: usize| {
                let (query, key) = (i / keys % tokens, i % keys);
                if key > query || key < 5 { f32::MIN } else { (i as f32 * 0.37).sin() }
            };
            let bias = tensor((0..rows * tokens * keys).map(mask).collect(), [rows, 1, tokens, keys], &device);
            let fast = cpu::attention([&query, &key, &value], Some(&bias), 0.4).expect("the heads share the bias");
            assert_close(fast, reference::attention([query, key, value], Some(&bias.repeat_dim(0, 2 / rows)), 0.4), 2e-5);
        }
    }

    /// Runs three scales with the cache. In the first one, rows differ in length: a token of the unconditional rows has the
    /// multiplicity seven.
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
                    let kv = kv.cpu().expect("the CPU computed the past");
                    let got = cpu::self_attention(&qkv, &params, rotary, &groups, kv, None).expect("it is the CPU backend");
                    let want = compose(qkv, &params, rotary, &groups, plain.append(), None);
                    assert_eq!(got.dims(), want.dims());
                    let tolerance = if precision == Precision::F32 { 1e-5 } else { 3e-2 };
                    let error = values((got - want).abs().max())[0];
                    assert!(error < tolerance, "normalized {normalized}, {precision}, scale {index}: off by {error}");
                }
            }
        }
    }

    /// In a feature map, channels come before positions. The output has the same layout.
    #[test]
    fn attention_over_a_feature_map() {
        let device = Device::flex();
        let map = tensor(waves(2 * 3 * 16 * 70, 0.7), [2, 3, 16, 70], &device);
        let part = |index: usize| map.clone().narrow(1, index, 1).swap_dims(2, 3);
        let want = reference::attention([part(0), part(1), part(2)], None, 0.25);
        let got = cpu::attention([&part(0), &part(1), &part(2)], None, 0.25).expect("it is the CPU backend");
        assert!(values((got - want).abs().max())[0] < 1e-5);
    }
}
