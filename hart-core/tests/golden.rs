//! Every stage against recorded values of the published implementation.
//!
//! All folders in `tests/fixtures` are checked; `HART_GOLDENS=folder cargo test --release -p hart-core --test golden` checks another
//! configuration recorded in the same format instead. All sizes come from its configuration files.
//! `HART_TEST_DEVICE=wgpu` (or `cuda`) checks another device. Differences are in standard deviations of the recorded tensor.

#[allow(dead_code, reason = "shared with the property tests")]
mod support;

use burn::prelude::*;
use hart_core::stages::{
    Context, DecoderMemory, Hidden, Latent, Noise, Progress, TokenSampling, guide, keep_top_k, keep_top_p, sample, schedule,
};
use hart_core::weights::Checkpoint;
use hart_core::{Hart, WeightSet};
use support::{Goldens, Replay, Run, check_close, scales, stage_tolerance, values};

fn for_each(check: impl Fn(&Goldens)) {
    for goldens in Goldens::all() {
        println!("{}", goldens.folder.display());
        check(&goldens);
    }
}

fn quietly<T>(f: impl FnOnce(&mut Progress<'_>) -> T) -> T {
    f(&mut Progress::silent())
}

#[test]
fn prompts_become_the_recorded_tokens() {
    for_each(|goldens| {
        let hart = goldens.plain();
        let length = goldens.shape("text.input_ids")[1];
        let system = goldens.system_prompt();
        let tokens = hart.text().tokenizer().tokenize(&goldens.prompts(), Some(&system), length).unwrap();
        let integers = |rows: Vec<Vec<i64>>| rows.concat();
        let ids = tokens.ids.iter().map(|row| row.iter().map(|&i| i64::from(i)).collect()).collect();
        assert_eq!(integers(ids), goldens.integers("text.input_ids"));
        let mask = tokens.mask.iter().map(|row| row.iter().map(|&m| i64::from(m)).collect()).collect();
        assert_eq!(integers(mask), goldens.integers("text.mask"));
        assert_eq!(integers(tokens.positions), goldens.integers("text.position_ids"));
        let system: Vec<i64> = tokens.system.iter().map(|&i| i64::from(i)).collect();
        assert_eq!(system, goldens.integers("text.system_ids"));
    });
}

#[test]
fn context_without_system_prompt() {
    for_each(|goldens| check_context(goldens, "text.plain.context_tensor", None));
}

#[test]
fn context_with_system_prompt() {
    for_each(|goldens| check_context(goldens, "text.system.context_tensor", Some(goldens.system_prompt())));
}

fn check_context(goldens: &Goldens, name: &str, system_prompt: Option<String>) {
    let hart = goldens.plain();
    let length = goldens.shape(name)[1];
    let tokens = hart.text().tokenizer().tokenize(&goldens.prompts(), system_prompt.as_deref(), length).unwrap();
    let context = quietly(|p| hart.text().encode(&tokens, p)).unwrap();
    goldens.check_tensor(name, context.hidden, stage_tolerance());
}

#[test]
fn encoder_features() {
    for_each(|goldens| {
        let hart = goldens.plain();
        let features = hart.visual().encode(goldens.tensor("vae.image", hart.device()));
        goldens.check_tensor("vae.features", features, stage_tolerance());
    });
}

#[test]
fn image_codes_are_equal_and_the_residual_is_close() {
    for_each(|goldens| {
        let hart = goldens.plain();
        let tokens = hart.visual().tokenize(goldens.tensor("vae.features", hart.device()));
        let want = goldens.codes("vae.indices");
        for (image, want) in want.iter().enumerate() {
            let got: Vec<u32> = tokens.codes.iter().flat_map(|scale| scale[image].clone()).collect();
            assert_eq!(&got, want, "image {image}");
        }
        goldens.check_tensor("vae.last_stage_continuous", tokens.continuous.clone(), stage_tolerance());
        goldens.check_tensor("vae.var_input", tokens.inputs.clone(), stage_tolerance());
        goldens.check_tensor("vae.hybrid_fhat", tokens.hybrid().0, stage_tolerance());
    });
}

#[test]
fn hybrid_reconstruction() {
    for_each(|goldens| {
        let hart = goldens.plain();
        let latent = Latent(goldens.tensor("vae.hybrid_fhat", hart.device()));
        for memory in [DecoderMemory::Full, DecoderMemory::Limited] {
            let pixels = quietly(|p| hart.visual().decode_with(memory, &latent, p)).unwrap();
            goldens.check_tensor("vae.hybrid_reconstruction", pixels, stage_tolerance());
        }
    });
}

#[test]
fn discrete_reconstruction() {
    for_each(|goldens| {
        let hart = goldens.plain();
        let tokens = hart.visual().tokenize(goldens.tensor("vae.features", hart.device()));
        let latent = hart.visual().discrete(&tokens);
        goldens.check_tensor("vae.discrete_fhat", latent.0.clone(), stage_tolerance());
        let pixels = quietly(|p| hart.visual().decode(&latent, p)).unwrap();
        goldens.check_tensor("vae.discrete_reconstruction", pixels, stage_tolerance());
    });
}

/// No tensor is recorded between the context and the first block. The reference is computed here in f64 with plain loops.
#[test]
fn context_and_level_embedding() {
    for_each(|goldens| {
        let hart = goldens.plain();
        let config = &hart.config().transformer;
        let checkpoint = Checkpoint::open(&goldens.folder.join("llm"), true).unwrap();
        let weight = |name: &str| checkpoint.values(name).unwrap().into_iter().map(f64::from).collect::<Vec<f64>>();
        let linear = |name: &str, x: &[f64]| -> Vec<f64> {
            let (w, b) = (weight(&format!("{name}.weight")), weight(&format!("{name}.bias")));
            w.chunks(x.len()).zip(b).map(|(row, b)| row.iter().zip(x).map(|(a, b)| a * b).sum::<f64>() + b).collect()
        };
        let level = if checkpoint.info("lvl_embed.weight").is_some() {
            weight("lvl_embed.weight")[..config.embed_dim].to_vec()
        } else {
            // The sinusoid of 0: ones, then zeros.
            let sinusoid: Vec<f64> = (0..256).map(|i| f64::from(u8::from(i < 128))).collect();
            let hidden = linear("lvl_embed.mlp.0", &sinusoid).iter().map(|x| x / (1.0 + (-x).exp())).collect::<Vec<_>>();
            linear("lvl_embed.mlp.2", &hidden)
        };
        let mut want = Vec::new();
        for row in goldens.floats("text.system.context_tensor").chunks(config.context_dim) {
            let mut row: Vec<f64> = row.iter().map(|&v| f64::from(v)).collect();
            if config.context_norm {
                let mean = row.iter().map(|v| v * v).sum::<f64>() / row.len() as f64;
                let gain = weight("context_norm.weight");
                row = row.iter().zip(gain).map(|(v, g)| v / (mean + config.norm_eps).sqrt() * g).collect();
            }
            want.extend(linear("context_embed", &row).iter().zip(&level).map(|(a, b)| (a + b) as f32));
        }
        let conditioning = hart.transformer().condition(&goldens.context(hart.device()));
        let got = values(hart.transformer().first_input(&conditioning));
        check_close("context and level embedding", &got, &want, stage_tolerance());
    });
}

/// A run in which every scale continues from the recorded codes (teacher forcing). Smoothed codes are mixed from the recorded
/// logits and noise, so that a difference in one scale does not affect the next.
struct ForcedRun {
    last_block_first_scale: Tensor<3>,
    first_block_last_scale: Option<Tensor<3>>,
    last_block_last_scale: Option<Tensor<3>>,
    logits: Vec<Tensor<3>>,
    /// The latent without the residual.
    latent: Latent,
}

fn run_forced(goldens: &Goldens, hart: &Hart, run: &Run) -> ForcedRun {
    let device = hart.device();
    let scales = scales(hart);
    let replay = Replay::new(goldens, run, &scales);
    let sampling = run.sampling(hart);
    let recorded: Tensor<3> = goldens.tensor(&run.tensor_name("logits"), device);
    let codebook = hart.visual().codebook();
    let transformer = hart.transformer();
    let context = goldens.context(device);
    let batch = context.rows();
    let mut state = transformer.begin(transformer.condition(&context.with_unconditional()), None).unwrap();
    let mut input = transformer.first_input(state.conditioning());
    let config = hart.config();
    let mut latent = Latent::zeros(batch, config.visual.z_channels, config.transformer.last_side(), device);
    let mut logits = Vec::new();
    let (mut first_scale, mut first_block, mut last_block) = (None, None, None);
    let mut from = 0;
    for scale in &scales {
        let keep_first = |block: usize, x: &Tensor<3>| {
            if scale.is_last() && block == 0 {
                first_block = Some(x.clone());
            }
            Ok(())
        };
        let hidden = transformer.forward_each(input.clone(), scale, &mut state, keep_first).unwrap();
        if scale.index == 0 {
            first_scale = Some(hidden.0.clone());
        }
        if scale.is_last() {
            last_block = Some(hidden.0.clone());
        }
        let hidden = hidden.last(scale.tokens());
        logits.push(guide(transformer.logits(&hidden, state.conditioning()), scale.guidance(run.guidance)));
        let scale_logits = recorded.clone().narrow(1, from, scale.tokens());
        from += scale.tokens();
        let codes = sample(scale_logits, &sampling.of_scale(scale), &codebook.rows(), scale, &replay).unwrap();
        latent = codebook.accumulate(latent, codes.features, scale);
        if let Some(next) = scales.get(scale.index + 1) {
            input = transformer.next_input(codebook.next_features(&latent, next), next).repeat_dim(0, 2);
        }
    }
    ForcedRun {
        last_block_first_scale: first_scale.unwrap(),
        first_block_last_scale: first_block,
        last_block_last_scale: last_block,
        logits,
        latent,
    }
}

fn for_each_run(check: impl Fn(&Goldens, &Hart, &Run)) {
    for_each(|goldens| {
        let runs = goldens.runs();
        assert!(!runs.is_empty());
        for run in runs {
            check(goldens, &goldens.hart(run.weights), &run);
        }
    });
}

#[test]
fn first_and_last_block() {
    for_each_run(|goldens, hart, run| {
        let forced = run_forced(goldens, hart, run);
        let name = |n| run.tensor_name(n);
        goldens.check_tensor(&name("last_block_first_stage"), forced.last_block_first_scale, stage_tolerance());
        goldens.check_tensor(&name("first_block_last_stage"), forced.first_block_last_scale.unwrap(), stage_tolerance());
        goldens.check_tensor(&name("last_block_last_stage"), forced.last_block_last_scale.unwrap(), stage_tolerance());
    });
}

#[test]
fn logits_of_every_scale() {
    for_each_run(|goldens, hart, run| {
        let want: Tensor<3> = goldens.tensor(&run.tensor_name("logits"), hart.device());
        let mut from = 0;
        for (scale, logits) in run_forced(goldens, hart, run).logits.into_iter().enumerate() {
            let length = logits.dims()[1];
            let want = values(want.clone().narrow(1, from, length));
            check_close(&format!("{} scale {scale}", run.tensor_name("logits")), &values(logits), &want, stage_tolerance());
            from += length;
        }
        assert_eq!(from, want.dims()[1]);
    });
}

/// Top-k keeps exactly the k largest recorded logits and ties with the last of them. Every recorded code is among them.
#[test]
fn masks_keep_the_right_logits() {
    for_each_run(|goldens, hart, run| {
        let vocab = hart.config().visual.vocab_size;
        let logits = goldens.floats(&run.tensor_name("logits"));
        let codes = goldens.codes(&run.tensor_name("indices")).concat();
        let mut rows = logits.chunks(vocab).zip(&codes);
        for scale in (0..goldens.shape("text.mask")[0]).flat_map(|_| scales(hart)) {
            for (row, &code) in rows.by_ref().take(scale.tokens()) {
                let mut sorted = row.to_vec();
                sorted.sort_by(|a, b| b.total_cmp(a));
                let threshold = sorted[scale.top_k().min(vocab) - 1];
                let mut masked = row.to_vec();
                keep_top_k(&mut masked, scale.top_k());
                for (got, &was) in masked.iter().zip(row) {
                    assert_eq!(*got, if was >= threshold { was } else { f32::NEG_INFINITY });
                }
                keep_top_p(&mut masked, run.top_p);
                assert!(masked[code as usize].is_finite(), "a recorded code was masked");
            }
        }
        assert!(rows.next().is_none());
    });
}

/// Smoothed codes from the recorded logits and Gumbel noise. The reference is computed here in f64 over the whole codebook.
#[test]
fn smoothed_codes() {
    for_each(|goldens| {
        for run in goldens.runs().iter().filter(|run| run.smoothing) {
            let hart = goldens.hart(run.weights);
            let scales = scales(&hart);
            let replay = Replay::new(goldens, run, &scales);
            let rows = hart.visual().codebook().rows();
            let table = values(hart.visual().codebook().embed(&[(0..rows.len() as u32).collect()]));
            let width = table.len() / rows.len();
            let logits: Tensor<3> = goldens.tensor(&run.tensor_name("logits"), hart.device());
            let gumbel: Tensor<3> = goldens.tensor(&run.tensor_name("gumbel"), hart.device());
            let mut from = 0;
            for scale in &scales {
                let scale_logits = logits.clone().narrow(1, from, scale.tokens());
                let noise = values(gumbel.clone().narrow(1, from, scale.tokens()));
                from += scale.tokens();
                let sampling = run.sampling(&hart).of_scale(scale);
                let got = values(sample(scale_logits.clone(), &sampling, &rows, scale, &replay).unwrap().features);
                let want: Vec<f32> = values(scale_logits)
                    .chunks(rows.len())
                    .zip(noise.chunks(rows.len()))
                    .flat_map(|(logits, noise)| smoothed_code(logits, noise, &sampling, &table, width))
                    .collect();
                check_close(&format!("smoothed codes of scale {}", scale.index), &got, &want, stage_tolerance());
            }
        }
    });
}

fn smoothed_code(logits: &[f32], noise: &[f32], sampling: &TokenSampling, table: &[f32], width: usize) -> Vec<f32> {
    let smoothing = sampling.smoothing.unwrap();
    let mut masked = logits.to_vec();
    keep_top_k(&mut masked, sampling.top_k);
    keep_top_p(&mut masked, sampling.top_p);
    let sharp = |(&l, &g): (&f32, &f32)| (f64::from(l) * smoothing.factor + f64::from(g)) / smoothing.temperature;
    let sharp: Vec<f64> = masked.iter().zip(noise).map(sharp).collect();
    let largest = sharp.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = sharp.iter().map(|s| (s - largest).exp()).collect();
    let sum: f64 = weights.iter().sum();
    let channel = |c: usize| weights.iter().enumerate().map(|(i, w)| w * f64::from(table[i * width + c])).sum::<f64>() / sum;
    (0..width).map(|c| channel(c) as f32).collect()
}

#[test]
fn diffusion_schedule() {
    for_each(|goldens| {
        let steps = schedule(&goldens.plain().config().residual.steps);
        let timesteps: Vec<i64> = steps.iter().map(|s| s.timestep as i64).collect();
        assert_eq!(timesteps, goldens.integers("diffusion.timestep_map"));
        let close = |got: f64, want: &f64| assert!(((got - want) / want).abs() < 1e-9, "{got} {want}");
        steps.iter().zip(goldens.doubles("diffusion.betas")).for_each(|(s, want)| close(s.beta, &want));
        steps.iter().zip(goldens.doubles("diffusion.alphas_cumprod")).for_each(|(s, want)| close(s.alpha_bar, &want));
    });
}

/// The residual of the recorded last hidden states, codes and noise. Added to the recorded latent of all scales it gives the recorded
/// end of a run. (The first step divides by the square root of alpha-bar, about 5e-5, which amplifies rounding.)
#[test]
fn residual_diffusion_and_final_latent() {
    for_each_run(|goldens, hart, run| {
        let scales = scales(hart);
        let last = scales.last().unwrap();
        let replay = Replay::new(goldens, run, &scales);
        let hidden = Hidden(goldens.tensor(&run.tensor_name("last_block_last_stage"), hart.device()));
        let codes = goldens.codes(&run.tensor_name("indices"));
        let codes: Vec<Vec<u32>> = codes.iter().map(|row| row[row.len() - last.tokens()..].to_vec()).collect();
        let embedded = hart.visual().codebook().embed(&[codes.clone(), codes].concat());
        let condition = hart.transformer().residual_condition(&hidden, embedded);
        let noise = Noise { random: &replay, scale: last.index };
        let steps = hart.config().residual.steps.clone();
        let guidance = last.guidance(run.guidance);
        let residual = quietly(|p| hart.residual().sample(condition, Some(guidance), &steps, &noise, p)).unwrap();
        let latent = run_forced(goldens, hart, run).latent.plus_rows(residual.0);
        goldens.check_tensor(&run.tensor_name("fhat"), latent.0, 2.0 * stage_tolerance());
    });
}

#[test]
fn final_image() {
    for_each_run(|goldens, hart, run| {
        let latent = Latent(goldens.tensor(&run.tensor_name("fhat"), hart.device()));
        let pixels = quietly(|p| hart.visual().decode(&latent, p)).unwrap();
        goldens.check_tensor(&run.tensor_name("image"), (pixels + 1.0) * 0.5, stage_tolerance());
    });
}

/// From the prompt to the image. Only the random numbers come from the recording.
#[test]
fn whole_replayed_runs_end_where_the_published_ones_do() {
    for_each_run(|goldens, hart, run| {
        let replay = Replay::new(goldens, run, &scales(hart));
        let length = hart.config().transformer.context_tokens;
        let system = goldens.system_prompt();
        let tokens = hart.text().tokenizer().tokenize(&goldens.prompts(), Some(&system), length).unwrap();
        let pixels = quietly(|p| {
            let context: Context = hart.text().encode(&tokens, p)?;
            let latent = hart.sample(context, &run.sampling(hart), &replay, p)?;
            goldens.check_tensor(&run.tensor_name("fhat"), latent.0.clone(), run.end_tolerance());
            hart.visual().decode(&latent, p)
        });
        goldens.check_tensor(&run.tensor_name("image"), (pixels.unwrap() + 1.0) * 0.5, run.end_tolerance());
    });
}

/// All scales in one pass under the block-causal mask, as in training.
#[test]
fn teacher_forced_logits() {
    for_each(|goldens| {
        let hart = goldens.hart(WeightSet::Plain);
        let conditioning = hart.transformer().condition(&goldens.context(hart.device()));
        let hidden = hart.transformer().teacher_forcing(goldens.tensor("vae.var_input", hart.device()), None, &conditioning);
        let tokens = goldens.shape("train.logits")[1];
        let logits = hart.transformer().logits(&hidden.last(tokens), &conditioning);
        goldens.check_tensor("train.logits", logits, stage_tolerance());
    });
}
