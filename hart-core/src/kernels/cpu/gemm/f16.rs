//! f16 on processors without instructions for it.

use half::f16;

/// Difference of the biases of f32's and f16's exponents.
pub(super) const BIAS: u32 = (127 - 15) << 23;
/// Exponent of f16's infinities and NaN, shifted to that of an f32.
pub(super) const INFINITE: u32 = 31 << 23;
/// The smallest normal f16.
pub(super) const NORMAL: u32 = BIAS + (1 << 23);

/// Widens exactly, without the branches of [`f16::to_f32`], so that loops are vectorised.
#[inline(always)]
pub(super) fn to_f32(value: f16) -> f32 {
    let bits = u32::from(value.to_bits());
    let (sign, shifted) = ((bits & 0x8000) << 16, (bits & 0x7fff) << 13);
    let exponent = shifted & INFINITE;
    // Subtraction normalises the fraction.
    let subnormal = (f32::from_bits(shifted + NORMAL) - f32::from_bits(NORMAL)).to_bits();
    let infinite = if exponent == INFINITE { BIAS } else { 0 };
    let normal = shifted + BIAS + infinite;
    f32::from_bits(sign | if exponent == 0 { subnormal } else { normal })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f16_is_widened_exactly() {
        for value in (0..=u16::MAX).map(f16::from_bits).filter(|value| !value.is_nan()) {
            assert_eq!(to_f32(value).to_bits(), value.to_f32().to_bits(), "{value:?}");
        }
        #[cfg(target_arch = "x86_64")]
        for start in [0, 3] {
            let values: Vec<f16> = (start..=u16::MAX).map(f16::from_bits).filter(|value| !value.is_nan()).collect();
            let mut wide = vec![0.0; values.len()];
            super::super::x86::widen_f16(&values, &mut wide);
            assert!(wide.iter().zip(&values).all(|(wide, value)| wide.to_bits() == value.to_f32().to_bits()));
        }
        let nans = (0..=u16::MAX).map(f16::from_bits).filter(|value| value.is_nan());
        assert!(nans.into_iter().all(|value| to_f32(value).is_nan()));
    }
}
