use burn::prelude::*;
use burn::tensor::FloatDType;

use super::{F32_TOLERANCE, assert_close};
use crate::device::Precision;
use crate::kernels::testing::{gpu as device, on, wave, waves};
use crate::kernels::{AttentionParams, KvScratch, KvStore, RowGroup, attention, self_attention, tensor};
use crate::nn::RotaryEmbedding;

/// Three scales with the KV cache, in f32 and in half precision. The longest last scale does not fill its last blocks.
#[test]
fn self_attention_equals_the_cpus() {
    let (gpu, cpu) = (device(), Device::flex());
    let heads = 3;
    for (head_dim, normalized, longest) in [(16, false, 49), (16, true, 49), (64, true, 149), (512, true, 5)] {
        let width = heads * head_dim;
        let params = |device: &Device| AttentionParams {
            heads,
            query_bias: tensor(waves(width, 0.3), [width], device),
            value_bias: tensor(waves(width, 0.5), [width], device),
            norms: normalized.then(|| tensor(vec![3.0, 4.0, 5.0], [1, heads, 1, 1], device)),
            scale: if normalized { 1.0 } else { 0.3 },
        };
        for (precision, tolerance) in [(Precision::F32, F32_TOLERANCE), (Precision::F16, 2e-2)] {
            let (mut gpu_kv, mut cpu_kv) = (KvStore::new(precision, 11), KvStore::new(Precision::F32, 11));
            let mut scratch = KvScratch::default();
            for (index, length) in [7, 4, longest].into_iter().enumerate() {
                let qkv = wave([4, length, 3 * width], 0.37 + index as f32, &cpu);
                let positions: Vec<Vec<f32>> = (0..4).map(|row| (0..length).map(|p| (p * 2 + row) as f32).collect()).collect();
                let groups = [RowGroup { rows: 2, tokens: length, multiplicity: 1 }; 2];
                let mut kv = if index == 2 { gpu_kv.append_last(&mut scratch) } else { gpu_kv.append() };
                let rotation = |device: &Device| RotaryEmbedding::sequence(&positions, head_dim, 100.0, device);
                let gpu_qkv = on(&qkv, &gpu);
                let gpu_qkv = if precision == Precision::F16 { gpu_qkv.cast(FloatDType::F16) } else { gpu_qkv };
                let part = kv.gpu().expect("the GPU computed the past");
                let got = super::super::self_attention(&gpu_qkv, &params(&gpu), rotation(&gpu).tables(), &groups, part, None);
                let got = got.expect("the kernel applies");
                let want = self_attention(qkv, &params(&cpu), rotation(&cpu).tables(), &groups, cpu_kv.append(), None);
                assert_close(
                    &format!("head_dim {head_dim}, normalized {normalized}, {precision}, scale {index}"),
                    got,
                    want,
                    tolerance,
                );
            }
        }
    }
}

/// Grouped-query attention in several chunks of heads; without a bias, with one for all heads and with one for each row. The scores are
/// larger than what ten bits of mantissa resolve.
#[test]
fn attention_equals_the_cpus() {
    let (gpu, cpu) = (device(), Device::flex());
    let (rows, heads, groups, length, kv_len, head_dim) = (2, 4, 2, 70, 90, 24);
    let operand = |heads, length, speed| wave::<4>([rows, heads, length, head_dim], speed, &cpu) * 3.0;
    let qkv = [operand(heads, length, 0.7), operand(groups, kv_len, 0.31), operand(groups, kv_len, 1.3)];
    let biases = [None, Some([1, 1, 1, kv_len]), Some([1, 1, length, kv_len]), Some([rows, 1, length, kv_len])];
    for shape in biases {
        let bias = shape.map(|shape| wave::<4>(shape, 0.11, &cpu) * 2.0);
        let [query, key, value] = qkv.clone();
        let want = attention(query, key, value, bias.as_ref(), 0.3);
        let bias = bias.map(|bias| on(&bias, &gpu));
        for (dtype, tolerance) in [(FloatDType::F32, 1e-5), (FloatDType::F16, 1e-2)] {
            let qkv = qkv.each_ref().map(|operand| on(operand, &gpu).cast(dtype));
            let got = super::super::attention(qkv.each_ref(), bias.as_ref(), 0.3).unwrap();
            assert_close(&format!("{shape:?}, {dtype:?}"), got, want.clone(), tolerance);
        }
    }
}
