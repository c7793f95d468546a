//! A run of hart: an image from a random context, as in the PyTorch program, and its times as one line of JSON.

use std::error::Error;
use std::path::Path;

use hart_core::stages::{Philox, Progress, SamplingParams};
use hart_core::{DeviceKind, Hart, OpenOptions, Precision, Stage};
use serde_json::{Value, json};

use crate::Arguments;

/// Guidance scale of the published code.
const GUIDANCE: f64 = 4.5;

/// Opens the model, generates images, and returns the times of opening, of the first image and of the last one's stages.
///
/// # Errors
///
/// Returns an error if the model can't be opened or a stage fails.
pub fn measure(model: &Path, precision: Precision, arguments: &Arguments) -> Result<Value, Box<dyn Error>> {
    let clock = std::time::Instant::now();
    let options = OpenOptions::new().device(arguments.device).precision(precision);
    // Work for a GPU must stay on one thread.
    let on_cpu = arguments.device == DeviceKind::Cpu;
    let hart = Hart::open(model, if on_cpu { options.threads(arguments.threads) } else { options })?;
    let open = clock.elapsed().as_secs_f64();
    let batch = arguments.batch as usize;
    let context = hart_benches::context(&hart, batch);
    let steps = hart.config().residual.steps.clone();
    let pruning = arguments.prune.clone();
    let sampling = SamplingParams { guidance: GUIDANCE, smoothing: true, top_k: None, top_p: 0.0, steps, pruning };
    let generate = || {
        let mut progress = Progress::silent();
        let latent = hart.sample(context.clone(), &sampling, &Philox::new((1..=batch as u64).collect()), &mut progress)?;
        progress.enter(Stage::Decode);
        let images = hart.visual().decode_images(&latent, &mut progress)?;
        Ok::<_, hart_core::Error>((images, progress.timings()))
    };
    let first = std::time::Instant::now();
    let (mut images, mut times) = hart.install(generate)?;
    let first = first.elapsed().as_secs_f64();
    for _ in 1..arguments.warm {
        (images, times) = hart.install(generate)?;
    }
    let of = |stage| times.of(stage).as_secs_f64();
    assert_eq!(images[0].width(), hart.visual().resolution());
    Ok(json!({
        "open_s": open,
        "first_s": first,
        "transformer_s": of(Stage::Transformer),
        "sampling_s": of(Stage::Sampling),
        "diffusion_s": of(Stage::Residual),
        "decode_s": of(Stage::Decode),
        "total_s": times.total.as_secs_f64(),
        "peak_rss_gb": peak_rss_gb(),
        "peak_gpu_gb": if on_cpu { None } else { gpu_gb() },
    }))
}

/// Returns the memory in use on the first NVIDIA GPU in gigabytes.
///
/// hart does not return memory to the driver while it runs. The value is therefore its peak, if no other process uses the GPU.
fn gpu_gb() -> Option<f64> {
    let query = ["--query-gpu=memory.used", "--format=csv,noheader,nounits"];
    let output = std::process::Command::new("nvidia-smi").args(query).output().ok()?;
    let megabytes: f64 = String::from_utf8_lossy(&output.stdout).lines().next()?.trim().parse().ok()?;
    Some(megabytes * 1_048_576.0 / 1e9)
}

/// Returns the peak memory of this process in gigabytes; 0 if the system does not report it.
fn peak_rss_gb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kilobytes = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix("kB")?.trim().parse().ok());
    kilobytes.map_or(0.0, |kilobytes: f64| kilobytes * 1024.0 / 1e9)
}
