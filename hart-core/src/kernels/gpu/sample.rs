//! Sampling of codes from logits in one kernel: top-k, top-p, the draw, and the features of the code or of Gumbel-softmax smoothing.

use burn::prelude::{Int, Tensor};
use burn::tensor::DType;
use cubecl::prelude::*;

use super::noise::{neg_ln_uniform, philox, seed_words};
use super::{THREADS, contiguous, cube_count, cube_index, cube_max, cube_sum, empty_like, tensor};
use crate::rng::{CODE, GUMBEL};

/// The value of a logit that top-k or top-p removed.
const REMOVED: f32 = -3.0e38;

/// Returns the bits of an f32 as an integer key with the same order.
#[cube]
fn sort_key(value: f32) -> u32 {
    let bits = u32::reinterpret(value);
    let mut key = bits ^ 0x8000_0000u32;
    if bits >= 0x8000_0000u32 {
        key = bits ^ 0xFFFF_FFFFu32;
    }
    key
}

/// Steps that the kernel is compiled with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct SamplingSteps {
    top_k: bool,
    top_p: bool,
    smoothing: bool,
}

/// Samples the code of a token and computes its features. One cube computes one token; its logits are in shared memory, and a thread
/// handles every `threads`th of them.
#[cube(launch)]
#[allow(clippy::too_many_arguments)]
fn sample_kernel(
    logits: &[f32],
    codebook: &[f32],
    seeds: &[u32],
    indices: &mut [i32],
    features: &mut [f32],
    total_tokens: usize,
    tokens: usize,
    channels: usize,
    top_k: f32,
    one_minus_p: f32,
    factor: f32,
    temperature: f32,
    scale: u32,
    #[comptime] steps: SamplingSteps,
    #[comptime] vocabulary: usize,
    #[comptime] threads: usize,
) {
    let token = cube_index();
    if token >= total_tokens {
        terminate!();
    }
    let unit = UNIT_POS as usize;
    let (image, position) = (token / tokens, (token % tokens) as u32);
    let key = (seeds[2 * image], seeds[2 * image + 1]);
    let mut values = Shared::<[f32]>::new_slice(vocabulary);
    let mut sums = Shared::<[f32]>::new_slice(threads);
    let mut sampled = Shared::<[u32]>::new_slice(1usize);

    let mut non_finite = 0.0f32;
    let mut max_logit = REMOVED.runtime();
    for i in range_stepped(unit, vocabulary, threads) {
        let value = logits[token * vocabulary + i];
        values[i] = value;
        max_logit = max(max_logit, value);
        if u32::reinterpret(value) & 0x7F80_0000u32 == 0x7F80_0000u32 {
            non_finite += 1.0f32;
        }
    }
    let non_finite = cube_sum(non_finite, threads);
    let max_logit = cube_max(max_logit, threads);

    if comptime!(steps.top_k) {
        // Binary search, bit by bit, for the largest key that at least k logits reach: the k-th largest logit.
        let mut threshold = 0u32;
        for bit in 0..32u32 {
            let candidate = threshold | (0x8000_0000u32 >> bit);
            let mut count = 0.0f32;
            for i in range_stepped(unit, vocabulary, threads) {
                if sort_key(values[i]) >= candidate {
                    count += 1.0f32;
                }
            }
            if cube_sum(count, threads) >= top_k {
                threshold = candidate;
            }
        }
        for i in range_stepped(unit, vocabulary, threads) {
            if sort_key(values[i]) < threshold {
                values[i] = REMOVED;
            }
        }
        sync_cube();
    }

    if comptime!(steps.top_p) {
        let mut sum = 0.0f32;
        for i in range_stepped(unit, vocabulary, threads) {
            if values[i] > REMOVED {
                sum += (values[i] - max_logit).exp();
            }
        }
        let removable = cube_sum(sum, threads) * one_minus_p;
        // Binary search, bit by bit, for the largest key such that the probabilities below it add up to at most 1 - p.
        let mut threshold = 0u32;
        for bit in 0..32u32 {
            let candidate = threshold | (0x8000_0000u32 >> bit);
            let mut below = 0.0f32;
            for i in range_stepped(unit, vocabulary, threads) {
                if values[i] > REMOVED && sort_key(values[i]) < candidate {
                    below += (values[i] - max_logit).exp();
                }
            }
            if cube_sum(below, threads) <= removable {
                threshold = candidate;
            }
        }
        threshold = min(threshold, sort_key(max_logit));
        for i in range_stepped(unit, vocabulary, threads) {
            if sort_key(values[i]) < threshold {
                values[i] = REMOVED;
            }
        }
        sync_cube();
    }

    // Draw by inverse transform sampling. Every thread sums a segment of consecutive codes; a prefix sum over the threads follows.
    let segment = comptime!(vocabulary.div_ceil(threads));
    let first = unit * segment;
    let end = min(first + segment, vocabulary);
    let mut sum = 0.0f32;
    let mut last = 0.0f32;
    for i in first..end {
        if values[i] > REMOVED {
            sum += (values[i] - max_logit).exp();
            last = f32::cast_from(i as u32);
        }
    }
    sums[unit] = sum;
    let last = cube_max(last, threads);
    #[unroll]
    for step in 0..comptime!(threads.ilog2()) {
        let distance = comptime!(1usize << step);
        let mut before = 0.0f32;
        if unit >= distance {
            before = sums[unit - distance];
        }
        sync_cube();
        sums[unit] += before;
        sync_cube();
    }
    let total = sums[threads - 1];
    let drawn = philox((0u32, position, scale, CODE.runtime()), key, 0u32);
    let target = (f32::cast_from(drawn) + 0.5f32) * 2.328_306_4e-10f32 * total;
    if unit == 0 {
        sampled[0] = u32::cast_from(last);
    }
    sync_cube();
    // The first segment with a remaining code whose prefix sum exceeds the target. Rounding can make the prefix sums non-monotonic, so
    // the condition may hold for several.
    let mut priority = 0.0f32;
    if sum > 0.0f32 && target < sums[unit] {
        priority = f32::cast_from((threads - unit) as u32);
    }
    let highest = cube_max(priority, threads);
    if priority > 0.0f32 && priority == highest {
        let mut sum = 0.0f32;
        if unit > 0 {
            sum = sums[unit - 1];
        }
        let mut code = first as u32;
        let mut searching = true;
        for i in first..end {
            if searching && values[i] > REMOVED {
                sum += (values[i] - max_logit).exp();
                code = i as u32;
                searching = sum <= target;
            }
        }
        sampled[0] = code;
    }
    sync_cube();
    let code = sampled[0];
    if unit == 0 {
        indices[token] = i32::cast_from(code);
    }

    if comptime!(steps.smoothing) {
        // Add Gumbel noise to the logits, and average the codebook with their softmax.
        let mut max_perturbed = REMOVED.runtime();
        for i in range_stepped(unit, vocabulary, threads) {
            if values[i] > REMOVED {
                let noise = philox(((i / 4) as u32, position, scale, GUMBEL.runtime()), key, (i % 4) as u32);
                let perturbed = values[i] * factor - neg_ln_uniform(noise).ln();
                values[i] = perturbed;
                max_perturbed = max(max_perturbed, perturbed);
            }
        }
        let max_perturbed = cube_max(max_perturbed, threads);
        let mut sum = 0.0f32;
        for i in range_stepped(unit, vocabulary, threads) {
            let mut weight = 0.0f32;
            if values[i] > REMOVED {
                weight = ((values[i] - max_perturbed) / temperature).exp();
            }
            values[i] = weight;
            sum += weight;
        }
        let total = cube_sum(sum, threads);
        // Each thread averages one channel over every `groups`th code; then the groups are added.
        let groups = threads / channels;
        let (channel, group) = (unit % channels, unit / channels);
        let mut average = 0.0f32;
        if group < groups {
            for i in range_stepped(group, vocabulary, groups) {
                if values[i] > 0.0f32 {
                    average += values[i] * codebook[i * channels + channel];
                }
            }
        }
        sums[unit] = average;
        sync_cube();
        if unit < channels {
            let mut average = 0.0f32;
            for group in 0..groups {
                average += sums[group * channels + channel];
            }
            features[token * channels + channel] = average / total;
        }
    } else if unit < channels {
        features[token * channels + unit] = codebook[code as usize * channels + unit];
    }
    // Logits that are not finite result in NaN features, which are detected when the image is read.
    if non_finite > 0.0f32 && unit < channels {
        features[token * channels + unit] = f32::reinterpret(0x7FC0_0000u32);
    }
}

/// See [`crate::kernels::sample`]. Returns `None` if the device is not a GPU, or if the logits do not fit into shared memory.
///
/// Random words are those of the CPU's sampling. The codes are the same too, except where rounding decides between two.
pub(crate) fn sample(
    logits: &Tensor<3>,
    codebook: &Tensor<2>,
    top_k: usize,
    top_p: f64,
    smoothing: Option<[f64; 2]>,
    scale: usize,
    seeds: &[u64],
) -> Option<(Tensor<2, Int>, Tensor<3>)> {
    let [batch, tokens, vocabulary] = logits.dims();
    let [rows, channels] = codebook.dims();
    let (logits, codebook) = (contiguous(logits)?, contiguous(codebook)?);
    let shared_memory = logits.client.properties().hardware.max_shared_memory_size;
    // Logits, sums, and the memory of each `cube_reduce`, which not every compiler reuses.
    let needed = (vocabulary + 10 * THREADS as usize) * size_of::<f32>();
    let fits = needed <= shared_memory && channels <= THREADS as usize && rows == vocabulary && seeds.len() == batch;
    if !fits || logits.dtype != DType::F32 || codebook.dtype != DType::F32 || batch * tokens == 0 {
        return None;
    }
    let indices = empty_like(&logits, [batch, tokens], DType::I32);
    let features = empty_like(&logits, [batch, tokens, channels], DType::F32);
    let words = seed_words(seeds);
    let seeds = logits.client.create_from_slice(u32::as_bytes(&words));
    let [factor, temperature] = smoothing.unwrap_or([1.0, 1.0]);
    let steps = SamplingSteps { top_k: top_k > 0 && top_k < vocabulary, top_p: top_p > 0.0, smoothing: smoothing.is_some() };
    sample_kernel::launch(
        &logits.client.clone(),
        cube_count(batch * tokens),
        CubeDim::new_1d(THREADS),
        logits.into_buffer_arg(),
        codebook.into_buffer_arg(),
        // SAFETY: the buffer holds exactly these words.
        unsafe { BufferArg::from_raw_parts(seeds, words.len()) },
        indices.clone().into_buffer_arg(),
        features.clone().into_buffer_arg(),
        batch * tokens,
        tokens,
        channels,
        top_k as f32,
        (1.0 - top_p) as f32,
        factor as f32,
        temperature as f32,
        scale as u32,
        steps,
        vocabulary,
        THREADS as usize,
    );
    Some((Tensor::from_primitive::<burn::backend::Cube>(indices), tensor(features)))
}
