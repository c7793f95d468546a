//! hart's side: one picture from a random context, as the peer makes it, and what it took as one line of JSON.

use std::error::Error;
use std::path::Path;

use hart_core::burn::prelude::{Device, Tensor, TensorData};
use hart_core::stages::{Context, Progress, Sampling, Seeded};
use hart_core::{Hart, OpenOptions, Precision, Stage};
use serde_json::{Value, json};

/// Places of the context that hold text, the peer's number.
const TEXT_TOKENS: usize = 40;
/// Guidance of the published tools.
const GUIDANCE: f64 = 4.5;

/// Opens the model, makes one picture, and says what both took.
///
/// # Errors
///
/// The model can't be opened, or a stage fails.
pub fn measure(model: &Path, precision: Precision, threads: usize) -> Result<Value, Box<dyn Error>> {
    let clock = std::time::Instant::now();
    let hart = Hart::open(model, OpenOptions::new().precision(precision).threads(threads))?;
    let open = clock.elapsed().as_secs_f64();
    let context = random_context(&hart, hart.device());
    let steps = hart.config().residual.steps.clone();
    let sampling = Sampling { guidance: GUIDANCE, soft: true, top_k: None, top_p: 0.0, steps };
    let (picture, times) = hart.install(|| {
        let mut progress = Progress::silent();
        let latent = hart.sample(context, &sampling, &Seeded::new(vec![1]), &mut progress)?;
        progress.enter(Stage::Decode);
        let picture = hart.visual().decode_images(&latent, &mut progress)?;
        Ok::<_, hart_core::Error>((picture, progress.timings()))
    })?;
    let of = |stage| times.of(stage).as_secs_f64();
    assert_eq!(picture[0].width(), hart.visual().resolution());
    Ok(json!({
        "open_s": open,
        "transformer_s": of(Stage::Transformer),
        "sampling_s": of(Stage::Sampling),
        "diffusion_s": of(Stage::Residual),
        "decode_s": of(Stage::Decode),
        "total_s": times.total.as_secs_f64(),
        "peak_rss_gb": peak_rss_gb(),
    }))
}

/// A context of noise: no text encoder has to run.
fn random_context(hart: &Hart, device: &Device) -> Context {
    let config = &hart.config().transformer;
    let (tokens, width) = (config.context_tokens, config.context_dim);
    // A golden-ratio sequence: even, and the same on every machine.
    let noise = |i: usize| ((i as f64 * 0.618_033_988_749_894_9).fract() * 2.0 - 1.0) as f32;
    let values: Vec<f32> = (0..tokens * width).map(noise).collect();
    Context {
        hidden: Tensor::from_data(TensorData::new(values, [1, tokens, width]), device),
        mask: vec![(0..tokens).map(|i| i < TEXT_TOKENS).collect()],
        positions: vec![(0..tokens).map(|i| i.min(TEXT_TOKENS - 1) as i64).collect()],
        unconditional: 0,
    }
}

/// Most memory that this process has had, in gigabytes; 0 where the system doesn't say.
fn peak_rss_gb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kilobytes = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix("kB")?.trim().parse().ok());
    kilobytes.map_or(0.0, |kilobytes: f64| kilobytes * 1024.0 / 1e9)
}
