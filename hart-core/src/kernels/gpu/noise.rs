//! Random numbers on the device: the words of the host's generator, bit for bit, made where they are used.

use burn::prelude::{Device, Tensor};
use burn::tensor::DType;
use burn_cubecl::cubecl::Device as CubeDevice;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::{tensor, thread_number, threads_for};
use crate::rng::Stream;

/// Philox 4x32-10, as in [`crate::rng`]: word `which` of four.
#[cube]
pub(super) fn word(counter: (u32, u32, u32, u32), key: (u32, u32), which: u32) -> u32 {
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
    let mut found = c3;
    if which == 0 {
        found = c0;
    } else if which == 1 {
        found = c1;
    } else if which == 2 {
        found = c2;
    }
    found
}

/// `-ln u` of the uniform number `(word + 1/2) / 2^32`: from whichever end it is nearer to, so that no digit is lost.
#[cube]
pub(super) fn minus_log(word: u32) -> f32 {
    if word < 0x8000_0000u32 {
        -(((f32::cast_from(word) + 0.5f32) * 2.328_306_4e-10f32).ln())
    } else {
        let rest = (f32::cast_from(0xFFFF_FFFFu32 - word) + 0.5f32) * 2.328_306_4e-10f32;
        let mut value = -((1.0f32 - rest).ln());
        // No device has a logarithm of what is next to one: where it matters, by its series.
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

#[cube(launch)]
#[allow(clippy::too_many_arguments)]
fn normals_kernel(seeds: &[u32], out: &mut [f32], count: usize, length: usize, channels: usize, scale: u32, purpose: u32) {
    let i = thread_number();
    if i < count {
        let (token, channel) = (i / channels, (i % channels) as u32);
        let (image, position) = (token / length, (token % length) as u32);
        let counter = (channel / 4, position, scale, purpose);
        let key = (seeds[2 * image], seeds[2 * image + 1]);
        let pair = channel % 4 / 2 * 2;
        let radius = (2.0f32 * minus_log(word(counter, key, pair))).sqrt();
        // The angle's nearest quarter, and an eighth of a turn at most on either side: devices promise digits of small angles only.
        let turn = word(counter, key, pair + 1);
        let quarter = (turn + 0x2000_0000u32) >> 30;
        let rest = i32::reinterpret(turn - (quarter << 30));
        let angle = (f32::cast_from(rest) + 0.5f32) * 1.462_918_1e-9f32;
        let odd = (channel + quarter) % 2 == 1;
        let mut value = radius * angle.cos();
        if odd {
            value = radius * angle.sin();
        }
        // cos and sin of quarters further: -sin and cos, -cos and -sin, sin and -cos.
        let sine = channel % 2;
        if (sine == 0 && (quarter == 1 || quarter == 2)) || (sine == 1 && (quarter == 2 || quarter == 3)) {
            value = -value;
        }
        out[i] = value;
    }
}

/// Normal noise `[B, L, channels]` of one stream; None where the device isn't a GPU.
pub(crate) fn normals(stream: &Stream<'_>, [batch, length, channels]: [usize; 3], device: &Device) -> Option<Tensor<3>> {
    #[allow(irrefutable_let_patterns, reason = "without the CPU backend there is no other")]
    let burn::backend::DispatchDevice::Cube(device) = device.as_dispatch() else { return None };
    let client = CubeDevice::client(device);
    let count = batch * length * channels;
    let out = client.empty(count.max(1) * size_of::<f32>());
    let out = CubeTensor::new_contiguous(client.clone(), device.clone(), [batch, length, channels].into(), out, DType::F32);
    if count > 0 {
        let seeds = words_of(stream.seeds);
        let handle = client.create_from_slice(u32::as_bytes(&seeds));
        let (all, dim) = threads_for(count);
        normals_kernel::launch(
            &client,
            all,
            dim,
            // SAFETY: the buffer was just made of this slice.
            unsafe { BufferArg::from_raw_parts(handle, seeds.len()) },
            out.clone().into_buffer_arg(),
            count,
            length,
            channels,
            stream.scale as u32,
            stream.purpose,
        );
    }
    Some(tensor(out))
}

/// Seeds as a kernel reads them.
pub(super) fn words_of(seeds: &[u64]) -> Vec<u32> {
    seeds.iter().flat_map(|&seed| [seed as u32, (seed >> 32) as u32]).collect()
}

#[cfg(test)]
mod tests {
    use super::super::whole;
    use super::*;
    use crate::kernels::testing::gpu as device;
    use crate::kernels::values;

    #[cube(launch)]
    fn minus_logs(words: &[u32], out: &mut [f32]) {
        let i = UNIT_POS as usize;
        if i < words.len() {
            out[i] = minus_log(words[i]);
        }
    }

    /// Next to one, where a logarithm loses its digits, and next to zero.
    #[test]
    fn logarithms_keep_their_digits() {
        let words =
            [0, 1, 77, 0x7FFF_FFFF, 0x8000_0000, 0xEFFF_FFFF, 0xF000_0000, 0xFFFF_0000, 0xFFFF_FF80, 0xFFFF_FFFE, 0xFFFF_FFFF];
        let out = whole(&Tensor::<1>::zeros([words.len()], &device())).unwrap();
        let input = out.client.create_from_slice(u32::as_bytes(&words));
        minus_logs::launch(
            &out.client.clone(),
            CubeCount::Static(1, 1, 1),
            CubeDim::new_1d(32),
            // SAFETY: the buffer was just made of these words.
            unsafe { BufferArg::from_raw_parts(input, words.len()) },
            out.clone().into_buffer_arg(),
        );
        for (word, got) in words.into_iter().zip(values(tensor::<1>(out))) {
            let want = -((f64::from(word) + 0.5) / 2f64.powi(32)).ln();
            assert!((f64::from(got) / want - 1.0).abs() < 2e-6, "{word:x}: {got} and not {want}");
        }
    }
}
