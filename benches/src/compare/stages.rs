//! The stages that both implementations measure, and statistics of their times.

/// Names of the stages. The last is the total, which includes the time between the stages.
pub const STAGES: [&str; 5] = ["transformer", "sampling", "diffusion", "decode", "total"];

/// Seconds for every stage.
#[derive(Clone, Copy, Debug, Default)]
pub struct Times(pub [f64; STAGES.len()]);

/// Minimum, median and maximum of some values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// Minimum.
    pub min: f64,
    /// Median; the mean of the two middle values if their count is even.
    pub median: f64,
    /// Maximum.
    pub max: f64,
}

impl Spread {
    /// Computes the statistics of at least one value.
    ///
    /// # Panics
    ///
    /// Panics if there are no values.
    pub fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = values.collect();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len() - 1;
        Self { min: sorted[0], median: (sorted[last / 2] + sorted[last.div_ceil(2)]) / 2.0, max: sorted[last] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_of_odd_and_even_counts() {
        let of = |values: &[f64]| Spread::of(values.iter().copied());
        assert_eq!(of(&[3.0]), Spread { min: 3.0, median: 3.0, max: 3.0 });
        assert_eq!(of(&[3.0, 1.0]), Spread { min: 1.0, median: 2.0, max: 3.0 });
        assert_eq!(of(&[9.0, 1.0, 2.0]), Spread { min: 1.0, median: 2.0, max: 9.0 });
    }
}
