//! Packed weights in checkpoint files: a linear layer's matrix under its usual name, bfloat16 or 8-bit integers in panels
//! `[ceil(out / 16), ceil(in / n), 16, n]` with n inputs in 4 bytes, and the integers' scales `[out]` under the name with `_scale`
//! behind. Nothing is converted when such a file is opened: products read it where it is mapped.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;

use half::bf16;
use safetensors::{Dtype, View};

use super::checkpoint::Checkpoint;
use super::names::Table;
use super::tensors::{Element, Stored};
use crate::device::Precision;
use crate::error::{Error, Result};
use crate::kernels::PackedWeight;
use crate::progress::Control;

/// What stands behind a weight's name in that of its scales.
const SCALE: &str = "_scale";

/// Names that a packed weight may take in a file.
pub(super) fn names(weight: &str) -> [String; 2] {
    [weight.to_string(), format!("{weight}{SCALE}")]
}

/// A packed weight for a field of shape `[out, in]`; None if what has the name is not packed.
///
/// # Errors
///
/// Its scales are missing, not of its size, or not finite.
pub(super) fn read(checkpoint: &Checkpoint, name: &str, shape: &[usize]) -> Result<Option<PackedWeight>> {
    let (Some(entry), &[outputs, inputs]) = (checkpoint.entry(name), shape) else { return Ok(None) };
    let sizes = [inputs, outputs];
    let precision = match entry.element {
        Element::Bf16 => Precision::Bf16,
        Element::I8 => Precision::Int8,
        _ => return Ok(None),
    };
    let (Some(stored), Stored::Bytes(panels)) = (PackedWeight::stored_shape(precision, sizes), &entry.stored) else {
        return Ok(None);
    };
    if entry.info.shape != stored {
        return Ok(None);
    }
    let scales = match precision {
        Precision::Int8 => Some(checkpoint.values(&names(name)[1])?),
        _ => None,
    };
    let problem =
        || Error::checkpoint(&entry.info.file, format!("packed tensor `{name}`: expected {outputs} scales: convert it again"));
    PackedWeight::from_stored(sizes, panels.clone(), scales).map(Some).ok_or_else(problem)
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
            .flat_map(|(checkpoint, table)| wanted(checkpoint, table).filter_map(|name| checkpoint.info(name)));
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

/// The tensors that are worth keeping.
fn wanted<'c>(checkpoint: &'c Checkpoint, table: &'c Table) -> impl Iterator<Item = &'c str> {
    checkpoint.names().filter(|name| !table.ignores(name))
}

/// Writes a safetensors file with the tensors of a checkpoint, but for what its table ignores: those named in `packed`, of sizes
/// `[in, out]`, packed, those of which `halved` says so in bfloat16, all others in f32. One tensor at a time is in memory.
///
/// # Errors
///
/// A tensor can't be read or packed, the file can't be written, or the conversion is cancelled.
pub(crate) fn convert_tensors(
    (checkpoint, table): (&Checkpoint, &Table),
    precision: Precision,
    packed: &BTreeMap<String, [usize; 2]>,
    halved: impl Fn(&str, &[usize]) -> bool,
    path: &Path,
    progress: &ConversionProgress<'_>,
) -> Result<()> {
    let mut tensors = Vec::new();
    for name in wanted(checkpoint, table) {
        let shape = checkpoint.info(name).map(|info| info.shape.clone()).unwrap_or_default();
        let tensor = |form: Form, shape: Vec<usize>| Converted { checkpoint, progress, name: name.to_string(), form, shape };
        match packed.get(name).and_then(|&sizes| Some((sizes, PackedWeight::stored_shape(precision, sizes)?))) {
            Some((sizes, stored)) if shape == [sizes[1], sizes[0]] => {
                tensors.push((name.to_string(), tensor(Form::Panels(precision, sizes[0]), stored.to_vec())));
                if precision == Precision::Int8 {
                    tensors.push((names(name)[1].clone(), tensor(Form::Scales(sizes[0]), vec![sizes[1]])));
                }
            }
            Some(_) => {
                return Err(Error::checkpoint(
                    checkpoint.path(),
                    format!("tensor `{name}` is packed already, or of another shape"),
                ));
            }
            None if halved(name, &shape) => tensors.push((name.to_string(), tensor(Form::Bf16, shape))),
            None => tensors.push((name.to_string(), tensor(Form::F32, shape))),
        }
    }
    // A view can't fail: whatever could is read once before.
    for (_, tensor) in &tensors {
        tensor.checkpoint.values(&tensor.name)?;
        progress.report(0)?;
    }
    // safetensors makes a private file; this one has the rights of any new one.
    let rights = File::create(path).and_then(|file| file.metadata()).map_err(Error::io(path))?.permissions();
    safetensors::serialize_to_file(tensors, None, path).map_err(|e| Error::checkpoint(path, format!("can't be written: {e}")))?;
    progress.report(0)?;
    fs::set_permissions(path, rights).map_err(Error::io(path))
}

/// How a tensor is written.
#[derive(Clone, Copy)]
enum Form {
    F32,
    Bf16,
    /// Packed for a precision, from rows of so many inputs.
    Panels(Precision, usize),
    /// The scales of such ones in 8-bit integers.
    Scales(usize),
}

/// A tensor that is converted when it is written.
struct Converted<'a, 'o> {
    checkpoint: &'a Checkpoint,
    progress: &'a ConversionProgress<'o>,
    name: String,
    form: Form,
    shape: Vec<usize>,
}

impl View for Converted<'_, '_> {
    fn dtype(&self) -> Dtype {
        match self.form {
            Form::F32 | Form::Scales(_) => Dtype::F32,
            Form::Bf16 | Form::Panels(Precision::Bf16, _) => Dtype::BF16,
            Form::Panels(..) => Dtype::I8,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        // A view can't end the writing, but what is left of it can be quick.
        let numbers = self.checkpoint.info(&self.name).map_or(0, |info| info.shape.iter().product());
        if self.progress.report(if matches!(self.form, Form::Scales(_)) { 0 } else { numbers }).is_err() {
            return Cow::Owned(vec![0; self.data_len()]);
        }
        let values = self.checkpoint.values(&self.name).unwrap_or_default();
        let floats = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let pack = |precision, inputs| PackedWeight::pack(precision, &values, inputs);
        let bytes = match self.form {
            Form::F32 => floats(&values),
            Form::Bf16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
            Form::Panels(precision, inputs) => pack(precision, inputs).map(|p| p.stored().panels.to_vec()).unwrap_or_default(),
            Form::Scales(inputs) => pack(Precision::Int8, inputs).and_then(|p| p.stored().scales.map(floats)).unwrap_or_default(),
        };
        Cow::Owned(bytes)
    }

    fn data_len(&self) -> usize {
        let size = match self.dtype() {
            Dtype::F32 => 4,
            Dtype::BF16 => 2,
            _ => 1,
        };
        self.shape.iter().product::<usize>() * size
    }
}
