//! `tokenizer/config.json`: the hybrid visual tokenizer.

use std::path::Path;

use super::{Fields, MAX_RESOLUTION, MAX_TOKENS, MAX_VOCABULARY, MAX_WIDTH, transformer};
use crate::error::Result;
use crate::files::Storage;

/// Groups of every GroupNorm in the autoencoder.
pub(crate) const NORM_GROUPS: usize = 32;

/// Sizes and options of the visual tokenizer.
#[derive(Clone, Debug)]
pub struct VisualConfig {
    /// Number of codebook rows, V.
    pub vocab_size: usize,
    /// Channels of the latent, Z.
    pub z_channels: usize,
    /// Channels of the autoencoder's finest level.
    pub channels: usize,
    /// Factor of `channels` for each level, the finest first; each level but the last halves the side.
    pub multipliers: Vec<usize>,
    /// Side of the kernels before and after the quantizer.
    pub quant_conv_kernel: usize,
    /// Side of each scale in latent positions, `v_patch_nums`.
    pub sides: Vec<usize>,
    /// Weight of the convolution in phi, `|quant_resi|`. With 0 phi is the identity and has no weights.
    pub phi_ratio: f64,
    /// Number of phi convolutions.
    pub phi_count: usize,
    /// True if the nearest codebook row is the one at the smallest angle instead of the smallest distance.
    pub cosine: bool,
}

impl VisualConfig {
    /// Returns the number of pixels per latent position along one side.
    pub fn downsample(&self) -> usize {
        1 << (self.multipliers.len() - 1)
    }

    /// Reads and checks `tokenizer/config.json`. Defaults are those of the published configuration class.
    ///
    /// # Errors
    ///
    /// The file cannot be read, and those of [`Self::parse`].
    pub fn read(path: &Path) -> Result<Self> {
        Self::read_in(&Storage::Disk { memory_map: false }, path)
    }

    pub(crate) fn read_in(storage: &Storage, path: &Path) -> Result<Self> {
        Self::from_fields(Fields::read(storage, path)?)
    }

    /// Parses and checks the contents of a `config.json`; `path` is for error messages.
    ///
    /// # Errors
    ///
    /// It is not a JSON object, or [`Error::Config`](crate::Error::Config) naming the first invalid value.
    pub fn parse(path: &Path, text: &[u8]) -> Result<Self> {
        Self::from_fields(Fields::parse(path, text)?)
    }

    fn from_fields(fields: Fields) -> Result<Self> {
        let kinds = ["hart_autoencoder_with_disc", "hart_autoencoder"];
        fields.one_of("model_type", kinds[0], &kinds, "HART's visual tokenizer")?;
        fields.one_of("quantizer_type", "var", &["var_hybrid", "var"], "the quantizers of the published code")?;
        let channels = fields.size_or("ch", 160, 1..=MAX_WIDTH)?;
        if channels % NORM_GROUPS != 0 {
            return Err(fields.wrong("ch", format!("a multiple of {NORM_GROUPS}, the groups of its norms")));
        }
        let multipliers = match fields.get("ch_mult") {
            None => vec![1, 1, 2, 2, 4],
            Some(_) => fields.sizes("ch_mult", 1..=8, 1..=64)?,
        };
        if multipliers.iter().any(|m| m * channels > MAX_WIDTH) {
            return Err(fields.wrong("ch_mult", format!("factors that keep ch * ch_mult within {MAX_WIDTH}")));
        }
        let quant_conv_kernel = fields.size_or("quant_conv_ks", 3, 1..=15)?;
        if quant_conv_kernel % 2 == 0 {
            return Err(fields.wrong("quant_conv_ks", "an odd kernel side, which keeps the latent's size"));
        }
        let sides = match fields.get("v_patch_nums") {
            None => vec![1, 2, 3, 4, 5, 6, 8, 10, 13, 16],
            Some(_) => transformer::sides(&fields, "v_patch_nums")?,
        };
        // No tensor has these sizes. Loading the weights would therefore not reveal a value that is too large.
        let side = sides[sides.len() - 1] << (multipliers.len() - 1);
        if side > MAX_RESOLUTION || sides.iter().map(|side| side * side).sum::<usize>() > MAX_TOKENS {
            let expected = format!("sides of at most {MAX_TOKENS} tokens together and {MAX_RESOLUTION} pixels, not {side}");
            return Err(fields.wrong("v_patch_nums", expected));
        }
        const MAX_PHIS: usize = 1024;
        let shared = fields.size_or("share_quant_resi", 4, 0..=MAX_PHIS)?;
        let counted = fields.size_or("default_qresi_counts", 0, 0..=MAX_PHIS)?;
        let phi_count = match (shared, counted) {
            (0, 0) => sides.len(),
            (0, n) => n,
            (n, _) => n,
        };
        Ok(Self {
            vocab_size: fields.size_or("vocab_size", 4096, 1..=MAX_VOCABULARY)?,
            z_channels: fields.size_or("z_channels", 32, 1..=MAX_WIDTH)?,
            channels,
            multipliers,
            quant_conv_kernel,
            sides,
            phi_ratio: fields.number_or("quant_resi", 0.5, -8.0..=8.0)?.abs(),
            phi_count,
            cosine: fields.flag_or("using_znorm", false)?,
        })
    }

    /// Returns whether phi has convolutions. The published code omits them below a minimum ratio.
    pub(crate) fn has_phi(&self) -> bool {
        const MIN_RATIO: f64 = 1e-6;
        self.phi_ratio > MIN_RATIO
    }
}
