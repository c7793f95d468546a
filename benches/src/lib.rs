//! Support code of the benchmarks.

use std::error::Error;
use std::path::Path;

use hart_core::burn::prelude::{Tensor, TensorData};
use hart_core::burn::tensor::DType;
use hart_core::stages::{Context, Progress, State, plan};
use hart_core::{CancelToken, Hart, OpenOptions, Result};
use hart_examples::random_checkpoint::{Float, Preset, RandomCheckpoint, Text};

/// Number of context positions that hold text, as in `torch_hart.py`.
const TEXT_TOKENS: usize = 40;

/// Opens the model folder that `HART_MODEL` names, or the shipped model.
///
/// # Panics
///
/// Panics if the model can't be opened.
pub fn model() -> Hart {
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/hart-emoji");
    let folder = std::env::var_os("HART_MODEL").unwrap_or_else(|| shipped.into());
    Hart::open(&folder, OpenOptions::new()).unwrap_or_else(|error| panic!("{error}"))
}

/// Writes a model of random weights, of the published size but with one transformer block, unless the folder exists.
///
/// # Errors
///
/// Returns an error if a file can't be written.
pub fn write_one_block_model(folder: &Path, preset: Preset) -> std::result::Result<(), Box<dyn Error>> {
    if folder.is_dir() {
        return Ok(());
    }
    let changes = vec!["llm.depth=1".to_string()];
    let checkpoint = RandomCheckpoint { preset, text: Text::Small, dtype: Float::F32, changes, seed: 0 };
    checkpoint.write(folder, &CancelToken::new(), &mut |_| Ok(()))
}

/// Returns a tensor of deterministic values between -1 and 1.
pub fn wave<const D: usize>(hart: &Hart, shape: [usize; D]) -> Tensor<D> {
    let values: Vec<f32> = (0..shape.iter().product::<usize>()).map(|i| (i as f32 * 0.618).sin()).collect();
    Tensor::from_data(TensorData::new(values, shape), (hart.device(), DType::F32))
}

/// Returns a context of `batch` prompts, in place of the output of the text encoder.
pub fn context(hart: &Hart, batch: usize) -> Context {
    let config = &hart.config().transformer;
    let tokens = config.context_tokens;
    Context {
        hidden: wave(hart, [batch, tokens, config.context_dim]),
        mask: vec![(0..tokens).map(|i| i < TEXT_TOKENS).collect(); batch],
        positions: vec![(0..tokens).map(|i| i.min(TEXT_TOKENS - 1) as i64).collect(); batch],
        unconditional: 0,
    }
}

/// Returns the transformer's input at a scale, and its state with the keys and values of all earlier scales. Guidance doubles the rows.
///
/// # Errors
///
/// Returns an error of the transformer.
pub fn input_and_state(hart: &Hart, scale: usize) -> Result<(Tensor<3>, State)> {
    let (transformer, scales) = (hart.transformer(), plan(&hart.config().transformer));
    let mut state = transformer.begin(transformer.condition(&context(hart, 1).with_unconditional()), None)?;
    let mut input = transformer.first_input(state.conditioning());
    for (earlier, next) in scales[..scale].iter().zip(&scales[1..]) {
        transformer.forward(input, earlier, &mut state, &mut Progress::silent())?;
        input = transformer.next_input(wave(hart, [2, next.tokens(), hart.config().visual.z_channels]), next);
    }
    Ok((input, state))
}
