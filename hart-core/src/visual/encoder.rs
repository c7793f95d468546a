//! The encoder, from pixels to features (spec section 5).

use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{GroupNorm, PaddingConfig2d};
use burn::prelude::*;

use super::blocks::{AttentionBlock, Middle, ResBlock, conv, norm};
use crate::config::VisualConfig;
use crate::nn;

/// Number of residual blocks in a level.
const BLOCKS: usize = 2;

/// A strided convolution that halves a map's sides, with zeros at the right and the bottom.
#[derive(Module, Debug)]
struct Downsample {
    conv: Conv2d,
}

/// The blocks of one resolution.
#[derive(Module, Debug)]
struct Level {
    block: Vec<ResBlock>,
    /// One after each block of the last level; none in other levels.
    attn: Vec<AttentionBlock>,
    downsample: Option<Downsample>,
}

/// The encoder.
#[derive(Module, Debug)]
pub struct Encoder {
    conv_in: Conv2d,
    down: Vec<Level>,
    mid: Middle,
    norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Encoder {
    pub(super) fn init(config: &VisualConfig, device: &Device) -> Self {
        let mut width = config.channels;
        let top = config.multipliers.len() - 1;
        let mut level = |(index, multiplier): (usize, &usize)| {
            let to = config.channels * multiplier;
            let block = (0..BLOCKS).map(|_| ResBlock::init(std::mem::replace(&mut width, to), to, device)).collect();
            let attentions = if index == top { BLOCKS } else { 0 };
            let strided = || {
                let padding = PaddingConfig2d::Explicit(0, 0, 1, 1); // top, left, bottom, right
                Conv2dConfig::new([to, to], [3, 3]).with_stride([2, 2]).with_padding(padding).init(device)
            };
            Level {
                block,
                attn: (0..attentions).map(|_| AttentionBlock::init(to, device)).collect(),
                downsample: (index != top).then(|| Downsample { conv: strided() }),
            }
        };
        let down = config.multipliers.iter().enumerate().map(&mut level).collect();
        Self {
            conv_in: conv(3, config.channels, 3, device),
            down,
            mid: Middle::init(width, device),
            norm_out: norm(width, device),
            conv_out: conv(width, config.z_channels, 3, device),
        }
    }

    /// Encodes pixels.
    ///
    /// # Shapes
    ///
    /// - image: `[B, 3, H, W]`, values -1 to 1
    /// - output: `[B, Z, H / 2^(levels - 1), W / 2^(levels - 1)]`
    pub(super) fn forward(&self, image: Tensor<4>) -> Tensor<4> {
        let mut x = nn::conv2d(image, &self.conv_in);
        for level in &self.down {
            for (index, block) in level.block.iter().enumerate() {
                x = block.forward(x);
                if let Some(attention) = level.attn.get(index) {
                    x = attention.forward(x);
                }
            }
            if let Some(downsample) = &level.downsample {
                x = nn::conv2d(x, &downsample.conv);
            }
        }
        let x = self.mid.forward(x);
        nn::norm_silu_conv2d(x, &self.norm_out, &self.conv_out, None)
    }
}
