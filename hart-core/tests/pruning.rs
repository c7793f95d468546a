//! Pruned scales: against recorded values, and properties of runs with a plan.
//!
//! `HART_TEST_DEVICE=wgpu` (or `cuda`) checks another device.

#[allow(dead_code, reason = "shared with the golden tests")]
mod support;

use burn::prelude::*;
use hart_core::stages::{Context, Latent, Philox, Progress, SamplingParams, guide, sample};
use hart_core::{CancelToken, Error, FromImage, Hart, Image, Mask, OpenOptions, Precision, Pruning, Request, WeightSet};
use support::{Goldens, Replay, Run, check_close, device, scales, stage_tolerance, values};

const SHIPPED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/hart-emoji");

/// A recorded plan.
struct Plan {
    name: String,
    pruning: Pruning,
    /// Sides of the pruned scales.
    sides: Vec<usize>,
}

fn plans(pruned: &Goldens) -> Vec<Plan> {
    let plan = |(name, plan): (&String, &serde_json::Value)| {
        let ratios = plan["drop"].as_object().unwrap().iter();
        let mut ratios: Vec<(usize, f64)> = ratios.map(|(side, ratio)| (side.parse().unwrap(), ratio.as_f64().unwrap())).collect();
        ratios.sort_by_key(|(side, _)| *side);
        let (sides, ratios): (Vec<usize>, Vec<f64>) = ratios.into_iter().unzip();
        Plan { name: name.clone(), pruning: Pruning::new(ratios), sides }
    };
    pruned.meta["plans"].as_object().unwrap().iter().map(plan).collect()
}

/// Calls `check` with every fixture of pruned runs: the model, the run that was replayed, and a plan.
fn for_each_plan(check: impl Fn(&Goldens, &Goldens, &Hart, &Run, &Plan)) {
    let mut checked = 0;
    for goldens in Goldens::all() {
        let Some(pruned) = goldens.pruned() else { continue };
        let run = goldens.runs().into_iter().find(|run| run.name == "discrete").unwrap();
        let hart = goldens.hart(run.weights);
        for plan in plans(&pruned) {
            println!("{} {}", goldens.folder.display(), plan.name);
            check(&goldens, &pruned, &hart, &run, &plan);
            checked += 1;
        }
    }
    assert!(checked >= 4, "{checked} plans are recorded");
}

/// Covers blocks without modulation, and the two kinds of gated blocks.
#[test]
fn every_pruned_scale_keeps_the_recorded_tokens() {
    for_each_plan(|goldens, pruned, hart, run, plan| {
        let (device, transformer, codebook) = (hart.device(), hart.transformer(), hart.visual().codebook());
        let replay = Replay::new(goldens, run, &scales(hart));
        let sampling = run.sampling(hart);
        let context = goldens.context(device);
        let mut latent =
            Latent::zeros(context.rows(), hart.config().visual.z_channels, hart.config().transformer.last_side(), device);
        let mut state = transformer.begin(transformer.condition(&context.with_unconditional()), Some(&plan.pruning)).unwrap();
        let mut input = transformer.first_input(state.conditioning());
        for scale in &scales(hart) {
            let name = |what: &str| format!("{}.side{}.{what}", plan.name, scale.side);
            let is_pruned = scale.index > 0 && plan.sides.contains(&scale.side);
            let mut first_block = None;
            let keep_first = |block: usize, x: &Tensor<3>| {
                first_block.get_or_insert_with(|| x.clone());
                assert!(block < hart.config().transformer.depth);
                Ok(())
            };
            let hidden = transformer.forward_each(input.clone(), scale, &mut state, keep_first).unwrap();
            if is_pruned {
                for block in 0..hart.config().transformer.depth {
                    let kept = state.kept_tokens(block).unwrap();
                    for (branch, kept) in ["attn", "ffn"].iter().zip(kept) {
                        let name = name(&format!("block{block}.{branch}.kept"));
                        let kept: Vec<i64> = kept.iter().flatten().map(|&position| i64::from(position)).collect();
                        assert_eq!(kept, pruned.integers(&name), "{name}");
                    }
                }
                pruned.check_tensor(&name("first_block"), first_block.unwrap(), stage_tolerance());
                pruned.check_tensor(&name("last_block"), hidden.0.clone(), stage_tolerance());
            }
            let logits = transformer.logits(&hidden.last(scale.tokens()), state.conditioning());
            let logits = guide(logits, scale.guidance(run.guidance));
            if is_pruned {
                pruned.check_tensor(&name("logits"), logits.clone(), stage_tolerance());
            }
            let codes = sample(logits, &sampling.of_scale(scale), &codebook.rows(), scale, &replay).unwrap();
            latent = codebook.accumulate(latent, codes.features, scale);
            if let Some(next) = scales(hart).get(scale.index + 1) {
                input = transformer.next_input(codebook.next_features(&latent, next), next).repeat_dim(0, 2);
            }
        }
    });
}

#[test]
fn replayed_pruned_runs_end_where_the_recorded_ones_do() {
    for_each_plan(|goldens, pruned, hart, run, plan| {
        let replay = Replay::new(goldens, run, &scales(hart));
        let sampling = SamplingParams { pruning: Some(plan.pruning.clone()), ..run.sampling(hart) };
        let mut progress = Progress::silent();
        let latent = hart.sample(goldens.context(hart.device()), &sampling, &replay, &mut progress).unwrap();
        pruned.check_tensor(&format!("{}.fhat", plan.name), latent.0.clone(), run.end_tolerance());
        let pixels = hart.visual().decode(&latent, &mut progress).unwrap();
        pruned.check_tensor(&format!("{}.image", plan.name), (pixels + 1.0) * 0.5, run.end_tolerance());
    });
}

fn latent(hart: &Hart, context: &Context, seeds: Vec<u64>, pruning: Option<Pruning>) -> Vec<f32> {
    let sampling = SamplingParams {
        guidance: 3.0,
        smoothing: false,
        top_k: Some(1),
        top_p: 0.0,
        steps: hart.config().residual.steps.clone(),
        pruning,
    };
    values(hart.sample(context.clone(), &sampling, &Philox::new(seeds), &mut Progress::silent()).unwrap().0)
}

/// All tokens are computed: nothing is left to restore. Covers the precisions in which keys, values and outputs are stored.
#[test]
fn a_plan_that_leaves_nothing_out_changes_nothing() {
    let goldens = Goldens::published();
    for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
        let options = OpenOptions::new().device(device()).precision(precision).weight_set(WeightSet::Plain);
        let Ok(hart) = Hart::open(&goldens.folder, options) else { continue };
        let context = goldens.context(hart.device());
        let whole = latent(&hart, &context, vec![1, 2], None);
        assert!(latent(&hart, &context, vec![1, 2], Some(Pruning::new([0.0; 3]))) == whole, "{precision}");
        assert!(latent(&hart, &context, vec![1, 2], Some(Pruning::new([]))) == whole, "{precision}");
        let pruned = latent(&hart, &context, vec![1, 2], Some(Pruning::default()));
        assert!(pruned != whole && pruned.iter().all(|value| value.is_finite()), "{precision}");
    }
}

/// Every row selects its own tokens, so the rows of a batch give the same results as alone, except for rounding.
#[test]
fn a_row_of_a_batch_is_pruned_like_a_single_one() {
    let hart = Goldens::published().hart(WeightSet::PreferEma);
    let prompts = ["a parrot", "two red circles above a blue square", "x"];
    let tokens = hart.text().tokenizer().tokenize(&prompts, None, hart.config().transformer.context_tokens).unwrap();
    let mut progress = Progress::silent();
    let together = hart.text().encode(&tokens, &mut progress).unwrap();
    let alone = (0..3).flat_map(|row| {
        let context = hart.text().encode(&tokens.row(row), &mut progress).unwrap();
        latent(&hart, &context, vec![7 + row as u64], Some(Pruning::default()))
    });
    let alone: Vec<f32> = alone.collect();
    check_close("latents", &latent(&hart, &together, vec![7, 8, 9], Some(Pruning::default())), &alone, 10.0 * stage_tolerance());
}

fn images(hart: &Hart, request: &Request) -> Vec<Image> {
    hart.generate(request).unwrap().images
}

#[test]
fn images_of_a_pruned_request_do_not_depend_on_the_rest_of_it() {
    let hart = Goldens::published().hart(WeightSet::PreferEma);
    let request = |prompts: &[&str]| Request::batch(prompts.to_vec()).seed(3).prune(Pruning::default());
    let together = images(&hart, &request(&["a parrot", "a fish"]));
    let alone = images(&hart, &request(&["a fish"]));
    assert!(together[1].pixels() == alone[0].pixels());
    assert!(images(&hart, &request(&["a fish"]).prune(None))[0].pixels() != alone[0].pixels());
    let settings = &alone[0].provenance.as_ref().unwrap().settings;
    assert!(settings.contains("prune 0.5,0.75"), "{settings}");
}

/// The shipped model's blocks are gated.
#[test]
fn edits_and_cancelled_runs_may_be_pruned() {
    let hart = Hart::open(SHIPPED, OpenOptions::new().device(device())).unwrap();
    let request = Request::new("a red heart").guidance(2.0).prune(Pruning::default());
    let image = images(&hart, &request).remove(0);
    let side = image.width();
    let half = Mask::rectangle((side, side), 0, 0, side / 2, side);
    let edited = images(&hart, &request.clone().from_image(FromImage::inpaint(image.clone(), half))).remove(0);
    let column = |image: &Image, x: usize| image.pixels()[3 * x..][..3].to_vec();
    assert_eq!(column(&edited, side - 1), column(&image, side - 1), "the known half is kept");
    let cancel = CancelToken::new();
    cancel.cancel();
    assert!(matches!(hart.generate(&request.cancel_token(cancel)), Err(Error::Cancelled)));
}

#[test]
fn plans_that_do_not_fit_the_model_are_refused_before_any_work() {
    let hart = Goldens::published().hart(WeightSet::PreferEma);
    for (ratios, words) in [
        (vec![0.5, 1.0], "ratio 2 is 1, expected a number from 0"),
        (vec![f64::NAN], "ratio 1 is NaN"),
        (vec![-0.5], "ratio 1 is -0.5"),
        (vec![0.5; 5], "has 5 ratios, expected at most 4: this model has 6 scales"),
    ] {
        let request = Request::new("a parrot").prune(Pruning::new(ratios));
        let mut events = 0;
        let mut observer = |_: &hart_core::Event<'_>| {
            events += 1;
            hart_core::Control::Continue
        };
        let error = hart.generate_with(&request, &mut observer).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
        assert_eq!(events, 0);
    }
}

#[test]
fn a_pruned_run_needs_less_memory() {
    let hart = Goldens::published().hart(WeightSet::PreferEma);
    let memory = |pruning: Option<Pruning>| hart.memory(&Request::new("a parrot").prune(pruning)).peak();
    assert!(memory(Some(Pruning::default())) <= memory(None));
}
