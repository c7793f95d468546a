//! `llm/config.json`: the autoregressive transformer and the residual diffusion MLP.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{Fields, MAX_CONTEXT, MAX_DEPTH, MAX_SIDE, MAX_WIDTH};
use crate::error::Result;
use crate::files::Storage;
use crate::schedule::{FULL_STEPS, Respacing};

/// How a block reduces the context's rows to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// The largest value of each channel over all rows, padding included.
    Max,
    /// The average over the rows that hold text.
    Average,
}

/// What modulates a block's norms and residual branches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModulationKind {
    /// Nothing: `disable_aln` true, `shared_aln` false, as in the published models.
    Off,
    /// A linear layer of the pooled context in every block: `disable_aln` false.
    Linear(Pooling),
    /// A table in every block, added to the averaged context: `disable_aln` and `shared_aln` true.
    Table,
}

/// Where the embedding of a scale's number comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LevelEmbeddingKind {
    /// An MLP of the number's sinusoid: `use_timestep_embed` true.
    Sinusoid,
    /// A table with a row a scale.
    Table,
}

/// Sizes and options of the autoregressive transformer.
#[derive(Clone, Debug)]
pub struct TransformerConfig {
    /// How many blocks.
    pub depth: usize,
    /// Channels between blocks, C.
    pub embed_dim: usize,
    /// Heads, H.
    pub num_heads: usize,
    /// Channels inside a block's feed-forward layer.
    pub feed_forward_dim: usize,
    /// Text tokens of a prompt, T.
    pub context_tokens: usize,
    /// Channels of the text encoder's output.
    pub context_dim: usize,
    /// Epsilon of the norms.
    pub norm_eps: f64,
    /// Side of each scale in latent positions, `patch_nums`.
    pub sides: Vec<usize>,
    /// Whether queries and keys are normalised, with a learned scale a head.
    pub attn_l2_norm: bool,
    /// What modulates the blocks.
    pub modulation: ModulationKind,
    /// Where the embedding of a scale's number comes from.
    pub level_embedding: LevelEmbeddingKind,
    /// Whether the context is normalised before it is embedded.
    pub context_norm: bool,
    /// Folder of the visual tokenizer, where the file names one.
    pub visual_path: Option<PathBuf>,
}

/// Sizes of the residual diffusion MLP.
#[derive(Clone, Debug)]
pub struct ResidualConfig {
    /// Channels of its blocks.
    pub width: usize,
    /// How many blocks.
    pub depth: usize,
    /// Which of the 1000 diffusion steps are taken.
    pub steps: Respacing,
}

impl TransformerConfig {
    /// Channels of a head.
    pub fn head_dim(&self) -> usize {
        self.embed_dim / self.num_heads
    }

    /// Side of the last scale, which is the latent's.
    pub fn last_side(&self) -> usize {
        self.sides[self.sides.len() - 1]
    }

    /// Reads and checks `llm/config.json`. Options that a file leaves out are as in the published configuration class; sizes must be there.
    ///
    /// # Errors
    ///
    /// The file can't be read, or as [`Self::parse`].
    pub fn read(path: &Path) -> Result<(Self, ResidualConfig)> {
        Self::read_in(&Storage::Disk { memory_map: false }, path)
    }

    pub(crate) fn read_in(storage: &Storage, path: &Path) -> Result<(Self, ResidualConfig)> {
        Self::of(Fields::read(storage, path)?)
    }

    /// Checks the text of a `config.json`; `path` is for messages.
    ///
    /// # Errors
    ///
    /// It is no JSON object, or [`Error::Config`](crate::Error::Config) naming the first value that won't do.
    pub fn parse(path: &Path, text: &[u8]) -> Result<(Self, ResidualConfig)> {
        Self::of(Fields::parse(path, text)?)
    }

    fn of(fields: Fields) -> Result<(Self, ResidualConfig)> {
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

/// Sides of the scales, at least two, of which none is larger than the last.
pub(super) fn sides(fields: &Fields, name: &str) -> Result<Vec<usize>> {
    let sides = fields.sizes(name, 2..=64, 1..=MAX_SIDE)?;
    if sides[0] != 1 || sides.iter().max() != sides.last() {
        return Err(fields.wrong(name, "sides that start at 1, none larger than the last"));
    }
    Ok(sides)
}

/// The Llama rule: two thirds of `mlp_ratio`, rounded up to a multiple of 256. The product is taken in floating point before the cast.
fn feed_forward_dim(fields: &Fields, embed_dim: usize) -> Result<usize> {
    const MULTIPLE: usize = 256;
    let exact = embed_dim as f64 * fields.number_or("mlp_ratio", 4.0, 0.01..=64.0)? * 2.0 / 3.0;
    match (exact + (MULTIPLE - 1) as f64) as usize / MULTIPLE * MULTIPLE {
        0 => Err(fields.wrong("mlp_ratio", "a ratio that leaves the feed-forward layer some channels")),
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
