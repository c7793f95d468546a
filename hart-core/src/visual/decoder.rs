//! The decoder, from features to pixels (spec section 5).

use burn::module::Module;
use burn::nn::GroupNorm;
use burn::nn::conv::Conv2d;
use burn::prelude::*;

use super::blocks::{AttentionBlock, Middle, ResBlock, conv, norm};
use crate::config::VisualConfig;
use crate::error::Result;
use crate::nn;
use crate::progress::{Progress, Step};

/// Number of residual blocks in a level.
const BLOCKS: usize = 3;
/// Number of finest levels whose maps are in bf16 if memory is limited and the kernels are in bf16. The next level's maps are smaller in
/// f32 than theirs in bf16.
pub(crate) const COMPACT_LEVELS: usize = 2;

/// The memory use of the decoder at its largest maps. A GPU always uses the same amount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DecoderMemory {
    /// Two maps of the finest level, in f32.
    #[default]
    Full,
    /// One map of the finest level, at the cost of three more convolutions. In a model in f32, the map is in f32 and the image is
    /// the same to the bit. In a model in bf16 or int8, the map is in bf16 and the image is nearly the same.
    Limited,
}

/// Doubling of a map's sides by nearest neighbour, then a convolution.
#[derive(Module, Debug)]
struct Upsample {
    conv: Conv2d,
}

/// The blocks of one resolution.
#[derive(Module, Debug)]
struct Level {
    block: Vec<ResBlock>,
    /// One after each block of the last level, which runs first; none in other levels.
    attn: Vec<AttentionBlock>,
    upsample: Option<Upsample>,
}

/// The decoder.
#[derive(Module, Debug)]
pub struct Decoder {
    conv_in: Conv2d,
    mid: Middle,
    /// Levels from the finest to the coarsest. They run in reverse.
    up: Vec<Level>,
    norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Decoder {
    pub(super) fn init(config: &VisualConfig, device: &Device) -> Self {
        let top = config.multipliers.len() - 1;
        let widest = config.channels * config.multipliers[top];
        let mut width = widest;
        let mut up: Vec<Level> = config
            .multipliers
            .iter()
            .enumerate()
            .rev()
            .map(|(index, multiplier)| {
                let to = config.channels * multiplier;
                let block = (0..BLOCKS).map(|_| ResBlock::init(std::mem::replace(&mut width, to), to, device)).collect();
                let attentions = if index == top { BLOCKS } else { 0 };
                Level {
                    block,
                    attn: (0..attentions).map(|_| AttentionBlock::init(to, device)).collect(),
                    upsample: (index != 0).then(|| Upsample { conv: conv(to, to, 3, device) }),
                }
            })
            .collect();
        up.reverse();
        Self {
            conv_in: conv(config.z_channels, widest, 3, device),
            mid: Middle::init(widest, device),
            up,
            norm_out: norm(width, device),
            conv_out: conv(width, 3, 3, device),
        }
    }

    /// Decodes features.
    ///
    /// # Shapes
    ///
    /// - features: `[B, Z, h, w]`
    /// - output: `[B, 3, h 2^(levels - 1), w 2^(levels - 1)]`
    pub(super) fn forward(&self, features: Tensor<4>, memory: DecoderMemory, progress: &mut Progress<'_>) -> Result<Tensor<4>> {
        let blocks = 1 + self.up.len() * BLOCKS;
        let work = work(&self.up, features.dims()) / blocks as f64;
        let mut done = 0;
        let mut report = |progress: &mut Progress<'_>| {
            done += 1;
            progress.report(Step::Decoder { block: done, blocks }, work)
        };
        let limited = memory == DecoderMemory::Limited;
        let mut x = self.mid.forward(nn::conv2d(features, &self.conv_in));
        report(progress)?;
        for (index, level) in self.up.iter().enumerate().rev() {
            let finest = index == 0;
            for (index, block) in level.block.iter().enumerate() {
                x = if limited && finest { block.compact_forward(x) } else { block.forward(x) };
                if let Some(attention) = level.attn.get(index) {
                    x = attention.forward(x);
                }
                report(progress)?;
            }
            x = match &level.upsample {
                Some(upsample) if limited && index <= COMPACT_LEVELS => nn::compact_upsample_conv2d(x, &upsample.conv),
                Some(upsample) => nn::upsample_conv2d(x, &upsample.conv),
                None => x,
            };
        }
        Ok(nn::norm_silu_conv2d(x, &self.norm_out, &self.conv_out, None))
    }

    /// Estimates the multiply-adds of decoding one latent, for progress.
    pub(super) fn work(&self, side: usize) -> f64 {
        work(&self.up, [1, 0, side, side])
    }
}

/// Estimates the multiply-adds of the residual blocks of all levels.
fn work(up: &[Level], [batch, _, height, width]: [usize; 4]) -> f64 {
    let level = |(index, level): (usize, &Level)| {
        let positions = (batch * height * width) << (2 * (up.len() - 1 - index));
        (level.block.num_params() * positions) as f64
    };
    up.iter().enumerate().map(level).sum()
}
