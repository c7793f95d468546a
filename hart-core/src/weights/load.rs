//! Loading of a checkpoint's tensors into modules.

use std::collections::BTreeSet;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::prelude::*;
use burn::tensor::Shape;

use super::checkpoint::Checkpoint;
use super::names::Table;
use super::packed;
use super::report::{LoadReport, ShapeMismatch, UnmatchedTensor};
use crate::device::{Precision, is_cpu};
use crate::error::{Error, Result};
use crate::kernels::{self, PackedWeight};
use crate::nn;
use crate::precision::{self, CpuForm};

/// Number of bytes read after which the loader releases the pages of mapped files.
pub(crate) const RELEASED_BYTES: usize = 64 << 20;

/// Loads modules from one checkpoint and records which tensors fit.
///
/// A lazily initialised parameter is not initialised at random first: only its shape is used.
pub struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    table: &'a Table,
    /// Names of the tensors that were loaded.
    used: BTreeSet<String>,
    /// Prefix of tensors that may be unused, in addition to those that the table ignores.
    optional: Option<&'static str>,
    report: LoadReport,
    /// The precision of the model; `None` for f32 without exception.
    precision: Option<Precision>,
    /// Bytes read since pages were released.
    read_bytes: usize,
    progress: Option<&'a mut TensorProgress<'a>>,
}

/// Receives the number of parameters of each tensor once it is loaded. An error ends the loading.
pub(crate) type TensorProgress<'a> = dyn FnMut(u64) -> Result<()> + 'a;

impl<'a> Loader<'a> {
    /// Creates a loader for one checkpoint and the table that fits it. Parameters are loaded in f32.
    pub fn new(checkpoint: &'a Checkpoint, table: &'a Table) -> Self {
        let (path, removed) = (checkpoint.path().to_path_buf(), checkpoint.removed_parts().clone());
        let report = LoadReport { path, removed, ..LoadReport::default() };
        Self { checkpoint, table, used: BTreeSet::new(), optional: None, report, precision: None, read_bytes: 0, progress: None }
    }

    /// Reports every tensor.
    pub(crate) fn with_progress(self, progress: &'a mut TensorProgress<'a>) -> Self {
        Self { progress: Some(progress), ..self }
    }

    /// Sets the precision of the model, for inference. [`crate::precision`] has the precision of each parameter.
    pub(crate) fn with_precision(self, precision: Precision) -> Self {
        Self { precision: Some(precision), ..self }
    }

    /// Allows tensors below a prefix to be unused.
    pub(crate) fn allow_unused(&mut self, prefix: &'static str) {
        self.optional = Some(prefix);
    }

    /// Replaces a module's parameters by the checkpoint's tensors. `root` is the module's path in the table; it may be empty.
    ///
    /// Parameters whose tensors are missing or misshapen stay as they are, and [`Self::finish`] returns an error.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if a tensor cannot be read; [`Error::Checkpoint`] if it is packed wrongly or does not hold floats;
    /// [`Error::NotFinite`] if a value is not finite.
    pub fn load<M: Module>(&mut self, module: M, root: &str, device: &Device) -> Result<M> {
        let mut mapper = LoadMapper { loader: self, path: ModulePath::of(root), device, error: None };
        let module = module.map(&mut mapper);
        match mapper.error {
            None => Ok(module),
            Some(error) => Err(error),
        }
    }

    /// Returns the report.
    ///
    /// # Errors
    ///
    /// [`Error::Weights`] if a tensor is missing or misshapen, or if `strict` and a tensor is unused.
    pub fn finish(mut self, strict: bool) -> Result<LoadReport> {
        for name in self.checkpoint.names().filter(|n| !self.used.contains(*n)) {
            let Some(info) = self.checkpoint.info(name) else { continue };
            // Training tools add single numbers, such as `num_updates`. No weight is one, and none is empty.
            let is_no_weight = info.shape.is_empty() || info.shape.contains(&0);
            let is_optional = self.optional.is_some_and(|prefix| self.table.is_below(name, prefix));
            if is_no_weight || is_optional || self.table.ignores(name) {
                self.report.ignored.push(name.to_string());
            } else {
                let unused = UnmatchedTensor { name: name.to_string(), file: info.file.clone(), shape: info.shape.clone() };
                self.report.unused.push(unused);
            }
        }
        self.checkpoint.release_pages();
        let report = self.report;
        let fits = report.missing.is_empty() && report.misshapen.is_empty() && (report.unused.is_empty() || !strict);
        if fits { Ok(report) } else { Err(Error::Weights(Box::new(report))) }
    }

    /// Reads the tensor of a field of the given shape. Returns `None`, and adds to the report, if it is missing or misshapen.
    fn read(&mut self, field: &str, shape: Vec<usize>, device: &Device) -> Result<Option<LoadedTensor>> {
        let names = self.table.candidates(field);
        let Some((name, entry)) = names.iter().find_map(|n| self.checkpoint.entry(n).map(|e| (n, e))) else {
            let name = names.into_iter().next().unwrap_or_else(|| field.to_string());
            self.report.missing.push(UnmatchedTensor { name, file: self.checkpoint.path().to_path_buf(), shape });
            return Ok(None);
        };
        self.used.insert(self.checkpoint.stored_name(name).to_string());
        let file = entry.info.file.clone();
        if let Some(packed) = packed::read(self.checkpoint, name, &shape)? {
            self.used.extend(packed::tensor_names(name));
            self.report.files.insert(file);
            self.report.loaded += 1;
            self.report.parameters += shape.iter().product::<usize>() as u64;
            return Ok(Some(LoadedTensor::Packed(packed)));
        }
        if entry.info.shape != shape {
            let found = entry.info.shape.clone();
            self.report.misshapen.push(ShapeMismatch { name: name.clone(), file, expected: shape, found });
            return Ok(None);
        }
        let as_stored = |dtype| {
            let precision = self.precision.filter(|_| is_cpu(device));
            precision.is_some_and(|precision| precision::is_read_as_stored(field, &shape, dtype, precision))
        };
        let data = entry.read(name, entry.half().is_some_and(as_stored))?;
        self.read_bytes += data.num_elements() * data.dtype().size();
        self.report.files.insert(file);
        self.report.loaded += 1;
        self.report.parameters += data.num_elements() as u64;
        Ok(Some(LoadedTensor::Dense(data)))
    }

    /// Loads one parameter.
    fn load_parameter<const D: usize>(
        &mut self,
        param: Param<Tensor<D>>,
        path: &ModulePath,
        device: &Device,
    ) -> Result<Param<Tensor<D>>> {
        let (field, shape) = (path.field(), path.stored_shape(param.lazy_shape()));
        let param = match self.read(&field, shape.clone(), device)? {
            None => return Ok(param),
            Some(LoadedTensor::Dense(data)) => {
                let dtype = data.dtype();
                let tensor = Tensor::<D>::from_data(data, (device, dtype));
                let tensor = if path.is_transposed() { tensor.transpose() } else { tensor };
                let id = param.id;
                let param = param.transform_for_load(tensor, id);
                match self.precision {
                    Some(precision) => precision::round(param, &field, precision),
                    None => param,
                }
            }
            Some(LoadedTensor::Packed(packed)) => {
                let fits = precision::cpu_form(&field, &shape) == CpuForm::Packed && Some(packed.precision()) == self.precision;
                let param = if fits { nn::replace_packed(param, packed) } else { None };
                param.ok_or_else(|| {
                    let problem =
                        format!("the weights of `{field}` are packed in the layout of another version: convert the model again");
                    Error::checkpoint(self.checkpoint.path(), problem)
                })?
            }
        };
        if self.read_bytes >= RELEASED_BYTES {
            self.checkpoint.release_pages();
            self.read_bytes = 0;
        }
        Ok(param)
    }
}

/// A tensor that has been read.
enum LoadedTensor {
    /// Values in f32, or in half precision as stored.
    Dense(TensorData),
    /// A packed weight.
    Packed(PackedWeight),
}

/// The current path of a traversal of the module tree.
pub(super) struct ModulePath {
    names: Vec<String>,
    /// burn's type name of the module that contains each name.
    containers: Vec<String>,
}

impl ModulePath {
    fn of(root: &str) -> Self {
        let names: Vec<String> = root.split('.').filter(|s| !s.is_empty()).map(str::to_string).collect();
        Self { containers: vec![String::new(); names.len()], names }
    }

    fn enter(&mut self, name: &str, container: &str) {
        self.names.push(name.to_string());
        self.containers.push(container.to_string());
    }

    fn exit(&mut self) {
        self.names.pop();
        self.containers.pop();
    }

    /// Returns the path as in the table of names.
    pub(super) fn field(&self) -> String {
        self.names.join(".")
    }

    /// Returns whether the parameter is transposed: burn's linear layers store weights as `[in, out]`, checkpoints as `[out, in]`.
    fn is_transposed(&self) -> bool {
        self.names.last().is_some_and(|n| n == "weight") && self.containers.last().is_some_and(|c| c == "Struct:Linear")
    }

    /// Returns the shape that a parameter of the given shape has in a checkpoint.
    fn stored_shape(&self, shape: Shape) -> Vec<usize> {
        let mut shape = shape.to_vec();
        if self.is_transposed() {
            shape.reverse();
        }
        shape
    }
}

/// Loads each float parameter of a module.
struct LoadMapper<'l, 'a> {
    loader: &'l mut Loader<'a>,
    path: ModulePath,
    device: &'l Device,
    error: Option<Error>,
}

impl ModuleMapper for LoadMapper<'_, '_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if self.error.is_some() {
            return param;
        }
        let (unchanged, parameters) = (param.clone(), param.lazy_shape().num_elements() as u64);
        let loaded = self.loader.load_parameter(param, &self.path, self.device).and_then(|param| {
            self.loader.progress.as_mut().map_or(Ok(()), |progress| progress(parameters))?;
            Ok(param)
        });
        loaded.unwrap_or_else(|error| {
            self.error = Some(error);
            unchanged
        })
    }
}

/// Returns the number of parameters of a module, without initialising any.
pub fn parameter_count<M: Module>(module: &M) -> u64 {
    struct Count(u64);
    impl ModuleVisitor for Count {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0 += param.lazy_shape().num_elements() as u64;
        }
    }
    let mut count = Count(0);
    module.visit(&mut count);
    count.0
}

/// Returns the number of parameters of each tensor of a module, in order, without initialising any.
pub(crate) fn parameter_counts<M: Module>(module: &M) -> Vec<u64> {
    let mut counts = Vec::new();
    visit_parameters(module, "", |_, shape, _| counts.push(shape.iter().product::<usize>() as u64));
    counts
}

/// Visits a module's parameters in order. `visit` receives the path, the shape in a checkpoint, and a function that returns the
/// values in the order of a checkpoint. Only that function initialises a lazy parameter. `root` is the module's path; it may be
/// empty.
pub(super) fn visit_parameters<M: Module>(
    module: &M,
    root: &str,
    visit: impl FnMut(&ModulePath, Vec<usize>, &dyn Fn() -> Vec<f32>),
) {
    struct Visitor<F> {
        path: ModulePath,
        visit: F,
    }
    impl<F: FnMut(&ModulePath, Vec<usize>, &dyn Fn() -> Vec<f32>)> ModuleVisitor for Visitor<F> {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.path.enter(name, container);
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.exit();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let shape = self.path.stored_shape(param.lazy_shape());
            let transposed = self.path.is_transposed();
            let values = || kernels::values(if transposed { param.val().transpose() } else { param.val() });
            (self.visit)(&self.path, shape, &values);
        }
    }
    module.visit(&mut Visitor { path: ModulePath::of(root), visit });
}

/// Returns the paths of a module's parameters and their shapes in a checkpoint, in order.
pub(crate) fn fields_and_shapes<M: Module>(module: &M, root: &str) -> Vec<(String, Vec<usize>)> {
    let mut found = Vec::new();
    visit_parameters(module, root, |path, shape, _| found.push((path.field(), shape)));
    found
}

/// Returns the names and shapes of a module's parameters in a checkpoint, in order, without initialising any. `root` and `choose` are
/// as for [`named_tensors`](super::named_tensors).
pub fn names_and_shapes<M: Module>(
    module: &M,
    table: &Table,
    root: &str,
    choose: impl Fn(Vec<String>) -> Option<String>,
) -> Vec<(String, Vec<usize>)> {
    let mut found = Vec::new();
    visit_parameters(module, root, |path, shape, _| {
        found.extend(choose(table.candidates(&path.field())).map(|name| (name, shape)))
    });
    found
}
