//! Estimates of the memory that a model and a request need.

use burn::prelude::Device;

use crate::config::{Config, VisualConfig};
use crate::device::{Precision, is_cpu};
use crate::error::{Error, Result};
use crate::kernels::token_map_bytes;
use crate::pruning::Pruning;
use crate::residual::ResidualDiffusion;
use crate::scales::{Scale, plan};
use crate::text::{Qwen2, TextMemory};
use crate::transformer::Transformer;
use crate::visual::{COMPACT_LEVELS, DecoderMemory, VisualTokenizer};
use crate::weights::{Checkpoint, RELEASED_BYTES, TEXT, TRANSFORMER, VISUAL, WeightBytes, is_field_below, weight_bytes};

/// Least number of bytes of converted weights of the text model that are worth converting again for every prompt.
const LEAST_DROPPED_BYTES: u64 = 64 << 20;
/// Bytes of one value.
const F32: u64 = size_of::<f32>() as u64;
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

/// A memory estimate in bytes, for the stage of a run that needs most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Memory {
    /// Memory of the weights during this stage. Includes pages of mapped files that were read and not released since.
    pub weights: u64,
    /// Memory of the run during this stage, without the weights.
    pub working: u64,
}

impl Memory {
    /// Returns the sum of both. Every further concurrent run adds its [`Self::working`].
    #[must_use]
    pub fn peak(&self) -> u64 {
        self.weights.saturating_add(self.working)
    }
}

/// The sizes of a run on which its memory depends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run<'a> {
    pub(crate) images: usize,
    /// Tokens of the system prompt; `None` if the prompts are encoded already.
    pub(crate) system_prompt_tokens: Option<usize>,
    /// `true` if the run starts from an image.
    pub(crate) encodes_image: bool,
    /// The scales that are pruned, if any.
    pub(crate) pruning: Option<&'a Pruning>,
    /// Rows of an image: 2 with classifier-free guidance, conditional and unconditional, otherwise 1.
    pub(crate) halves: u64,
}

/// The memory of the weights of a model's parts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ModelBytes {
    text: WeightBytes,
    /// The transformer and the residual diffusion.
    transformer: WeightBytes,
    /// The encoder of images.
    encoder: WeightBytes,
    /// The rest of the visual tokenizer.
    decoder: WeightBytes,
    /// Bytes of [`Self::text`] that are dropped together with its pages; they are converted again from mapped files.
    dropped_text: u64,
}

/// The stages whose weights are released as soon as they are done.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Release {
    pub(crate) text: bool,
    pub(crate) transformer: bool,
}

impl ModelBytes {
    /// Returns the memory of the weights in three checkpoints (text model, transformer, visual tokenizer), without allocating any
    /// weights.
    pub(crate) fn of(
        config: &Config,
        [text, transformer, visual]: [&Checkpoint; 3],
        precision: Precision,
        device: &Device,
    ) -> Self {
        let on_cpu = is_cpu(device);
        let (all, encodes) = (|_: &str| true, |field: &str| is_field_below(field, "encoder"));
        let (llm, visual) = ((transformer, &TRANSFORMER), (visual, &VISUAL));
        let tokenizer = VisualTokenizer::init(&config.visual, device);
        let text_bytes = weight_bytes(&Qwen2::init(&config.text, device), "", (text, &TEXT), precision, on_cpu, all);
        let can_be_dropped = on_cpu && !text.mapped().is_empty() && text_bytes.owned >= LEAST_DROPPED_BYTES;
        Self {
            text: text_bytes,
            dropped_text: if can_be_dropped { text_bytes.owned } else { 0 },
            transformer: weight_bytes(&Transformer::init(config, device), "transformer", llm, precision, on_cpu, all)
                + weight_bytes(&ResidualDiffusion::init(config, device), "residual", llm, precision, on_cpu, all),
            encoder: weight_bytes(&tokenizer, "", visual, precision, on_cpu, encodes),
            decoder: weight_bytes(&tokenizer, "", visual, precision, on_cpu, |field| !encodes(field)),
        }
    }

    fn parts(self) -> [WeightBytes; 4] {
        [self.text, self.transformer, self.encoder, self.decoder]
    }

    /// Returns the bytes that cannot be released, over all parts.
    fn owned(self) -> u64 {
        self.parts().map(|part| part.owned).iter().sum()
    }

    /// Returns the memory of the same weights if the model were converted: all of them are then read from mapped files.
    pub(crate) fn converted(self) -> Self {
        let [text, transformer, encoder, decoder] = self.parts().map(WeightBytes::mapped);
        Self { text, transformer, encoder, decoder, dropped_text: 0 }
    }

    /// Returns the peak memory of opening the model, which repeatedly releases pages of mapped files.
    pub(crate) fn opening(&self) -> u64 {
        let largest = |bytes: fn(&WeightBytes) -> u64| self.parts().iter().map(bytes).max().unwrap_or(0);
        self.owned() + largest(|part| part.mapped.min(RELEASED_BYTES as u64)) + largest(|part| part.largest)
    }

    /// Returns the memory of encoding one prompt.
    fn text(&self, config: &Config, system_prompt_tokens: usize) -> Memory {
        Memory { weights: self.owned() + self.text.mapped, working: text(config, system_prompt_tokens) }
    }

    /// Returns the memory of a run. The stages run one after another, so the one that needs most counts.
    fn run(&self, config: &Config, precision: Precision, decoder: DecoderMemory, release: Release, run: Run<'_>) -> Memory {
        let owned = self.owned();
        let (dropped, kept_text) = if release.text { (self.dropped_text, 0) } else { (0, self.text.mapped) };
        let kept_transformer = if release.transformer { 0 } else { self.transformer.mapped };
        let encoder = if run.encodes_image { self.encoder.mapped } else { 0 };
        let side = config.resolution() as u64;
        let finished = 3 * side * side * run.images as u64;
        let decoder_bytes = match decoder {
            DecoderMemory::Full => full_decoder(config),
            DecoderMemory::Limited => limited_decoder(&config.visual, side, precision).min(full_decoder(config)),
        };
        let stages = [
            (kept_text + encoder + self.transformer.mapped, transformer(config, precision, run)),
            (kept_text + encoder + kept_transformer + self.decoder.mapped, decoder_bytes),
        ];
        let stages = stages.map(|(mapped, working)| Memory { weights: owned - dropped + mapped, working });
        let all = stages.into_iter().chain(run.system_prompt_tokens.map(|tokens| self.text(config, tokens)));
        let largest = all.max_by_key(Memory::peak).expect("there are stages");
        Memory { working: largest.working + finished, ..largest }
    }
}

fn text(config: &Config, system_prompt_tokens: usize) -> u64 {
    let (c, tokens) = (&config.text, (config.transformer.context_tokens + system_prompt_tokens) as u64);
    let scores = c.num_heads as u64 * tokens * tokens;
    F32 * (tokens * block(TEXT_ATTENTION_COPIES, c.hidden_size as u64, c.intermediate_size as u64) + scores)
}

fn transformer(config: &Config, precision: Precision, run: Run<'_>) -> u64 {
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

/// The memory that a model needs, and its limit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    pub(crate) bytes: ModelBytes,
    /// The same model converted to int8, if it can be and there is a limit.
    pub(crate) int8: Option<ModelBytes>,
    pub(crate) precision: Precision,
    pub(crate) release: Release,
    /// The least memory that the decoder can use on the device.
    pub(crate) least_decoder: DecoderMemory,
    /// Maximum number of bytes that may be used.
    pub(crate) limit: Option<u64>,
}

impl Budget {
    /// Returns the memory of the text model's weights between two prompts.
    pub(crate) fn text_memory(&self) -> TextMemory {
        match self.bytes.dropped_text {
            _ if !self.release.text => TextMemory::Keep,
            0 => TextMemory::ReleasePages,
            _ => TextMemory::Drop,
        }
    }

    /// Fails if opening the model, or generating one image with it, needs more memory than the limit.
    pub(crate) fn allow_opening(&self, config: &Config) -> Result<()> {
        self.allow("opening this model", |bytes, _, _| bytes.opening())?;
        self.allow_run(
            "an image of this model",
            config,
            Run { images: 1, system_prompt_tokens: Some(0), encodes_image: false, pruning: None, halves: 2 },
        )
    }

    /// Fails if encoding `prompts` prompts, and keeping their contexts, needs more memory than the limit.
    pub(crate) fn allow_text(&self, config: &Config, prompts: usize, system_prompt_tokens: usize) -> Result<()> {
        let contexts = F32 * (prompts * config.transformer.context_tokens * config.text.hidden_size) as u64;
        self.allow("encoding this request", |bytes, _, _| bytes.text(config, system_prompt_tokens).peak() + contexts)
    }

    /// Fails if a run needs more memory than the limit.
    pub(crate) fn allow_run(&self, what: &'static str, config: &Config, run: Run<'_>) -> Result<()> {
        self.allow(what, |bytes, precision, release| bytes.run(config, precision, self.least_decoder, release, run).peak())
    }

    /// Returns the memory of a run.
    pub(crate) fn run(&self, config: &Config, run: Run<'_>) -> Memory {
        self.run_with(self.decoder_memory(config, run), config, run)
    }

    /// Returns how much memory the decoder may use in a run: the least if the limit requires it, or if it would take away what pruning
    /// saves.
    pub(crate) fn decoder_memory(&self, config: &Config, run: Run<'_>) -> DecoderMemory {
        let [full, least] = [DecoderMemory::Full, self.least_decoder].map(|memory| self.run_with(memory, config, run).peak());
        let is_least = self.limit.is_some_and(|limit| full > limit) || (run.pruning.is_some() && full > least);
        if is_least { self.least_decoder } else { DecoderMemory::Full }
    }

    fn run_with(&self, decoder: DecoderMemory, config: &Config, run: Run<'_>) -> Memory {
        self.bytes.run(config, self.precision, decoder, self.release, run)
    }

    fn allow(&self, what: &'static str, needed: impl Fn(&ModelBytes, Precision, Release) -> u64) -> Result<()> {
        let Some(limit) = self.limit else { return Ok(()) };
        let current = needed(&self.bytes, self.precision, self.release);
        if current <= limit {
            return Ok(());
        }
        let megabytes = |bytes: u64| bytes.div_ceil(1 << 20);
        let released = Release { text: true, ..self.release };
        let without_text = needed(&self.bytes, self.precision, released);
        let int8 = self.int8.map(|bytes| needed(&bytes, Precision::Int8, released));
        let remedy = match int8 {
            _ if without_text <= limit => format!("without the option `keep_text_model` it takes {} MB", megabytes(without_text)),
            Some(int8) if int8 <= limit => format!("converted to int8 it takes {} MB", megabytes(int8)),
            _ => "raise the limit (the option `max_memory`) or use a smaller model".into(),
        };
        Err(Error::Memory { what, needed: current, limit, remedy })
    }
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
fn full_decoder(config: &Config) -> u64 {
    F32 * (DECODER_MAPS * decoder_map(config) + decoder_kernels(&config.visual) + DECODER_BAND)
}

/// Returns the bytes that the decoder needs with [`DecoderMemory::Limited`] for images of this side in pixels.
fn limited_decoder(c: &VisualConfig, side: u64, precision: Precision) -> u64 {
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
            let run = Run { images: 1, system_prompt_tokens: None, encodes_image: false, pruning, halves: 2 };
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

    #[test]
    fn every_prompt_that_is_encoded_takes_memory() {
        let config = Config::open(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tiny-a"))).unwrap();
        let part = WeightBytes::default();
        let bytes = ModelBytes { text: part, transformer: part, encoder: part, decoder: part, dropped_text: 0 };
        let release = Release { text: true, transformer: true };
        let context = F32 * (config.transformer.context_tokens * config.text.hidden_size) as u64;
        let limit = Some(text(&config, 5) + 3 * context);
        let least_decoder = DecoderMemory::Full;
        let budget = Budget { bytes, int8: None, precision: Precision::F32, release, least_decoder, limit };
        assert!(budget.allow_text(&config, 3, 5).is_ok());
        assert!(matches!(budget.allow_text(&config, 4, 5), Err(Error::Memory { .. })));
    }
}
