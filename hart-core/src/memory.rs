//! How much memory a model and a request take: estimates, so that a program can ask before it tries.

use burn::prelude::Device;

use crate::config::Config;
use crate::device::Precision;
use crate::error::{Error, Result};
use crate::residual::ResidualDiffusion;
use crate::text::Qwen2;
use crate::transformer::Transformer;
use crate::visual::VisualTokenizer;
use crate::weights::parameters;

/// Bytes of one number.
const F32: u64 = size_of::<f32>() as u64;
/// Rows of a picture made with classifier-free guidance: conditional and unconditional.
const GUIDED_ROWS: u64 = 2;
/// Copies of a layer's input that live while its attention runs: norms, queries, keys, values, their rotated twins, the result.
const TEXT_ATTENTION_COPIES: u64 = 12;
/// The same of the transformer, whose keys and values are rotated into the cache: input, norm, queries, keys, values, the result.
const ATTENTION_COPIES: u64 = 7;
/// Copies of an MLP's hidden layer that live at once.
const MLP_COPIES: u64 = 3;
/// Copies of the logits that live at once: the head's, their guided half, the sampler's rows.
const LOGIT_COPIES: u64 = 3;
/// Maps of the decoder's widest resolution that live at once: a residual block's input, in whose place its output is written, and
/// what is between its two convolutions.
const DECODER_MAPS: u64 = 2;
/// Numbers for a pair of channels while a 3x3 kernel is used: its values at Winograd's points.
const KERNEL_POINTS: u64 = 36;
/// Numbers of the band of a map that a convolution is computed for, laid out and transformed.
const DECODER_BAND: u64 = 4 << 20;

/// An estimate of memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Memory {
    /// The weights, also those in files that are mapped: their pages are read when a run needs them.
    pub weights: u64,
    /// What a run needs besides, at its height.
    pub working: u64,
}

impl Memory {
    /// Weights and work together. Every further run at the same time adds its [`Self::working`].
    pub fn peak(&self) -> u64 {
        self.weights.saturating_add(self.working)
    }
}

/// Refuses what would take more than is allowed; without a limit nothing is estimated.
pub(crate) fn allow(what: &'static str, limit: Option<u64>, needed: impl FnOnce() -> u64) -> Result<()> {
    match limit.map(|limit| (needed(), limit)) {
        Some((needed, limit)) if needed > limit => Err(Error::Memory { what, needed, limit }),
        _ => Ok(()),
    }
}

/// Bytes of a model's weights; none of them is made for it.
pub(crate) fn weights(config: &Config, device: &Device) -> u64 {
    F32 * (parameters(&Qwen2::init(&config.text, device))
        + parameters(&Transformer::init(config, device))
        + parameters(&ResidualDiffusion::init(config, device))
        + parameters(&VisualTokenizer::init(&config.visual, device)))
}

/// What a run of `images` pictures needs besides the weights. The stages follow each other, so that the greediest counts.
pub(crate) fn working(config: &Config, precision: Precision, images: usize, system_prompt_tokens: usize) -> u64 {
    let side = config.resolution() as u64;
    let finished = 3 * side * side * images as u64;
    text(config, system_prompt_tokens).max(transformer(config, precision)).max(decoder(config)) + finished
}

fn text(config: &Config, system_prompt_tokens: usize) -> u64 {
    let (c, tokens) = (&config.text, (config.transformer.context_tokens + system_prompt_tokens) as u64);
    let scores = c.num_heads as u64 * tokens * tokens;
    F32 * (tokens * block(TEXT_ATTENTION_COPIES, c.hidden_size as u64, c.intermediate_size as u64) + scores)
}

fn transformer(config: &Config, precision: Precision) -> u64 {
    let c = &config.transformer;
    let (width, last) = (c.embed_dim as u64, (c.last_side() * c.last_side()) as u64);
    let later = c.sides.iter().skip(1).map(|side| (side * side) as u64).sum::<u64>();
    // One unconditional context token stands for all. The last scale's keys and values are never kept: one block's lie beside the
    // others while it uses them.
    let kept = c.context_tokens as u64 + 1 + GUIDED_ROWS * later.saturating_sub(last);
    // What waits for later scales in 8 bits has a scale for each head.
    let waiting = match precision {
        Precision::Int8 => width + F32 * c.num_heads as u64,
        _ => bytes_of(precision) * width,
    };
    let cache = 2 * (waiting * kept * c.depth as u64 + bytes_of(precision) * width * GUIDED_ROWS * last);
    let logits = LOGIT_COPIES * last * config.visual.vocab_size as u64;
    cache + F32 * GUIDED_ROWS * (last * block(ATTENTION_COPIES, width, c.feed_forward_dim as u64)).max(logits)
}

/// Bytes of a number of a key or value, and, on a GPU, of what is between its layers.
fn bytes_of(precision: Precision) -> u64 {
    match precision {
        Precision::Auto | Precision::F32 => F32,
        Precision::F16 | Precision::Bf16 | Precision::Int8 => F32 / 2,
    }
}

/// Numbers that live at once for one token in a block.
fn block(attention_copies: u64, width: u64, hidden: u64) -> u64 {
    (attention_copies * width).max(2 * width + MLP_COPIES * hidden)
}

/// Bytes of a GPU's largest tensor, a map of the decoder.
pub(crate) fn largest_map(config: &Config, precision: Precision) -> u64 {
    bytes_of(precision) * decoder_map(config)
}

/// Numbers of the decoder's largest map.
fn decoder_map(config: &Config) -> u64 {
    let c = &config.visual;
    let side = config.resolution() as u64;
    // A level ends with its own width at twice its side; the finest has its width at the full one.
    let level = |(level, multiplier): (usize, &usize)| {
        let side = side >> level.saturating_sub(1);
        side * side * (c.channels * multiplier) as u64
    };
    c.multipliers.iter().enumerate().map(level).max().unwrap_or(0)
}

fn decoder(config: &Config) -> u64 {
    let c = &config.visual;
    let maps = DECODER_MAPS * decoder_map(config);
    let widest = c.multipliers.iter().map(|multiplier| (c.channels * multiplier) as u64).max().unwrap_or(0);
    F32 * (maps + KERNEL_POINTS * widest * widest + DECODER_BAND)
}
