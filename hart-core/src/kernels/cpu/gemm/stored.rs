//! Weights `[outputs, inputs]` in the type in which a checkpoint stores them. Products and packing widen a few rows at a time, so that
//! a model in half precision is never in memory in f32.

use std::ops::Range;

use half::{bf16, f16};

/// Rows of a weight.
#[derive(Clone, Copy, Debug)]
pub(crate) enum StoredRows<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    Bf16(&'a [bf16]),
}

/// A range of the inputs of some rows, in f32.
#[derive(Clone, Copy)]
pub(super) struct WideRows<'a> {
    pub(super) values: &'a [f32],
    /// Distance from one row to the next in `values`.
    pub(super) stride: usize,
    /// Index of the range's first input in `values`.
    pub(super) first: usize,
}

impl<'a> From<&'a [f32]> for StoredRows<'a> {
    fn from(rows: &'a [f32]) -> Self {
        Self::F32(rows)
    }
}

impl<'a> StoredRows<'a> {
    /// Returns the number of values.
    pub(crate) fn len(self) -> usize {
        match self {
            Self::F32(rows) => rows.len(),
            Self::F16(rows) => rows.len(),
            Self::Bf16(rows) => rows.len(),
        }
    }

    /// Returns a range of the values.
    pub(super) fn slice(self, range: Range<usize>) -> Self {
        match self {
            Self::F32(rows) => Self::F32(&rows[range]),
            Self::F16(rows) => Self::F16(&rows[range]),
            Self::Bf16(rows) => Self::Bf16(&rows[range]),
        }
    }

    /// Returns whether reading needs memory in addition to the stored rows.
    pub(super) fn is_widened(self) -> bool {
        !matches!(self, Self::F32(_))
    }

    /// Returns a range of the inputs of all rows in f32: in place, or widened into `scratch`.
    pub(super) fn widen<'s>(self, inputs: usize, range: Range<usize>, scratch: &'s mut Vec<f32>) -> WideRows<'s>
    where
        'a: 's,
    {
        let kc = range.len();
        if let Self::F32(values) = self {
            return WideRows { values, stride: inputs, first: range.start };
        }
        scratch.resize(self.len() / inputs * kc, 0.0);
        for (index, to) in scratch.chunks_exact_mut(kc.max(1)).enumerate() {
            let from = index * inputs + range.start..index * inputs + range.end;
            match self {
                Self::F32(_) => unreachable!("read in place above"),
                #[cfg(target_arch = "aarch64")]
                Self::F16(rows) => super::arm::widen_f16(&rows[from], to),
                #[cfg(target_arch = "x86_64")]
                Self::F16(rows) => super::x86::widen_f16(&rows[from], to),
                #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
                Self::F16(rows) => super::wasm::widen_f16(&rows[from], to),
                #[cfg(not(any(
                    target_arch = "aarch64",
                    target_arch = "x86_64",
                    all(target_arch = "wasm32", target_feature = "simd128")
                )))]
                Self::F16(rows) => to.iter_mut().zip(&rows[from]).for_each(|(to, from)| *to = super::f16::to_f32(*from)),
                Self::Bf16(rows) => to.iter_mut().zip(&rows[from]).for_each(|(to, from)| *to = bf16_to_f32(*from)),
            }
        }
        WideRows { values: scratch, stride: kc, first: 0 }
    }

    /// Returns one row in f32: in place, or widened into `scratch`.
    pub(super) fn row<'s>(self, index: usize, inputs: usize, scratch: &'s mut Vec<f32>) -> &'s [f32]
    where
        'a: 's,
    {
        self.slice(index * inputs..(index + 1) * inputs).widen(inputs, 0..inputs, scratch).values
    }
}

/// Widens exactly, without the branches of [`bf16::to_f32`], so that loops are vectorised.
#[inline(always)]
fn bf16_to_f32(value: bf16) -> f32 {
    f32::from_bits(u32::from(value.to_bits()) << 16)
}
