//! The stages that both sides time.

/// Their names; the last is the whole, which also holds what lies between the others.
pub const STAGES: [&str; 5] = ["transformer", "sampling", "diffusion", "decode", "total"];

/// Seconds of each stage.
#[derive(Clone, Copy, Debug, Default)]
pub struct Times(pub [f64; STAGES.len()]);

/// The least, the middle and the most of some numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The least.
    pub min: f64,
    /// The middle one; the mean of the two middle ones of an even count.
    pub median: f64,
    /// The most.
    pub max: f64,
}

impl Spread {
    /// Of at least one number.
    ///
    /// # Panics
    ///
    /// If there is none.
    pub fn of(numbers: impl Iterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = numbers.collect();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len() - 1;
        Self { min: sorted[0], median: (sorted[last / 2] + sorted[last.div_ceil(2)]) / 2.0, max: sorted[last] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spread_has_the_middle_of_any_count() {
        let of = |numbers: &[f64]| Spread::of(numbers.iter().copied());
        assert_eq!(of(&[3.0]), Spread { min: 3.0, median: 3.0, max: 3.0 });
        assert_eq!(of(&[3.0, 1.0]), Spread { min: 1.0, median: 2.0, max: 3.0 });
        assert_eq!(of(&[9.0, 1.0, 2.0]), Spread { min: 1.0, median: 2.0, max: 9.0 });
    }
}
