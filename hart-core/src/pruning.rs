//! Pruning plans: the shares of tokens that the transformer leaves out of its largest scales (FastVAR, arXiv 2503.23367). Plain values, no
//! tensors.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::scales::Scale;

/// Ratios of the published plan, for the last two scales.
const PUBLISHED: [f64; 2] = [0.5, 0.75];

/// The shares of tokens that the transformer leaves out of its last scales.
///
/// Each branch of each block computes only the tokens that differ most from the mean. The others take the branch's outputs of an earlier
/// scale, the last one that is not pruned. This is faster and needs less memory, and the images change.
///
/// ```
/// use hart_core::{Pruning, Request};
/// // Half of the tokens of the last scale but one, and three quarters of the last scale's.
/// let pruning = Pruning::new([0.5, 0.75]);
/// assert_eq!(pruning, Pruning::default());
/// assert_eq!(pruning, "0.5,0.75".parse()?);
/// let request = Request::new("a parrot").prune(pruning);
/// # Ok::<(), hart_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Pruning {
    ratios: Vec<f64>,
}

impl Pruning {
    /// Creates a plan from the ratios of the last scales, coarse to fine. Each is the share of a scale's tokens that is left out, from 0 to
    /// less than 1. Values are checked when a request uses the plan.
    pub fn new(ratios: impl Into<Vec<f64>>) -> Self {
        Self { ratios: ratios.into() }
    }

    /// Returns the ratios of the last scales, coarse to fine.
    pub fn ratios(&self) -> &[f64] {
        &self.ratios
    }

    /// Returns the number of tokens of a scale that are computed.
    pub fn kept(&self, scale: &Scale) -> usize {
        let tokens = scale.tokens();
        let Some(index) = scale.index.checked_sub(self.first(scale.count)) else { return tokens };
        // The published code truncates the product.
        let left_out = (tokens as f64 * self.ratios[index]) as usize;
        tokens - left_out
    }

    /// Returns whether a scale is pruned.
    pub(crate) fn prunes(&self, scale: &Scale) -> bool {
        scale.index >= self.first(scale.count)
    }

    /// Returns whether the outputs of a scale stand in for the tokens that later scales leave out.
    pub(crate) fn is_stored(&self, scale: &Scale) -> bool {
        !self.ratios.is_empty() && scale.index + 1 == self.first(scale.count)
    }

    /// Returns the index of the first pruned scale.
    fn first(&self, scales: usize) -> usize {
        scales.saturating_sub(self.ratios.len())
    }

    /// Checks that every ratio is from 0 to less than 1.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] naming the first invalid ratio.
    pub(crate) fn check_ratios(&self) -> Result<()> {
        let Some(index) = self.ratios.iter().position(|ratio| !(0.0..1.0).contains(ratio)) else { return Ok(()) };
        let (number, ratio) = (index + 1, self.ratios[index]);
        let problem = format!("ratio {number} is {ratio}, expected a number from 0 (all tokens are computed) to less than 1");
        Err(Error::request("pruning", problem))
    }

    /// Checks that the plan fits a model whose scales have these sides.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] naming the first problem.
    pub(crate) fn check(&self, sides: &[usize]) -> Result<()> {
        self.check_ratios()?;
        // The first scale's tokens are the context, so the second is the first one whose outputs can stand in for others.
        let most = sides.len().saturating_sub(2);
        if self.ratios.len() > most {
            let (count, scales) = (self.ratios.len(), sides.len());
            let problem = format!(
                "has {count} ratios, expected at most {most}: this model has {scales} scales, and the first two are complete"
            );
            return Err(Error::request("pruning", problem));
        }
        if self.ratios.is_empty() {
            return Ok(());
        }
        let used = &sides[self.first(sides.len()) - 1..];
        match used.windows(2).find(|pair| pair[0] >= pair[1]) {
            None => Ok(()),
            Some(pair) => {
                let problem = format!(
                    "can't be used with this model: side {} of its scales (`patch_nums`) follows side {}, expected sides that increase \
                     from {} on. Prune fewer scales or none",
                    pair[1], pair[0], used[0]
                );
                Err(Error::request("pruning", problem))
            }
        }
    }
}

/// The published plan: half of the tokens of the last scale but one, and three quarters of the last scale's.
impl Default for Pruning {
    fn default() -> Self {
        Self::new(PUBLISHED)
    }
}

impl fmt::Display for Pruning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ratios: Vec<String> = self.ratios.iter().map(f64::to_string).collect();
        f.write_str(&ratios.join(","))
    }
}

impl FromStr for Pruning {
    type Err = Error;

    /// Parses ratios separated by commas, such as `"0.5,0.75"`.
    fn from_str(text: &str) -> Result<Self> {
        let ratios: Option<Vec<f64>> = text.split(',').map(|ratio| ratio.trim().parse().ok()).collect();
        let Some(ratios) = ratios else {
            let problem = format!("\"{text}\", expected the ratios of the last scales, such as \"0.5,0.75\"");
            return Err(Error::request("pruning", problem));
        };
        let pruning = Self { ratios };
        pruning.check_ratios()?;
        Ok(pruning)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scales::plan_of;

    const SIDES_1024: [usize; 14] = [1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64];

    fn kept(pruning: &Pruning, sides: &[usize]) -> Vec<usize> {
        plan_of(sides).iter().map(|scale| pruning.kept(scale)).collect()
    }

    #[test]
    fn ratios_belong_to_the_last_scales_and_counts_are_truncated() {
        let default = Pruning::default();
        assert_eq!(kept(&default, &SIDES_1024)[11..], [36 * 36, 1152, 1024]);
        assert_eq!(kept(&default, &[1, 2, 3, 4, 6, 9, 13, 18, 24, 32])[7..], [18 * 18, 288, 256]);
        assert_eq!(kept(&default, &[1, 2, 3, 4, 5, 6, 8, 10, 13, 16])[7..], [100, 85, 64]);
        assert_eq!(kept(&Pruning::new([0.3, 0.4, 0.7]), &[1, 2, 3, 4, 6, 8]), [1, 4, 9, 12, 22, 20]);
        assert_eq!(kept(&Pruning::new([]), &[1, 2, 3]), [1, 4, 9]);
        let stored: Vec<usize> =
            plan_of(&SIDES_1024).iter().filter(|scale| default.is_stored(scale)).map(|scale| scale.side).collect();
        assert_eq!(stored, [36]);
    }

    #[test]
    fn at_least_one_token_is_kept() {
        let almost_all = Pruning::new([1.0 - f64::EPSILON / 2.0]);
        for side in 1..=64 {
            let scale = Scale { index: 2, count: 3, side, last_side: side };
            assert_eq!(almost_all.kept(&scale), 1, "side {side}");
        }
    }

    #[test]
    fn plans_that_do_not_fit_are_invalid() {
        let problem = |ratios: &[f64], sides: &[usize]| Pruning::new(ratios).check(sides).unwrap_err().to_string();
        for ratio in [1.0, -0.1, f64::NAN, f64::INFINITY] {
            assert!(problem(&[0.5, ratio], &SIDES_1024).contains("ratio 2"), "{ratio}");
        }
        assert!(problem(&[0.5; 3], &[1, 2, 3, 4]).contains("at most 2"));
        assert!(problem(&[0.5], &[1, 2]).contains("at most 0"));
        assert!(problem(&[0.5, 0.5], &[1, 4, 3, 6]).contains("side 3"));
        assert!(problem(&[0.5], &[1, 4, 4]).contains("side 4 of its scales (`patch_nums`) follows side 4"));
        assert!(Pruning::new([0.5]).check(&[1, 4, 3, 6]).is_ok());
        assert!(Pruning::new([0.5; 2]).check(&[1, 2, 3, 4]).is_ok());
        assert!(Pruning::new([]).check(&[1, 1]).is_ok());
    }

    #[test]
    fn texts_are_ratios_with_commas() {
        for text in ["0.5,0.75", "0", " 0.25 , 0.5,0.75"] {
            let pruning: Pruning = text.parse().unwrap();
            assert_eq!(pruning.to_string().parse::<Pruning>().unwrap(), pruning);
        }
        for text in ["", "half", "0.5;0.75", "0.5,", "1.5", "nan"] {
            assert!(text.parse::<Pruning>().unwrap_err().to_string().contains("pruning"), "{text}");
        }
    }
}
