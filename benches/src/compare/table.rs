//! Results as a table, as JSON, and as the rows of a CSV file.

use serde_json::{Map, Value, json};

use crate::implementation::{Implementation, Run, TORCH_DTYPES};
use crate::stages::{STAGES, Spread};

/// All runs of every implementation, in the order in which they ran.
pub struct Results(pub Vec<(Implementation, Vec<Run>)>);

impl Results {
    fn runs(&self, implementation: Implementation) -> Option<&[Run]> {
        self.0.iter().find(|(c, _)| *c == implementation).map(|(_, runs)| runs.as_slice())
    }

    fn hart(&self) -> impl Iterator<Item = (Implementation, &[Run])> {
        self.0.iter().filter(|(c, _)| matches!(c, Implementation::Hart(_))).map(|(c, runs)| (*c, runs.as_slice()))
    }

    /// Returns the speed-up of `runs` over `torch` for every stage. Runs of the same round are compared with each other.
    fn speedups(torch: &[Run], runs: &[Run]) -> [Spread; STAGES.len()] {
        std::array::from_fn(|stage| Spread::of(torch.iter().zip(runs).map(|(t, r)| t.times.0[stage] / r.times.0[stage])))
    }

    /// Formats the seconds of every implementation, and hart's speed-up over each precision of PyTorch.
    pub fn table(&self) -> String {
        let mut lines = vec![row("seconds, median (min to max)", STAGES.iter().map(|s| s.to_string()), "open  peak GB")];
        for (implementation, runs) in &self.0 {
            let spread = |stage: usize| Spread::of(runs.iter().map(|run| run.times.0[stage]));
            let cells = (0..STAGES.len()).map(|stage| cell(spread(stage)));
            let open = open(runs).map_or_else(|| "-".to_string(), |seconds| format!("{seconds:.2}"));
            let gpu = runs.iter().filter_map(|run| run.peak_gpu_gb).reduce(f64::max);
            lines.push(row(&implementation.to_string(), cells, &format!("{open:>4}  {:7.2}", gpu.unwrap_or(memory(runs)))));
        }
        for dtype in TORCH_DTYPES {
            let Some(torch) = self.runs(Implementation::Torch(dtype)) else { continue };
            lines.push(String::new());
            lines.push(row(&format!("times faster than torch_{dtype}"), STAGES.iter().map(|s| s.to_string()), ""));
            for (implementation, runs) in self.hart() {
                lines.push(row(&implementation.to_string(), Self::speedups(torch, runs).into_iter().map(cell), ""));
            }
        }
        lines.join("\n")
    }

    /// Returns the medians as JSON.
    ///
    /// `speedup` (over PyTorch's f32), `speedup_over_bf16`, `speedup_over_f16` and `seconds` are grouped by implementation and stage;
    /// `open_seconds`, `first_seconds`, `peak_rss_gb` and `peak_gpu_gb` by implementation.
    pub fn json(&self) -> Value {
        let mut object = Map::new();
        for (name, dtype) in [("speedup", "f32"), ("speedup_over_bf16", "bf16"), ("speedup_over_f16", "f16")] {
            let Some(torch) = self.runs(Implementation::Torch(dtype)) else { continue };
            let of = |runs: &[Run]| by_stage(Self::speedups(torch, runs).map(|spread| spread.median));
            let all = self.hart().map(|(implementation, runs)| (implementation.to_string(), of(runs)));
            object.insert(name.into(), Value::Object(all.collect()));
        }
        let each =
            |value: &dyn Fn(&[Run]) -> Value| self.0.iter().map(|(c, runs)| (c.to_string(), value(runs))).collect::<Map<_, _>>();
        let seconds =
            |runs: &[Run]| by_stage(std::array::from_fn(|stage| Spread::of(runs.iter().map(|run| run.times.0[stage])).median));
        object.insert("seconds".into(), Value::Object(each(&seconds)));
        object.insert("open_seconds".into(), Value::Object(each(&|runs| json!(open(runs).map(rounded)))));
        object.insert("peak_rss_gb".into(), Value::Object(each(&|runs| json!(rounded(memory(runs))))));
        object.insert(
            "first_seconds".into(),
            Value::Object(each(&|runs| json!(runs.first().and_then(|run| run.first).map(rounded)))),
        );
        let gpu = |runs: &[Run]| runs.iter().filter_map(|run| run.peak_gpu_gb).reduce(f64::max);
        object.insert("peak_gpu_gb".into(), Value::Object(each(&|runs| json!(gpu(runs).map(rounded)))));
        Value::Object(object)
    }

    /// Returns a CSV file with one row per run.
    pub fn csv(&self, resolution: usize, threads: usize) -> String {
        let mut lines = vec![format!("resolution,threads,implementation,run,{},peak_rss_gb", STAGES.join("_s,") + "_s")];
        for (implementation, runs) in &self.0 {
            for (index, run) in runs.iter().enumerate() {
                let times = run.times.0.map(|time| format!("{time:.4}")).join(",");
                lines.push(format!("{resolution},{threads},{implementation},{},{times},{:.3}", index + 1, run.peak_rss_gb));
            }
        }
        lines.join("\n") + "\n"
    }
}

/// Returns the peak memory of all runs in gigabytes.
fn memory(runs: &[Run]) -> f64 {
    runs.iter().map(|run| run.peak_rss_gb).fold(0.0, f64::max)
}

/// Returns the median time of opening the model; `None` for PyTorch.
fn open(runs: &[Run]) -> Option<f64> {
    let times: Option<Vec<f64>> = runs.iter().map(|run| run.open).collect();
    Some(Spread::of(times?.into_iter()).median)
}

fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

fn by_stage(values: [f64; STAGES.len()]) -> Value {
    Value::Object(STAGES.iter().zip(values).map(|(stage, value)| (stage.to_string(), json!(rounded(value)))).collect())
}

fn cell(Spread { min, median, max }: Spread) -> String {
    let digits = if max < 1.0 { 3 } else { 2 };
    if min == max { format!("{median:.digits$}") } else { format!("{median:.digits$} ({min:.digits$} to {max:.digits$})") }
}

fn row(name: &str, cells: impl Iterator<Item = String>, last: &str) -> String {
    let cells: String = cells.map(|cell| format!(" {cell:>22}")).collect();
    format!("{name:32}{cells} {last:>14}").trim_end().to_string()
}
