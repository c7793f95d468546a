//! Who is compared, each in a process of its own, and what it measures of itself.

use std::fmt;
use std::path::Path;
use std::process::{Command, Stdio};

use hart_core::{DeviceKind, Precision};
use serde_json::Value;

use crate::Arguments;
use crate::stages::{STAGES, Times};

/// PyTorch's precisions that hart is held against. On a GPU f32 is many times slower than f16, and nobody draws with it.
pub const PEERS: [&str; 3] = ["f32", "bf16", "f16"];

/// Whether the processor has instructions that PyTorch multiplies bf16 with.
pub fn computes_in_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx512bf16");
    #[cfg(not(target_arch = "x86_64"))]
    true
}

/// The peer's program.
const PEER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/torch_hart.py");

/// One side of the comparison.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Contestant {
    /// PyTorch, eager, with numbers of this type.
    Torch(&'static str),
    /// hart in this precision.
    Hart(Precision),
}

impl fmt::Display for Contestant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Torch(dtype) => write!(f, "torch_{dtype}"),
            Self::Hart(precision) => write!(f, "{precision}"),
        }
    }
}

/// What one run took.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// Seconds of each stage.
    pub times: Times,
    /// Seconds in which hart opened its model; the peer makes its weights anew.
    pub open: Option<f64>,
    /// Seconds of the first picture, for which kernels were compiled and chosen.
    pub first: Option<f64>,
    /// Most memory that the process had, in gigabytes (1e9 bytes).
    pub peak_rss_gb: f64,
    /// Most memory of the GPU, where it says.
    pub peak_gpu_gb: Option<f64>,
}

impl Contestant {
    /// Runs it once.
    ///
    /// # Errors
    ///
    /// The program can't be started or fails: what to do.
    pub fn run(self, arguments: &Arguments, model: &Path) -> Result<Run, String> {
        let (resolution, threads) = (arguments.res.pixels().to_string(), arguments.threads.to_string());
        let mut command = match self {
            Self::Torch(dtype) => {
                let mut command = Command::new(&arguments.python);
                command.args([PEER, "--dtype", dtype]);
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
            // The peer knows one CUDA device, the first.
            Self::Torch(_) => {
                let device = if matches!(arguments.device, DeviceKind::Cuda(_)) { "cuda" } else { "cpu" };
                command.args(["--device", device, "--repeat", &warm])
            }
            Self::Hart(_) => command.args(["--device", &arguments.device.to_string(), "--warm", &warm]),
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
        let line = text.lines().last().unwrap_or_default();
        let json = serde_json::from_str(line).map_err(|e| format!("{self}: {e} in `{line}`"))?;
        read(&json).ok_or_else(|| format!("{self}: expected times in `{line}`"))
    }
}

/// The peer counts embedding the context by itself, hart with the transformer.
fn read(json: &Value) -> Option<Run> {
    let number = |name: &str| json[name].as_f64();
    let mut times = Times::default();
    for (time, stage) in times.0.iter_mut().zip(STAGES) {
        *time = number(&format!("{stage}_s"))?;
    }
    times.0[0] += number("context_s").unwrap_or(0.0);
    Some(Run {
        times,
        open: number("open_s"),
        first: number("first_s"),
        peak_rss_gb: number("peak_rss_gb")?,
        peak_gpu_gb: number("peak_gpu_gb"),
    })
}
