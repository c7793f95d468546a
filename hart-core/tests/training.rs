//! Training: losses compared with recorded values, decreasing losses, and runs that resume bit for bit.
#![cfg(feature = "train")]

#[allow(dead_code, reason = "shared with the golden tests")]
mod support;

use std::path::Path;

use burn::prelude::{Device, Tensor};
use hart_core::config::Config;
use hart_core::stages::{LATENT_SCALE, Progress, TextTokenizer, VisualTokenizer};
use hart_core::train::{
    CaptionedImage, GeneratorOptions, GeneratorTrainer, OptimizerOptions, TokenizerOptions, TokenizerTrainer, cross_entropy,
    diffusion_loss, learning_rate, quantizer_loss, residual_quantile, train_text_tokenizer,
};
use hart_core::weights::{NamedTensor, StorageDtype, TEXT, TRANSFORMER, VISUAL, named_tensors, save_tensors};
use hart_core::{Hart, Image, OpenOptions, Request, WeightSet};
use serde_json::json;
use support::{Goldens, check_close, values};

/// Maximum relative difference of a loss from the recorded one.
const LOSS: f64 = 1e-4;
/// Weight of the commitment loss in the published configuration.
const COMMITMENT: f64 = 0.25;

fn for_each(check: impl Fn(&Goldens)) {
    for goldens in Goldens::all() {
        println!("{}", goldens.folder.display());
        check(&goldens);
    }
}

#[test]
fn cross_entropy_equals_the_recorded_one() {
    for_each(|goldens| {
        let logits = goldens.tensor("train.logits", &Device::flex());
        let loss = cross_entropy(logits, &goldens.codes("vae.indices")).mean();
        check_close("train.cross_entropy", &values(loss), &goldens.floats("train.cross_entropy"), LOSS);
    });
}

#[test]
fn quantizer_loss_equals_the_recorded_one() {
    for_each(|goldens| {
        let hart = goldens.hart(WeightSet::Plain);
        let features = goldens.tensor("vae.features", hart.device());
        let loss = quantizer_loss(hart.visual(), features, COMMITMENT);
        check_close("vae.vq_loss", &values(loss), &goldens.floats("vae.vq_loss"), LOSS);
    });
}

/// The losses of transformer and diffusion for the recorded context and images, with the recorded steps and noise.
#[test]
fn diffusion_loss_equals_the_recorded_one() {
    for_each(|goldens| {
        let hart = goldens.hart(WeightSet::Plain);
        let conditioning = hart.transformer().condition(&goldens.context(hart.device()));
        let hidden = hart.transformer().teacher_forcing(goldens.tensor("vae.var_input", hart.device()), None, &conditioning);
        let continuous: Tensor<3> = goldens.tensor("vae.last_stage_continuous", hart.device());
        let [batch, length, channels] = continuous.dims();
        let last: Vec<Vec<u32>> = goldens.codes("vae.indices").iter().map(|row| row[row.len() - length..].to_vec()).collect();
        let codes = hart.visual().codebook().embed(&last);
        let condition = hart.transformer().residual_condition(&hidden.last(length), codes.clone());
        let steps: Vec<usize> = goldens.integers("train.diffusion_t").iter().map(|&t| t as usize).collect();
        let repeats = steps.len() / (batch * length);
        let repeated = |x: Tensor<3>| {
            let width = x.dims()[2];
            x.reshape([1, batch * length, width]).repeat_dim(1, repeats)
        };
        let target = repeated((continuous - codes) / LATENT_SCALE);
        let noise: Tensor<2> = goldens.tensor("train.diffusion_noise", hart.device());
        let noise = noise.reshape([1, steps.len(), channels]);
        let loss = diffusion_loss(hart.residual().mlp(), target, repeated(condition), &steps, noise).mean();
        check_close("train.diffusion_loss", &values(loss), &goldens.floats("train.diffusion_loss"), LOSS);
    });
}

/// A model small enough to be trained in a test: 16x16 images, four scales.
fn small(folder: &Path) -> Config {
    let captions: Vec<String> = batch(8, 0).into_iter().map(|item| item.caption).collect();
    let write = |part: &str, json: serde_json::Value| {
        std::fs::create_dir_all(folder.join(part)).unwrap();
        std::fs::write(folder.join(part).join("config.json"), json.to_string()).unwrap();
    };
    write("text", json!({}));
    let vocabulary = train_text_tokenizer(&captions, 300, &folder.join("text")).unwrap();
    write(
        "text",
        json!({
            "model_type": "qwen2", "vocab_size": vocabulary, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 2, "hidden_act": "silu",
        }),
    );
    write(
        "llm",
        json!({
            "model_type": "hart_transformer_t2i", "depth": 2, "embed_dim": 32, "num_heads": 2, "context_token": 12, "context_dim": 32,
            "patch_nums": [1, 2, 3, 4], "attn_type": "llama", "mlp_type": "llama", "disable_aln": false,
            "sep_aln_pooling_mode": "avg", "use_timestep_embed": true, "use_context_norm": true, "diff_width": 32, "diff_depth": 1,
        }),
    );
    write(
        "tokenizer",
        json!({
            "model_type": "hart_autoencoder_with_disc", "vocab_size": 32, "z_channels": 4, "ch": 32, "ch_mult": [1, 1, 1],
            "v_patch_nums": [1, 2, 3, 4],
        }),
    );
    Config::open(folder).unwrap()
}

/// Images of one colour with a square of another, and their captions.
fn batch(count: usize, first: usize) -> Vec<CaptionedImage> {
    let colours = [("red", [220, 30, 40]), ("green", [20, 180, 60]), ("blue", [30, 60, 220]), ("white", [240, 240, 240])];
    let item = |index: usize| {
        let ((ground, back), (name, front)) = (colours[index % 4], colours[(index / 4 + index + 1) % 4]);
        let inside = |p: usize| (4..12).contains(&(p / 16)) && (3..9).contains(&(p % 16));
        let pixels = (0..256).flat_map(|p| if inside(p) { front } else { back }).collect();
        CaptionedImage { image: Image::from_rgb(16, 16, pixels).unwrap(), caption: format!("a {name} square on {ground}") }
    };
    (first..first + count).map(item).collect()
}

fn images_of(items: Vec<CaptionedImage>) -> Vec<Image> {
    items.into_iter().map(|item| item.image).collect()
}

fn optimizer(steps: u64) -> OptimizerOptions {
    OptimizerOptions {
        learning_rate: 3e-3,
        warmup: 4,
        steps,
        final_ratio: 0.1,
        weight_decay: 0.01,
        beta_2: 0.98,
        muon: true,
        clip: 1.0,
        average: 0.9,
    }
}

/// The tested device.
fn device() -> Device {
    support::device().open().unwrap()
}

fn tokenizer_options(shards: usize) -> TokenizerOptions {
    TokenizerOptions {
        optimizer: optimizer(150),
        edges: 1.0,
        quantizer: 1.0,
        commitment: COMMITMENT,
        codebook_decay: 0.9,
        hybrid_share: 0.5,
        decoder_only: false,
        shards,
        seed: 3,
    }
}

fn tokenizer_trainer(config: &Config, shards: usize, device: &Device) -> TokenizerTrainer {
    TokenizerTrainer::new(&config.visual, tokenizer_options(shards), device).unwrap()
}

fn generator_options() -> GeneratorOptions {
    GeneratorOptions {
        optimizer: optimizer(150),
        context_drop: 0.1,
        last_scale_share: 0.5,
        scale_weights: vec![0.25; 4],
        diffusion: 0.5,
        diffusion_repeats: 2,
        sampled_codes: 0.5,
        shards: 2,
        seed: 3,
    }
}

fn generator_trainer(config: &Config, folder: &Path, visual: VisualTokenizer, device: &Device) -> GeneratorTrainer {
    let tokenizer = TextTokenizer::open(&folder.join("text"), config.text.vocab_size).unwrap();
    GeneratorTrainer::new(config, generator_options(), tokenizer, visual, device).unwrap()
}

/// Returns all values of a saved state.
fn bytes(save: impl Fn(&Path)) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    save(&folder.path().join("state.safetensors"));
    std::fs::read(folder.path().join("state.safetensors")).unwrap()
}

/// Both phases learn: the losses fall, captions have an effect, and the trained model opens and generates.
#[test]
fn a_small_model_learns() {
    let folder = tempfile::tempdir().unwrap();
    let config = small(folder.path());
    let mut first = tokenizer_trainer(&config, 2, &device());
    let losses: Vec<_> = (0..150).map(|step| first.step(&images_of(batch(8, step % 2 * 8))).unwrap()).collect();
    let (before, after) = (losses[0], losses[149]);
    assert!(after.hybrid < 0.5 * before.hybrid && after.discrete < 0.6 * before.discrete, "{before:?} {after:?}");
    assert!(after.used_rows > 0.2, "{after:?}");

    let visual = first.averaged();
    let mut second = generator_trainer(&config, folder.path(), visual.clone(), &device());
    let losses: Vec<_> = (0..150).map(|step| second.step(&batch(8, step % 2 * 8)).unwrap()).collect();
    let (before, after) = (&losses[0], &losses[149]);
    let sum = |l: &hart_core::train::GeneratorLosses| l.scales.iter().sum::<f32>();
    assert!(sum(after) < 0.6 * sum(before) && after.diffusion < before.diffusion, "{before:?} {after:?}");
    let samples = batch(16, 0);
    let shuffled = (0..16).map(|i| CaptionedImage { caption: samples[(i + 5) % 16].caption.clone(), ..samples[i].clone() });
    let (right, wrong) = (second.losses(&samples, 0).unwrap(), second.losses(&shuffled.collect::<Vec<_>>(), 0).unwrap());
    assert!(sum(&right) < sum(&wrong), "{right:?} {wrong:?}");

    let first_name = |names: Vec<String>| names.into_iter().next();
    let save = |part: &str, tensors: Vec<NamedTensor>| {
        save_tensors(&folder.path().join(part).join("model.safetensors"), &tensors, StorageDtype::F32).unwrap();
    };
    let generator = second.averaged();
    let mut llm = named_tensors(&generator.transformer, &TRANSFORMER, "transformer", first_name);
    llm.extend(named_tensors(&generator.residual, &TRANSFORMER, "residual", first_name));
    save("llm", llm);
    save("text", named_tensors(&generator.text, &TEXT, "", first_name));
    save("tokenizer", named_tensors(&visual, &VISUAL, "", first_name));
    let hart = Hart::open(folder.path(), OpenOptions::new()).unwrap();
    let generation = hart.generate(&Request::new("a red square on blue").guidance(1.0)).unwrap();
    assert_eq!((generation.images[0].width(), generation.images[0].height()), (16, 16));
    // The saved model is the trained one.
    let images = images_of(batch(4, 0));
    let (saved, trained) = (hart.visual().tokenize_images(&images).unwrap(), visual.tokenize_images(&images).unwrap());
    assert_eq!(values(saved.features), values(trained.features));
}

#[test]
fn a_decoder_learns_alone() {
    let folder = tempfile::tempdir().unwrap();
    let config = small(folder.path());
    let mut whole = tokenizer_trainer(&config, 2, &device());
    for step in 0..20 {
        whole.step(&images_of(batch(8, step))).unwrap();
    }
    let (before, images) = (whole.averaged(), images_of(batch(8, 1000)));
    let options = TokenizerOptions { decoder_only: true, hybrid_share: 0.75, ..tokenizer_options(2) };
    let mut alone = TokenizerTrainer::from_model(&before, options, &device()).unwrap();
    let losses: Vec<f32> = (0..40).map(|step| alone.step(&images_of(batch(8, step))).unwrap()).map(|l| l.hybrid).collect();
    let mean = |losses: &[f32]| losses.iter().sum::<f32>() / losses.len() as f32;
    assert!(mean(&losses[30..]) < 0.9 * mean(&losses[..10]), "{losses:?}");

    let after = alone.averaged();
    let (was, is) = (before.tokenize_images(&images).unwrap(), after.tokenize_images(&images).unwrap());
    assert_eq!(was.codes, is.codes);
    assert_eq!(values(was.continuous.clone()), values(is.continuous));
    let decoded = |tokenizer: &VisualTokenizer| values(tokenizer.decode(&was.hybrid(), &mut Progress::silent()).unwrap());
    assert_ne!(decoded(&before), decoded(&after));
    let error = TokenizerTrainer::new(&config.visual, options, &device()).err().unwrap().to_string();
    assert!(error.contains("decoder_only") && error.contains("expected a trained model"), "{error}");
}

/// Losses and gradients of a few steps from the same state, on the CPU and on the tested device.
#[test]
fn a_device_learns_as_the_cpu_does() {
    let folder = tempfile::tempdir().unwrap();
    let config = small(folder.path());
    let state = folder.path().join("state.safetensors");
    let near = |got: f32, want: f32| (got - want).abs() <= 0.02 * want.abs().max(0.1);
    let (cpu, device) = (Device::flex(), device());

    let mut on_cpu = tokenizer_trainer(&config, 1, &cpu);
    on_cpu.save(&state).unwrap();
    let mut on_device = tokenizer_trainer(&config, 1, &device);
    on_device.restore(&state).unwrap();
    for step in 0..4 {
        let images = images_of(batch(8, step));
        let (want, got) = (on_cpu.step(&images).unwrap(), on_device.step(&images).unwrap());
        let pairs = [(got.hybrid, want.hybrid), (got.discrete, want.discrete), (got.gradient_norm, want.gradient_norm)];
        assert!(pairs.into_iter().all(|(got, want)| near(got, want)), "step {step}: {got:?}, expected {want:?}");
    }

    let mut on_cpu = generator_trainer(&config, folder.path(), on_cpu.averaged(), &cpu);
    on_cpu.save(&state).unwrap();
    let mut on_device = generator_trainer(&config, folder.path(), on_device.averaged(), &device);
    on_device.restore(&state).unwrap();
    for step in 0..4 {
        let (want, got) = (on_cpu.step(&batch(8, step)).unwrap(), on_device.step(&batch(8, step)).unwrap());
        let alike = got.scales.iter().zip(&want.scales).all(|(got, want)| near(*got, *want));
        let alike = alike && near(got.diffusion, want.diffusion) && near(got.gradient_norm, want.gradient_norm);
        assert!(alike, "step {step}: {got:?}, expected {want:?}");
    }
}

#[test]
fn a_resumed_run_equals_an_uninterrupted_one() {
    let folder = tempfile::tempdir().unwrap();
    let config = small(folder.path());
    let state = folder.path().join("state.safetensors");
    let mut whole = tokenizer_trainer(&config, 2, &device());
    for step in 0..6 {
        if step == 3 {
            whole.save(&state).unwrap();
        }
        whole.step(&images_of(batch(8, step))).unwrap();
    }
    let mut resumed = tokenizer_trainer(&config, 2, &device());
    resumed.restore(&state).unwrap();
    assert_eq!(resumed.steps(), 3);
    for step in 3..6 {
        resumed.step(&images_of(batch(8, step))).unwrap();
    }
    assert!(bytes(|path| whole.save(path).unwrap()) == bytes(|path| resumed.save(path).unwrap()), "the tokenizer's states differ");

    let visual = whole.averaged();
    let mut whole = generator_trainer(&config, folder.path(), visual.clone(), &device());
    for step in 0..6 {
        if step == 3 {
            whole.save(&state).unwrap();
        }
        whole.step(&batch(8, step)).unwrap();
    }
    let mut resumed = generator_trainer(&config, folder.path(), visual, &device());
    resumed.restore(&state).unwrap();
    for step in 3..6 {
        resumed.step(&batch(8, step)).unwrap();
    }
    assert!(bytes(|path| whole.save(path).unwrap()) == bytes(|path| resumed.save(path).unwrap()), "the generator's states differ");
}

#[test]
fn a_step_is_the_same_on_any_number_of_threads() {
    let folder = tempfile::tempdir().unwrap();
    let config = small(folder.path());
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut trainer = tokenizer_trainer(&config, 2, &device());
            trainer.step(&images_of(batch(8, 0))).unwrap();
            bytes(|path| trainer.save(path).unwrap())
        })
    };
    assert!(run(1) == run(4));
}

#[test]
fn scaled_latents_leave_images_unchanged() {
    let hart = Goldens::published().plain();
    let side = hart.visual().resolution();
    let pixels = (0..side * side * 3).map(|i| (i * i % 251) as u8).collect();
    let images = [Image::from_rgb(side, side, pixels).unwrap()];
    let scaled = hart.visual().clone().with_scaled_latents(0.37);
    let (was, is) = (hart.visual().tokenize_images(&images).unwrap(), scaled.tokenize_images(&images).unwrap());
    assert_eq!(was.codes, is.codes);
    check_close("features", &values(is.features.clone()), &values(was.features.clone() * 0.37), 1e-5);
    let mut progress = Progress::silent();
    for (was_latent, is_latent) in [(was.hybrid(), is.hybrid()), (hart.visual().discrete(&was), scaled.discrete(&is))] {
        let was = hart.visual().decode(&was_latent, &mut progress).unwrap();
        check_close("pixels", &values(scaled.decode(&is_latent, &mut progress).unwrap()), &values(was), 1e-4);
    }
    let ratio = residual_quantile(&scaled, &images, 0.9).unwrap() / residual_quantile(hart.visual(), &images, 0.9).unwrap();
    assert!((ratio - 0.37).abs() < 1e-4, "{ratio}");
}

#[test]
fn the_learning_rate_rises_and_falls() {
    let options = OptimizerOptions { warmup: 10, ..optimizer(110) };
    let at = |step| learning_rate(&options, step) / options.learning_rate;
    assert!((at(0) - 0.1).abs() < 1e-9 && (at(9) - 1.0).abs() < 1e-9 && (at(10) - 1.0).abs() < 1e-9);
    assert!((at(60) - 0.55).abs() < 1e-9 && (at(110) - 0.1).abs() < 1e-9 && (at(5000) - 0.1).abs() < 1e-9);
}

#[test]
fn invalid_input_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    let config = small(folder.path());
    let message = |error: hart_core::Error| error.to_string();
    let mut trainer = tokenizer_trainer(&config, 2, &device());
    assert!(message(trainer.step(&[]).unwrap_err()).contains("at least one for each of 2 shards"));
    let wide = Image::from_rgb(17, 16, vec![0; 17 * 16 * 3]).unwrap();
    assert!(message(trainer.step(&[wide.clone(), wide]).unwrap_err()).contains("has 17 x 16 pixels, expected 16 x 16"));
    let state = folder.path().join("state.safetensors");
    std::fs::write(&state, b"not a state").unwrap();
    assert!(message(trainer.restore(&state).unwrap_err()).contains("state.safetensors"));
    let mut other = config.clone();
    other.visual.vocab_size = 16;
    tokenizer_trainer(&other, 2, &device()).save(&state).unwrap();
    assert!(message(trainer.restore(&state).unwrap_err()).contains("another recipe"));
    // A refused state has no effect.
    trainer.step(&images_of(batch(8, 0))).unwrap();
    let vocabulary = |limit| message(train_text_tokenizer(&["a".to_string()], limit, folder.path()).unwrap_err());
    assert!(vocabulary(256).contains("is 256, expected a number from 257") && vocabulary(usize::MAX).contains("vocab_size"));
}

/// The files of a trained text tokenizer normalise and split like Qwen2's.
#[test]
fn a_trained_text_tokenizer_is_like_qwen2s() {
    let folder = tempfile::tempdir().unwrap();
    let captions = vec!["12 cafés on a blue-green sea".to_string(); 3];
    let vocabulary = train_text_tokenizer(&captions, 400, folder.path()).unwrap();
    let file = std::fs::read(folder.path().join("tokenizer.json")).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&file).unwrap();
    assert_eq!(json["normalizer"], json!({ "type": "NFC" }));
    let split = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let parts = json!([
        { "type": "Split", "pattern": { "Regex": split }, "behavior": "Isolated", "invert": false },
        { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false },
    ]);
    assert_eq!(json["pre_tokenizer"], json!({ "type": "Sequence", "pretokenizers": parts }));
    let tokenizer = TextTokenizer::open(folder.path(), vocabulary).unwrap();
    let ids = |text: &str| tokenizer.tokenize(&[text], None, 20).unwrap().ids;
    assert_eq!(ids("cafe\u{301}s"), ids("cafés"));
    // A digit is a token of its own, and a hyphen belongs to the word after it.
    let vocab = json["model"]["vocab"].as_object().unwrap();
    assert!(!vocab.contains_key("12") && vocab.contains_key("-green"), "{vocab:?}");
}

#[test]
fn options_have_ranges() {
    let folder = tempfile::tempdir().unwrap();
    let config = small(folder.path());
    let wrong = TokenizerOptions { codebook_decay: 1.0, ..tokenizer_options(2) };
    let error = TokenizerTrainer::new(&config.visual, wrong, &device()).err().unwrap().to_string();
    assert!(error.contains("codebook_decay: is 1, expected a number from 0 to 0.99999"), "{error}");
    let with_clip = |clip: f32| OptimizerOptions { clip, ..optimizer(150) };
    for (options, words) in [
        (GeneratorOptions { optimizer: with_clip(-1.0), ..generator_options() }, "optimizer.clip: is -1, expected"),
        (GeneratorOptions { optimizer: optimizer(0), ..generator_options() }, "optimizer.steps: is 0, expected"),
        (GeneratorOptions { context_drop: f64::NAN, ..generator_options() }, "context_drop: is NaN, expected"),
        (GeneratorOptions { diffusion: f64::INFINITY, ..generator_options() }, "diffusion: is inf, expected"),
        (GeneratorOptions { diffusion_repeats: 0, ..generator_options() }, "diffusion_repeats: is 0, expected"),
        (GeneratorOptions { scale_weights: vec![0.25, -0.5], ..generator_options() }, "scale_weights: is -0.5, expected"),
    ] {
        let error = options.validate().unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}
