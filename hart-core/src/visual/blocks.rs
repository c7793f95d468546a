//! Blocks of the autoencoder (spec section 5). Fields have the names of the latent-diffusion autoencoder, which are also those of the
//! checkpoint.

use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{GroupNorm, GroupNormConfig, PaddingConfig2d};
use burn::prelude::*;

use crate::config::NORM_GROUPS;
use crate::kernels;
use crate::nn;

/// Epsilon of the group norms.
const NORM_EPS: f64 = 1e-6;

/// Creates a convolution that keeps the map's sides; `kernel` is odd.
pub(super) fn conv(from: usize, to: usize, kernel: usize, device: &Device) -> Conv2d {
    let half = kernel / 2;
    let padding = PaddingConfig2d::Explicit(half, half, half, half);
    Conv2dConfig::new([from, to], [kernel, kernel]).with_padding(padding).init(device)
}

/// Creates a group norm.
pub(super) fn norm(channels: usize, device: &Device) -> GroupNorm {
    GroupNormConfig::new(NORM_GROUPS, channels).with_epsilon(NORM_EPS).init(device)
}

/// A residual block, `x + conv2(silu(norm2(conv1(silu(norm1(x))))))`. A 1x1 convolution adapts x if the numbers of channels differ.
#[derive(Module, Debug)]
pub(super) struct ResBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    norm2: GroupNorm,
    conv2: Conv2d,
    nin_shortcut: Option<Conv2d>,
}

impl ResBlock {
    pub(super) fn init(from: usize, to: usize, device: &Device) -> Self {
        Self {
            norm1: norm(from, device),
            conv1: conv(from, to, 3, device),
            norm2: norm(to, device),
            conv2: conv(to, to, 3, device),
            nin_shortcut: (from != to).then(|| conv(from, to, 1, device)),
        }
    }

    /// Computes the block.
    ///
    /// # Shapes
    ///
    /// - x: `[B, from, h, w]`
    /// - output: `[B, to, h, w]`
    pub(super) fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let h = nn::norm_silu_conv2d(x.clone(), &self.norm1, &self.conv1, None);
        let x = match &self.nin_shortcut {
            Some(shortcut) => nn::conv2d(x, shortcut),
            None => x,
        };
        nn::norm_silu_conv2d(h, &self.norm2, &self.conv2, Some(x))
    }
}

impl ResBlock {
    /// Like [`Self::forward`], with less memory on the CPU: x is overwritten, and the map between the convolutions is computed twice
    /// instead of held.
    ///
    /// # Shapes
    ///
    /// - x: `[B, from, h, w]`
    /// - output: `[B, to, h, w]`
    pub(super) fn compact_forward(&self, x: Tensor<4>) -> Tensor<4> {
        let shortcut = self.nin_shortcut.as_ref().map(|shortcut| nn::conv2d(x.clone(), shortcut));
        nn::compact_res_block(x, shortcut, [&self.norm1, &self.norm2], [&self.conv1, &self.conv2])
    }
}

/// Self-attention between all positions of a map, with a single head.
#[derive(Module, Debug)]
pub(super) struct AttentionBlock {
    norm: GroupNorm,
    qkv: Conv2d,
    proj_out: Conv2d,
}

impl AttentionBlock {
    pub(super) fn init(channels: usize, device: &Device) -> Self {
        Self {
            norm: norm(channels, device),
            qkv: conv(channels, 3 * channels, 1, device),
            proj_out: conv(channels, channels, 1, device),
        }
    }

    /// Computes `x + attention(norm(x))`.
    ///
    /// # Shapes
    ///
    /// - x, output: `[B, C, h, w]`
    pub(super) fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let [batch, channels, height, width] = x.dims();
        let qkv = nn::conv2d(nn::group_norm(x.clone(), &self.norm), &self.qkv);
        let part = |index: usize| {
            let part = qkv.clone().narrow(1, index * channels, channels);
            part.reshape([batch, 1, channels, height * width]).swap_dims(2, 3) // [batch, 1, positions, channels]
        };
        let scale = 1.0 / (channels as f64).sqrt();
        let attended = kernels::attention(part(0), part(1), part(2), None, scale);
        let attended = attended.swap_dims(2, 3).reshape([batch, channels, height, width]); // [batch, channels, height, width]
        x + nn::conv2d(attended, &self.proj_out)
    }
}

/// The blocks between encoder levels and latent, and between latent and decoder levels.
#[derive(Module, Debug)]
pub(super) struct Middle {
    pub(super) block_1: ResBlock,
    pub(super) attn_1: AttentionBlock,
    pub(super) block_2: ResBlock,
}

impl Middle {
    pub(super) fn init(channels: usize, device: &Device) -> Self {
        Self {
            block_1: ResBlock::init(channels, channels, device),
            attn_1: AttentionBlock::init(channels, device),
            block_2: ResBlock::init(channels, channels, device),
        }
    }

    /// Computes the blocks.
    ///
    /// # Shapes
    ///
    /// - x, output: `[B, C, h, w]`
    pub(super) fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        self.block_2.forward(self.attn_1.forward(self.block_1.forward(x)))
    }
}
