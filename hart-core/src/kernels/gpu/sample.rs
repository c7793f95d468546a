//! From logits to codes and their features in one kernel: top-k, top-p, the draw, Gumbel noise and the mix of codebook rows.

use burn::prelude::{Int, Tensor};
use burn::tensor::DType;
use cubecl::prelude::*;

use super::noise::{minus_log, word, words_of};
use super::{THREADS, cube_max, cube_number, cube_sum, cubes, empty_like, tensor, whole};
use crate::rng::{CODE, GUMBEL};

/// What stands for a logit that was removed.
const REMOVED: f32 = -3.0e38;

/// A number's bits, so that they are ordered as numbers are.
#[cube]
fn ordered(value: f32) -> u32 {
    let bits = u32::reinterpret(value);
    let mut key = bits ^ 0x8000_0000u32;
    if bits >= 0x8000_0000u32 {
        key = bits ^ 0xFFFF_FFFFu32;
    }
    key
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Does {
    top_k: bool,
    top_p: bool,
    smoothing: bool,
}

/// One cube a token.
#[cube(launch)]
#[allow(clippy::too_many_arguments)]
fn sample_kernel(
    logits: &[f32],
    codebook: &[f32],
    seeds: &[u32],
    indices: &mut [i32],
    features: &mut [f32],
    tokens: usize,
    length: usize,
    channels: usize,
    top_k: f32,
    rest_of_p: f32,
    factor: f32,
    temperature: f32,
    scale: u32,
    #[comptime] does: Does,
    #[comptime] vocabulary: usize,
    #[comptime] threads: usize,
) {
    let token = cube_number();
    if token >= tokens {
        terminate!();
    }
    let unit = UNIT_POS as usize;
    let (image, position) = (token / length, (token % length) as u32);
    let key = (seeds[2 * image], seeds[2 * image + 1]);
    let mut values = Shared::<[f32]>::new_slice(vocabulary);
    let mut sums = Shared::<[f32]>::new_slice(threads);
    let mut found = Shared::<[u32]>::new_slice(1usize);

    let mut broken = 0.0f32;
    let mut greatest = REMOVED.runtime();
    for i in range_stepped(unit, vocabulary, threads) {
        let value = logits[token * vocabulary + i];
        values[i] = value;
        greatest = max(greatest, value);
        if u32::reinterpret(value) & 0x7F80_0000u32 == 0x7F80_0000u32 {
            broken += 1.0f32;
        }
    }
    let broken = cube_sum(broken, threads);
    let greatest = cube_max(greatest, threads);

    if comptime!(does.top_k) {
        // The greatest key that at least k logits reach, bit by bit.
        let mut threshold = 0u32;
        for bit in 0..32u32 {
            let candidate = threshold | (0x8000_0000u32 >> bit);
            let mut reach = 0.0f32;
            for i in range_stepped(unit, vocabulary, threads) {
                if ordered(values[i]) >= candidate {
                    reach += 1.0f32;
                }
            }
            if cube_sum(reach, threads) >= top_k {
                threshold = candidate;
            }
        }
        for i in range_stepped(unit, vocabulary, threads) {
            if ordered(values[i]) < threshold {
                values[i] = REMOVED;
            }
        }
        sync_cube();
    }

    if comptime!(does.top_p) {
        let mut sum = 0.0f32;
        for i in range_stepped(unit, vocabulary, threads) {
            if values[i] > REMOVED {
                sum += (values[i] - greatest).exp();
            }
        }
        let removable = cube_sum(sum, threads) * rest_of_p;
        // The greatest key below which the probabilities may all be removed.
        let mut threshold = 0u32;
        for bit in 0..32u32 {
            let candidate = threshold | (0x8000_0000u32 >> bit);
            let mut below = 0.0f32;
            for i in range_stepped(unit, vocabulary, threads) {
                if values[i] > REMOVED && ordered(values[i]) < candidate {
                    below += (values[i] - greatest).exp();
                }
            }
            if cube_sum(below, threads) <= removable {
                threshold = candidate;
            }
        }
        threshold = min(threshold, ordered(greatest));
        for i in range_stepped(unit, vocabulary, threads) {
            if ordered(values[i]) < threshold {
                values[i] = REMOVED;
            }
        }
        sync_cube();
    }

    // The draw: every thread has a stretch of codes, and knows what lies before it.
    let stretch = comptime!(vocabulary.div_ceil(threads));
    let first = unit * stretch;
    let end = min(first + stretch, vocabulary);
    let mut sum = 0.0f32;
    let mut last = 0.0f32;
    for i in first..end {
        if values[i] > REMOVED {
            sum += (values[i] - greatest).exp();
            last = f32::cast_from(i as u32);
        }
    }
    sums[unit] = sum;
    let last = cube_max(last, threads);
    #[unroll]
    for step in 0..comptime!(threads.ilog2()) {
        let reach = comptime!(1usize << step);
        let mut before = 0.0f32;
        if unit >= reach {
            before = sums[unit - reach];
        }
        sync_cube();
        sums[unit] += before;
        sync_cube();
    }
    let all = sums[threads - 1];
    let drawn = word((0u32, position, scale, CODE.runtime()), key, 0u32);
    let target = (f32::cast_from(drawn) + 0.5f32) * 2.328_306_4e-10f32 * all;
    if unit == 0 {
        found[0] = u32::cast_from(last);
    }
    sync_cube();
    // The first stretch that holds something kept and reaches beyond the target. There are others: sums that were added in another order
    // don't always grow.
    let mut reaches = 0.0f32;
    if sum > 0.0f32 && target < sums[unit] {
        reaches = f32::cast_from((threads - unit) as u32);
    }
    let first_reaches = cube_max(reaches, threads);
    if reaches > 0.0f32 && reaches == first_reaches {
        let mut sum = 0.0f32;
        if unit > 0 {
            sum = sums[unit - 1];
        }
        let mut code = first as u32;
        let mut open = true;
        for i in first..end {
            if open && values[i] > REMOVED {
                sum += (values[i] - greatest).exp();
                code = i as u32;
                open = sum <= target;
            }
        }
        found[0] = code;
    }
    sync_cube();
    let code = found[0];
    if unit == 0 {
        indices[token] = i32::cast_from(code);
    }

    if comptime!(does.smoothing) {
        let mut sharpest = REMOVED.runtime();
        for i in range_stepped(unit, vocabulary, threads) {
            if values[i] > REMOVED {
                let noise = word(((i / 4) as u32, position, scale, GUMBEL.runtime()), key, (i % 4) as u32);
                let sharp = values[i] * factor - minus_log(noise).ln();
                values[i] = sharp;
                sharpest = max(sharpest, sharp);
            }
        }
        let sharpest = cube_max(sharpest, threads);
        let mut sum = 0.0f32;
        for i in range_stepped(unit, vocabulary, threads) {
            let mut weight = 0.0f32;
            if values[i] > REMOVED {
                weight = ((values[i] - sharpest) / temperature).exp();
            }
            values[i] = weight;
            sum += weight;
        }
        let all = cube_sum(sum, threads);
        // A channel a thread, and as many shares of the codes as there are threads for.
        let shares = threads / channels;
        let (channel, share) = (unit % channels, unit / channels);
        let mut mixed = 0.0f32;
        if share < shares {
            for i in range_stepped(share, vocabulary, shares) {
                if values[i] > 0.0f32 {
                    mixed += values[i] * codebook[i * channels + channel];
                }
            }
        }
        sums[unit] = mixed;
        sync_cube();
        if unit < channels {
            let mut mixed = 0.0f32;
            for share in 0..shares {
                mixed += sums[share * channels + channel];
            }
            features[token * channels + channel] = mixed / all;
        }
    } else if unit < channels {
        features[token * channels + unit] = codebook[code as usize * channels + unit];
    }
    // What has no finite logits has no finite features, which whoever reads the picture finds.
    if broken > 0.0f32 && unit < channels {
        features[token * channels + unit] = f32::reinterpret(0x7FC0_0000u32);
    }
}

/// Draws codes `[B, L]` and their features `[B, L, Z]` from guided logits `[B, L, V]`; None where the device isn't a GPU, or too
/// small a one. The words are the host's, and so are the codes, except where rounding decides. `smoothing` is the factor of the logits
/// and the temperature of Gumbel-softmax smoothing.
pub(crate) fn sample(
    logits: &Tensor<3>,
    codebook: &Tensor<2>,
    top_k: usize,
    top_p: f64,
    smoothing: Option<[f64; 2]>,
    scale: usize,
    seeds: &[u64],
) -> Option<(Tensor<2, Int>, Tensor<3>)> {
    let [batch, length, vocabulary] = logits.dims();
    let [rows, channels] = codebook.dims();
    let (logits, codebook) = (whole(logits)?, whole(codebook)?);
    let room = logits.client.properties().hardware.max_shared_memory_size;
    // The logits, the sums, and what every fold shares, which not all compilers lay over each other.
    let needed = (vocabulary + 10 * THREADS as usize) * size_of::<f32>();
    let fits = needed <= room && channels <= THREADS as usize && rows == vocabulary && seeds.len() == batch;
    if !fits || logits.dtype != DType::F32 || codebook.dtype != DType::F32 || batch * length == 0 {
        return None;
    }
    let indices = empty_like(&logits, [batch, length], DType::I32);
    let features = empty_like(&logits, [batch, length, channels], DType::F32);
    let words = words_of(seeds);
    let seeds = logits.client.create_from_slice(u32::as_bytes(&words));
    let [factor, temperature] = smoothing.unwrap_or([1.0, 1.0]);
    let does = Does { top_k: top_k > 0 && top_k < vocabulary, top_p: top_p > 0.0, smoothing: smoothing.is_some() };
    sample_kernel::launch(
        &logits.client.clone(),
        cubes(batch * length),
        CubeDim::new_1d(THREADS),
        logits.into_buffer_arg(),
        codebook.into_buffer_arg(),
        // SAFETY: the buffer was just made of these words.
        unsafe { BufferArg::from_raw_parts(seeds, words.len()) },
        indices.clone().into_buffer_arg(),
        features.clone().into_buffer_arg(),
        batch * length,
        length,
        channels,
        top_k as f32,
        (1.0 - top_p) as f32,
        factor as f32,
        temperature as f32,
        scale as u32,
        does,
        vocabulary,
        THREADS as usize,
    );
    Some((Tensor::from_primitive::<burn::backend::Cube>(indices), tensor(features)))
}
