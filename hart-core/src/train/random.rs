//! Random numbers of a training step, addressed by seed, step, shard and purpose. A resumed run draws the same numbers as an
//! uninterrupted one.

use burn::prelude::*;
use rayon::prelude::*;

use crate::kernels;
use crate::rng::{normals, philox4x32, uniform};

/// The use of a random number. Each use has its own sequence.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub(super) enum Purpose {
    /// Captions dropped for classifier-free guidance.
    ContextDrop = 1,
    /// Tokens of the last scale that a step trains on.
    LastScale = 2,
    /// Diffusion steps.
    DiffusionStep = 3,
    /// Diffusion noise.
    DiffusionNoise = 4,
    /// Codes sampled from the model's logits.
    SampledCode = 5,
    /// The choice between a sampled code and the image's code.
    CodeMix = 6,
    /// Tokens that replace unused codebook rows.
    RowReplacement = 7,
}

/// The random number generator of one shard of one step.
#[derive(Clone, Copy, Debug)]
pub(super) struct StepRng {
    pub(super) seed: u64,
    pub(super) step: u64,
    pub(super) shard: u32,
}

impl StepRng {
    fn words(&self, purpose: Purpose, block: usize) -> [u32; 4] {
        let counter = [block as u32, self.shard, self.step as u32, purpose as u32 | (((self.step >> 32) as u32) << 8)];
        philox4x32(counter, [self.seed as u32, (self.seed >> 32) as u32])
    }

    /// Returns `count` uniform samples in (0, 1).
    pub(super) fn uniforms(&self, purpose: Purpose, count: usize) -> Vec<f64> {
        let words = (0..count.div_ceil(4)).flat_map(|block| self.words(purpose, block));
        words.map(uniform).take(count).collect()
    }

    /// Returns `count` uniform integers from 0 to `limit`, exclusive.
    pub(super) fn integers(&self, purpose: Purpose, limit: usize, count: usize) -> Vec<usize> {
        self.uniforms(purpose, count).into_iter().map(|u| (u * limit as f64) as usize).collect()
    }

    /// Returns a tensor of standard normal samples.
    pub(super) fn normals<const D: usize>(&self, purpose: Purpose, shape: [usize; D], device: &Device) -> Tensor<D> {
        let count: usize = shape.iter().product();
        let mut values: Vec<f32> =
            (0..count.div_ceil(4)).into_par_iter().flat_map_iter(|block| normals(self.words(purpose, block))).collect();
        values.truncate(count);
        kernels::tensor(values, shape, device)
    }

    /// Returns a uniform random subset of `0..total` with `count` elements, in ascending order.
    pub(super) fn subset(&self, purpose: Purpose, total: usize, count: usize) -> Vec<usize> {
        let mut order: Vec<(f64, usize)> = self.uniforms(purpose, total).into_iter().zip(0..total).collect();
        order.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut subset: Vec<usize> = order.into_iter().take(count).map(|(_, index)| index).collect();
        subset.sort_unstable();
        subset
    }
}
