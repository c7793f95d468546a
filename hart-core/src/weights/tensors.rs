//! Reading of stored tensors as f32. Aligned f32 is used without a copy; other data is converted on all cores.

use std::path::PathBuf;
use std::sync::Arc;

use burn::tensor::{AllocationProperty, Bytes, DType, Shape, TensorData};
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::{bf16, f16};
use rayon::prelude::*;

use crate::device::Precision;
use crate::error::{Error, Result};
use crate::kernels::PackedWeight;

/// Number of elements converted by one task.
const CHUNK: usize = 1 << 14;

/// Element types. The float types can be read as f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ElementType {
    F32,
    F16,
    Bf16,
    F64,
    /// Only in packed weights; see [`super::packed`].
    I8,
    /// Any other type, by its name in errors.
    Other(&'static str),
}

impl From<safetensors::Dtype> for ElementType {
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
            Dtype::C64 => Self::Other("complex numbers"),
            // 4, 6 and 8 bits.
            _ => Self::Other("floats of at most 8 bits"),
        }
    }
}

impl From<pytorch_reader::DType> for ElementType {
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

impl ElementType {
    /// Returns the name of the type. It is a part of fingerprints.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::F64 => "f64",
            Self::I8 => "i8",
            Self::Other(name) => name,
        }
    }

    pub(super) fn size(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F64 => 8,
            Self::I8 => 1,
            Self::F32 | Self::Other(_) => 4,
        }
    }
}

/// The location of a tensor's bytes.
pub(super) enum TensorBytes {
    /// Mapped from a file, or in memory.
    Buffer(bytes::Bytes),
    /// In a torch file, not read yet.
    Torch(Arc<pytorch_reader::Tensor>),
}

/// Metadata of a tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    /// File of the tensor.
    pub file: PathBuf,
    /// Shape.
    pub shape: Vec<usize>,
}

/// A tensor of a checkpoint, not read yet.
pub(super) struct TensorEntry {
    pub(super) info: TensorInfo,
    pub(super) element: ElementType,
    pub(super) bytes: TensorBytes,
}

impl TensorEntry {
    /// Returns the precision of a packed weight; `None` for any other tensor.
    pub(super) fn packed_precision(&self) -> Option<Precision> {
        let precision = match self.element {
            ElementType::Bf16 => Precision::Bf16,
            ElementType::I8 => Precision::Int8,
            _ => return None,
        };
        let [_, _, outputs, inputs] = PackedWeight::stored_shape(precision, [1, 1])?;
        matches!(*self.info.shape, [_, _, o, i] if [o, i] == [outputs, inputs]).then_some(precision)
    }

    /// Returns the half precision in which the tensor is stored, if any.
    pub(super) fn half(&self) -> Option<DType> {
        match self.element {
            ElementType::F16 => Some(DType::F16),
            ElementType::Bf16 => Some(DType::BF16),
            _ => None,
        }
    }

    /// Reads the tensor in row-major order: as f32, or in half precision if it is stored in half precision and `as_stored` is true.
    ///
    /// # Errors
    ///
    /// [`Error::Checkpoint`] if the elements are not floats; [`Error::Io`] if the file cannot be read; [`Error::NotFinite`] if a value is
    /// not finite.
    pub(super) fn read(&self, name: &str, as_stored: bool) -> Result<TensorData> {
        let file = &self.info.file;
        let bytes = match &self.bytes {
            TensorBytes::Buffer(bytes) => bytes.clone(),
            TensorBytes::Torch(tensor) => bytes::Bytes::from(tensor.read().map_err(Error::io(file))?),
        };
        let count: usize = self.info.shape.iter().product();
        let other_type = match self.element {
            ElementType::I8 => Some("8-bit integers"),
            ElementType::Other(name) => Some(name),
            _ => None,
        };
        if let Some(found) = other_type {
            return Err(Error::checkpoint(
                file,
                format!("tensor `{name}` holds {found}, expected f32, f16, bf16 or f64: save the model in one of these"),
            ));
        }
        if bytes.len() != count * self.element.size() {
            return Err(Error::checkpoint(file, format!("tensor `{name}` has {} bytes for {count} elements", bytes.len())));
        }
        let shape = Shape::from(self.info.shape.clone());
        let in_place = match self.half() {
            Some(half) => as_stored.then_some(half),
            None => (self.element == ElementType::F32).then_some(DType::F32),
        };
        let aligned = bytes.as_ptr().align_offset(self.element.size()) == 0 && cfg!(target_endian = "little");
        let data = match in_place.filter(|_| aligned) {
            Some(dtype) => TensorData::from_bytes(Bytes::from_shared(bytes, AllocationProperty::Other), shape, dtype),
            None => TensorData::new(convert(&bytes, self.element, count), shape),
        };
        let found = match data.dtype() {
            DType::F16 => {
                first_not_finite(slice::<f16>(&data), |v| v.to_bits() & F16_EXPONENT == F16_EXPONENT).map(|(i, v)| (i, v.to_f32()))
            }
            DType::BF16 => first_not_finite(slice::<bf16>(&data), |v| v.to_bits() & BF16_EXPONENT == BF16_EXPONENT)
                .map(|(i, v)| (i, v.to_f32())),
            _ => first_not_finite(slice::<f32>(&data), |v| v.to_bits() & F32_EXPONENT == F32_EXPONENT),
        };
        match found {
            None => Ok(data),
            Some((index, value)) => Err(Error::NotFinite { path: file.clone(), tensor: name.into(), index, value }),
        }
    }
}

fn convert(bytes: &[u8], element: ElementType, count: usize) -> Vec<f32> {
    let mut values = vec![0.0; count];
    let size = element.size();
    values.par_chunks_mut(CHUNK).zip(bytes.par_chunks(CHUNK * size)).for_each(|(out, bytes)| match element {
        ElementType::F16 => words(bytes).reinterpret_cast::<f16>().convert_to_f32_slice(out),
        ElementType::Bf16 => words(bytes).reinterpret_cast::<bf16>().convert_to_f32_slice(out),
        ElementType::F64 => {
            for (value, b) in out.iter_mut().zip(bytes.chunks_exact(8)) {
                *value = f64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]) as f32;
            }
        }
        ElementType::F32 | ElementType::I8 | ElementType::Other(_) => {
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

fn slice<E: burn::tensor::Element>(data: &TensorData) -> &[E] {
    data.as_slice().expect("of this type and aligned")
}

/// Exponents of NaN and infinity.
const F32_EXPONENT: u32 = 0x7f80_0000;
const F16_EXPONENT: u16 = 0x7c00;
const BF16_EXPONENT: u16 = 0x7f80;

/// Returns the first NaN or infinity and its index.
fn first_not_finite<T: Copy + Sync>(values: &[T], is_not_finite: impl Fn(T) -> bool + Sync) -> Option<(usize, T)> {
    // A branch-free test of each chunk is vectorised. Only a chunk that fails is searched.
    let has_not_finite = |chunk: &[T]| chunk.iter().fold(0u16, |sum, v| sum | u16::from(is_not_finite(*v))) != 0;
    let (chunk, values) = values.par_chunks(CHUNK).enumerate().find_first(|(_, chunk)| has_not_finite(chunk))?;
    let index = values.iter().position(|v| is_not_finite(*v))?;
    Some((chunk * CHUNK + index, values[index]))
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
        assert_eq!(convert(&bytes(&|v| v.to_le_bytes().into()), ElementType::F32, n), values);
        assert_eq!(convert(&bytes(&|v| f64::from(v).to_le_bytes().into()), ElementType::F64, n), values);
        let halves = convert(&bytes(&|v| f16::from_f32(v).to_le_bytes().into()), ElementType::F16, n);
        assert!(halves.iter().zip(&values).all(|(h, v)| (h - v).abs() <= v.abs() / 1024.0));
        assert_eq!(convert(&bytes(&|v| bf16::from_f32(v).to_le_bytes().into()), ElementType::Bf16, n), as_bf16);
    }

    #[test]
    fn first_nan_or_infinity_is_found() {
        let mut values = vec![f32::MAX; 3 * CHUNK + 5];
        let first =
            |values: &[f32]| first_not_finite(values, |v| v.to_bits() & F32_EXPONENT == F32_EXPONENT).map(|(index, _)| index);
        assert_eq!(first(&values), None);
        values[2 * CHUNK + 1] = f32::NAN;
        values[3 * CHUNK + 4] = f32::NEG_INFINITY;
        assert_eq!(first(&values), Some(2 * CHUNK + 1));
        values[2 * CHUNK + 1] = 0.0;
        assert_eq!(first(&values), Some(3 * CHUNK + 4));
    }
}
