//! Estimates of the memory that a model and a request need.

mod stages;

pub(crate) use stages::{Run, largest_map};

use burn::prelude::Device;

use crate::config::Config;
use crate::device::{Precision, is_cpu};
use crate::error::{Error, Result};
use crate::residual::ResidualDiffusion;
use crate::text::{Qwen2, TextMemory};
use crate::transformer::Transformer;
use crate::visual::{DecoderMemory, VisualTokenizer};
use crate::weights::{Checkpoint, RELEASED_BYTES, TEXT, TRANSFORMER, VISUAL, WeightBytes, is_field_below, weight_bytes};

use stages::{F32, full_decoder, limited_decoder, text, transformer};

/// Least number of bytes of converted weights of the text model that are worth converting again for every prompt.
const LEAST_DROPPED_BYTES: u64 = 64 << 20;
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

    /// Returns the memory of a run. The stages of an image run one after another, so the one that needs most counts. Images at once
    /// may all be in that one, or in different ones, which need the weights of all.
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
        let largest = match run.at_once as u64 {
            0 | 1 => all.max_by_key(Memory::peak).expect("there are stages"),
            at_once => {
                let text = if run.system_prompt_tokens.is_some() { self.text.mapped } else { kept_text };
                let weights = owned + text + encoder + self.transformer.mapped + self.decoder.mapped;
                Memory { weights, working: at_once * all.map(|stage| stage.working).max().unwrap_or(0) }
            }
        };
        Memory { working: largest.working + finished, ..largest }
    }
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
        self.allow_run("an image of this model", config, Run::ONE)
    }

    /// Fails if generating `count` images at once needs more memory than the limit.
    pub(crate) fn allow_at_once(&self, config: &Config, count: usize) -> Result<()> {
        let fitting = self.images_at_once(config, Run::ONE, count);
        let run = Run { images: count, at_once: count, ..Run::ONE };
        match self.limit {
            Some(limit) if fitting < count => Err(Error::Memory {
                what: "generating this many images at once (the option `parallel`)",
                needed: self.run_with(self.decoder_memory(config, run), config, run).peak(),
                limit,
                remedy: format!("{fitting} at once fit, or raise the limit (the option `max_memory`)"),
            }),
            _ => Ok(()),
        }
    }

    /// Returns the largest number of images at once, at most `most`, that the limit allows for such a run. At least 1.
    pub(crate) fn images_at_once(&self, config: &Config, run: Run<'_>, most: usize) -> usize {
        let Some(limit) = self.limit else { return most };
        let decoder = self.decoder_memory(config, run);
        let fits = |at_once: &usize| {
            let run = Run { images: run.images.max(*at_once), at_once: *at_once, ..run };
            self.run_with(decoder, config, run).peak() <= limit
        };
        (2..=most).rev().find(fits).unwrap_or(1)
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
    /// saves. It does not depend on the number of images at once, and neither do the images.
    pub(crate) fn decoder_memory(&self, config: &Config, run: Run<'_>) -> DecoderMemory {
        let run = Run { at_once: 1, ..run };
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

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
