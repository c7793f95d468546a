//! Training (feature `train`): the losses of the paper, the updates of the codebook, and the training steps of visual tokenizer and
//! generator.
//!
//! [`TokenizerTrainer`] trains the visual tokenizer on images. [`GeneratorTrainer`] then trains text encoder, transformer and residual
//! diffusion together, on captioned images that the visual tokenizer has encoded. The `step` method of a trainer depends only on its
//! state and its batch: every random number is addressed by seed and step, so a resumed run is equal to an uninterrupted one, bit for
//! bit. Loops, files and progress belong to the program; `examples/src/train` is one.

mod codebook;
mod generator;
mod init;
mod loss;
mod optimizer;
mod random;
mod ranges;
mod shards;
mod targets;
mod tokenizer;
mod vocabulary;

pub use codebook::quantizer_loss;
pub use generator::{CaptionedImage, Generator, GeneratorLosses, GeneratorOptions, GeneratorTrainer};
pub use loss::{cross_entropy, diffusion_loss, reconstruction_loss};
pub use optimizer::{OptimizerOptions, learning_rate};
pub use tokenizer::{TokenizerLosses, TokenizerOptions, TokenizerTrainer, residual_quantile};
pub use vocabulary::train_text_tokenizer;
