//! Teacher forcing: all scales in one pass, as in training (spec section 7).

use burn::prelude::*;

use super::pruning::{BlockTokens, Selection};
use super::{Conditioning, Hidden, Transformer, rope};
use crate::kernels::{self, KvAppend, RowGroup};
use crate::nn::RotaryEmbedding;
use crate::scales::plan;

impl Transformer {
    /// Runs all scales in one pass under the block-causal mask: a token attends to its own and earlier scales.
    ///
    /// `last_scale_tokens` selects the positions of the last scale that are computed; `None` computes all. Training selects a part,
    /// which saves most of the work of that scale.
    ///
    /// # Shapes
    ///
    /// - inputs: `[R, tokens of all scales but the first, Z]`, [`inputs`](crate::stages::ImageTokens::inputs) of a tokenized image
    /// - output: `[R, T + tokens, C]`, with the selected tokens of the last scale
    pub fn teacher_forcing(&self, inputs: Tensor<3>, last_scale_tokens: Option<&[usize]>, conditioning: &Conditioning) -> Hidden {
        let device = inputs.device();
        let scales = plan(&self.config);
        let mut inputs_of_scales = vec![self.first_input(conditioning)];
        let mut start = 0;
        for scale in &scales[1..] {
            let features = inputs.clone().narrow(1, start, scale.tokens());
            let features = match last_scale_tokens {
                Some(tokens) if scale.is_last() => features.select(1, kernels::indices(tokens, &device)),
                _ => features,
            };
            inputs_of_scales.push(self.next_input(features, scale));
            start += scale.tokens();
        }
        let lengths: Vec<usize> = inputs_of_scales.iter().map(|input| input.dims()[1]).collect();
        let bias = block_causal(&lengths, &device);
        let rotations = scales.iter().map(|scale| {
            let rotation = rope::scale_rotation(&self.config, scale, &conditioning.positions, &device);
            match last_scale_tokens {
                Some(tokens) if scale.is_last() => rotation.select(kernels::indices(tokens, &device)),
                _ => rotation,
            }
        });
        let rotation = RotaryEmbedding::concat(rotations.collect());
        let mut x = Tensor::cat(inputs_of_scales, 1); // [rows, tokens, channels]
        let [rows, tokens, _] = x.dims();
        let tokens = BlockTokens { rotation, groups: vec![RowGroup { rows, tokens, multiplicity: 1 }] };
        for (block, modulation) in self.blocks.iter().zip(&conditioning.modulations) {
            x = block.forward(x, &tokens, modulation, KvAppend::none(), Some(&bias), Selection::All);
        }
        Hidden(x)
    }
}

/// Returns the block-causal mask as a score bias `[1, 1, L, L]` over scales of the given lengths: 0 for keys of the same and of earlier
/// scales, minus infinity for later ones.
fn block_causal(lengths: &[usize], device: &Device) -> Tensor<4> {
    let total: usize = lengths.iter().sum();
    let mut bias = vec![f32::NEG_INFINITY; total * total];
    let mut visible = 0;
    let mut rows = bias.chunks_mut(total);
    for &length in lengths {
        visible += length;
        rows.by_ref().take(length).for_each(|row| row[..visible].fill(0.0));
    }
    kernels::tensor(bias, [1, 1, total, total], device)
}
