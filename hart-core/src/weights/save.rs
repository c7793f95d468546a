//! Saving of modules to safetensors files, under the published names.

use std::borrow::Cow;
use std::path::Path;

use burn::module::Module;
use half::f16;
use safetensors::{Dtype, View};

use super::load::visit_parameters;
use super::names::Table;
use crate::error::{Error, Result};
use crate::files::write_file;

/// A tensor to save.
#[derive(Clone, Debug)]
pub struct NamedTensor {
    /// Name in the file.
    pub name: String,
    /// Shape.
    pub shape: Vec<usize>,
    /// Values in row-major order.
    pub values: Vec<f32>,
}

/// The data type of saved values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StorageDtype {
    /// 32-bit float.
    #[default]
    F32,
    /// 16-bit float with a significand of 11 bits.
    F16,
}

/// Returns a module's parameters under their names in a checkpoint. `root` is the module's path in the table; it may be empty. `choose`
/// selects one of the alternative names, of which the usual one comes first, or `None` to leave the parameter out.
pub fn named_tensors<M: Module>(
    module: &M,
    table: &Table,
    root: &str,
    choose: impl Fn(Vec<String>) -> Option<String>,
) -> Vec<NamedTensor> {
    let mut found = Vec::new();
    visit_parameters(module, root, |path, shape, values| {
        found.extend(choose(table.candidates(&path.field())).map(|name| NamedTensor { name, shape, values: values() }));
    });
    found
}

/// Writes a safetensors file atomically.
///
/// # Errors
///
/// [`Error::NotFinite`] if a value is not finite, or too large for [`StorageDtype::F16`]; [`Error::Io`] if the file cannot be written.
pub fn save_tensors(path: &Path, tensors: &[NamedTensor], dtype: StorageDtype) -> Result<()> {
    let max = if dtype == StorageDtype::F16 { f16::MAX.to_f32() } else { f32::MAX };
    for tensor in tensors {
        if let Some(index) = tensor.values.iter().position(|v| v.abs() > max || v.is_nan()) {
            let (path, name) = (path.to_path_buf(), tensor.name.clone());
            return Err(Error::NotFinite { path, tensor: name, index, value: tensor.values[index] });
        }
    }
    let views = tensors.iter().map(|tensor| (&tensor.name, EncodedTensor { tensor, dtype }));
    let bytes = safetensors::serialize(views, None).map_err(|e| Error::checkpoint(path, format!("can't be written: {e}")))?;
    write_file(path, &bytes)
}

/// A tensor that is encoded when safetensors writes it.
struct EncodedTensor<'a> {
    tensor: &'a NamedTensor,
    dtype: StorageDtype,
}

impl View for EncodedTensor<'_> {
    fn dtype(&self) -> Dtype {
        match self.dtype {
            StorageDtype::F32 => Dtype::F32,
            StorageDtype::F16 => Dtype::F16,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.tensor.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let values = self.tensor.values.iter();
        Cow::Owned(match self.dtype {
            StorageDtype::F32 => values.flat_map(|v| v.to_le_bytes()).collect(),
            StorageDtype::F16 => values.flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
        })
    }

    fn data_len(&self) -> usize {
        self.tensor.values.len() * if self.dtype == StorageDtype::F16 { 2 } else { 4 }
    }
}
