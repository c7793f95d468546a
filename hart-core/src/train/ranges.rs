//! What options of training may be. Beyond its range, a number would be noticed only by the losses: after hours, or never.

use std::ops::RangeInclusive;

use crate::error::{Error, Result};

/// An option's name and value, and what it may be.
pub(super) type Ranged = (&'static str, f64, RangeInclusive<f64>);

/// Of a loss's weight: with a negative one, training would climb.
pub(super) const WEIGHT: RangeInclusive<f64> = 0.0..=1000.0;
/// Of shares, probabilities and rates.
pub(super) const UNIT: RangeInclusive<f64> = 0.0..=1.0;
/// Of decays that must leave something, which is divided by.
pub(super) const DECAY: RangeInclusive<f64> = 0.0..=0.99999;

/// Holds every option against its range.
///
/// # Errors
///
/// [`Error::Request`] naming the first one beyond it; NaN lies beyond any.
pub(super) fn check(options: impl IntoIterator<Item = Ranged>) -> Result<()> {
    for (name, value, range) in options {
        if !range.contains(&value) {
            let (least, most) = range.into_inner();
            return Err(Error::request(name, format!("is {value}, expected a number from {least} to {most}")));
        }
    }
    Ok(())
}
