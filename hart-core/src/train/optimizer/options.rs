//! How weights are changed, and the learning rate of each step.

use super::super::ranges::{DECAY, Ranged, UNIT};

/// How weights are changed.
#[derive(Clone, Copy, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimizerOptions {
    /// Largest learning rate.
    pub learning_rate: f64,
    /// Steps in which the rate rises to it, linearly.
    pub warmup: u64,
    /// Steps after which it has fallen to `final_ratio` of it, by a cosine.
    pub steps: u64,
    /// Share of the largest rate that is left in the end.
    pub final_ratio: f64,
    /// Decay of the weights, times the learning rate.
    pub weight_decay: f32,
    /// Decay of the squared gradients' average.
    pub beta_2: f32,
    /// Whether the matrices between layers are changed by Muon (Jordan and others, 2024; scaled to AdamW's learning rates as by Liu
    /// and others, arXiv 2502.16982): a step in all directions alike. It needs fewer steps, and more time for each.
    pub muon: bool,
    /// Most that all gradients together may measure, as one vector.
    pub clip: f32,
    /// Decay of the running average of the weights; early steps average over a tenth of what was.
    pub average: f64,
}

/// Most steps: a saved state counts them in f32, which is exact up to here.
const MOST_STEPS: f64 = (1 << 24) as f64;

impl OptimizerOptions {
    /// What each number may be, named as part of the options of a trainer.
    pub(crate) fn ranges(&self) -> [Ranged; 7] {
        [
            ("optimizer.learning_rate", self.learning_rate, UNIT),
            ("optimizer.steps", self.steps as f64, 1.0..=MOST_STEPS),
            ("optimizer.final_ratio", self.final_ratio, UNIT),
            ("optimizer.weight_decay", f64::from(self.weight_decay), UNIT),
            ("optimizer.beta_2", f64::from(self.beta_2), DECAY),
            ("optimizer.clip", f64::from(self.clip), 0.001..=1e6),
            ("optimizer.average", self.average, UNIT),
        ]
    }
}

/// The learning rate of a step, from 0.
pub fn learning_rate(options: &OptimizerOptions, step: u64) -> f64 {
    let (step, warmup, steps) = (step as f64, options.warmup as f64, options.steps as f64);
    if step < warmup {
        return options.learning_rate * (step + 1.0) / warmup;
    }
    let done = ((step - warmup) / (steps - warmup).max(1.0)).min(1.0);
    let wave = (1.0 + (std::f64::consts::PI * done).cos()) / 2.0;
    options.learning_rate * (options.final_ratio + (1.0 - options.final_ratio) * wave)
}
