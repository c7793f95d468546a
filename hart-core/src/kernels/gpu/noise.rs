//! The random numbers of [`crate::rng`], generated on the GPU.

use burn::prelude::{Device, Tensor};
use burn::tensor::DType;
use burn_cubecl::cubecl::Device as CubeDevice;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::{elementwise_dims, tensor, thread_index};
use crate::rng::Stream;

/// Returns word `which` of the four that Philox 4x32-10 generates, bit for bit as [`crate::rng`] does.
#[cube]
pub(super) fn philox(counter: (u32, u32, u32, u32), key: (u32, u32), which: u32) -> u32 {
    let (mut c0, mut c1, mut c2, mut c3) = counter;
    let (mut k0, mut k1) = key;
    #[unroll]
    for _ in 0..10 {
        let (high_a, low_a) = (u32::mul_hi(0xD251_1F53u32, c0), 0xD251_1F53u32 * c0);
        let (high_b, low_b) = (u32::mul_hi(0xCD9E_8D57u32, c2), 0xCD9E_8D57u32 * c2);
        let (next_0, next_2) = (high_b ^ c1 ^ k0, high_a ^ c3 ^ k1);
        c0 = next_0;
        c1 = low_b;
        c2 = next_2;
        c3 = low_a;
        k0 += 0x9E37_79B9u32;
        k1 += 0xBB67_AE85u32;
    }
    let mut word = c3;
    if which == 0 {
        word = c0;
    } else if which == 1 {
        word = c1;
    } else if which == 2 {
        word = c2;
    }
    word
}

/// Returns `-ln u` of the uniform number `u = (word + 1/2) / 2^32`. For `u` near 1 it is computed from `1 - u`, so that no digits
/// cancel.
#[cube]
pub(super) fn neg_ln_uniform(word: u32) -> f32 {
    if word < 0x8000_0000u32 {
        -(((f32::cast_from(word) + 0.5f32) * 2.328_306_4e-10f32).ln())
    } else {
        let rest = (f32::cast_from(0xFFFF_FFFFu32 - word) + 0.5f32) * 2.328_306_4e-10f32;
        let mut value = -((1.0f32 - rest).ln());
        // Near 1, `ln` loses digits on every device: the Taylor series of -ln(1 - rest) replaces it.
        if rest < 0.0625f32 {
            value = 1.0f32 / 6.0f32;
            #[unroll]
            for term in 1..6u32 {
                value = value * rest + comptime!(1.0 / (6 - term) as f32);
            }
            value *= rest;
        }
        value
    }
}

/// Draws standard normal values by the Box-Muller transform. One thread draws one value.
#[cube(launch)]
#[allow(clippy::too_many_arguments)]
fn normals_kernel(seeds: &[u32], out: &mut [f32], count: usize, tokens: usize, channels: usize, scale: u32, purpose: u32) {
    let i = thread_index();
    if i < count {
        let (token, channel) = (i / channels, (i % channels) as u32);
        let (image, position) = (token / tokens, (token % tokens) as u32);
        let counter = (channel / 4, position, scale, purpose);
        let key = (seeds[2 * image], seeds[2 * image + 1]);
        let pair = channel % 4 / 2 * 2;
        let radius = (2.0f32 * neg_ln_uniform(philox(counter, key, pair))).sqrt();
        // Reduce the angle to the nearest quarter turn and at most an eighth of a turn on either side: `cos` and `sin` are accurate only
        // for small angles.
        let turn = philox(counter, key, pair + 1);
        let quarter = (turn + 0x2000_0000u32) >> 30;
        let rest = i32::reinterpret(turn - (quarter << 30));
        let angle = (f32::cast_from(rest) + 0.5f32) * 1.462_918_1e-9f32;
        let odd = (channel + quarter) % 2 == 1;
        let mut value = radius * angle.cos();
        if odd {
            value = radius * angle.sin();
        }
        // One, two and three quarter turns map (cos, sin) to (-sin, cos), (-cos, -sin) and (sin, -cos).
        let sine = channel % 2;
        if (sine == 0 && (quarter == 1 || quarter == 2)) || (sine == 1 && (quarter == 2 || quarter == 3)) {
            value = -value;
        }
        out[i] = value;
    }
}

/// Returns standard normal noise of one stream, `[batch, tokens, channels]`, or `None` if the device is not a GPU.
pub(crate) fn normals(stream: &Stream<'_>, [batch, tokens, channels]: [usize; 3], device: &Device) -> Option<Tensor<3>> {
    #[allow(irrefutable_let_patterns, reason = "without the CPU backend it is the only variant")]
    let burn::backend::DispatchDevice::Cube(device) = device.as_dispatch() else { return None };
    let client = CubeDevice::client(device);
    let count = batch * tokens * channels;
    let out = client.empty(count.max(1) * size_of::<f32>());
    let out = CubeTensor::new_contiguous(client.clone(), device.clone(), [batch, tokens, channels].into(), out, DType::F32);
    if count > 0 {
        let seeds = seed_words(stream.seeds);
        let handle = client.create_from_slice(u32::as_bytes(&seeds));
        let (grid, cube) = elementwise_dims(count);
        normals_kernel::launch(
            &client,
            grid,
            cube,
            // SAFETY: the buffer holds exactly the words of this slice.
            unsafe { BufferArg::from_raw_parts(handle, seeds.len()) },
            out.clone().into_buffer_arg(),
            count,
            tokens,
            channels,
            stream.scale as u32,
            stream.purpose,
        );
    }
    Some(tensor(out))
}

/// Returns the low and the high word of every seed, as kernels read them.
pub(super) fn seed_words(seeds: &[u64]) -> Vec<u32> {
    seeds.iter().flat_map(|&seed| [seed as u32, (seed >> 32) as u32]).collect()
}

#[cfg(test)]
mod tests {
    use super::super::contiguous;
    use super::*;
    use crate::kernels::testing::gpu as device;
    use crate::kernels::values;

    /// Computes [`neg_ln_uniform`] of every word. One thread computes one value.
    #[cube(launch)]
    fn neg_ln_uniform_kernel(words: &[u32], out: &mut [f32]) {
        let i = UNIT_POS as usize;
        if i < words.len() {
            out[i] = neg_ln_uniform(words[i]);
        }
    }

    /// Near 1, where a logarithm loses digits, and near 0.
    #[test]
    fn logarithms_keep_their_digits() {
        let words =
            [0, 1, 77, 0x7FFF_FFFF, 0x8000_0000, 0xEFFF_FFFF, 0xF000_0000, 0xFFFF_0000, 0xFFFF_FF80, 0xFFFF_FFFE, 0xFFFF_FFFF];
        let out = contiguous(&Tensor::<1>::zeros([words.len()], &device())).unwrap();
        let input = out.client.create_from_slice(u32::as_bytes(&words));
        neg_ln_uniform_kernel::launch(
            &out.client.clone(),
            CubeCount::Static(1, 1, 1),
            CubeDim::new_1d(32),
            // SAFETY: the buffer holds exactly the words of this slice.
            unsafe { BufferArg::from_raw_parts(input, words.len()) },
            out.clone().into_buffer_arg(),
        );
        for (word, got) in words.into_iter().zip(values(tensor::<1>(out))) {
            let want = -((f64::from(word) + 0.5) / 2f64.powi(32)).ln();
            assert!((f64::from(got) / want - 1.0).abs() < 2e-6, "{word:x}: {got}, expected {want}");
        }
    }
}
