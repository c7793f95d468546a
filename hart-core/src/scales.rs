//! The scale plan: the size, guidance and sampling of each scale. Plain values, no tensors (spec sections 3 and 4).

use crate::config::TransformerConfig;

/// One scale of the coarse-to-fine sequence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    /// Index of the scale, from 0.
    pub index: usize,
    /// Total number of scales, S.
    pub count: usize,
    /// Side in latent positions, `pn[s]`.
    pub side: usize,
    /// Side of the last scale and of the latent.
    pub last_side: usize,
}

impl Scale {
    /// Returns the number of image tokens.
    pub fn tokens(&self) -> usize {
        self.side * self.side
    }

    /// Returns whether this is the last scale, whose tokens the residual diffusion completes.
    pub fn is_last(&self) -> bool {
        self.index + 1 == self.count
    }

    /// Returns the position of the scale from 0 (the first) to 1 (the last). It selects the phi convolution.
    pub fn position(&self) -> f64 {
        self.index as f64 / self.count.saturating_sub(1).max(1) as f64
    }

    /// Returns the ratio by which guidance and temperature change over the scales. The last scale has the ratio of the scale before,
    /// because the published code reuses the variable of its loop.
    pub fn ratio(&self) -> f64 {
        self.index.min(self.count.saturating_sub(2)) as f64 / self.count.saturating_sub(1).max(1) as f64
    }

    /// Returns the guidance t of this scale. Guided logits are `(1 + t) * conditional - t * unconditional`.
    pub fn guidance(&self, guidance: f64) -> f64 {
        guidance * self.ratio()
    }

    /// Returns the temperature of Gumbel-softmax smoothing. Source: `hart_transformer_t2i.py`, `gum_t`.
    pub fn temperature(&self) -> f64 {
        (0.27 * (1.0 - self.ratio() * 0.95)).max(0.005)
    }

    /// Returns the number of codes kept for sampling. The published code ignores its `top_k` argument and uses these values.
    pub fn top_k(&self) -> usize {
        const COARSE_SCALES: usize = 7;
        if self.index < COARSE_SCALES { 600 } else { 300 }
    }
}

/// Returns all scales of a checkpoint, coarse to fine.
pub fn plan(config: &TransformerConfig) -> Vec<Scale> {
    plan_of(&config.sides)
}

/// Returns the scales with the given sides, coarse to fine.
pub fn plan_of(sides: &[usize]) -> Vec<Scale> {
    let last_side = sides.last().copied().unwrap_or(0);
    let scale = |(index, &side)| Scale { index, count: sides.len(), side, last_side };
    sides.iter().enumerate().map(scale).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_scale_is_guided_like_the_one_before() {
        let plan = plan_of(&[1, 2, 3, 4, 6, 8]);
        let t: Vec<f64> = plan.iter().map(|s| s.guidance(4.5)).collect();
        let expected = [0.0, 0.9, 1.8, 2.7, 3.6, 3.6];
        assert!(t.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{t:?}");
        assert_eq!(plan[5].temperature(), plan[4].temperature());
        assert_eq!(plan[5].position(), 1.0);
    }

    #[test]
    fn temperature_falls_to_a_floor() {
        let plan = plan_of(&[1; 200]);
        assert!((plan[0].temperature() - 0.27).abs() < 1e-12);
        assert!(plan.iter().all(|s| s.temperature() >= 0.005));
    }

    #[test]
    fn top_k_drops_after_seven_scales() {
        let plan = plan_of(&[1, 2, 3, 4, 5, 6, 7, 8, 9]);
        let k: Vec<usize> = plan.iter().map(Scale::top_k).collect();
        assert_eq!(k, [600, 600, 600, 600, 600, 600, 600, 300, 300]);
    }
}
