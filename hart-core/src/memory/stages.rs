//! Estimates of the memory that the stages of a run need, without the weights.

use crate::config::{Config, VisualConfig};
use crate::device::Precision;
use crate::kernels::token_map_bytes;
use crate::pruning::Pruning;
use crate::scales::{Scale, plan};
use crate::visual::COMPACT_LEVELS;

/// Bytes of one value.
pub(super) const F32: u64 = size_of::<f32>() as u64;
/// Tensors of the size of a layer's input that the text encoder's attention allocates, as if none were freed before its end: the input,
/// its norm, queries, keys, values, rotated queries and keys, packed keys and values, attended values, the same with merged heads, and
/// the output.
const TEXT_ATTENTION_COPIES: u64 = 12;
/// The same count for the transformer: the input, its norm, queries, keys, values, attended values, and the output. Queries and keys are
/// rotated as they are read, and packed keys and values count for the cache.
const ATTENTION_COPIES: u64 = 7;
/// Copies of a pruned scale's tokens that are live besides those that are computed: the input, and its sum with a branch's outputs.
const FULL_COPIES: u64 = 2;
/// Copies of an MLP's hidden layer that are live at once.
const MLP_COPIES: u64 = 3;
/// Copies of the logits that are live at once: the head's output, the guided half, the sampler's rows.
const LOGIT_COPIES: u64 = 3;
/// Feature maps of the decoder's largest size that are live at once: a residual block's input, which its output overwrites, and the
/// map between its two convolutions.
const DECODER_MAPS: u64 = 2;
/// Values of a transformed 3x3 kernel for each pair of an input and an output channel, one per Winograd point.
const KERNEL_POINTS: u64 = 36;
/// Values that a convolution holds for the band of a feature map that it processes at a time: the laid-out input and its transform.
const DECODER_BAND: u64 = 4 << 20;
/// Such bands that the decoder holds with limited memory: one for each of a residual block's two convolutions, and one for the rows
/// between the convolutions.
const LIMITED_DECODER_BANDS: u64 = 3;

/// The sizes of a run on which its memory depends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run<'a> {
    pub(crate) images: usize,
    /// Number of images that are generated at once.
    pub(crate) at_once: usize,
    /// Tokens of the system prompt; `None` if the prompts are encoded already.
    pub(crate) system_prompt_tokens: Option<usize>,
    /// `true` if the run starts from an image.
    pub(crate) encodes_image: bool,
    /// The scales that are pruned, if any.
    pub(crate) pruning: Option<&'a Pruning>,
    /// Rows of an image: 2 with classifier-free guidance, conditional and unconditional, otherwise 1.
    pub(crate) halves: u64,
}

impl Run<'_> {
    /// A run for one image with the settings that need most memory.
    pub(crate) const ONE: Run<'static> =
        Run { images: 1, at_once: 1, system_prompt_tokens: Some(0), encodes_image: false, pruning: None, halves: 2 };
}

/// Returns the bytes that encoding a prompt needs.
pub(super) fn text(config: &Config, system_prompt_tokens: usize) -> u64 {
    let (c, tokens) = (&config.text, (config.transformer.context_tokens + system_prompt_tokens) as u64);
    let scores = c.num_heads as u64 * tokens * tokens;
    F32 * (tokens * block(TEXT_ATTENTION_COPIES, c.hidden_size as u64, c.intermediate_size as u64) + scores)
}

/// Returns the bytes that sampling an image needs.
pub(super) fn transformer(config: &Config, precision: Precision, run: Run<'_>) -> u64 {
    let c = &config.transformer;
    let (width, scales) = (c.embed_dim as u64, plan(c));
    let kept = |scale: &Scale| run.pruning.map_or(scale.tokens(), |pruning| pruning.kept(scale)) as u64;
    let last = scales.last().map_or(0, kept);
    let later = scales.iter().skip(1).map(kept).sum::<u64>();
    // All unconditional context tokens are equal, and one of them stands for all. The last scale's keys and values are not cached:
    // those of a block exist while it uses them.
    let cached = c.context_tokens as u64 + run.halves - 1 + run.halves * later.saturating_sub(last);
    // In 8 bits, cached keys and values have one scale per head.
    let per_token = match precision {
        Precision::Int8 => width + F32 * c.num_heads as u64,
        _ => bytes_of(precision) * width,
    };
    let cache = 2 * (per_token * cached * c.depth as u64 + bytes_of(precision) * width * run.halves * last);
    // The outputs of both branches of every block that stand in for tokens that later scales leave out.
    let stored = scales.iter().filter(|scale| run.pruning.is_some_and(|pruning| pruning.is_stored(scale)));
    let maps = 2 * c.depth as u64 * run.halves * stored.map(kept).sum::<u64>() * token_map_bytes(precision, c.embed_dim) as u64;
    // A pruned scale has its input and output besides the tokens that it computes.
    let per_computed = block(ATTENTION_COPIES, width, c.feed_forward_dim as u64);
    let of_scale = |scale: &Scale| {
        let left_out = scale.tokens() as u64 - kept(scale);
        kept(scale) * per_computed + left_out * FULL_COPIES * width
    };
    let activations = scales.iter().map(of_scale).max().unwrap_or(0);
    let logits = LOGIT_COPIES * scales.last().map_or(0, |scale| scale.tokens() as u64) * config.visual.vocab_size as u64;
    // The last scale frees the cache and the stored outputs block by block, so none are left when its logits are computed.
    (cache + maps + F32 * run.halves * activations).max(F32 * run.halves * logits)
}

/// Returns the bytes of one element of cached keys and values and, on a GPU, of activations.
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

/// Returns the size in bytes of the largest tensor on a GPU, a feature map of the decoder.
pub(crate) fn largest_map(config: &Config, precision: Precision) -> u64 {
    bytes_of(precision) * decoder_map(config)
}

/// Returns the number of values of the decoder's largest feature map.
fn decoder_map(config: &Config) -> u64 {
    let c = &config.visual;
    let side = config.resolution() as u64;
    // A level ends with upsampling, so its largest map has its width and twice its side. The finest level has the full side and
    // does not upsample.
    let level = |(level, multiplier): (usize, &usize)| {
        let side = side >> level.saturating_sub(1);
        side * side * (c.channels * multiplier) as u64
    };
    c.multipliers.iter().enumerate().map(level).max().unwrap_or(0)
}

/// Returns the bytes that the decoder needs with [`DecoderMemory::Full`].
pub(super) fn full_decoder(config: &Config) -> u64 {
    F32 * (DECODER_MAPS * decoder_map(config) + decoder_kernels(&config.visual) + DECODER_BAND)
}

/// Returns the bytes that the decoder needs with [`DecoderMemory::Limited`] for images of this side in pixels.
pub(super) fn limited_decoder(c: &VisualConfig, side: u64, precision: Precision) -> u64 {
    let width = |index: usize| c.multipliers.get(index).map(|multiplier| (c.channels * multiplier) as u64);
    let level = |(index, multiplier): (usize, &usize)| {
        let (side, width, from) = (side >> index, (c.channels * multiplier) as u64, width(index + 1));
        // The upsampling before each of the finest levels rounds the maps of that level. There is none before the coarsest level.
        let value = if index < COMPACT_LEVELS && from.is_some() { bytes_of(precision) } else { F32 };
        let from = from.unwrap_or(width);
        // A block's input, the adapted input if the numbers of channels differ, and the map between the convolutions.
        let adapted = if from == width { 0 } else { width };
        let between = if index == 0 { 0 } else { width };
        value * side * side * (from + adapted + between)
    };
    let maps = c.multipliers.iter().enumerate().map(level).max().unwrap_or(0);
    maps + F32 * (decoder_kernels(c) + LIMITED_DECODER_BANDS * DECODER_BAND)
}

/// Returns the number of values of the transformed kernels of the decoder's widest convolution.
fn decoder_kernels(c: &VisualConfig) -> u64 {
    let widest = c.multipliers.iter().map(|multiplier| (c.channels * multiplier) as u64).max().unwrap_or(0);
    KERNEL_POINTS * widest * widest
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_limited_decoder_holds_one_map_of_the_finest_level() {
        let published = br#"{"model_type": "hart_autoencoder_with_disc", "v_patch_nums": [1, 64]}"#;
        let visual = VisualConfig::parse(Path::new("config.json"), published).unwrap();
        let map = F32 * 1024 * 1024 * 160;
        for (precision, maps) in [(Precision::F32, map), (Precision::Bf16, map / 2), (Precision::Int8, map / 2)] {
            let limited = limited_decoder(&visual, 1024, precision);
            assert!((maps..maps + 150_000_000).contains(&limited), "{precision}: {limited}");
        }
    }

    /// The keys and values of 5,526 instead of 9,750 tokens, and the outputs of side 36 that stand in for the others.
    #[test]
    fn pruning_saves_keys_and_values_and_stores_the_outputs_of_one_scale() {
        let mut config = Config::open(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tiny-a"))).unwrap();
        let c = &mut config.transformer;
        c.sides = vec![1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64];
        (c.depth, c.embed_dim, c.num_heads, c.feed_forward_dim, c.context_tokens) = (24, 1536, 24, 4096, 300);
        let plan = Pruning::default();
        let bytes = |precision, pruning| {
            let run = Run { images: 1, at_once: 1, system_prompt_tokens: None, encodes_image: false, pruning, halves: 2 };
            transformer(&config, precision, run)
        };
        let saved = |precision| bytes(precision, None) - bytes(precision, Some(&plan));
        // Keys and values of side 48 in all blocks and of side 64 in one, the outputs of side 36, and what a block computes.
        let per_token = F32 * 2 * 2 * 1536;
        let cached = per_token * (24 * (2304 - 1152) + (4096 - 1024));
        let (maps, activations) = (per_token * 24 * 1296, per_token * (4096 - 2304) * 2);
        assert!(saved(Precision::F32) + maps > cached + activations, "{maps} {cached} {activations}");
        let (exact, pruned) = (bytes(Precision::Int8, None), bytes(Precision::Int8, Some(&plan)));
        assert!((0.7..0.8).contains(&(pruned as f64 / exact as f64)), "{pruned} {exact}");
    }
}
