//! Checkpoints of random weights in the published layout, to measure speed and memory at any size.
//!
//! Tensors are generated and written one at a time, so memory holds only the largest one.

use std::borrow::Cow;
use std::error::Error;
use std::fs;
use std::path::Path;

use clap::ValueEnum;
use half::{bf16, f16};
use hart_core::config::{Config, GenerationConfig, TextConfig, TransformerConfig, VisualConfig};
use hart_core::stages::{Qwen2, ResidualDiffusion, TextTokenizer, Transformer, VisualTokenizer};
use hart_core::weights::{TEXT, TRANSFORMER, VISUAL, names_and_shapes, visual_names};
use hart_core::{CancelToken, DeviceKind, NewFolder};
use indicatif::ProgressBar;
use rayon::prelude::*;
use safetensors::{Dtype, View};
use serde_json::{Value, json};

use crate::cli::progress::bar_style;

/// Tokenizer files of the shipped model. Random weights work with any vocabulary.
const TOKENIZER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/hart-emoji/text");

/// Published 0.7B models by their resolution in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub enum Preset {
    #[value(name = "256")]
    P256,
    #[value(name = "512")]
    P512,
    #[value(name = "1024")]
    P1024,
}

impl Preset {
    /// Returns the side of the images in pixels.
    pub fn pixels(self) -> usize {
        match self {
            Self::P256 => 256,
            Self::P512 => 512,
            Self::P1024 => 1024,
        }
    }

    /// Returns the sides of the scales in tokens.
    pub fn sides(self) -> &'static [usize] {
        match self {
            Self::P256 => &[1, 2, 3, 4, 5, 6, 8, 10, 13, 16],
            Self::P512 => &[1, 2, 3, 4, 6, 9, 13, 18, 24, 32],
            Self::P1024 => &[1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64],
        }
    }
}

/// Text encoder of a random checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Text {
    /// One layer of the published width
    Small,
    /// The published 1.5B model
    Full,
    /// No text encoder
    None,
}

/// Data type of the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub enum Float {
    F32,
    F16,
    Bf16,
}

/// Settings of a random checkpoint.
#[derive(Clone, Debug)]
pub struct RandomCheckpoint {
    /// Published model whose sizes are used.
    pub preset: Preset,
    /// Text encoder.
    pub text: Text,
    /// Data type of the weights.
    pub dtype: Float,
    /// Changed values of config.json files, such as `llm.depth=4`.
    pub changes: Vec<String>,
    /// Seed of the weights.
    pub seed: u64,
}

impl RandomCheckpoint {
    /// Writes the checkpoint to a new folder and calls `report` with a summary of each part. The folder is renamed into place at the end.
    ///
    /// # Errors
    ///
    /// Returns an error if the folder exists, a changed value is invalid, a file can't be written, or the run is cancelled.
    pub fn write(
        &self,
        folder: &Path,
        cancel: &CancelToken,
        report: &mut dyn FnMut(String) -> Result<(), Box<dyn Error>>,
    ) -> Result<(), Box<dyn Error>> {
        if folder.exists() {
            return Err(format!("{}: already exists; choose a new folder, or remove it first", folder.display()).into());
        }
        let mut files = configurations(self);
        for change in &self.changes {
            apply(&mut files, change)?;
        }
        let new = NewFolder::create(folder)?;
        write(self, &files, new.path(), cancel, report).map_err(|e| {
            let [temporary, folder] = [new.path(), folder].map(|path| path.display().to_string());
            let problem = e.to_string();
            if problem.contains(&temporary) { problem.replace(&temporary, &folder) } else { format!("{folder}: {problem}") }
        })?;
        Ok(new.finish()?)
    }
}

/// A `config.json` file.
struct File {
    /// Subfolder of the checkpoint.
    folder: &'static str,
    json: Value,
}

/// Returns the config.json files of a preset, before `--set` changes them.
fn configurations(checkpoint: &RandomCheckpoint) -> Vec<File> {
    let sides = checkpoint.preset.sides();
    let transformer = json!({
        "model_type": "hart_transformer_t2i", "depth": 24, "embed_dim": 1536, "num_heads": 24, "mlp_ratio": 4.0,
        "context_token": 300, "context_dim": 1536, "norm_eps": 1e-6, "patch_nums": sides, "attn_type": "llama", "mlp_type": "llama",
        "attn_l2_norm": false, "disable_aln": true, "shared_aln": false, "sep_aln_pooling_mode": "max", "use_cross_attn": false,
        "use_timestep_embed": true, "use_context_norm": true, "diff_width": 1024, "diff_depth": 6, "num_sampling_steps": "8",
        "sampler": "iddpm", "vae_path": null,
    });
    let visual = json!({
        "model_type": "hart_autoencoder_with_disc", "vocab_size": 4096, "z_channels": 32, "ch": 160, "ch_mult": [1, 1, 2, 2, 4],
        "quant_conv_ks": 3, "quant_resi": 0.5, "share_quant_resi": 4, "default_qresi_counts": 0, "v_patch_nums": sides,
        "using_znorm": false, "quantizer_type": "var_hybrid",
    });
    let text = |vocabulary: usize, layers: usize, intermediate: usize| {
        json!({
            "model_type": "qwen2", "vocab_size": vocabulary, "hidden_size": 1536, "intermediate_size": intermediate,
            "num_hidden_layers": layers, "num_attention_heads": 12, "num_key_value_heads": 2, "rms_norm_eps": 1e-6,
            "rope_theta": 1e6, "hidden_act": "silu",
        })
    };
    let mut files = vec![File { folder: "llm", json: transformer }, File { folder: "tokenizer", json: visual }];
    files.push(match checkpoint.text {
        Text::Full => File { folder: "text", json: text(151_936, 28, 8960) },
        Text::Small | Text::None => File { folder: "text", json: text(2048, 1, 1536) },
    });
    files
}

/// Applies one `--set FILE.KEY=JSON`.
fn apply(files: &mut [File], change: &str) -> Result<(), String> {
    let usage = || format!("--set {change}: expected FILE.KEY=JSON, where FILE is llm, tokenizer or text");
    let (path, value) = change.split_once('=').ok_or_else(usage)?;
    let (folder, key) = path.split_once('.').ok_or_else(usage)?;
    let file = files.iter_mut().find(|f| f.folder == folder).ok_or_else(usage)?;
    file.json[key] = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.into()));
    Ok(())
}

/// Writes all files of the checkpoint to `folder`.
fn write(
    checkpoint: &RandomCheckpoint,
    files: &[File],
    folder: &Path,
    cancel: &CancelToken,
    report: &mut dyn FnMut(String) -> Result<(), Box<dyn Error>>,
) -> Result<(), Box<dyn Error>> {
    for file in files {
        fs::create_dir(folder.join(file.folder))?;
        fs::write(folder.join(file.folder).join("config.json"), serde_json::to_vec_pretty(&file.json)?)?;
    }
    let path = |part: &str| folder.join(part).join("config.json");
    let (transformer, residual) = TransformerConfig::read(&path("llm"))?;
    let config = Config {
        transformer,
        residual,
        visual: VisualConfig::read(&path("tokenizer"))?,
        text: TextConfig::read(&path("text"))?,
        generation: GenerationConfig::default(),
    };
    config.check(&path("llm"))?;
    let device = DeviceKind::Cpu.open()?;
    let first = |names: Vec<String>| names.into_iter().next();
    let by_sharing = visual_names(files[1].json["share_quant_resi"].as_u64());
    let mut llm = names_and_shapes(&Transformer::init(&config, &device), &TRANSFORMER, "transformer", first);
    llm.extend(names_and_shapes(&ResidualDiffusion::init(&config, &device), &TRANSFORMER, "residual", first));
    let visual = names_and_shapes(&VisualTokenizer::init(&config.visual, &device), &VISUAL, "", by_sharing);
    let text = names_and_shapes(&Qwen2::init(&config.text, &device), &TEXT, "", first);
    let mut parts = vec![("llm", llm), ("tokenizer", visual)];
    if checkpoint.text == Text::None {
        fs::remove_dir_all(folder.join("text"))?;
    } else {
        parts.push(("text", text));
        for name in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"] {
            fs::copy(Path::new(TOKENIZER).join(name), folder.join("text").join(name))?;
        }
        TextTokenizer::open(&folder.join("text"), config.text.vocab_size)?;
    }
    for (part, tensors) in parts {
        let parameters: usize = tensors.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
        report(format!("{part:10} {:4} tensors, {:.1} M parameters", tensors.len(), parameters as f64 / 1e6))?;
        write_part(checkpoint, part, tensors, parameters, &folder.join(part).join("model.safetensors"), cancel)?;
        if cancel.is_cancelled() {
            return Err("cancelled".into());
        }
    }
    Ok(())
}

/// Writes the weights of one part of the checkpoint to `file`.
fn write_part(
    checkpoint: &RandomCheckpoint,
    part: &str,
    tensors: Vec<(String, Vec<usize>)>,
    parameters: usize,
    file: &Path,
    cancel: &CancelToken,
) -> Result<(), Box<dyn Error>> {
    let bar = ProgressBar::new(parameters as u64);
    bar.set_style(bar_style("{msg:10} {bar:40} {percent:>3}% {elapsed}"));
    bar.set_message(part.to_string());
    let tensors = tensors.into_iter().enumerate().map(|(index, (name, shape))| {
        let seed = checkpoint.seed ^ ((index as u64 + 1) << 32) ^ part.len() as u64;
        let tensor = RandomTensor { spread: spread(&name, &shape), shape, dtype: checkpoint.dtype, seed, bar: bar.clone(), cancel };
        (name, tensor)
    });
    safetensors::serialize_to_file(tensors, None, file)?;
    bar.finish_and_clear();
    Ok(())
}

/// Returns centre and half-width of the uniform distribution of a tensor, chosen to keep the scale of activations from layer to layer.
fn spread(name: &str, shape: &[usize]) -> (f32, f32) {
    let fan_in: usize = shape[1..].iter().product();
    match shape.len() {
        // Gains of norms near one, small biases.
        1 if name.ends_with("weight") => (1.0, 0.1),
        1 => (0.0, 0.02),
        _ if name.contains("embed_tokens") || name.contains("quantize.embedding") => (0.0, 1.0),
        _ => (0.0, (3.0 / fan_in.max(1) as f32).sqrt()),
    }
}

/// A tensor whose values are generated when it is written.
struct RandomTensor<'a> {
    shape: Vec<usize>,
    dtype: Float,
    /// Centre and half-width of the values, see [`spread`].
    spread: (f32, f32),
    seed: u64,
    bar: ProgressBar,
    cancel: &'a CancelToken,
}

impl RandomTensor<'_> {
    /// Returns the value of one element.
    fn value(&self, index: usize) -> f32 {
        let word = mix(self.seed.wrapping_add((index as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15)));
        let unit = (word >> 40) as f32 / (1u64 << 23) as f32 - 1.0; // -1 to 1
        self.spread.0 + self.spread.1 * unit
    }

    fn bytes<const N: usize>(&self, store: impl Fn(f32) -> [u8; N] + Sync) -> Vec<u8> {
        let count: usize = self.shape.iter().product();
        let mut bytes = vec![0; count * N];
        // safetensors can't be cancelled here, so the rest is written as zeros, which is fast.
        if self.cancel.is_cancelled() {
            return bytes;
        }
        bytes.par_chunks_exact_mut(N).enumerate().for_each(|(i, out)| out.copy_from_slice(&store(self.value(i))));
        self.bar.inc(count as u64);
        bytes
    }
}

/// Applies the finaliser of splitmix64 (Steele, Lea and Flood, 2014).
fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ (word >> 31)
}

impl View for RandomTensor<'_> {
    fn dtype(&self) -> Dtype {
        match self.dtype {
            Float::F32 => Dtype::F32,
            Float::F16 => Dtype::F16,
            Float::Bf16 => Dtype::BF16,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Owned(match self.dtype {
            Float::F32 => self.bytes(f32::to_le_bytes),
            Float::F16 => self.bytes(|v| f16::from_f32(v).to_le_bytes()),
            Float::Bf16 => self.bytes(|v| bf16::from_f32(v).to_le_bytes()),
        })
    }

    fn data_len(&self) -> usize {
        let size = if matches!(self.dtype, Float::F32) { 4 } else { 2 };
        self.shape.iter().product::<usize>() * size
    }
}
