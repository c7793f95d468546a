//! `llm/config.json`: the autoregressive transformer and the residual diffusion MLP.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{Fields, MAX_CONTEXT, MAX_DEPTH, MAX_SIDE, MAX_WIDTH};
use crate::error::Result;
use crate::files::Storage;
use crate::schedule::{FULL_STEPS, Respacing};

/// Pooling of the context tokens for a block's modulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// The maximum of each channel over all tokens, padding included.
    Max,
    /// The average over text tokens.
    Average,
}

/// The source of the modulation of a block's norms and residual branches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModulationKind {
    /// No modulation: `disable_aln` true, `shared_aln` false, as in the published models.
    Off,
    /// A linear layer of the pooled context in every block: `disable_aln` false.
    Linear(Pooling),
    /// A table in every block, added to the averaged context: `disable_aln` and `shared_aln` true.
    Table,
}

/// The kind of level embedding, which tells the scales apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LevelEmbeddingKind {
    /// An MLP of the scale index's sinusoid: `use_timestep_embed` true.
    Sinusoid,
    /// A table with one row for each scale: `use_timestep_embed` false.
    Table,
}

/// Sizes and options of the autoregressive transformer.
#[derive(Clone, Debug)]
pub struct TransformerConfig {
    /// Number of blocks.
    pub depth: usize,
    /// Channels of the hidden states, C.
    pub embed_dim: usize,
    /// Number of heads, H.
    pub num_heads: usize,
    /// Channels inside a block's feed-forward layer.
    pub feed_forward_dim: usize,
    /// Number of tokens of a prompt, padding included, T.
    pub context_tokens: usize,
    /// Channels of the text encoder's output.
    pub context_dim: usize,
    /// Epsilon of the norms.
    pub norm_eps: f64,
    /// Side of each scale in latent positions, `patch_nums`.
    pub sides: Vec<usize>,
    /// True for L2-normalised queries and keys with a learned scale for each head.
    pub attn_l2_norm: bool,
    /// The source of the blocks' modulation.
    pub modulation: ModulationKind,
    /// The kind of level embedding.
    pub level_embedding: LevelEmbeddingKind,
    /// True for a norm of the context before its embedding.
    pub context_norm: bool,
    /// Folder of the visual tokenizer, if the file names one.
    pub visual_path: Option<PathBuf>,
}

/// Sizes of the residual diffusion MLP.
#[derive(Clone, Debug)]
pub struct ResidualConfig {
    /// Channels of the blocks.
    pub width: usize,
    /// Number of blocks.
    pub depth: usize,
    /// The selection of the 1000 diffusion steps.
    pub steps: Respacing,
}

impl TransformerConfig {
    /// Returns the number of channels of a head.
    pub fn head_dim(&self) -> usize {
        self.embed_dim / self.num_heads
    }

    /// Returns the side of the last scale, which is that of the latent.
    pub fn last_side(&self) -> usize {
        self.sides[self.sides.len() - 1]
    }

    /// Reads and checks `llm/config.json`. Missing options have the defaults of the published configuration class; sizes are required.
    ///
    /// # Errors
    ///
    /// The file cannot be read, and those of [`Self::parse`].
    pub fn read(path: &Path) -> Result<(Self, ResidualConfig)> {
        Self::read_in(&Storage::Disk { memory_map: false }, path)
    }

    pub(crate) fn read_in(storage: &Storage, path: &Path) -> Result<(Self, ResidualConfig)> {
        Self::from_fields(Fields::read(storage, path)?)
    }

    /// Parses and checks the contents of a `config.json`; `path` is for error messages.
    ///
    /// # Errors
    ///
    /// It is not a JSON object, or [`Error::Config`](crate::Error::Config) naming the first invalid value.
    pub fn parse(path: &Path, text: &[u8]) -> Result<(Self, ResidualConfig)> {
        Self::from_fields(Fields::parse(path, text)?)
    }

    fn from_fields(fields: Fields) -> Result<(Self, ResidualConfig)> {
        fields.one_of("model_type", "hart_transformer_t2i", &["hart_transformer_t2i"], "a text-to-image HART")?;
        let unsupported = "the GPT-2 variant has no published text-to-image weights";
        fields.one_of("attn_type", "gpt2", &["llama"], unsupported)?;
        fields.one_of("mlp_type", "gpt2", &["llama"], unsupported)?;
        if fields.flag_or("use_cross_attn", false)? {
            return Err(fields.wrong("use_cross_attn", "false (cross-attention has no published weights)"));
        }
        let embed_dim = fields.size("embed_dim", 1..=MAX_WIDTH)?;
        let num_heads = fields.size("num_heads", 1..=embed_dim)?;
        if embed_dim % num_heads != 0 || (embed_dim / num_heads) % 4 != 0 {
            let expected = format!("a divisor of embed_dim, {embed_dim}, that leaves heads of a multiple of 4 channels");
            return Err(fields.wrong("num_heads", expected));
        }
        let sides = sides(&fields, "patch_nums")?;
        let transformer = Self {
            depth: fields.size("depth", 1..=MAX_DEPTH)?,
            embed_dim,
            num_heads,
            feed_forward_dim: feed_forward_dim(&fields, embed_dim)?,
            context_tokens: fields.size("context_token", 1..=MAX_CONTEXT)?,
            context_dim: fields.size("context_dim", 1..=MAX_WIDTH)?,
            norm_eps: fields.number_or("norm_eps", 1e-6, 1e-12..=1.0)?,
            sides,
            attn_l2_norm: fields.flag_or("attn_l2_norm", false)?,
            modulation: modulation(&fields)?,
            level_embedding: if fields.flag_or("use_timestep_embed", false)? {
                LevelEmbeddingKind::Sinusoid
            } else {
                LevelEmbeddingKind::Table
            },
            context_norm: fields.flag_or("use_context_norm", false)?,
            visual_path: fields.get("vae_path").map(|_| fields.text_or("vae_path", "")).transpose()?.map(PathBuf::from),
        };
        fields.one_of("sampler", "iddpm", &["iddpm"], "the published code has no other")?;
        let residual = ResidualConfig {
            width: fields.size_or("diff_width", 1024, 1..=MAX_WIDTH)?,
            depth: fields.size_or("diff_depth", 6, 1..=MAX_DEPTH)?,
            steps: steps(&fields)?,
        };
        Ok((transformer, residual))
    }
}

/// Reads the sides of the scales: at least two, none larger than the last.
pub(super) fn sides(fields: &Fields, name: &str) -> Result<Vec<usize>> {
    let sides = fields.sizes(name, 2..=64, 1..=MAX_SIDE)?;
    if sides[0] != 1 || sides.iter().max() != sides.last() {
        return Err(fields.wrong(name, "sides that start at 1, none larger than the last"));
    }
    Ok(sides)
}

/// Computes the feed-forward width by Llama's rule: two thirds of `mlp_ratio`, rounded up to a multiple of 256. The product is computed in
/// floating point before the cast.
fn feed_forward_dim(fields: &Fields, embed_dim: usize) -> Result<usize> {
    const MULTIPLE: usize = 256;
    let exact = embed_dim as f64 * fields.number_or("mlp_ratio", 4.0, 0.01..=64.0)? * 2.0 / 3.0;
    match (exact + (MULTIPLE - 1) as f64) as usize / MULTIPLE * MULTIPLE {
        0 => {
            // Two thirds of the ratio times `embed_dim` have to be at least 1.
            let least = (1.5 / embed_dim as f64 * 1e4).ceil() / 1e4;
            Err(fields.wrong(
                "mlp_ratio",
                format!("at least {least} with this embed_dim; less leaves the feed-forward layer no channels"),
            ))
        }
        width => Ok(width),
    }
}

fn modulation(fields: &Fields) -> Result<ModulationKind> {
    let pooling = match fields.text_or("sep_aln_pooling_mode", "max")? {
        "max" => Pooling::Max,
        "avg" => Pooling::Average,
        _ => return Err(fields.wrong("sep_aln_pooling_mode", "\"max\" or \"avg\"")),
    };
    Ok(match (fields.flag_or("disable_aln", false)?, fields.flag_or("shared_aln", false)?) {
        (false, _) => ModulationKind::Linear(pooling),
        (true, false) => ModulationKind::Off,
        (true, true) => ModulationKind::Table,
    })
}

fn steps(fields: &Fields) -> Result<Respacing> {
    let text = match fields.get("num_sampling_steps") {
        // Every step, as in the published code.
        None if fields.is_null("num_sampling_steps") => FULL_STEPS.to_string(),
        None => "8".to_string(),
        Some(Value::String(s)) if s.is_empty() => FULL_STEPS.to_string(),
        Some(Value::String(s)) => s.clone(),
        Some(Value::Array(counts)) => counts.iter().map(Value::to_string).collect::<Vec<_>>().join(","),
        Some(other) => other.to_string(),
    };
    Respacing::parse(&text).map_err(|expected| fields.wrong("num_sampling_steps", expected))
}
