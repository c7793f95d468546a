//! All scales in one pass, as in training (spec section 7).

use burn::prelude::*;

use super::{Conditioning, Hidden, Transformer, rope};
use crate::kernels::{self, KvAppend, RowGroup};
use crate::nn::RotaryEmbedding;
use crate::scales::plan;

impl Transformer {
    /// Runs all scales in one pass under the block-causal mask, as in training: a token attends to its own and earlier scales.
    /// `last_scale_tokens` selects the tokens of the last scale that are computed, at their own positions; `None` computes all.
    /// Training selects a part, which saves most of the work of that scale.
    ///
    /// # Shapes
    ///
    /// - inputs: `[R, sum of side^2 over scales 1.., Z]`, `inputs` of a tokenized image
    /// - output: `[R, T + that, C]`, with the selected tokens of the last scale
    pub fn teacher_forcing(&self, inputs: Tensor<3>, last_scale_tokens: Option<&[usize]>, conditioning: &Conditioning) -> Hidden {
        let device = inputs.device();
        let scales = plan(&self.config);
        let mut parts = vec![self.first_input(conditioning)];
        let mut from = 0;
        for scale in &scales[1..] {
            let features = inputs.clone().narrow(1, from, scale.tokens());
            let features = match last_scale_tokens {
                Some(tokens) if scale.is_last() => features.select(1, kernels::indices(tokens, &device)),
                _ => features,
            };
            parts.push(self.next_input(features, scale));
            from += scale.tokens();
        }
        let lengths: Vec<usize> = parts.iter().map(|p| p.dims()[1]).collect();
        let bias = block_causal(&lengths, &device);
        let rotations = scales.iter().map(|scale| {
            let rotation = rope::of_scale(&self.config, scale, &conditioning.positions, &device);
            match last_scale_tokens {
                Some(tokens) if scale.is_last() => rotation.select(kernels::indices(tokens, &device)),
                _ => rotation,
            }
        });
        let rotation = RotaryEmbedding::concat(rotations.collect());
        let mut x = Tensor::cat(parts, 1);
        let [rows, tokens, _] = x.dims();
        let groups = [RowGroup { rows, tokens, multiplicity: 1 }];
        for (block, modulation) in self.blocks.iter().zip(&conditioning.modulations) {
            x = block.forward(x, &rotation, &groups, modulation, KvAppend::none(), Some(&bias));
        }
        Hidden(x)
    }
}

/// Score bias `[1, 1, L, L]` over groups of the given lengths: 0 within a group and towards earlier ones, else minus infinity.
fn block_causal(lengths: &[usize], device: &Device) -> Tensor<4> {
    let total: usize = lengths.iter().sum();
    let mut bias = vec![f32::NEG_INFINITY; total * total];
    let mut seen = 0;
    let mut rows = bias.chunks_mut(total);
    for &length in lengths {
        seen += length;
        rows.by_ref().take(length).for_each(|row| row[..seen].fill(0.0));
    }
    kernels::tensor(bias, [1, 1, total, total], device)
}
