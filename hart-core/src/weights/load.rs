//! Laying a checkpoint's tensors into modules.

use std::collections::BTreeSet;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::prelude::*;
use burn::tensor::{DType, Shape};

use super::checkpoint::Checkpoint;
use super::names::Table;
use super::packed;
use super::report::{Misplaced, Misshapen, Report};
use crate::device::Precision;
use crate::error::{Error, Result};
use crate::kernels::{self, PackedWeight};
use crate::nn;
use crate::precision::{self, CpuForm};

/// Loads modules from one checkpoint and keeps the report.
///
/// A parameter that has not been made yet is never made at random first: its shape is compared, and the tensor takes its place.
pub struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    table: &'a Table,
    used: BTreeSet<String>,
    /// What may be there although nothing uses it, besides what the table ignores: the beginning of its names.
    overlooked: Option<&'static str>,
    report: Report,
    precision: Precision,
    saved_bytes: u64,
}

impl<'a> Loader<'a> {
    /// Creates a loader for one checkpoint and the table that fits it. Parameters are loaded in f32.
    pub fn new(checkpoint: &'a Checkpoint, table: &'a Table) -> Self {
        let report = Report { path: checkpoint.path().to_path_buf(), ..Report::default() };
        Self { checkpoint, table, used: BTreeSet::new(), overlooked: None, report, precision: Precision::F32, saved_bytes: 0 }
    }

    /// Sets the precision of the model; see [`crate::precision`] for that of each parameter.
    pub(crate) fn with_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// Returns by how many bytes the weights of linear layers are smaller than in f32.
    pub(crate) fn saved_bytes(&self) -> u64 {
        self.saved_bytes
    }

    /// Tensors whose names begin so may be there although nothing uses them.
    pub(crate) fn overlook(&mut self, names: &'static str) {
        self.overlooked = Some(names);
    }

    /// Fills a module; `root` is its path in the table, "" for none. Tensors that are missing or misshapen are only noted, and their
    /// parameters left as they are: [`Self::finish`] refuses them.
    ///
    /// # Errors
    ///
    /// A tensor can't be read or is not finite.
    pub fn load<M: Module>(&mut self, module: M, root: &str, device: &Device) -> Result<M> {
        let mut fill = Fill { loader: self, path: ModulePath::of(root), device, error: None };
        let module = module.map(&mut fill);
        match fill.error {
            None => Ok(module),
            Some(error) => Err(error),
        }
    }

    /// The report.
    ///
    /// # Errors
    ///
    /// [`Error::Weights`] if a tensor is missing or misshapen, or, where `strict`, if one is not used.
    pub fn finish(mut self, strict: bool) -> Result<Report> {
        for name in self.checkpoint.names().filter(|n| !self.used.contains(*n)) {
            if self.table.ignores(name) || self.overlooked.is_some_and(|names| self.table.is_below(name, names)) {
                self.report.ignored.push(name.to_string());
            } else if let Some(info) = self.checkpoint.info(name) {
                let unused = Misplaced { name: name.to_string(), file: info.file.clone(), shape: info.shape.clone() };
                self.report.unused.push(unused);
            }
        }
        self.checkpoint.let_go();
        let report = self.report;
        let fits = report.missing.is_empty() && report.misshapen.is_empty() && (report.unused.is_empty() || !strict);
        if fits { Ok(report) } else { Err(Error::Weights(Box::new(report))) }
    }

    /// Finds the tensor for a field of the given shape; `None` if it is missing or misshapen, which the report then says.
    fn fetch(&mut self, field: &str, shape: Vec<usize>) -> Result<Option<Fetched>> {
        let names = self.table.candidates(field);
        let Some((name, entry)) = names.iter().find_map(|n| self.checkpoint.entry(n).map(|e| (n, e))) else {
            let name = names.into_iter().next().unwrap_or_else(|| field.to_string());
            self.report.missing.push(Misplaced { name, file: self.checkpoint.path().to_path_buf(), shape });
            return Ok(None);
        };
        self.used.insert(name.clone());
        let file = entry.info.file.clone();
        if let Some(packed) = packed::read(self.checkpoint, name, &shape)? {
            self.used.extend(packed::names(name));
            self.report.files.insert(file);
            self.report.loaded += 1;
            self.report.parameters += shape.iter().product::<usize>() as u64;
            return Ok(Some(Fetched::Packed(packed)));
        }
        if entry.info.shape != shape {
            let found = entry.info.shape.clone();
            self.report.misshapen.push(Misshapen { name: name.clone(), file, expected: shape, found });
            return Ok(None);
        }
        let data = entry.read(name)?;
        self.report.files.insert(file);
        self.report.loaded += 1;
        self.report.parameters += data.num_elements() as u64;
        Ok(Some(Fetched::Values(data)))
    }

    /// Fills one parameter.
    fn fill<const D: usize>(&mut self, param: Param<Tensor<D>>, path: &ModulePath, device: &Device) -> Result<Param<Tensor<D>>> {
        let (field, shape) = (path.field(), path.stored_shape(param.lazy_shape()));
        let param = match self.fetch(&field, shape.clone())? {
            None => return Ok(param),
            Some(Fetched::Values(data)) => {
                let tensor = Tensor::<D>::from_data(data, (device, DType::F32));
                let tensor = if path.is_transposed() { tensor.transpose() } else { tensor };
                let id = param.id;
                precision::round(param.transform_for_load(tensor, id), &field, self.precision)
            }
            Some(Fetched::Packed(packed)) => {
                let is_wanted = precision::cpu_form(&field, &shape) == CpuForm::Packed && packed.precision() == self.precision;
                let param = if is_wanted { nn::replace_packed(param, packed) } else { None };
                param.ok_or_else(|| {
                    let problem = format!("the weights of `{field}` are packed otherwise than this version does: convert it again");
                    Error::checkpoint(self.checkpoint.path(), problem)
                })?
            }
        };
        self.saved_bytes += precision::saved_bytes(&param, &field);
        Ok(param)
    }
}

/// A tensor of a checkpoint.
enum Fetched {
    /// In f32.
    Values(TensorData),
    /// A packed weight.
    Packed(PackedWeight),
}

/// Where a traversal stands in the module tree.
pub(super) struct ModulePath {
    names: Vec<String>,
    /// burn's name of the kind of module that holds each.
    kinds: Vec<String>,
}

impl ModulePath {
    fn of(root: &str) -> Self {
        let names: Vec<String> = root.split('.').filter(|s| !s.is_empty()).map(str::to_string).collect();
        Self { kinds: vec![String::new(); names.len()], names }
    }

    fn enter(&mut self, name: &str, kind: &str) {
        self.names.push(name.to_string());
        self.kinds.push(kind.to_string());
    }

    fn exit(&mut self) {
        self.names.pop();
        self.kinds.pop();
    }

    pub(super) fn field(&self) -> String {
        self.names.join(".")
    }

    /// burn keeps a linear layer's weight as [in, out], a checkpoint as [out, in].
    fn is_transposed(&self) -> bool {
        self.names.last().is_some_and(|n| n == "weight") && self.kinds.last().is_some_and(|k| k == "Struct:Linear")
    }

    fn stored_shape(&self, shape: Shape) -> Vec<usize> {
        let mut shape = shape.to_vec();
        if self.is_transposed() {
            shape.reverse();
        }
        shape
    }
}

/// Replaces each float parameter by its tensor.
struct Fill<'l, 'a> {
    loader: &'l mut Loader<'a>,
    path: ModulePath,
    device: &'l Device,
    error: Option<Error>,
}

impl ModuleMapper for Fill<'_, '_> {
    fn enter_module(&mut self, name: &str, kind: &str) {
        self.path.enter(name, kind);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if self.error.is_some() {
            return param;
        }
        let unfilled = param.clone();
        self.loader.fill(param, &self.path, self.device).unwrap_or_else(|error| {
            self.error = Some(error);
            unfilled
        })
    }
}

/// How many numbers a module's parameters have, without making any.
pub fn parameters<M: Module>(module: &M) -> u64 {
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

/// Goes through a module's parameters in its order: where each stands, its shape in a checkpoint, and its values there, which are read,
/// or made, only if asked for. `root` is the module's own path, "" for none.
pub(super) fn walk<M: Module>(module: &M, root: &str, each: impl FnMut(&ModulePath, Vec<usize>, &dyn Fn() -> Vec<f32>)) {
    struct Walk<F> {
        path: ModulePath,
        each: F,
    }
    impl<F: FnMut(&ModulePath, Vec<usize>, &dyn Fn() -> Vec<f32>)> ModuleVisitor for Walk<F> {
        fn enter_module(&mut self, name: &str, kind: &str) {
            self.path.enter(name, kind);
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.exit();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let shape = self.path.stored_shape(param.lazy_shape());
            let transposed = self.path.is_transposed();
            let values = || kernels::values(if transposed { param.val().transpose() } else { param.val() });
            (self.each)(&self.path, shape, &values);
        }
    }
    module.visit(&mut Walk { path: ModulePath::of(root), each });
}

/// Fields of a module's parameters and their shapes in a checkpoint, in the module's order.
pub(crate) fn fields_and_shapes<M: Module>(module: &M, root: &str) -> Vec<(String, Vec<usize>)> {
    let mut found = Vec::new();
    walk(module, root, |path, shape, _| found.push((path.field(), shape)));
    found
}

/// Names and shapes under which a module's parameters stand in a checkpoint, in the module's order, without making any. `choose`
/// picks among alternative names, the usual one first.
pub fn names_and_shapes<M: Module>(
    module: &M,
    table: &Table,
    root: &str,
    choose: impl Fn(Vec<String>) -> Option<String>,
) -> Vec<(String, Vec<usize>)> {
    let mut found = Vec::new();
    walk(module, root, |path, shape, _| found.extend(choose(table.candidates(&path.field())).map(|name| (name, shape))));
    found
}
