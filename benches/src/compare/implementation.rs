//! The implementations that are compared. Each one runs in a separate process and reports its times.

use std::fmt;
use std::path::Path;
use std::process::{Command, Stdio};

use hart_core::{DeviceKind, Precision};
use serde_json::Value;

use crate::Arguments;
use crate::stages::{STAGES, Times};

/// Precisions that PyTorch can be measured in.
pub const TORCH_DTYPES: [&str; 3] = ["f32", "bf16", "f16"];

/// Returns whether the processor has the bf16 instructions that PyTorch uses.
pub fn has_bf16_instructions() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx512bf16");
    #[cfg(not(target_arch = "x86_64"))]
    true
}

/// The PyTorch program.
const TORCH_PROGRAM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/torch_hart.py");

/// An implementation of HART in one precision.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Implementation {
    /// Eager PyTorch with tensors of this type.
    Torch(&'static str),
    /// hart in this precision.
    Hart(Precision),
}

impl fmt::Display for Implementation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Torch(dtype) => write!(f, "torch_{dtype}"),
            Self::Hart(precision) => write!(f, "{precision}"),
        }
    }
}

/// Time and memory of one run.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// Time of every stage.
    pub times: Times,
    /// Seconds for opening the model; `None` for PyTorch, which creates random weights.
    pub open: Option<f64>,
    /// Seconds for the first image, including the compilation and tuning of kernels; `None` for PyTorch.
    pub first: Option<f64>,
    /// Peak memory of the process in gigabytes (1e9 bytes).
    pub peak_rss_gb: f64,
    /// Peak memory of the GPU in gigabytes, if it is known.
    pub peak_gpu_gb: Option<f64>,
}

impl Implementation {
    /// Runs the implementation once in a new process.
    ///
    /// # Errors
    ///
    /// Returns an error if the program can't be started, fails, or prints no times.
    pub fn run(self, arguments: &Arguments, model: &Path) -> Result<Run, String> {
        let (resolution, threads) = (arguments.res.pixels().to_string(), arguments.threads.to_string());
        let mut command = match self {
            Self::Torch(dtype) => {
                let mut command = Command::new(&arguments.python);
                command.args([TORCH_PROGRAM, "--dtype", dtype]);
                command
            }
            Self::Hart(precision) => {
                let program = std::env::current_exe().map_err(|e| format!("can't find this program: {e}"))?;
                let mut command = Command::new(program);
                command.args(["--precision", &precision.to_string(), "--measure"]).arg(model);
                command
            }
        };
        let (batch, warm) = (arguments.batch.to_string(), arguments.warm.to_string());
        command.args(["--res", &resolution, "--threads", &threads, "--batch", &batch]).stderr(Stdio::inherit());
        match self {
            // The PyTorch program always uses the first CUDA device.
            Self::Torch(_) => {
                let device = if matches!(arguments.device, DeviceKind::Cuda(_)) { "cuda" } else { "cpu" };
                command.args(["--device", device, "--repeat", &warm])
            }
            Self::Hart(_) => {
                if let Some(pruning) = &arguments.prune {
                    command.args(["--prune", &pruning.to_string()]);
                }
                command.args(["--device", &arguments.device.to_string(), "--warm", &warm])
            }
        };
        let output = command.output().map_err(|e| format!("{}: {e}", command.get_program().display()))?;
        if !output.status.success() {
            let advice = match self {
                Self::Torch(_) => "; it needs Python with torch and numpy: name one with --python",
                Self::Hart(_) => "",
            };
            return Err(format!("{self}: ended with {}{advice}", output.status));
        }
        let text = String::from_utf8_lossy(&output.stdout);
        // A PyTorch run prints a line per image. The last one counts.
        let line = text.lines().last().unwrap_or_default();
        let json = serde_json::from_str(line).map_err(|e| format!("{self}: {e} in `{line}`"))?;
        parse(&json).ok_or_else(|| format!("{self}: expected times in `{line}`"))
    }
}

/// Parses the line of JSON that a run prints.
fn parse(json: &Value) -> Option<Run> {
    let number = |name: &str| json[name].as_f64();
    let mut times = Times::default();
    for (time, stage) in times.0.iter_mut().zip(STAGES) {
        *time = number(&format!("{stage}_s"))?;
    }
    // PyTorch reports the embedding of the context separately, hart as part of the transformer.
    times.0[0] += number("context_s").unwrap_or(0.0);
    Some(Run {
        times,
        open: number("open_s"),
        first: number("first_s"),
        peak_rss_gb: number("peak_rss_gb")?,
        peak_gpu_gb: number("peak_gpu_gb"),
    })
}
