//! The memory of a model's weights, from the headers of its files.

use std::ops::Add;

use burn::module::Module;

use super::checkpoint::Checkpoint;
use super::load::fields_and_shapes;
use super::names::Table;
use super::tensors::TensorEntry;
use crate::device::Precision;
use crate::kernels::PackedWeight;
use crate::precision::{self, CpuForm};

/// Bytes of an f32.
const F32: u64 = size_of::<f32>() as u64;

/// The memory of the weights of a part of a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct WeightBytes {
    /// Bytes that are read in place from memory-mapped files. Their pages are released when they are not needed.
    pub(crate) mapped: u64,
    /// Bytes in memory of the process or the device.
    pub(crate) owned: u64,
    /// Bytes of the largest tensor that is converted or checked when the model is opened, in the type in which it is read.
    pub(crate) largest: u64,
}

impl WeightBytes {
    /// Returns the bytes of all weights.
    pub(crate) fn total(self) -> u64 {
        self.mapped + self.owned
    }

    /// Returns the bytes of the same weights if all of them are in a mapped file.
    pub(crate) fn mapped(self) -> Self {
        Self::of_mapped(self.total())
    }

    fn of_mapped(bytes: u64) -> Self {
        Self { mapped: bytes, ..Self::default() }
    }

    fn of_owned(bytes: u64, converted: u64) -> Self {
        Self { owned: bytes, largest: converted, ..Self::default() }
    }
}

impl Add for WeightBytes {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { mapped: self.mapped + other.mapped, owned: self.owned + other.owned, largest: self.largest.max(other.largest) }
    }
}

/// Returns the memory that a module's parameters take once they are loaded in `precision`. Only parameters for whose paths `counts`
/// returns true are included. `root` is the module's path in the table. A missing tensor counts as f32.
pub(crate) fn weight_bytes<M: Module>(
    module: &M,
    root: &str,
    (checkpoint, table): (&Checkpoint, &Table),
    precision: Precision,
    on_cpu: bool,
    counts: impl Fn(&str) -> bool,
) -> WeightBytes {
    let each = fields_and_shapes(module, root).into_iter().filter(|(field, _)| counts(field)).map(|(field, shape)| {
        let entry = table.candidates(&field).iter().find_map(|name| checkpoint.entry(name));
        let held = if on_cpu { on_the_cpu(&field, &shape, entry, precision) } else { on_a_gpu(&field, &shape, precision) };
        // Files that are not mapped are in memory. Weights that are read from them in place are therefore owned.
        if checkpoint.mapped().is_empty() { WeightBytes { mapped: 0, owned: held.total(), ..held } } else { held }
    });
    each.fold(WeightBytes::default(), Add::add)
}

fn on_a_gpu(field: &str, shape: &[usize], precision: Precision) -> WeightBytes {
    let elements = shape.iter().product::<usize>() as u64;
    let size = if precision != Precision::F32 && precision::is_rounded(field) { F32 / 2 } else { F32 };
    WeightBytes::of_owned(elements * size, elements * F32)
}

fn on_the_cpu(field: &str, shape: &[usize], entry: Option<&TensorEntry>, precision: Precision) -> WeightBytes {
    let elements = shape.iter().product::<usize>() as u64;
    if let Some(stored) = entry.filter(|entry| entry.packed_precision().is_some()) {
        return WeightBytes::of_mapped(stored.bytes());
    }
    let form = precision::cpu_form(field, shape);
    if let (CpuForm::Packed, &[outputs, inputs]) = (form, shape)
        && let Some(bytes) = PackedWeight::size(precision, [inputs, outputs])
    {
        return WeightBytes::of_owned(bytes, 0);
    }
    let half = entry.and_then(TensorEntry::half);
    let in_place = match half {
        Some(dtype) => precision::is_read_as_stored(field, shape, dtype, precision),
        None => entry.is_some_and(TensorEntry::is_f32) && (form != CpuForm::Bf16 || precision == Precision::F32),
    };
    let size = if half.is_some() || form == CpuForm::Bf16 && precision != Precision::F32 { F32 / 2 } else { F32 };
    match (form, in_place) {
        // Only the pages of the rows that are looked up are read.
        (CpuForm::Stored, true) => WeightBytes { largest: elements * size, ..WeightBytes::default() },
        (_, true) => WeightBytes::of_mapped(elements * size),
        (CpuForm::Bf16, false) => WeightBytes::of_owned(elements * size, elements * F32),
        (_, false) => WeightBytes::of_owned(elements * F32, elements * F32),
    }
}

impl TensorEntry {
    fn bytes(&self) -> u64 {
        (self.info.shape.iter().product::<usize>() * self.element.size()) as u64
    }

    fn is_f32(&self) -> bool {
        self.element == super::tensors::ElementType::F32
    }
}
