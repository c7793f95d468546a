//! Stored tensors to f32: without a copy where the file holds aligned f32, converted on all cores where not.

use std::path::PathBuf;
use std::sync::Arc;

use burn::tensor::{AllocationProperty, Bytes, DType, Shape, TensorData};
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::{bf16, f16};
use rayon::prelude::*;

use crate::device::Precision;
use crate::error::{Error, Result};
use crate::kernels::PackedWeight;

/// Elements converted at a time.
const CHUNK: usize = 1 << 14;

/// Element types that become f32; others are named in the error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Element {
    F32,
    F16,
    Bf16,
    F64,
    /// Packed weights only (see [`super::packed`]).
    I8,
    Other(&'static str),
}

impl From<safetensors::Dtype> for Element {
    fn from(dtype: safetensors::Dtype) -> Self {
        use safetensors::Dtype;
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::F16 => Self::F16,
            Dtype::BF16 => Self::Bf16,
            Dtype::F64 => Self::F64,
            Dtype::I8 => Self::I8,
            Dtype::I64 | Dtype::I32 | Dtype::I16 => Self::Other("signed integers"),
            Dtype::U64 | Dtype::U32 | Dtype::U16 | Dtype::U8 => Self::Other("unsigned integers"),
            Dtype::BOOL => Self::Other("booleans"),
            _ => Self::Other("an exotic float type"),
        }
    }
}

impl From<pytorch_reader::DType> for Element {
    fn from(dtype: pytorch_reader::DType) -> Self {
        use pytorch_reader::DType;
        match dtype {
            DType::F32 => Self::F32,
            DType::F16 => Self::F16,
            DType::BF16 => Self::Bf16,
            DType::F64 => Self::F64,
            DType::Bool => Self::Other("booleans"),
            _ => Self::Other("integers"),
        }
    }
}

impl Element {
    pub(super) fn size(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F64 => 8,
            Self::I8 => 1,
            Self::F32 | Self::Other(_) => 4,
        }
    }
}

/// Where a tensor's bytes are.
pub(super) enum Stored {
    /// In a file's mapping or in memory.
    Bytes(bytes::Bytes),
    /// In a torch file, to be read.
    Torch(Arc<pytorch_reader::Tensor>),
}

/// What is known of a tensor before it is read.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    /// The file that holds it.
    pub file: PathBuf,
    /// Its shape.
    pub shape: Vec<usize>,
}

/// A tensor of a checkpoint.
pub(super) struct Entry {
    pub(super) info: TensorInfo,
    pub(super) element: Element,
    pub(super) stored: Stored,
}

impl Entry {
    /// Returns the precision of a packed weight; `None` for any other tensor.
    pub(super) fn packed_precision(&self) -> Option<Precision> {
        let precision = match self.element {
            Element::Bf16 => Precision::Bf16,
            Element::I8 => Precision::Int8,
            _ => return None,
        };
        let [_, _, outputs, inputs] = PackedWeight::stored_shape(precision, [1, 1])?;
        matches!(*self.info.shape, [_, _, o, i] if [o, i] == [outputs, inputs]).then_some(precision)
    }

    /// The tensor as finite f32 in row-major order.
    ///
    /// # Errors
    ///
    /// It holds no floats, can't be read, or an element is not finite.
    pub(super) fn read(&self, name: &str) -> Result<TensorData> {
        let file = &self.info.file;
        let bytes = match &self.stored {
            Stored::Bytes(bytes) => bytes.clone(),
            Stored::Torch(tensor) => bytes::Bytes::from(tensor.read().map_err(Error::io(file))?),
        };
        let count: usize = self.info.shape.iter().product();
        let no_floats = match self.element {
            Element::I8 => Some("8-bit integers"),
            Element::Other(what) => Some(what),
            _ => None,
        };
        if let Some(what) = no_floats {
            return Err(Error::checkpoint(file, format!("tensor `{name}` holds {what}, expected f32, f16, bf16 or f64")));
        }
        if bytes.len() != count * self.element.size() {
            return Err(Error::checkpoint(file, format!("tensor `{name}` has {} bytes for {count} elements", bytes.len())));
        }
        let shape = Shape::from(self.info.shape.clone());
        let aligned = bytes.as_ptr().align_offset(align_of::<f32>()) == 0;
        let data = if self.element == Element::F32 && aligned && cfg!(target_endian = "little") {
            TensorData::from_bytes(Bytes::from_shared(bytes, AllocationProperty::Other), shape, DType::F32)
        } else {
            TensorData::new(convert(&bytes, self.element, count), shape)
        };
        let values = data.as_slice::<f32>().map_err(|e| Error::checkpoint(file, format!("tensor `{name}`: {e:?}")))?;
        match first_not_finite(values) {
            None => Ok(data),
            Some(index) => Err(Error::NotFinite { path: file.clone(), tensor: name.into(), index, value: values[index] }),
        }
    }
}

fn convert(bytes: &[u8], element: Element, count: usize) -> Vec<f32> {
    let mut values = vec![0.0; count];
    let size = element.size();
    values.par_chunks_mut(CHUNK).zip(bytes.par_chunks(CHUNK * size)).for_each(|(out, bytes)| match element {
        Element::F16 => words(bytes).reinterpret_cast::<f16>().convert_to_f32_slice(out),
        Element::Bf16 => words(bytes).reinterpret_cast::<bf16>().convert_to_f32_slice(out),
        Element::F64 => {
            for (value, b) in out.iter_mut().zip(bytes.chunks_exact(8)) {
                *value = f64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]) as f32;
            }
        }
        Element::F32 | Element::I8 | Element::Other(_) => {
            for (value, b) in out.iter_mut().zip(bytes.chunks_exact(4)) {
                *value = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            }
        }
    });
    values
}

fn words(bytes: &[u8]) -> Vec<u16> {
    bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect()
}

/// Position of the first NaN or infinity.
fn first_not_finite(values: &[f32]) -> Option<usize> {
    const EXPONENT: u32 = 0x7f80_0000;
    // Summing a mask lets the compiler use vectors; the position is looked for only when there is one.
    let damaged = |chunk: &[f32]| chunk.iter().fold(0u32, |sum, v| sum | u32::from(v.to_bits() & EXPONENT == EXPONENT)) != 0;
    let (index, chunk) = values.par_chunks(CHUNK).enumerate().find_first(|(_, chunk)| damaged(chunk))?;
    Some(index * CHUNK + chunk.iter().position(|v| !v.is_finite())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_float_type_becomes_the_same_f32() {
        let values: Vec<f32> = (-20_000..20_000).map(|i| i as f32 / 64.0 / 8.0).collect();
        let as_bf16: Vec<f32> = values.iter().map(|&v| bf16::from_f32(v).to_f32()).collect();
        let bytes = |f: &dyn Fn(f32) -> Vec<u8>| values.iter().flat_map(|&v| f(v)).collect::<Vec<u8>>();
        let n = values.len();
        assert_eq!(convert(&bytes(&|v| v.to_le_bytes().into()), Element::F32, n), values);
        assert_eq!(convert(&bytes(&|v| f64::from(v).to_le_bytes().into()), Element::F64, n), values);
        let halves = convert(&bytes(&|v| f16::from_f32(v).to_le_bytes().into()), Element::F16, n);
        assert!(halves.iter().zip(&values).all(|(h, v)| (h - v).abs() <= v.abs() / 1024.0));
        assert_eq!(convert(&bytes(&|v| bf16::from_f32(v).to_le_bytes().into()), Element::Bf16, n), as_bf16);
    }

    #[test]
    fn first_nan_or_infinity_is_found() {
        let mut values = vec![f32::MAX; 3 * CHUNK + 5];
        assert_eq!(first_not_finite(&values), None);
        values[2 * CHUNK + 1] = f32::NAN;
        values[3 * CHUNK + 4] = f32::NEG_INFINITY;
        assert_eq!(first_not_finite(&values), Some(2 * CHUNK + 1));
        values[2 * CHUNK + 1] = 0.0;
        assert_eq!(first_not_finite(&values), Some(3 * CHUNK + 4));
    }
}
