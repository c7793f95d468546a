//! Options of the optimizer and its learning rate schedule.

use super::super::ranges::{DECAY, RangedOption, UNIT};

/// Options of the optimizer.
#[derive(Clone, Copy, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimizerOptions {
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Number of steps of the linear warm-up to the peak.
    pub warmup: u64,
    /// Total number of steps. The learning rate decays to `final_ratio` of the peak by then, by a cosine.
    pub steps: u64,
    /// Final learning rate as a share of the peak.
    pub final_ratio: f64,
    /// Weight decay, multiplied by the learning rate.
    pub weight_decay: f32,
    /// AdamW's decay of the second moment.
    pub beta_2: f32,
    /// `true` if Muon updates the hidden matrices (Jordan et al., 2024; scaled to AdamW's learning rates as in Liu et al.,
    /// arXiv 2502.16982). It needs fewer steps than AdamW and more time for each.
    pub muon: bool,
    /// Maximum global norm of the gradients; larger gradients are scaled down to it.
    pub clip: f32,
    /// Decay of the exponential moving average of the weights. The first steps use a smaller decay.
    pub average: f64,
}

/// Maximum number of steps: a saved state stores the step as f32, which is exact up to 2^24.
const MAX_STEPS: f64 = (1 << 24) as f64;

impl OptimizerOptions {
    /// Returns the valid range of every option, with its name in the options of a trainer.
    pub(crate) fn ranges(&self) -> [RangedOption; 7] {
        [
            ("optimizer.learning_rate", self.learning_rate, UNIT),
            ("optimizer.steps", self.steps as f64, 1.0..=MAX_STEPS),
            ("optimizer.final_ratio", self.final_ratio, UNIT),
            ("optimizer.weight_decay", f64::from(self.weight_decay), UNIT),
            ("optimizer.beta_2", f64::from(self.beta_2), DECAY),
            ("optimizer.clip", f64::from(self.clip), 0.001..=1e6),
            ("optimizer.average", self.average, UNIT),
        ]
    }
}

/// Returns the learning rate of a step: linear warm-up, then cosine decay. Steps are counted from 0.
pub fn learning_rate(options: &OptimizerOptions, step: u64) -> f64 {
    let (step, warmup, steps) = (step as f64, options.warmup as f64, options.steps as f64);
    if step < warmup {
        return options.learning_rate * (step + 1.0) / warmup;
    }
    let progress = ((step - warmup) / (steps - warmup).max(1.0)).min(1.0);
    let cosine = (1.0 + (std::f64::consts::PI * progress).cos()) / 2.0;
    options.learning_rate * (options.final_ratio + (1.0 - options.final_ratio) * cosine)
}
