//! Properties that hold for any input, checked on many random ones.

#[allow(dead_code, reason = "shared with the golden tests")]
mod support;

use burn::prelude::*;
use hart_core::stages::{
    Context, Philox, Progress, RandomKey, RandomSource, SamplingParams, Scale, State, Tokens, keep_top_k, keep_top_p,
};
use hart_core::{Hart, Image, OpenOptions, Precision, Pruning, Request, Respacing, SystemPrompt, WeightSet};
use support::{Goldens, check_close, scales, values};

/// Returns random values for case `case`.
fn noise(case: usize, count: usize) -> Vec<f32> {
    let mut out = vec![0.0; count];
    Philox::new(vec![case as u64]).initial_noise(RandomKey { image: 0, scale: 0, position: 0 }, &mut out);
    out
}

/// Logits with many ties: rounded to quarters.
fn logits(case: usize) -> Vec<f32> {
    noise(case, 1 + case % 97).into_iter().map(|v| (v * 4.0).round() / 4.0).collect()
}

#[test]
fn top_k_keeps_exactly_the_k_largest_and_their_ties() {
    for case in 0..500 {
        let row = logits(case);
        for k in [1, 2, row.len() / 2, row.len() - 1, row.len(), row.len() + 5] {
            let mut kept = row.clone();
            keep_top_k(&mut kept, k);
            for (i, value) in row.iter().enumerate() {
                // A logit is kept if fewer than k are strictly larger.
                let larger = row.iter().filter(|v| *v > value).count();
                let keep = k == 0 || larger < k;
                assert_eq!(kept[i], if keep { *value } else { f32::NEG_INFINITY }, "case {case}, k {k}");
            }
        }
    }
}

#[test]
fn top_p_keeps_the_largest_and_only_drops_the_tail() {
    for case in 0..500 {
        let row = logits(case);
        for p in [1e-9, 0.1, 0.5, 0.9, 0.999_999, 1.0] {
            let mut kept = row.clone();
            keep_top_p(&mut kept, p);
            let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let kept_values: Vec<f32> = kept.iter().copied().filter(|v| v.is_finite()).collect();
            assert!(kept_values.contains(&largest), "case {case}, p {p}");
            let sum: f64 = row.iter().map(|v| f64::from(v - largest).exp()).sum();
            let dropped: f64 =
                row.iter().zip(&kept).filter(|(_, k)| !k.is_finite()).map(|(v, _)| f64::from(v - largest).exp() / sum).sum();
            assert!(dropped <= 1.0 - p + 1e-6, "case {case}, p {p}: dropped {dropped}");
            let smallest_kept = kept_values.iter().copied().fold(f32::INFINITY, f32::min);
            let largest_dropped =
                row.iter().zip(&kept).filter(|(_, k)| !k.is_finite()).map(|(v, _)| *v).fold(f32::NEG_INFINITY, f32::max);
            assert!(largest_dropped <= smallest_kept, "case {case}, p {p}");
            // The smallest logit that was kept would exceed the limit.
            if kept_values.len() > 1 {
                let next = f64::from(smallest_kept - largest).exp() / sum;
                assert!(dropped + next > 1.0 - p - 1e-6, "case {case}, p {p}");
            }
        }
    }
}

#[test]
fn top_p_drops_the_first_of_equal_logits() {
    for kept in [1, 31, 32, 33, 60, 99, 100] {
        let mut row = vec![0.5; 100];
        keep_top_p(&mut row, (kept as f64 - 0.5) / 100.0);
        let dropped = 100 - kept;
        assert!(
            row[..dropped].iter().all(|logit| *logit == f32::NEG_INFINITY) && row[dropped..] == vec![0.5; kept],
            "{kept}: {row:?}"
        );
    }
}

#[test]
fn top_p_zero_keeps_all() {
    let mut row = logits(42);
    keep_top_p(&mut row, 0.0);
    assert_eq!(row, logits(42));
}

/// With the cache, scale by scale, every hidden state equals that of one pass over all scales under the block-causal mask.
#[test]
fn cached_scales_equal_one_masked_pass() {
    for goldens in Goldens::all() {
        let hart = goldens.plain();
        let transformer = hart.transformer();
        let inputs: Tensor<3> = goldens.tensor("vae.var_input", hart.device());
        let conditioning = transformer.condition(&goldens.context(hart.device()));
        let whole = transformer.teacher_forcing(inputs.clone(), None, &conditioning).0;
        let mut state = transformer.begin(conditioning.clone(), None).unwrap();
        let (mut from_input, mut from_whole) = (0, 0);
        for scale in scales(&hart) {
            let input = if scale.index == 0 {
                transformer.first_input(&conditioning)
            } else {
                let own = inputs.clone().narrow(1, from_input, scale.tokens());
                from_input += scale.tokens();
                transformer.next_input(own, &scale)
            };
            let length = input.dims()[1];
            let hidden = transformer.forward_each(input, &scale, &mut state, |_, _| Ok(())).unwrap();
            let want = values(whole.clone().narrow(1, from_whole, length));
            from_whole += length;
            check_close(&format!("hidden states of scale {}", scale.index), &values(hidden.0), &want, 1e-4);
        }
        assert_eq!(from_whole, whole.dims()[1]);
    }
}

/// One unconditional context token represents all. The hidden states of every row equal those of a batch in which all are computed.
#[test]
fn one_unconditional_token_represents_all() {
    for goldens in Goldens::all() {
        let hart = goldens.plain();
        let transformer = hart.transformer();
        let few = goldens.context(hart.device()).with_unconditional();
        assert_eq!(few.unconditional * 2, few.rows());
        let all = Context { unconditional: 0, ..few.clone() };
        let inputs: Tensor<3> = goldens.tensor("vae.var_input", hart.device());
        let hidden = |context: &Context| {
            let mut state = transformer.begin(transformer.condition(context), None).unwrap();
            let mut from = 0;
            let mut next = |scale: &Scale, state: &State| {
                if scale.index == 0 {
                    return transformer.first_input(state.conditioning());
                }
                let own = inputs.clone().narrow(1, from, scale.tokens()).repeat_dim(0, 2);
                from += scale.tokens();
                transformer.next_input(own, scale)
            };
            let mut hidden_states = Vec::new();
            for scale in scales(&hart) {
                let input = next(&scale, &state);
                let keep = |_: usize, x: &Tensor<3>| {
                    hidden_states.push(values(x.clone()));
                    Ok(())
                };
                transformer.forward_each(input, &scale, &mut state, keep).unwrap();
            }
            hidden_states
        };
        for (block, (few, all)) in hidden(&few).iter().zip(&hidden(&all)).enumerate() {
            check_close(&format!("pass {block}"), few, all, 1e-5);
        }
    }
}

fn model() -> Hart {
    Goldens::published().hart(WeightSet::PreferEma)
}

fn images(hart: &Hart, request: &Request) -> Vec<Image> {
    hart.generate(request).unwrap().images
}

fn pixels(images: &[Image]) -> Vec<&[u8]> {
    images.iter().map(Image::pixels).collect()
}

const PROMPTS: [&str; 3] = ["a parrot", "two red circles above a blue square", "x"];

#[test]
fn same_seed_same_image_in_any_batch() {
    let hart = model();
    for smoothing in [false, true] {
        let request = |prompts: &[&str]| Request::batch(prompts.to_vec()).seed(11).smoothing(smoothing).images_per_prompt(2);
        let together = images(&hart, &request(&PROMPTS));
        let alone: Vec<Image> = PROMPTS.iter().flat_map(|p| images(&hart, &request(&[p]))).collect();
        assert!(pixels(&together) == pixels(&alone), "smoothing {smoothing}");
    }
}

/// A stage may process a batch. Each row gives the same result as alone, except for rounding.
#[test]
fn batch_of_three_equals_three_singles() {
    let hart = model();
    let tokens = hart.text().tokenizer().tokenize(&PROMPTS, None, hart.config().transformer.context_tokens).unwrap();
    let sampling = SamplingParams {
        guidance: 4.5,
        smoothing: false,
        top_k: None,
        top_p: 0.0,
        steps: hart.config().residual.steps.clone(),
        pruning: None,
    };
    let latent = |tokens: &Tokens, seeds: Vec<u64>| {
        let mut progress = Progress::silent();
        let context = hart.text().encode(tokens, &mut progress).unwrap();
        values(hart.sample(context, &sampling, &Philox::new(seeds), &mut progress).unwrap().0)
    };
    let together = latent(&tokens, vec![7, 8, 9]);
    let alone: Vec<f32> = (0..3).flat_map(|row| latent(&tokens.row(row), vec![7 + row as u64])).collect();
    check_close("latents", &together, &alone, 2e-4);
}

#[test]
fn image_i_has_the_seed_plus_i() {
    let hart = model();
    let many = images(&hart, &Request::new("a parrot").seed(u64::MAX).images_per_prompt(3));
    let seeds: Vec<u64> = many.iter().map(|i| i.provenance.as_ref().unwrap().seed).collect();
    assert_eq!(seeds, [u64::MAX, 0, 1]);
    let third = images(&hart, &Request::new("a parrot").seed(1));
    assert!(many[2].pixels() == third[0].pixels());
    assert!(many[0].pixels() != many[1].pixels());
}

/// Uses the shipped model, whose layers are large enough to be divided between threads.
#[test]
fn same_image_on_any_number_of_threads() {
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/hart-emoji");
    let hart = Hart::open(shipped, OpenOptions::new()).unwrap();
    let request = Request::new("a parrot").seed(3);
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| images(&hart, &request))
    };
    let one = on(1);
    assert!(one == on(2) && one == on(3));
    assert!(one == images(&hart, &request));
}

#[test]
fn threads_share_one_model() {
    let hart = model();
    let request = |seed| Request::new("a parrot").seed(seed);
    let alone: Vec<Vec<Image>> = (0..4).map(|seed| images(&hart, &request(seed))).collect();
    std::thread::scope(|scope| {
        let hart = &hart;
        let runs: Vec<_> = (0..4).map(|seed| scope.spawn(move || images(hart, &request(seed)))).collect();
        for (run, want) in runs.into_iter().zip(&alone) {
            assert_eq!(&run.join().unwrap(), want);
        }
    });
}

#[test]
fn settings_change_the_image() {
    let hart = model();
    let base = || Request::new("a parrot").seed(5).smoothing(false);
    let reference = images(&hart, &base());
    let others = [
        base().guidance(0.0),
        base().top_k(1),
        base().top_p(0.2),
        base().smoothing(true),
        base().steps("3,2".parse::<Respacing>().unwrap()),
        base().system_prompt(SystemPrompt::Text("Draw this:".into())),
    ];
    for other in others {
        assert!(images(&hart, &other)[0].pixels() != reference[0].pixels(), "{other:?}");
    }
    // This checkpoint has no system prompt.
    assert!(images(&hart, &base().system_prompt(SystemPrompt::Off))[0].pixels() == reference[0].pixels());
}

/// A guidance that rounds to nothing computes the unconditional half. Without guidance the result is the same, to the last bit if both
/// numbers of rows select the same kernels, as those of two images at these scales do.
#[test]
fn without_guidance_nothing_depends_on_the_unconditional_half() {
    const NEXT_TO_NOTHING: f64 = 1e-300;
    let goldens = Goldens::published();
    for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
        let Ok(hart) = Hart::open(&goldens.folder, OpenOptions::new().precision(precision)) else { continue };
        let latent = |images: usize, guidance: f64, smoothing: bool, pruning: Option<Pruning>| {
            let steps = hart.config().residual.steps.clone();
            let sampling = SamplingParams { guidance, smoothing, top_k: None, top_p: 0.0, steps, pruning };
            let Context { hidden, mask, positions, .. } = goldens.context(hart.device());
            let hidden = hidden.narrow(0, 0, images);
            let context =
                Context { hidden, mask: mask[..images].to_vec(), positions: positions[..images].to_vec(), unconditional: 0 };
            let random = Philox::new((3..3 + images as u64).collect());
            values(hart.sample(context, &sampling, &random, &mut Progress::silent()).unwrap().0)
        };
        for (smoothing, pruning) in [(false, None), (true, None), (true, Some(Pruning::new([0.25])))] {
            let of = |guidance| latent(2, guidance, smoothing, pruning.clone());
            assert!(of(0.0) == of(NEXT_TO_NOTHING), "{precision}, smoothing {smoothing}");
        }
        if precision == Precision::F32 {
            let of = |guidance| latent(1, guidance, false, None);
            check_close("one image", &of(0.0), &of(NEXT_TO_NOTHING), 2e-4);
        }
        let memory = |guidance: f64| hart.memory(&Request::new("a parrot").guidance(guidance)).peak();
        assert!(memory(0.0) <= memory(4.5));
    }
}
