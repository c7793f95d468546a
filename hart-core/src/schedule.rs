//! The diffusion's noise schedule and its respacing. Plain f64, no tensors (spec section 4).

use std::f64::consts::FRAC_PI_2;
use std::fmt;
use std::str::FromStr;

use crate::error::Error;
use crate::math;

/// Number of steps of the full schedule.
pub const FULL_STEPS: usize = 1000;
/// Maximum beta of the cosine schedule.
const MAX_BETA: f64 = 0.999;
/// Offset of the cosine schedule (Nichol and Dhariwal, "Improved denoising diffusion probabilistic models", 2021).
const COSINE_OFFSET: f64 = 0.008;

/// The timesteps that are kept from the 1000 of the full schedule. `"8"` is eight evenly spaced steps, `"10,5"` ten in the first
/// half and five in the second, and `"ddim25"` the integer stride that gives exactly 25 steps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Respacing {
    text: String,
    kept: Vec<usize>,
}

impl Respacing {
    /// Returns the kept timesteps in ascending order.
    pub fn timesteps(&self) -> &[usize] {
        &self.kept
    }
}

impl fmt::Display for Respacing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Respacing {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::parse(text).map_err(|expected| Error::request("steps", format!("\"{text}\", expected {expected}")))
    }
}

impl Respacing {
    /// Parses a respacing. The error describes the valid texts.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let expected = || "1 to 1000 steps such as \"8\", numbers for equal sections such as \"10,5\", or \"ddim25\"".to_string();
        let count = |t: &str| t.trim().parse::<usize>().ok().filter(|n| (1..=FULL_STEPS).contains(n)).ok_or_else(expected);
        let kept = match text.strip_prefix("ddim") {
            Some(rest) => strided(count(rest)?)?,
            None => sectioned(&text.split(',').map(count).collect::<Result<Vec<_>, _>>()?)?,
        };
        Ok(Self { text: text.to_string(), kept })
    }
}

/// Returns `count` timesteps with the smallest integer stride that gives exactly this number.
fn strided(count: usize) -> Result<Vec<usize>, String> {
    (1..FULL_STEPS)
        .map(|stride| (0..FULL_STEPS).step_by(stride))
        .find(|steps| steps.len() == count)
        .map(Iterator::collect)
        .ok_or_else(|| {
            let possible = || (1..FULL_STEPS).map(|stride| FULL_STEPS.div_ceil(stride));
            let nearest = [possible().filter(|n| *n < count).max(), possible().filter(|n| *n > count).min()];
            let names: Vec<String> = nearest.into_iter().flatten().map(|n| format!("\"ddim{n}\"")).collect();
            format!("a number of steps that an integer stride through {FULL_STEPS} gives, such as {}", names.join(" or "))
        })
}

/// Divides the schedule into equal sections and returns `counts` evenly spaced steps of each. If 1000 is not divisible by the
/// number of sections, the first ones are one step longer.
fn sectioned(counts: &[usize]) -> Result<Vec<usize>, String> {
    let mut kept = Vec::new();
    let mut start = 0;
    for (section, &count) in counts.iter().enumerate() {
        let size = FULL_STEPS / counts.len() + usize::from(section < FULL_STEPS % counts.len());
        if count > size {
            let sections = counts.len();
            return Err(format!("at most {size} steps in section {} of {sections}, or fewer sections", section + 1));
        }
        let stride = if count > 1 { (size - 1) as f64 / (count - 1) as f64 } else { 1.0 };
        // The published code accumulates the stride. A multiplication would round differently.
        let mut at = 0.0f64;
        for _ in 0..count {
            kept.push(start + at.round_ties_even() as usize);
            at += stride;
        }
        start += size;
    }
    Ok(kept)
}

/// The coefficients of one kept step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DiffusionStep {
    /// Timestep in the full schedule, an input of the MLP.
    pub timestep: usize,
    /// Variance added since the previous kept step.
    pub beta: f64,
    /// Remaining share of the signal's variance, the product of all `1 - beta` so far.
    pub alpha_bar: f64,
    /// Logarithm of the posterior's variance. The first step has that of the second, since its own variance is zero.
    pub log_posterior_variance: f64,
    /// Factor of the predicted signal in the posterior's mean.
    pub signal_factor: f64,
    /// Factor of the current sample in the posterior's mean.
    pub sample_factor: f64,
}

/// Returns the kept steps, from the least noise to the most.
pub fn schedule(respacing: &Respacing) -> Vec<DiffusionStep> {
    let full = full_alpha_bar();
    let mut before = 1.0;
    let mut steps = Vec::with_capacity(respacing.kept.len());
    for &timestep in &respacing.kept {
        let beta = 1.0 - full[timestep] / before;
        let alpha_bar = before * (1.0 - beta);
        let posterior_variance = beta * (1.0 - before) / (1.0 - alpha_bar);
        steps.push(DiffusionStep {
            timestep,
            beta,
            alpha_bar,
            log_posterior_variance: math::ln(posterior_variance),
            signal_factor: beta * before.sqrt() / (1.0 - alpha_bar),
            sample_factor: (1.0 - before) * (1.0 - beta).sqrt() / (1.0 - alpha_bar),
        });
        before = alpha_bar;
    }
    if let [first, second, ..] = steps.as_mut_slice() {
        first.log_posterior_variance = second.log_posterior_variance;
    }
    steps
}

/// Returns alpha-bar of all 1000 steps of the cosine schedule.
fn full_alpha_bar() -> Vec<f64> {
    let wave = |u: f64| math::cos((u + COSINE_OFFSET) / (1.0 + COSINE_OFFSET) * FRAC_PI_2).powi(2);
    let at = |i: usize| wave(i as f64 / FULL_STEPS as f64);
    let product = |bar: &mut f64, i: usize| {
        *bar *= 1.0 - (1.0 - at(i + 1) / at(i)).min(MAX_BETA);
        Some(*bar)
    };
    (0..FULL_STEPS).scan(1.0, product).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(text: &str) -> Vec<usize> {
        text.parse::<Respacing>().unwrap().kept
    }

    #[test]
    fn steps_are_those_of_the_published_code() {
        assert_eq!(kept("8"), [0, 143, 285, 428, 571, 714, 856, 999]);
        assert_eq!(kept("1"), [0]);
        assert_eq!(kept("2,3"), [0, 499, 500, 750, 999]);
        assert_eq!(kept("1,1,2"), [0, 334, 667, 999]);
        assert_eq!(kept("ddim4"), [0, 250, 500, 750]);
        assert_eq!(kept("ddim25")[..3], [0, 40, 80]);
        assert_eq!(kept("1000").len(), 1000);
        // The accumulated stride ends slightly below 499.5 here.
        assert_eq!(kept("21")[10], 499);
    }

    #[test]
    fn impossible_respacings_are_refused() {
        for text in ["", "0", "1001", "-1", "8,", "ddim", "ddim0", "ddim999", "501,1", "x", "1e3", "99999999999999999999"] {
            assert!(text.parse::<Respacing>().is_err(), "{text}");
        }
    }

    #[test]
    fn respaced_steps_keep_the_full_schedules_signal() {
        let full = full_alpha_bar();
        let steps = schedule(&"8".parse().unwrap());
        for step in &steps {
            assert!((step.alpha_bar - full[step.timestep]).abs() < 1e-12);
            assert!(step.signal_factor > 0.0 && step.beta > 0.0);
        }
        assert_eq!(steps[0].sample_factor, 0.0);
        assert_eq!(steps[0].log_posterior_variance, steps[1].log_posterior_variance);
    }
}
