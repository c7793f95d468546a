//! Attention of the CPU backend against a plain softmax in f64, with all instructions that the processor has.

use super::packed_kv::PackedKv;
use super::parallel::{BatchRow, HeadConfig, attend, attend_with};
use super::quantized_kv::QuantizedKv;
use super::segment::Segment;
use super::token_view::{Prologue, Strides, TokenView};
use crate::kernels::cpu::simd::SimdLevel;
use crate::kernels::testing::waves;

/// Attention over several segments. The keys of the first one have a multiplicity.
struct Case {
    config: HeadConfig,
    queries: usize,
    /// Keys of each segment.
    keys: Vec<usize>,
    multiplicity: usize,
}

const SCALE: f64 = 0.7;

impl Case {
    fn view<'a>(&self, data: &'a [f32], heads: usize, first: usize, tokens: usize, scale: f64) -> TokenView<'a> {
        let head_dim = self.config.head_dim;
        let strides = Strides { start: first * heads * head_dim, token: heads * head_dim, head: head_dim, channel: 1 };
        TokenView { data, strides, tokens, prologue: Prologue { scale: scale as f32, ..Prologue::NONE } }
    }

    /// Returns queries, keys and values.
    fn operands(&self) -> [Vec<f32>; 3] {
        let HeadConfig { heads, kv_heads, head_dim, .. } = self.config;
        let keys: usize = self.keys.iter().sum();
        let lengths = [self.queries * heads * head_dim, keys * kv_heads * head_dim, keys * kv_heads * head_dim];
        [(lengths[0], 0.7), (lengths[1], 0.31), (lengths[2], 1.3)].map(|(length, speed)| waves(length, speed))
    }

    /// Returns the output with packed keys and values.
    fn attend(&self, level: SimdLevel) -> Vec<f32> {
        self.attend_to(level, false)
    }

    /// Returns the output; with `quantized`, all segments but the last are quantised.
    fn attend_to(&self, level: SimdLevel, quantized: bool) -> Vec<f32> {
        let HeadConfig { heads, kv_heads, head_dim, bf16 } = self.config;
        let [q, k, v] = self.operands();
        let mut first = 0;
        let packed: Vec<PackedKv> = self
            .keys
            .iter()
            .map(|&keys| {
                let (key, value) = (self.view(&k, kv_heads, first, keys, 1.0), self.view(&v, kv_heads, first, keys, 1.0));
                let packed = PackedKv::default().pack(&key, &value, kv_heads, head_dim, bf16);
                let packed = if first == 0 { packed.with_multiplicity(self.multiplicity) } else { packed };
                first += keys;
                packed
            })
            .collect();
        let queries = self.view(&q, heads, 0, self.queries, SCALE * std::f64::consts::LOG2_E);
        let past: Vec<QuantizedKv> =
            packed[..packed.len() - 1].iter().map(|packed| QuantizedKv::quantize(packed, head_dim)).collect();
        let last = packed.last().map(Segment::Packed);
        let segments = match quantized {
            true => past.iter().map(Segment::Quantized).chain(last).collect(),
            false => packed.iter().map(Segment::Packed).collect(),
        };
        let row = BatchRow { queries, segments, bias: None, output: queries.strides };
        let mut out = vec![0.0; q.len()];
        attend_with(level, &[row], self.config, &mut out);
        out
    }

    /// Returns the output of a plain softmax in f64.
    fn expected(&self) -> Vec<f64> {
        let HeadConfig { heads, kv_heads, head_dim, .. } = self.config;
        let [q, k, v] = self.operands();
        let keys: usize = self.keys.iter().sum();
        let row = |data: &[f32], at: usize| data[at * head_dim..][..head_dim].iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
        let mut out = Vec::new();
        for (query, head) in (0..self.queries).flat_map(|query| (0..heads).map(move |head| (query, head))) {
            let q = row(&q, query * heads + head);
            let kv_head = head * kv_heads / heads;
            let probabilities: Vec<f64> = (0..keys)
                .map(|key| {
                    let dot: f64 = row(&k, key * kv_heads + kv_head).iter().zip(&q).map(|(a, b)| a * b).sum();
                    (dot * SCALE).exp() * if key < self.keys[0] { self.multiplicity as f64 } else { 1.0 }
                })
                .collect();
            let sum: f64 = probabilities.iter().sum();
            for channel in 0..head_dim {
                let value = |key: usize| f64::from(v[(key * kv_heads + kv_head) * head_dim + channel]);
                out.push(probabilities.iter().enumerate().map(|(key, p)| p * value(key)).sum::<f64>() / sum);
            }
        }
        out
    }
}

fn cases(bf16: bool) -> Vec<Case> {
    let case = |(heads, kv_heads, head_dim, queries, multiplicity), keys: &[usize]| Case {
        config: HeadConfig { heads, kv_heads, head_dim, bf16 },
        queries,
        keys: keys.to_vec(),
        multiplicity,
    };
    vec![
        case((1, 1, 8, 1, 1), &[1]),
        case((4, 2, 16, 5, 300), &[1, 4, 9]),
        case((3, 3, 24, 49, 7), &[3, 129, 257, 8]),
        case((2, 1, 64, 97, 1), &[300, 1, 64]),
        case((1, 1, 96, 131, 5), &[33, 140]),
        case((1, 1, 640, 33, 2), &[70]),
        case((2, 2, 7, 20, 5), &[11, 130]),
    ]
}

/// The tolerance of bf16 allows for 8 bits of queries, keys, probabilities and values.
#[test]
fn every_level_gives_the_softmax() {
    for (bf16, tolerance) in [(false, 5e-6), (true, 2e-2)] {
        for case in cases(bf16) {
            let want = case.expected();
            for level in SimdLevel::all() {
                let got = case.attend(level);
                let error = got.iter().zip(&want).map(|(got, want)| (f64::from(*got) - want).abs()).fold(0.0, f64::max);
                assert!(error < tolerance, "{level:?}, {:?}, keys {:?}: off by {error}", case.config, case.keys);
            }
        }
    }
}

/// The tolerance is about a hundredth of the largest key and value, in addition to that of bf16.
#[test]
fn quantized_keys_and_values_are_close() {
    for case in cases(true).into_iter().chain([Case { queries: 700, ..cases(true).remove(3) }]) {
        let want = case.attend(SimdLevel::best());
        for level in SimdLevel::all() {
            let got = case.attend_to(level, true);
            let error = got.iter().zip(&want).map(|(got, want)| (got - want).abs()).fold(0.0, f32::max);
            assert!(error < 2e-2, "{level:?}, {:?}, keys {:?}: off by {error}", case.config, case.keys);
            assert!(case.keys.len() == 1 || got != want, "nothing was quantised");
        }
    }
}

#[test]
fn same_bits_with_any_number_of_threads() {
    for case in cases(false).iter().chain(&cases(true)) {
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| case.attend(SimdLevel::best())).into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        assert!(with(1) == with(2) && with(1) == with(5));
    }
}

/// Scores may be far below zero, as long as all of them are, and NaN stays in its own row.
#[test]
fn scores_of_any_size() {
    let config = HeadConfig { heads: 1, kv_heads: 1, head_dim: 2, bf16: false };
    let case = Case { config, queries: 2, keys: vec![3], multiplicity: 1 };
    let output = |q: [f32; 4], k: [f32; 6]| {
        let v = [1.0, 2.0, 3.0, 4.0, 5.0, 9.0];
        let packed = PackedKv::default().pack(&case.view(&k, 1, 0, 3, 1.0), &case.view(&v, 1, 0, 3, 1.0), 1, 2, false);
        let queries = case.view(&q, 1, 0, 2, 1.0);
        let mut out = vec![0.0; 4];
        let row = BatchRow { queries, segments: vec![Segment::Packed(&packed)], bias: None, output: queries.strides };
        attend(&[row], config, &mut out);
        out
    };
    let negative = output([-1e4, 0.0, 0.0, 0.0], [1.0, 0.0, 1.0, 0.0, 1.0, 0.0]);
    assert_eq!(negative, [3.0, 5.0, 3.0, 5.0]);
    let nan = output([f32::NAN, 0.0, 0.0, 1.0], [0.0; 6]);
    assert!(nan[..2].iter().all(|x| x.is_nan()) && nan[2..] == [3.0, 5.0]);
}

/// Key blocks with small, large and very negative scores in any order. NaN stays in its own row.
#[test]
fn key_blocks_with_scores_of_different_sizes() {
    let (head_dim, keys) = (32, 128);
    let config = HeadConfig { heads: 1, kv_heads: 1, head_dim, bf16: true };
    let case = Case { config, queries: 35, keys: vec![3 * keys], multiplicity: 1 };
    let (mut q, nan_query) = (vec![1.0; case.queries * head_dim], 3);
    q[nan_query * head_dim] = f32::NAN;
    for scores in [[1.0, 100.0, -300.0], [100.0, 1.0, -300.0], [-300.0, 1.0, 100.0], [-300.0, -200.0, -300.0], [1.0, -300.0, 0.0]] {
        let blocks = |values: [f32; 3]| values.into_iter().flat_map(|x| vec![x; keys * head_dim]).collect::<Vec<_>>();
        let (k, v) = (blocks(scores.map(|score| score / head_dim as f32)), blocks([1.0, 2.0, 4.0]));
        let (key, value) = (case.view(&k, 1, 0, 3 * keys, 1.0), case.view(&v, 1, 0, 3 * keys, 1.0));
        let packed = PackedKv::default().pack(&key, &value, 1, head_dim, true);
        let queries = case.view(&q, 1, 0, case.queries, 1.0);
        let probabilities = scores.map(|score| 2f32.powf(score - scores.into_iter().fold(f32::MIN, f32::max)));
        let want = (probabilities[0] + 2.0 * probabilities[1] + 4.0 * probabilities[2]) / probabilities.iter().sum::<f32>();
        for level in SimdLevel::all() {
            let mut out = vec![0.0; q.len()];
            let row = BatchRow { queries, segments: vec![Segment::Packed(&packed)], bias: None, output: queries.strides };
            attend_with(level, &[row], config, &mut out);
            for (query, got) in out.chunks(head_dim).enumerate() {
                let is_correct = |x: &f32| if query == nan_query { x.is_nan() } else { (x - want).abs() < 2e-2 };
                assert!(got.iter().all(is_correct), "{level:?}, {scores:?}, query {query}: got {}, expected {want}", got[0]);
            }
        }
    }
}
