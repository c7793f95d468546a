//! Conversion of one checkpoint's tensors to another precision.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;

use burn::module::Module;
use burn::prelude::*;
use burn::tensor::DType;
use half::bf16;
use safetensors::{Dtype, View};

use super::checkpoint::Checkpoint;
use super::load::fields_and_shapes;
use super::names::Table;
use super::packed::tensor_names;
use super::tensors::TensorEntry;
use crate::device::Precision;
use crate::error::{Error, Result};
use crate::kernels::{self, PackedWeight};
use crate::precision::{self, CpuForm};
use crate::progress::Control;

/// Tensors that a converted checkpoint does not store in f32: their forms and, from the configuration, their shapes.
pub(crate) type Forms = BTreeMap<String, (CpuForm, Vec<usize>)>;

/// Returns the tensors of a module that are rounded; `root` is its path in the table of names, "" for none.
///
/// # Errors
///
/// [`Error::Checkpoint`] if the checkpoint lacks one of them.
pub(crate) fn rounded_tensors<M: Module>(module: &M, root: &str, checkpoint: &Checkpoint, table: &Table) -> Result<Forms> {
    let name = |field: String| {
        let candidates = table.candidates(&field);
        let found = candidates.iter().find(|name| checkpoint.info(name).is_some());
        let found = found.and_then(|name| kept_name(checkpoint, table, checkpoint.stored_name(name))).map(str::to_string);
        let missing = || format!("has no tensor `{}`, which its config.json requires", candidates.join("` or `"));
        found.ok_or_else(|| Error::checkpoint(checkpoint.path(), missing()))
    };
    let fields = fields_and_shapes(module, root).into_iter();
    let rounded = fields.map(|(field, shape)| (precision::cpu_form(&field, &shape), field, shape));
    rounded.filter(|(form, ..)| *form != CpuForm::F32).map(|(form, field, shape)| Ok((name(field)?, (form, shape)))).collect()
}

/// The progress of a conversion, reported to an observer that may cancel it.
pub(crate) struct ConversionProgress<'a> {
    observer: RefCell<&'a mut dyn FnMut(f32) -> Control>,
    /// Number of converted parameters.
    done: Cell<u64>,
    /// Number of parameters of all checkpoints.
    total: u64,
    cancelled: Cell<bool>,
}

impl<'a> ConversionProgress<'a> {
    /// Starts the conversion of checkpoints, each with the table of its names.
    pub(crate) fn new<'c>(
        observer: &'a mut dyn FnMut(f32) -> Control,
        checkpoints: impl IntoIterator<Item = (&'c Checkpoint, &'c Table)>,
    ) -> Self {
        let tensors = checkpoints
            .into_iter()
            .flat_map(|(checkpoint, table)| kept_names(checkpoint, table).filter_map(|name| checkpoint.info(name)));
        let total = tensors.map(|info| info.shape.iter().product::<usize>() as u64).sum::<u64>().max(1);
        Self { observer: RefCell::new(observer), done: Cell::new(0), total, cancelled: Cell::new(false) }
    }

    /// Reports that more parameters are converted.
    ///
    /// # Errors
    ///
    /// [`Error::Cancelled`] if the observer has cancelled the conversion.
    pub(crate) fn report(&self, parameters: usize) -> Result<()> {
        self.done.set(self.done.get() + parameters as u64);
        if !self.cancelled.get() {
            let share = (self.done.get() as f64 / self.total as f64).min(1.0) as f32;
            let control = (self.observer.borrow_mut())(share);
            self.cancelled.set(control == Control::Cancel);
        }
        if self.cancelled.get() { Err(Error::Cancelled) } else { Ok(()) }
    }
}

/// Returns the names of the tensors that a conversion keeps.
fn kept_names<'c>(checkpoint: &'c Checkpoint, table: &'c Table) -> impl Iterator<Item = &'c str> {
    checkpoint.names().filter_map(|name| kept_name(checkpoint, table, name))
}

/// Returns the name under which a conversion writes a tensor: its own, or an alias if the table ignores its own. `None` if it
/// ignores both. Tied weights may be stored under the name of a head that is not used.
fn kept_name<'c>(checkpoint: &'c Checkpoint, table: &Table, stored: &'c str) -> Option<&'c str> {
    if table.ignores(stored) { checkpoint.aliases_of(stored).find(|alias| !table.ignores(alias)) } else { Some(stored) }
}

/// Writes a safetensors file with the tensors of a checkpoint, without those that its table ignores. Those of `forms` are rounded, all
/// others are in f32. One tensor at a time is in memory.
///
/// # Errors
///
/// [`Error::Checkpoint`] if a tensor is already packed or has another shape than configured, or if the file cannot be written; the
/// errors of [`Checkpoint::values`]; [`Error::Cancelled`] if the observer cancels.
pub(crate) fn convert_tensors(
    (checkpoint, table): (&Checkpoint, &Table),
    precision: Precision,
    forms: &Forms,
    path: &Path,
    progress: &ConversionProgress<'_>,
    device: &Device,
) -> Result<()> {
    let mut tensors = Vec::new();
    for name in kept_names(checkpoint, table) {
        let shape = checkpoint.info(name).map(|info| info.shape.clone()).unwrap_or_default();
        let tensor = |form: StoredForm, shape: Vec<usize>| ConvertedTensor {
            checkpoint,
            device,
            progress,
            name: name.to_string(),
            form,
            shape,
        };
        let form = match forms.get(name) {
            None => CpuForm::F32,
            Some((form, expected)) if shape == *expected => *form,
            Some(_) => {
                return Err(Error::checkpoint(
                    checkpoint.path(),
                    format!("tensor `{name}` is already packed or has another shape"),
                ));
            }
        };
        let panels = match (form, shape.as_slice()) {
            (CpuForm::Packed, &[outputs, inputs]) => PackedWeight::stored_shape(precision, [inputs, outputs]),
            _ => None,
        };
        match panels {
            Some(panels) => {
                tensors.push((name.to_string(), tensor(StoredForm::Panels(precision), panels.to_vec())));
                if precision == Precision::Int8 {
                    tensors.push((tensor_names(name)[1].clone(), tensor(StoredForm::Scales, vec![shape[0]])));
                }
            }
            None if form == CpuForm::Bf16 => tensors.push((name.to_string(), tensor(StoredForm::Bf16, shape))),
            None if form == CpuForm::Stored => {
                let half = checkpoint.entry(name).and_then(TensorEntry::half);
                tensors.push((name.to_string(), tensor(half.map_or(StoredForm::F32, StoredForm::Half), shape)));
            }
            None => tensors.push((name.to_string(), tensor(StoredForm::F32, shape))),
        }
    }
    // `View::data` cannot return an error, so read every tensor once before.
    for (_, tensor) in &tensors {
        checkpoint.entry(&tensor.name).map_or(Ok(()), |entry| entry.read(&tensor.name, true).map(|_| ()))?;
        checkpoint.release_pages();
        progress.report(0)?;
    }
    // safetensors makes the file private. Give it the usual permissions of a new file.
    let permissions = File::create(path).and_then(|file| file.metadata()).map_err(Error::io(path))?.permissions();
    safetensors::serialize_to_file(tensors, None, path).map_err(|e| Error::checkpoint(path, format!("can't be written: {e}")))?;
    progress.report(0)?;
    fs::set_permissions(path, permissions).map_err(Error::io(path))
}

/// The form in which a tensor is written.
#[derive(Clone, Copy)]
enum StoredForm {
    F32,
    /// A half precision in which the tensor is stored already.
    Half(DType),
    Bf16,
    /// Panels in a precision.
    Panels(Precision),
    /// Scales of int8 panels.
    Scales,
}

/// A tensor that is converted when it is written.
struct ConvertedTensor<'a, 'o> {
    checkpoint: &'a Checkpoint,
    /// A device whose kernels pack weights.
    device: &'a Device,
    progress: &'a ConversionProgress<'o>,
    name: String,
    form: StoredForm,
    shape: Vec<usize>,
}

impl ConvertedTensor<'_, '_> {
    /// Returns the tensor's bytes in its form. `None` if the tensor cannot be read, which has been checked before.
    fn converted(&self) -> Option<Vec<u8>> {
        let entry = self.checkpoint.entry(&self.name)?;
        let data = entry.read(&self.name, !matches!(self.form, StoredForm::F32 | StoredForm::Bf16)).ok()?;
        let floats = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect();
        match self.form {
            StoredForm::F32 => Some(floats(data.as_slice().ok()?)),
            StoredForm::Bf16 => Some(data.as_slice::<f32>().ok()?.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect()),
            StoredForm::Half(_) => Some(data.as_bytes().to_vec()),
            StoredForm::Panels(precision) => Some(self.pack(data, precision)?.stored().panels.to_vec()),
            StoredForm::Scales => self.pack(data, Precision::Int8)?.stored().scales.map(floats),
        }
    }

    /// Packs a weight `[out, in]`.
    fn pack(&self, data: TensorData, precision: Precision) -> Option<PackedWeight> {
        let dtype = data.dtype();
        kernels::pack(&Tensor::<2>::from_data(data, (self.device, dtype)).transpose(), precision)
    }
}

impl View for ConvertedTensor<'_, '_> {
    fn dtype(&self) -> Dtype {
        match self.form {
            StoredForm::F32 | StoredForm::Scales => Dtype::F32,
            StoredForm::Half(DType::F16) => Dtype::F16,
            StoredForm::Half(_) | StoredForm::Bf16 | StoredForm::Panels(Precision::Bf16) => Dtype::BF16,
            StoredForm::Panels(..) => Dtype::I8,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        // This function cannot return an error. After a cancellation, the remaining tensors are written as zeros, which is fast.
        let elements = self.checkpoint.info(&self.name).map_or(0, |info| info.shape.iter().product());
        if self.progress.report(if matches!(self.form, StoredForm::Scales) { 0 } else { elements }).is_err() {
            return Cow::Owned(vec![0; self.data_len()]);
        }
        let bytes = self.converted().unwrap_or_else(|| vec![0; self.data_len()]);
        self.checkpoint.release_pages();
        Cow::Owned(bytes)
    }

    fn data_len(&self) -> usize {
        let size = match self.dtype() {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::BF16 => 2,
            _ => 1,
        };
        self.shape.iter().product::<usize>() * size
    }
}
