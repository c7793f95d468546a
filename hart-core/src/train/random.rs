//! Random numbers of a training step, addressed by seed, step and purpose: a resumed run draws what the whole one would have.

use burn::prelude::*;
use rayon::prelude::*;

use crate::kernels;
use crate::rng::{normals, philox4x32, uniform};

/// What a number is for.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub(super) enum Purpose {
    ContextDrop = 1,
    LastScale = 2,
    DiffusionStep = 3,
    DiffusionNoise = 4,
    SampledCode = 5,
    CodeMix = 6,
    Revival = 7,
}

/// The generator of one shard of one step.
#[derive(Clone, Copy, Debug)]
pub(super) struct StepRandom {
    pub(super) seed: u64,
    pub(super) step: u64,
    pub(super) shard: u32,
}

impl StepRandom {
    fn words(&self, purpose: Purpose, block: usize) -> [u32; 4] {
        let counter = [block as u32, self.shard, self.step as u32, purpose as u32 | (((self.step >> 32) as u32) << 8)];
        philox4x32(counter, [self.seed as u32, (self.seed >> 32) as u32])
    }

    /// Uniform numbers in (0, 1).
    pub(super) fn uniforms(&self, purpose: Purpose, count: usize) -> Vec<f64> {
        let words = (0..count.div_ceil(4)).flat_map(|block| self.words(purpose, block));
        words.map(uniform).take(count).collect()
    }

    /// Whole numbers below `limit`.
    pub(super) fn below(&self, purpose: Purpose, limit: usize, count: usize) -> Vec<usize> {
        self.uniforms(purpose, count).into_iter().map(|u| (u * limit as f64) as usize).collect()
    }

    /// Normal numbers.
    pub(super) fn normals<const D: usize>(&self, purpose: Purpose, shape: [usize; D], device: &Device) -> Tensor<D> {
        let count: usize = shape.iter().product();
        let mut values: Vec<f32> =
            (0..count.div_ceil(4)).into_par_iter().flat_map_iter(|block| normals(self.words(purpose, block))).collect();
        values.truncate(count);
        kernels::tensor(values, shape, device)
    }

    /// `count` of `0..all`, rising, each as likely as any other.
    pub(super) fn subset(&self, purpose: Purpose, all: usize, count: usize) -> Vec<usize> {
        let mut order: Vec<(f64, usize)> = self.uniforms(purpose, all).into_iter().zip(0..all).collect();
        order.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut chosen: Vec<usize> = order.into_iter().take(count).map(|(_, index)| index).collect();
        chosen.sort_unstable();
        chosen
    }
}
