//! The stages one by one, for programs that want a part: encode a text once, tokenize a picture, decode a latent.
//!
//! They are the types that [`Hart::generate`](crate::Hart::generate) runs; [`Hart`](crate::Hart) hands out its own.

pub use crate::pipeline::Sampling;
pub use crate::progress::Progress;
pub use crate::residual::{
    DiffusionStep, FULL_STEPS, LATENT_SCALE, Noise, Residual, ResidualDiffusion, ResidualMlp, Respacing, schedule,
};
pub use crate::rng::{Draws, Place, Seeded};
pub use crate::sampling::{CodebookRows, Codes, Rule, Soft, guide, keep_top_k, keep_top_p, sample};
pub use crate::scales::{Scale, plan, plan_of};
pub use crate::text::{Context, PaddingSide, Qwen2, TextEncoder, TextTokenizer, Tokens, Truncation};
pub use crate::transformer::{Conditioning, Hidden, State, Transformer};
pub use crate::visual::{Codebook, ImageTokens, Latent, VisualTokenizer};
