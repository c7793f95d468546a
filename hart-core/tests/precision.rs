//! Errors of the lower precisions, stage by stage: against recorded values, and on the shipped model against f32.

#[allow(dead_code, reason = "shared with the golden tests")]
mod support;

use burn::prelude::*;
use hart_core::stages::{Context, Progress, Scale};
use hart_core::{DeviceKind, Hart, Image, OpenOptions, Precision, Request};
use support::{Goldens, device, scales, values};

const SHIPPED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/hart-emoji");
const PROMPTS: [&str; 20] = [
    "a parrot",
    "a red heart",
    "a slice of pizza",
    "the flag of Japan",
    "a cat",
    "a dog",
    "a red apple",
    "a banana",
    "a car",
    "a house",
    "a tree",
    "a star",
    "an umbrella",
    "a fish",
    "a rocket",
    "a guitar",
    "a mushroom",
    "a lemon",
    "a moon",
    "a boat",
];

/// Bounds on the errors of a precision.
struct Bounds {
    precision: Precision,
    /// Maximum difference from recorded logits, in standard deviations.
    recorded: f64,
    /// Minimum cosine between the hidden states of a token and those of f32.
    context: f64,
    /// Minimum cosine between the logits of a scale and those of f32.
    cosine: f64,
    /// Maximum root mean square of the predicted noise's error, relative to that of the noise.
    noise: f64,
    /// Minimum median, over some images of the same prompt and seed, of the peak signal-to-noise ratio in decibels.
    image: f64,
}

/// Returns the bounds for the tested device's precisions.
fn bounds() -> Vec<Bounds> {
    if device() != DeviceKind::Cpu {
        return vec![Bounds {
            precision: Precision::F16,
            recorded: 0.04,
            context: 0.9999,
            cosine: 0.9999,
            noise: 0.003,
            image: 35.0,
        }];
    }
    vec![
        Bounds { precision: Precision::Bf16, recorded: 0.04, context: 0.9997, cosine: 0.9999, noise: 0.003, image: 35.0 },
        Bounds { precision: Precision::Int8, recorded: 0.15, context: 0.998, cosine: 0.9992, noise: 0.01, image: 25.0 },
    ]
}

fn shipped(precision: Precision) -> Hart {
    Hart::open(SHIPPED, OpenOptions::new().device(device()).precision(precision)).unwrap()
}

#[test]
fn recorded_logits() {
    let goldens = Goldens::published();
    for bounds in bounds() {
        let options = OpenOptions::new().weight_set(hart_core::WeightSet::Plain).device(device()).precision(bounds.precision);
        let hart = Hart::open(&goldens.folder, options).unwrap();
        let conditioning = hart.transformer().condition(&goldens.context(hart.device()));
        let hidden = hart.transformer().teacher_forcing(goldens.tensor("vae.var_input", hart.device()), None, &conditioning);
        let logits = hart.transformer().logits(&hidden.last(goldens.shape("train.logits")[1]), &conditioning);
        goldens.check_tensor("train.logits", logits, bounds.recorded);
    }
}

/// Returns the logits that the shipped model predicts for the tokens of its own images.
fn logits(hart: &Hart, context: &Context, images: &[Image]) -> Vec<Vec<f32>> {
    let tokens = hart.visual().tokenize_images(images).unwrap();
    let conditioning = hart.transformer().condition(context);
    let plan = scales(hart);
    let count = plan.iter().map(Scale::tokens).sum();
    let hidden = hart.transformer().teacher_forcing(tokens.inputs, None, &conditioning).last(count);
    let all = hart.transformer().logits(&hidden, &conditioning);
    let starts = plan.iter().scan(0, |from, scale| Some(std::mem::replace(from, *from + scale.tokens())));
    starts.zip(&plan).map(|(from, scale)| values(all.clone().narrow(1, from, scale.tokens()))).collect()
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[test]
fn logits_of_every_scale_are_close_to_those_of_f32() {
    let exact = shipped(Precision::F32);
    let images = images(&exact);
    let context = context(&exact);
    let want = logits(&exact, &context, &images);
    for bounds in bounds() {
        let got = logits(&shipped(bounds.precision), &context, &images);
        for (scale, (got, want)) in got.iter().zip(&want).enumerate() {
            let cosine = cosine(got, want);
            println!("{} scale {scale}: 1 - {:.1e}", bounds.precision, 1.0 - cosine);
            assert!(cosine >= bounds.cosine, "{} scale {scale}: cosine {cosine}", bounds.precision);
        }
    }
}

#[test]
fn contexts_of_every_token_are_close_to_those_of_f32() {
    let fixtures =
        ["tiny-a", "slim-a", "slim-b", "slim-c"].map(|name| format!("{}/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR")));
    for folder in fixtures.iter().map(String::as_str).chain([SHIPPED]) {
        let encode = |precision| {
            let hart = Hart::open(folder, OpenOptions::new().device(device()).precision(precision)).unwrap();
            let context = hart.encode(&Request::batch(PROMPTS)).unwrap();
            let hidden = (0..PROMPTS.len()).flat_map(|prompt| context.hidden(prompt).unwrap()).collect::<Vec<f32>>();
            (hidden, context.channels())
        };
        let (want, channels) = encode(Precision::F32);
        for bounds in bounds() {
            let (got, _) = encode(bounds.precision);
            let cosines = got.chunks(channels).zip(want.chunks(channels)).map(|(got, want)| cosine(got, want));
            let least = cosines.fold(f64::INFINITY, f64::min);
            println!("{folder} {}: 1 - {:.1e}", bounds.precision, 1.0 - least);
            assert!(least >= bounds.context, "{folder} {}: cosine {least}", bounds.precision);
        }
    }
}

#[test]
fn predicted_noise() {
    let exact = shipped(Precision::F32);
    let wave = |shape: [usize; 3], speed: f32| {
        let values = (0..shape.iter().product::<usize>()).map(|i| 1.4 * (i as f32 * speed).sin()).collect::<Vec<_>>();
        Tensor::<3>::from_data(TensorData::new(values, shape), exact.device())
    };
    let mlp = exact.residual().mlp();
    let (x, condition) = (wave([2, 100, mlp.channels()], 0.7), wave([2, 100, exact.config().transformer.embed_dim], 1.3));
    let predict = |hart: &Hart| {
        let mlp = hart.residual().mlp();
        [10.0, 400.0, 990.0].map(|step| values(mlp.forward(x.clone(), &[step], mlp.embed_condition(condition.clone())).0))
    };
    let want = predict(&exact);
    for bounds in bounds() {
        for (got, want) in predict(&shipped(bounds.precision)).iter().zip(&want) {
            let squares = |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v).powi(2)).sum::<f64>();
            let error = squares(&mut got.iter().zip(want).map(|(g, w)| g - w)) / squares(&mut want.iter().copied());
            println!("{}: noise {:.1e}", bounds.precision, error.sqrt());
            assert!(error.sqrt() <= bounds.noise, "{}: {}", bounds.precision, error.sqrt());
        }
    }
}

fn context(hart: &Hart) -> Context {
    let tokens = hart.text().tokenizer().tokenize(&PROMPTS, None, hart.config().transformer.context_tokens).unwrap();
    hart.text().encode(&tokens, &mut Progress::silent()).unwrap()
}

fn images(hart: &Hart) -> Vec<Image> {
    let generations = PROMPTS.iter().map(|prompt| hart.generate(&Request::new(*prompt).seed(3)).unwrap());
    generations.flat_map(|generation| generation.images).collect()
}

/// A different code changes an image more than rounding does. The median image has few such codes.
#[test]
fn images_of_the_same_seed_are_alike() {
    let want = images(&shipped(Precision::F32));
    for bounds in bounds() {
        assert_alike(&bounds.precision.to_string(), &images(&shipped(bounds.precision)), &want, bounds.image);
    }
}

/// A GPU uses the same noise, in f32.
#[test]
fn every_device_generates_the_cpus_images() {
    let cpu = Hart::open(SHIPPED, OpenOptions::new().device(DeviceKind::Cpu).precision(Precision::F32)).unwrap();
    assert_alike(&device().to_string(), &images(&shipped(Precision::F32)), &images(&cpu), 35.0);
}

#[track_caller]
fn assert_alike(what: &str, got: &[Image], want: &[Image], least: f64) {
    let ratio = |(a, b): (&Image, &Image)| {
        let squares: f64 = a.pixels().iter().zip(b.pixels()).map(|(a, b)| f64::from(a.abs_diff(*b)).powi(2)).sum();
        10.0 * (255f64.powi(2) * a.pixels().len() as f64 / squares.max(1.0)).log10()
    };
    let mut ratios: Vec<f64> = got.iter().zip(want).map(ratio).collect();
    ratios.sort_by(f64::total_cmp);
    println!("{what}: {ratios:.1?} dB");
    assert!(ratios[ratios.len() / 2] >= least, "{what}: {ratios:?}");
}

#[test]
fn same_image_on_any_number_of_threads() {
    for bounds in bounds() {
        let hart = shipped(bounds.precision);
        let request = Request::new("a parrot").seed(3);
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| hart.generate(&request).unwrap().images)
        };
        let one = on(1);
        assert!(one == on(2) && one == on(3), "{}", bounds.precision);
    }
}
