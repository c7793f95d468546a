//! AdamW or Muon with gradient clipping by the global norm, a cosine schedule, and an exponential moving average of the weights.
//!
//! A step follows one of two strategies with the same result up to rounding. On the CPU, [`PerParameter`] updates each parameter
//! separately, on all cores in parallel. On a GPU, [`Flattened`] concatenates all parameters into a few tensors, so that a step launches a
//! few kernels in all instead of a few for each parameter.

mod flattened;
mod options;
mod parameter;
mod per_parameter;
#[cfg(all(test, any(feature = "cuda", feature = "wgpu")))]
mod tests;

pub use options::{OptimizerOptions, learning_rate};

use std::collections::HashMap;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::optim::{AdamWState, AdaptiveMomentumState, GradientsParams};
use burn::prelude::*;
use rayon::prelude::*;

use crate::device::is_cpu;
use crate::error::{Error, Result};
use crate::kernels;
use crate::weights::{Checkpoint, NamedTensor, fields_and_shapes};
use flattened::Flattened;
use parameter::{MIN_MATRIX_SIDE, OptimizerState, Parameter, StepOptions, flatten};
use per_parameter::PerParameter;

/// The parameters of a module in training, with their moving averages and optimizer states.
pub(super) struct ModuleOptimizer {
    parameters: Vec<Parameter>,
    options: OptimizerOptions,
    strategy: Strategy,
}

/// The strategy by which a step updates the parameters.
enum Strategy {
    /// On the CPU.
    PerParameter(Box<PerParameter>),
    /// On a GPU.
    Flattened(Box<Flattened>),
}

impl ModuleOptimizer {
    pub(super) fn new<M: Module>(module: &M, options: OptimizerOptions) -> Self {
        struct Collect(Vec<(ParamId, Vec<usize>, Tensor<1>)>);
        impl ModuleVisitor for Collect {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                let value = param.val();
                self.0.push((param.id, value.dims().to_vec(), flatten(value.inner())));
            }
        }
        let mut found = Collect(Vec::new());
        module.visit(&mut found);
        let parameter = |(name, (id, shape, value)): (String, (ParamId, Vec<usize>, Tensor<1>))| {
            let is_vector_or_embedding = shape.len() < 2 || name.contains("embedding");
            let matrix = [shape[0], value.dims()[0] / shape[0]];
            let is_large = matrix.iter().all(|&side| side >= MIN_MATRIX_SIDE);
            let matrix = (options.muon && !is_vector_or_embedding && is_large).then_some(matrix);
            Parameter { name, id, matrix, ema: value.clone(), value, state: OptimizerState::Empty }
        };
        let strategy = if found.0.first().is_none_or(|(_, _, value)| is_cpu(&value.device())) {
            Strategy::PerParameter(Box::new(PerParameter::new(options)))
        } else {
            Strategy::Flattened(Box::default())
        };
        let names = fields_and_shapes(module, "").into_iter().map(|(field, _)| field);
        let parameters = names.zip(found.0).map(parameter).collect();
        Self { parameters, options, strategy }
    }

    /// Takes one step with the mean of the shards' gradients. Returns the updated module and the global norm of the gradients before
    /// clipping. A parameter without a gradient keeps its value.
    pub(super) fn update<M: Module>(&mut self, module: M, shards: Vec<GradientsParams>, step: u64) -> (M, f32) {
        let gradients = self.mean_gradients(&module, shards);
        let step = StepOptions::new(self.options, step);
        let norm = match &mut self.strategy {
            Strategy::PerParameter(strategy) => strategy.step(&mut self.parameters, gradients, &step),
            Strategy::Flattened(strategy) => strategy.step(&mut self.parameters, &gradients, &step),
        };
        (self.current(module), norm)
    }

    /// Returns the mean over the shards of each parameter's gradient, `[elements]`; `None` where no shard has one.
    fn mean_gradients<M: Module>(&self, module: &M, shards: Vec<GradientsParams>) -> Vec<Option<Tensor<1>>> {
        struct Take {
            shards: Vec<GradientsParams>,
            taken: Vec<Vec<Tensor<1>>>,
        }
        impl ModuleVisitor for Take {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                let gradients = self.shards.iter_mut().filter_map(|shard| shard.remove::<D>(param.id));
                self.taken.push(gradients.map(flatten).collect());
            }
        }
        let share = 1.0 / shards.len() as f32;
        let mut take = Take { shards, taken: Vec::new() };
        module.visit(&mut take);
        let mean = |gradients: Vec<Tensor<1>>| {
            let sum = gradients.into_iter().reduce(|sum, gradient| sum + gradient)?;
            Some(if share == 1.0 { sum } else { sum * share })
        };
        match self.strategy {
            Strategy::PerParameter(_) => take.taken.into_par_iter().map(mean).collect(),
            // GPU operations are enqueued on the current thread's stream.
            Strategy::Flattened(_) => take.taken.into_iter().map(mean).collect(),
        }
    }

    /// Copies the parameters of another module and resets the averages and optimizer states.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] if the other module has another architecture.
    pub(super) fn adopt<M: Module>(&mut self, module: M, other: &M) -> Result<M> {
        struct Values(Vec<Vec<f32>>);
        impl ModuleVisitor for Values {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                self.0.push(kernels::values(param.val()));
            }
        }
        let mut found = Values(Vec::new());
        other.visit(&mut found);
        if !self.parameters.iter().map(|parameter| parameter.value.dims()[0]).eq(found.0.iter().map(Vec::len)) {
            return Err(Error::request("model", "has another architecture than the configuration"));
        }
        for (parameter, values) in self.parameters.iter_mut().zip(found.0) {
            let count = values.len();
            parameter.value = kernels::tensor(values, [count], &parameter.value.device());
            (parameter.ema, parameter.state) = (parameter.value.clone(), OptimizerState::Empty);
        }
        self.discard_flattened();
        Ok(self.current(module))
    }

    /// Sets the total number of steps of the learning rate schedule.
    pub(super) fn set_steps(&mut self, steps: u64) {
        self.options.steps = steps;
    }

    /// Returns the module with the current weights, which require gradients. Every copy collects its own gradients, so shards can run
    /// in parallel.
    pub(super) fn current<M: Module>(&self, module: M) -> M {
        replace_parameters(module, &self.by_id(|parameter| &parameter.value), true)
    }

    /// Returns the module with the averaged weights, without gradients.
    pub(super) fn averaged<M: Module>(&self, module: M) -> M {
        replace_parameters(module, &self.by_id(|parameter| &parameter.ema), false)
    }

    fn by_id<'a>(&'a self, tensor: impl Fn(&'a Parameter) -> &'a Tensor<1>) -> HashMap<ParamId, &'a Tensor<1>> {
        self.parameters.iter().map(|parameter| (parameter.id, tensor(parameter))).collect()
    }

    /// Sets a parameter that is trained without gradients, and its average, to `[elements]`.
    pub(super) fn set(&mut self, id: ParamId, value: Tensor<1>) {
        for parameter in self.parameters.iter_mut().filter(|parameter| parameter.id == id) {
            parameter.ema = value.clone();
            parameter.value = value.clone();
        }
    }

    /// Discards the concatenated tensors of the GPU strategy. The next step concatenates the parameters again.
    fn discard_flattened(&mut self) {
        if let Strategy::Flattened(strategy) = &mut self.strategy {
            **strategy = Flattened::default();
        }
    }

    /// Returns everything that the next step depends on.
    pub(super) fn state(&self) -> Vec<NamedTensor> {
        let mut tensors = Vec::new();
        for parameter in &self.parameters {
            let mut push = |kind: &str, tensor: &Tensor<1>| {
                let values = kernels::values(tensor.clone());
                tensors.push(NamedTensor { name: format!("{kind}.{}", parameter.name), shape: vec![values.len()], values });
            };
            push("value", &parameter.value);
            push("average", &parameter.ema);
            match &parameter.state {
                OptimizerState::Empty => {}
                OptimizerState::AdamW(moments) => {
                    push("moment_1", &moments.momentum.moment_1);
                    push("moment_2", &moments.momentum.moment_2);
                }
                OptimizerState::Muon(velocity) => push("velocity", velocity),
            }
        }
        tensors
    }

    /// Restores a saved state after `steps` steps. If it fails, the current state stays unchanged.
    ///
    /// # Errors
    ///
    /// [`Error::Checkpoint`] if a tensor is missing or has another length.
    pub(super) fn restore<M: Module>(&mut self, module: M, state: &Checkpoint, steps: u64) -> Result<M> {
        self.parameters = self.parameters.iter().map(|parameter| restored(parameter, state, steps)).collect::<Result<_>>()?;
        self.discard_flattened();
        Ok(self.current(module))
    }
}

/// Returns a parameter as it is in a saved state.
fn restored(parameter: &Parameter, state: &Checkpoint, steps: u64) -> Result<Parameter> {
    let device = parameter.value.device();
    let length = parameter.value.dims()[0];
    let read = |kind: &str| -> Result<Tensor<1>> {
        let name = format!("{kind}.{}", parameter.name);
        let values = state.values(&name)?;
        if values.len() != length {
            let problem = format!("tensor `{name}` has {} values, expected {length}: it belongs to another recipe", values.len());
            return Err(Error::checkpoint(state.path(), problem));
        }
        Ok(kernels::tensor(values, [length], &device))
    };
    let has = |kind: &str| state.info(&format!("{kind}.{}", parameter.name)).is_some();
    let optimizer_state = if parameter.matrix.is_some() && has("velocity") {
        OptimizerState::Muon(read("velocity")?)
    } else if parameter.matrix.is_none() && has("moment_1") {
        let momentum = AdaptiveMomentumState::new(steps as usize, read("moment_1")?, read("moment_2")?);
        OptimizerState::AdamW(AdamWState::new(momentum))
    } else {
        OptimizerState::Empty
    };
    Ok(Parameter { value: read("value")?, ema: read("average")?, state: optimizer_state, ..parameter.clone() })
}

/// Replaces a module's parameters by flattened tensors, reshaped to the parameters' shapes.
fn replace_parameters<M: Module>(module: M, flat: &HashMap<ParamId, &Tensor<1>>, require_grad: bool) -> M {
    struct Replace<'a> {
        flat: &'a HashMap<ParamId, &'a Tensor<1>>,
        require_grad: bool,
    }
    impl ModuleMapper for Replace<'_> {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let Some(flat) = self.flat.get(&param.id) else { return param };
            let shape = param.lazy_shape();
            let value = (*flat).clone().reshape::<D, _>(shape); // the parameter's shape
            let value = if self.require_grad { Tensor::from_inner(value).require_grad() } else { value };
            Param::initialized(param.id, value)
        }
    }
    module.map(&mut Replace { flat, require_grad })
}
