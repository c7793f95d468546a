//! Valid ranges of training options. A value outside its range might show in the losses only after hours, or never.

use std::ops::RangeInclusive;

use crate::error::{Error, Result};

/// An option's name, value and valid range.
pub(super) type RangedOption = (&'static str, f64, RangeInclusive<f64>);

/// Range of the weight of a loss. A negative weight would maximise the loss.
pub(super) const WEIGHT: RangeInclusive<f64> = 0.0..=1000.0;
/// Range of shares, probabilities and rates.
pub(super) const UNIT: RangeInclusive<f64> = 0.0..=1.0;
/// Range of decays below 1, since one minus the decay is a divisor.
pub(super) const DECAY: RangeInclusive<f64> = 0.0..=0.99999;

/// Checks that every option is in its range.
///
/// # Errors
///
/// [`Error::Request`] naming the first option outside its range. NaN is outside every range.
pub(super) fn check(options: impl IntoIterator<Item = RangedOption>) -> Result<()> {
    for (name, value, range) in options {
        if !range.contains(&value) {
            let (min, max) = range.into_inner();
            return Err(Error::request(name, format!("is {value}, expected a number from {min} to {max}")));
        }
    }
    Ok(())
}
