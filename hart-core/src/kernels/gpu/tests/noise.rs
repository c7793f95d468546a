use burn::prelude::*;

use super::super::normals;
use super::assert_close;
use crate::kernels::tensor;
use crate::kernels::testing::gpu as device;
use crate::rng::{Philox, RandomKey, RandomSource, Stream};

/// The same random words give the same noise, up to the last digits.
#[test]
fn noise_equals_the_hosts() {
    let seeds = [7, u64::MAX - 3];
    let (length, channels) = (50, 7);
    let got = normals(&Stream::step_noise(&seeds, 3, 2), [2, length, channels], &device()).unwrap();
    let source = Philox::new(seeds.to_vec());
    let mut want = vec![0.0; 2 * length * channels];
    for (token, out) in want.chunks_mut(channels).enumerate() {
        source.step_noise(RandomKey { image: token / length, scale: 3, position: token % length }, 2, out);
    }
    assert_close("noise", got, tensor(want, [2, length, channels], &Device::flex()), 1e-5);
}
