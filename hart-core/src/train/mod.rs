//! Training (feature `train`): the losses of the paper, the learning of the codebook, and one step of either half of the system.
//!
//! [`TokenizerTrainer`] learns the visual tokenizer from pictures. [`GeneratorTrainer`] then learns text encoder, transformer and
//! residual diffusion together, from the tokens that the first one makes of captioned pictures. A trainer's `step` is a function of
//! its state and its batch alone: every random number is addressed by seed and step, so a run that is resumed goes on to the last
//! bit. Loops, files and progress belong to the program; `examples/src/train` is one.

mod codebook;
mod generator;
mod loss;
mod optimizer;
mod random;
mod ranges;
mod shards;
mod targets;
mod tokenizer;
mod vocabulary;

pub use codebook::quantizer_loss;
pub use generator::{Captioned, Generator, GeneratorLosses, GeneratorOptions, GeneratorTrainer};
pub use loss::{cross_entropy, diffusion_loss, reconstruction_loss};
pub use optimizer::{OptimizerOptions, learning_rate};
pub use tokenizer::{TokenizerLosses, TokenizerOptions, TokenizerTrainer, residual_size};
pub use vocabulary::train_text_tokenizer;
