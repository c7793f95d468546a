//! Benchmarks of every stage by itself, with a small model: `cargo bench -p hart-benches --bench stages`.

use std::sync::LazyLock;

use burn::prelude::Tensor;
use divan::Bencher;
use hart_benches::model;
use hart_core::stages::{
    Conditioning, Context, GumbelSoftmax, Latent, Noise, Philox, Progress, Scale, TokenSampling, Tokens, plan, sample,
};
use hart_core::{Hart, Request, burn};

fn main() {
    divan::main();
}

static HART: LazyLock<Hart> = LazyLock::new(model);

fn tokens() -> Tokens {
    HART.text().tokenizer().tokenize(&["a parrot"], None, HART.config().transformer.context_tokens).unwrap()
}

fn context() -> Context {
    HART.text().encode(&tokens(), &mut Progress::silent()).unwrap()
}

fn conditioning() -> Conditioning {
    HART.transformer().condition(&context().with_unconditional())
}

fn last_scale() -> Scale {
    *plan(&HART.config().transformer).last().unwrap()
}

/// Returns the hidden states of the first scale, `[2, tokens, width]`: one batch row with the prompt and one without.
fn first_scale(conditioning: &Conditioning) -> hart_core::stages::Hidden {
    let mut state = HART.transformer().begin(conditioning.clone(), None).unwrap();
    let input: Tensor<3> = HART.transformer().first_input(conditioning);
    HART.transformer().forward(input, &plan(&HART.config().transformer)[0], &mut state, &mut Progress::silent()).unwrap()
}

#[divan::bench(sample_count = 20)]
fn text(bencher: Bencher<'_, '_>) {
    let tokens = tokens();
    bencher.bench_local(|| HART.text().encode(&tokens, &mut Progress::silent()).unwrap());
}

#[divan::bench(sample_count = 20)]
fn transformer_first_scale(bencher: Bencher<'_, '_>) {
    let conditioning = conditioning();
    bencher.bench_local(|| first_scale(&conditioning));
}

#[divan::bench(sample_count = 20)]
fn sampling(bencher: Bencher<'_, '_>) {
    let (conditioning, last) = (conditioning(), last_scale());
    let logits = HART.transformer().logits(&first_scale(&conditioning), &conditioning).narrow(0, 0, 1);
    let rows = HART.visual().codebook().rows();
    let sampling = TokenSampling { top_k: last.top_k(), top_p: 0.0, smoothing: Some(GumbelSoftmax::of_scale(&last)) };
    let random = Philox::new(vec![1]);
    bencher.bench_local(|| sample(logits.clone(), &sampling, &rows, &last, &random).unwrap());
}

#[divan::bench(sample_count = 20)]
fn residual(bencher: Bencher<'_, '_>) {
    let hidden = first_scale(&conditioning());
    let codes = HART.visual().codebook().embed(&vec![vec![0; hidden.0.dims()[1]]; 2]);
    let condition = HART.transformer().residual_condition(&hidden, codes);
    let noise = Noise { random: &Philox::new(vec![1]), scale: last_scale().index };
    let steps = &HART.config().residual.steps;
    bencher.bench_local(|| HART.residual().sample(condition.clone(), Some(3.0), steps, &noise, &mut Progress::silent()).unwrap());
}

#[divan::bench(sample_count = 20)]
fn decode(bencher: Bencher<'_, '_>) {
    let latent = Latent::zeros(1, HART.config().visual.z_channels, last_scale().side, HART.device());
    bencher.bench_local(|| HART.visual().decode_images(&latent, &mut Progress::silent()).unwrap());
}

#[divan::bench(sample_count = 10)]
fn whole_image(bencher: Bencher<'_, '_>) {
    bencher.bench_local(|| HART.generate(&Request::new("a parrot")).unwrap());
}
