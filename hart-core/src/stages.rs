//! The stages of the pipeline, for programs that need only some of them, such as the text encoder or the visual tokenizer.
//!
//! [`Hart::generate`](crate::Hart::generate) uses these types, and [`Hart`](crate::Hart) has accessors for them.
//!
//! **This module is unstable: it may change in any minor version.** The rest of the library follows semantic versioning.
//!
//! ```
//! use hart_core::stages::{Philox, Progress, SamplingParams};
//! use hart_core::{Hart, OpenOptions};
//!
//! # fn main() -> Result<(), hart_core::Error> {
//! # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tiny-a");
//! # // A published package has no weights to open.
//! # if std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml.orig")).exists() { return Ok(()) }
//! let hart = Hart::open(folder, OpenOptions::new())?;
//! let mut progress = Progress::silent();
//!
//! // Encode a text once.
//! let tokens = hart.text().tokenizer().tokenize(&["a parrot"], None, hart.config().transformer.context_tokens)?;
//! let context = hart.text().encode(&tokens, &mut progress)?;
//!
//! // Sample it twice.
//! let steps = hart.config().residual.steps.clone();
//! let sampling = SamplingParams { guidance: 4.5, smoothing: true, top_k: None, top_p: 0.0, steps, pruning: None };
//! let first = hart.sample(context.clone(), &sampling, &Philox::new(vec![1]), &mut progress)?;
//! let second = hart.sample(context, &sampling, &Philox::new(vec![2]), &mut progress)?;
//! let image = hart.visual().decode_images(&first, &mut progress)?.remove(0);
//! # let _ = second;
//!
//! // Tokenize an image and decode it again.
//! let tokens = hart.visual().tokenize_images(&[image])?;
//! let decoded = hart.visual().decode_images(&tokens.hybrid(), &mut progress)?;
//! assert_eq!(decoded[0].width(), hart.visual().resolution());
//! # Ok(()) }
//! ```

pub use crate::progress::Progress;
pub use crate::residual::{LATENT_SCALE, Noise, Residual, ResidualDiffusion, ResidualMlp};
pub use crate::rng::{Philox, RandomKey, RandomSource};
pub use crate::sampling::{
    CodebookRows, Codes, GumbelSoftmax, SamplingParams, TokenSampling, guide, keep_top_k, keep_top_p, sample,
};
pub use crate::scales::{Scale, plan, plan_of};
pub use crate::schedule::{DiffusionStep, FULL_STEPS, Respacing, schedule};
pub use crate::text::{Context, Qwen2, Side, TextEncoder, TextTokenizer, Tokens, Truncation};
pub use crate::transformer::{Conditioning, Hidden, State, Transformer};
pub use crate::visual::{Codebook, DecoderMemory, ImageTokens, KnownTokens, Latent, VisualTokenizer};
