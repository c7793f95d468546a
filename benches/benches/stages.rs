//! Each stage by itself, so that a slowdown names its stage: `cargo bench -p hart-benches`.

use criterion::{Criterion, criterion_group, criterion_main};
use hart_benches::model;
use hart_core::Request;
use hart_core::stages::{Latent, Noise, Progress, Rule, Seeded, Soft, State, plan, sample};

fn stages(criterion: &mut Criterion) {
    let hart = model();
    let config = hart.config();
    let scales = plan(&config.transformer);
    let last = scales[scales.len() - 1];
    let draws = Seeded::new(vec![1]);
    let mut progress = Progress::silent();

    let tokens = hart.text().tokenizer().tokenize(&["a parrot"], None, config.transformer.context_tokens).unwrap();
    let context = hart.text().encode(&tokens, &mut progress).unwrap();
    criterion.bench_function("text", |b| b.iter(|| hart.text().encode(&tokens, &mut progress).unwrap()));

    let conditioning = hart.transformer().condition(&context.with_unconditional());
    let input = hart.transformer().first_input(&conditioning);
    let hidden =
        hart.transformer().forward(input.clone(), &scales[0], &mut State::new(conditioning.clone()), &mut progress).unwrap();
    criterion.bench_function("first scale", |b| {
        b.iter(|| {
            let mut state = State::new(conditioning.clone());
            hart.transformer().forward(input.clone(), &scales[0], &mut state, &mut progress).unwrap()
        });
    });

    let logits = hart.transformer().logits(&hidden, &conditioning).narrow(0, 0, 1);
    let rows = hart.visual().codebook().rows();
    let rule = Rule { top_k: last.top_k(), top_p: 0.0, soft: Some(Soft::of(&last)) };
    criterion.bench_function("sampling", |b| b.iter(|| sample(logits.clone(), &rule, &rows, &last, &draws).unwrap()));

    let codes = hart.visual().codebook().embed(&[vec![0; hidden.0.dims()[1]], vec![0; hidden.0.dims()[1]]]);
    let condition = hart.transformer().residual_condition(&hidden, codes);
    let noise = Noise { draws: &draws, scale: last.index };
    let steps = &config.residual.steps;
    criterion.bench_function("residual", |b| {
        b.iter(|| hart.residual().sample(condition.clone(), 3.0, steps, &noise, &mut progress).unwrap());
    });

    let latent = Latent::zeros(1, config.visual.z_channels, last.side, hart.device());
    criterion.bench_function("decode", |b| b.iter(|| hart.visual().decode_images(&latent, &mut progress).unwrap()));
    criterion.bench_function("whole", |b| b.iter(|| hart.generate(&Request::new("a parrot"), &mut ()).unwrap()));
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10);
    targets = stages
}
criterion_main!(benches);
