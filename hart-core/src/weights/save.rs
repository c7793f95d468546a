//! Modules to checkpoint files, under the published names.

use std::borrow::Cow;
use std::path::Path;

use burn::module::Module;
use half::f16;
use safetensors::{Dtype, View};

use super::load::walk;
use super::names::Table;
use crate::error::{Error, Result};
use crate::files::write_file;

/// A tensor for a file.
#[derive(Clone, Debug)]
pub struct NamedTensor {
    /// Its name in the file.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its values in row-major order.
    pub values: Vec<f32>,
}

/// How numbers are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StoredAs {
    /// 4 bytes a number.
    #[default]
    F32,
    /// 2 bytes a number, rounded to 11 bits.
    F16,
}

/// A module's parameters under their names in a checkpoint; `root` is the module's path in the table, "" for none. `choose` picks
/// among alternative names, the usual one first.
pub fn named_tensors<M: Module>(
    module: &M,
    table: &Table,
    root: &str,
    choose: impl Fn(Vec<String>) -> Option<String>,
) -> Vec<NamedTensor> {
    let mut found = Vec::new();
    walk(module, root, |path, shape, values| {
        found.extend(choose(table.candidates(&path.field())).map(|name| NamedTensor { name, shape, values: values() }));
    });
    found
}

/// Writes a safetensors file, whole or not at all.
///
/// # Errors
///
/// [`Error::NotFinite`] if a number is not finite, or too large for [`StoredAs::F16`]; the file can't be written.
pub fn save_tensors(path: &Path, tensors: &[NamedTensor], stored_as: StoredAs) -> Result<()> {
    let largest = if stored_as == StoredAs::F16 { f16::MAX.to_f32() } else { f32::MAX };
    for tensor in tensors {
        if let Some(index) = tensor.values.iter().position(|v| v.abs() > largest || v.is_nan()) {
            let (path, name) = (path.to_path_buf(), tensor.name.clone());
            return Err(Error::NotFinite { path, tensor: name, index, value: tensor.values[index] });
        }
    }
    let views = tensors.iter().map(|tensor| (&tensor.name, Stored { tensor, stored_as }));
    let bytes = safetensors::serialize(views, None).map_err(|e| Error::checkpoint(path, format!("can't be written: {e}")))?;
    write_file(path, &bytes).map_err(Error::io(path))
}

struct Stored<'a> {
    tensor: &'a NamedTensor,
    stored_as: StoredAs,
}

impl View for Stored<'_> {
    fn dtype(&self) -> Dtype {
        match self.stored_as {
            StoredAs::F32 => Dtype::F32,
            StoredAs::F16 => Dtype::F16,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.tensor.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let values = self.tensor.values.iter();
        Cow::Owned(match self.stored_as {
            StoredAs::F32 => values.flat_map(|v| v.to_le_bytes()).collect(),
            StoredAs::F16 => values.flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
        })
    }

    fn data_len(&self) -> usize {
        self.tensor.values.len() * if self.stored_as == StoredAs::F16 { 2 } else { 4 }
    }
}
