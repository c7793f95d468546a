//! Benchmarks of the stages at the published 0.7B sizes, with random weights: `cargo bench -p hart-benches --bench published`.
//!
//! The transformer has one block instead of 24. `HART_PRECISION` (`f32`, `bf16` or `int8`) sets the precision, and
//! `HART_RESOLUTION` (256, 512 or 1024) the image size in pixels.
//!
//! The first run writes the model, 0.8 GB, next to this program. Later runs reuse it.

use std::path::PathBuf;
use std::sync::LazyLock;

use burn::prelude::Tensor;
use divan::Bencher;
use hart_core::stages::{
    DecoderMemory, GumbelSoftmax, Hidden, Latent, Noise, Philox, Progress, Scale, State, TokenSampling, plan, sample,
};
use hart_core::{Hart, OpenOptions, Precision, Respacing, burn};
use hart_examples::random_checkpoint::Preset;

fn main() {
    divan::main();
}

static HART: LazyLock<Hart> = LazyLock::new(|| {
    let precision: Precision = variable("HART_PRECISION").map_or(Precision::F32, |name| name.parse().unwrap());
    Hart::open(model_folder(), OpenOptions::new().device(hart_core::DeviceKind::Cpu).precision(precision)).unwrap()
});

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Returns the folder of a model with one transformer block. Writes the model if it does not exist.
fn model_folder() -> PathBuf {
    let preset = match variable("HART_RESOLUTION").as_deref() {
        None | Some("512") => Preset::P512,
        Some("256") => Preset::P256,
        Some("1024") => Preset::P1024,
        Some(other) => panic!("HART_RESOLUTION is {other}, expected 256, 512 or 1024"),
    };
    let folder = std::env::current_exe().unwrap().with_file_name(format!("bench-model-{}", preset.pixels()));
    hart_benches::write_one_block_model(&folder, preset).unwrap();
    folder
}

fn scales() -> Vec<Scale> {
    plan(&HART.config().transformer)
}

fn wave<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    hart_benches::wave(&HART, shape)
}

fn input_and_state(scale: usize) -> (Tensor<3>, State) {
    hart_benches::input_and_state(&HART, scale).unwrap()
}

/// Measures one transformer block at every scale.
#[divan::bench(args = 0..scales().len(), sample_count = 3)]
fn block(bencher: Bencher<'_, '_>, scale: usize) {
    let current = scales()[scale];
    let (input, state) = input_and_state(scale);
    bencher.with_inputs(|| (input.clone(), state.clone())).bench_local_values(|(input, mut state)| {
        HART.transformer().forward(input, &current, &mut state, &mut Progress::silent()).unwrap()
    });
}

fn last_scale() -> Scale {
    *scales().last().unwrap()
}

fn hidden() -> Hidden {
    Hidden(wave([2, last_scale().tokens(), HART.config().transformer.embed_dim]))
}

#[divan::bench(sample_count = 3)]
fn text_layer(bencher: Bencher<'_, '_>) {
    let tokens = HART.text().tokenizer().tokenize(&["a parrot"], None, HART.config().transformer.context_tokens).unwrap();
    bencher.bench_local(|| HART.text().encode(&tokens, &mut Progress::silent()).unwrap());
}

#[divan::bench(sample_count = 3)]
fn head(bencher: Bencher<'_, '_>) {
    let (conditioning, hidden) = (input_and_state(0).1.conditioning().clone(), hidden());
    bencher.bench_local(|| HART.transformer().logits(&hidden, &conditioning));
}

#[divan::bench(sample_count = 3)]
fn sampling(bencher: Bencher<'_, '_>) {
    let last = last_scale();
    let logits = wave([1, last.tokens(), HART.config().visual.vocab_size]) * 4.0;
    let rows = HART.visual().codebook().rows();
    let sampling = TokenSampling { top_k: last.top_k(), top_p: 0.0, smoothing: Some(GumbelSoftmax::of_scale(&last)) };
    let random = Philox::new(vec![1]);
    bencher.bench_local(|| sample(logits.clone(), &sampling, &rows, &last, &random).unwrap());
}

#[divan::bench(sample_count = 3)]
fn diffusion_step(bencher: Bencher<'_, '_>) {
    let codes = HART.visual().codebook().embed(&vec![vec![0; last_scale().tokens()]; 2]);
    let condition = HART.transformer().residual_condition(&hidden(), codes);
    let noise = Noise { random: &Philox::new(vec![1]), scale: last_scale().index };
    let one_step: Respacing = "1".parse().unwrap();
    bencher
        .bench_local(|| HART.residual().sample(condition.clone(), Some(3.0), &one_step, &noise, &mut Progress::silent()).unwrap());
}

#[divan::bench(args = [DecoderMemory::Full, DecoderMemory::Limited], sample_count = 2)]
fn decode(bencher: Bencher<'_, '_>, memory: DecoderMemory) {
    let side = last_scale().side;
    let latent = Latent(wave([1, HART.config().visual.z_channels, side, side]));
    bencher.bench_local(|| HART.visual().decode_images_with(memory, &latent, &mut Progress::silent()).unwrap());
}
