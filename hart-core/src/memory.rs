//! Estimates of the memory that a model and a request need.

use burn::prelude::Device;

use crate::config::Config;
use crate::device::Precision;
use crate::error::{Error, Result};
use crate::residual::ResidualDiffusion;
use crate::text::Qwen2;
use crate::transformer::Transformer;
use crate::visual::VisualTokenizer;
use crate::weights::parameter_count;

/// Bytes of one value.
const F32: u64 = size_of::<f32>() as u64;
/// Rows per image with classifier-free guidance: conditional and unconditional.
const GUIDED_ROWS: u64 = 2;
/// Copies of a layer's input that are live during attention in the text encoder: norms, queries, keys, values, rotated queries and
/// keys, output.
const TEXT_ATTENTION_COPIES: u64 = 12;
/// Copies in the transformer, which rotates keys directly into the cache: input, norm, queries, keys, values, output.
const ATTENTION_COPIES: u64 = 7;
/// Copies of an MLP's hidden layer that are live at once.
const MLP_COPIES: u64 = 3;
/// Copies of the logits that are live at once: the head's output, the guided half, the sampler's rows.
const LOGIT_COPIES: u64 = 3;
/// Feature maps of the decoder's widest resolution that are live at once: a residual block's input, which its output overwrites, and
/// the map between its two convolutions.
const DECODER_MAPS: u64 = 2;
/// Values per pair of channels of a transformed 3x3 kernel, one per Winograd point.
const KERNEL_POINTS: u64 = 36;
/// Values of the band of a feature map that a convolution processes at a time, laid out and transformed.
const DECODER_BAND: u64 = 4 << 20;

/// A memory estimate in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Memory {
    /// Memory of the weights. Includes mapped files, whose pages are read when a run needs them.
    pub weights: u64,
    /// Peak memory of a run, without the weights.
    pub working: u64,
}

impl Memory {
    /// Returns the sum of both. Every further concurrent run adds its [`Self::working`].
    pub fn peak(&self) -> u64 {
        self.weights.saturating_add(self.working)
    }
}

/// Fails if the needed memory exceeds the limit. Without a limit, `needed` is not called.
pub(crate) fn allow(what: &'static str, limit: Option<u64>, needed: impl FnOnce() -> u64) -> Result<()> {
    match limit.map(|limit| (needed(), limit)) {
        Some((needed, limit)) if needed > limit => Err(Error::Memory { what, needed, limit }),
        _ => Ok(()),
    }
}

/// Returns the bytes of a model's weights. Allocates none of them.
pub(crate) fn weights(config: &Config, device: &Device) -> u64 {
    F32 * (parameter_count(&Qwen2::init(&config.text, device))
        + parameter_count(&Transformer::init(config, device))
        + parameter_count(&ResidualDiffusion::init(config, device))
        + parameter_count(&VisualTokenizer::init(&config.visual, device)))
}

/// Returns the bytes that a run of `images` images needs in addition to the weights. The stages run one after another, so the largest
/// one counts. `text` is the result of [`text`], or 0 if the prompts are encoded already.
pub(crate) fn working(config: &Config, precision: Precision, images: usize, text: u64) -> u64 {
    let side = config.resolution() as u64;
    let finished = 3 * side * side * images as u64;
    text.max(transformer(config, precision)).max(decoder(config)) + finished
}

/// Returns the bytes that encoding one prompt needs in addition to the weights.
pub(crate) fn text(config: &Config, system_prompt_tokens: usize) -> u64 {
    let (c, tokens) = (&config.text, (config.transformer.context_tokens + system_prompt_tokens) as u64);
    let scores = c.num_heads as u64 * tokens * tokens;
    F32 * (tokens * block(TEXT_ATTENTION_COPIES, c.hidden_size as u64, c.intermediate_size as u64) + scores)
}

fn transformer(config: &Config, precision: Precision) -> u64 {
    let c = &config.transformer;
    let (width, last) = (c.embed_dim as u64, (c.last_side() * c.last_side()) as u64);
    let later = c.sides.iter().skip(1).map(|side| (side * side) as u64).sum::<u64>();
    // One unconditional context token stands for all. The last scale's keys and values are not cached: those of one block exist while
    // it uses them.
    let cached = c.context_tokens as u64 + 1 + GUIDED_ROWS * later.saturating_sub(last);
    // In 8 bits, cached keys and values have one scale per head.
    let per_token = match precision {
        Precision::Int8 => width + F32 * c.num_heads as u64,
        _ => bytes_of(precision) * width,
    };
    let cache = 2 * (per_token * cached * c.depth as u64 + bytes_of(precision) * width * GUIDED_ROWS * last);
    let logits = LOGIT_COPIES * last * config.visual.vocab_size as u64;
    cache + F32 * GUIDED_ROWS * (last * block(ATTENTION_COPIES, width, c.feed_forward_dim as u64)).max(logits)
}

/// Returns the bytes of a value of keys and values and, on a GPU, of activations.
fn bytes_of(precision: Precision) -> u64 {
    match precision {
        Precision::Auto | Precision::F32 => F32,
        Precision::F16 | Precision::Bf16 | Precision::Int8 => F32 / 2,
    }
}

/// Returns the number of values that are live at once for one token in a block.
fn block(attention_copies: u64, width: u64, hidden: u64) -> u64 {
    (attention_copies * width).max(2 * width + MLP_COPIES * hidden)
}

/// Returns the bytes of the largest tensor on a GPU, a feature map of the decoder.
pub(crate) fn largest_map(config: &Config, precision: Precision) -> u64 {
    bytes_of(precision) * decoder_map(config)
}

/// Returns the number of values of the decoder's largest feature map.
fn decoder_map(config: &Config) -> u64 {
    let c = &config.visual;
    let side = config.resolution() as u64;
    // A level ends with its own width at twice its side. The finest level has the full side.
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
