//! AdamW or Muon with a clipped global norm, warm-up and cosine, and a running average of the weights.

mod gpu;
mod options;
mod step;
#[cfg(all(test, any(feature = "cuda", feature = "wgpu")))]
mod tests;

pub use options::{OptimizerOptions, learning_rate};
pub(super) use step::{MOMENTUM, Slot, State, StepOptions};

use std::collections::HashMap;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::optim::decay::WeightDecayConfig;
use burn::optim::momentum::MomentumConfig;
use burn::optim::{
    AdamW, AdamWConfig, AdamWState, AdaptiveMomentumState, AdjustLrFn, GradientsParams, Muon, MuonConfig, Optimizer,
};
use burn::prelude::*;
use rayon::prelude::*;

use super::shards::numbers;
use crate::device::is_cpu;
use crate::error::{Error, Result};
use crate::kernels;
use crate::weights::{Checkpoint, NamedTensor, parameter_names};
use gpu::Joined;
use step::{BETA_1, EPSILON, SMALLEST_MATRIX};

/// Weights under way. Parameters are kept as rows beside each other: all cores update them at once, and on a GPU they are parts of a few
/// rows.
pub(super) struct Learner {
    slots: Vec<Slot>,
    adam: AdamW,
    muon: Muon,
    options: OptimizerOptions,
    on_cpu: bool,
    joined: Option<Joined>,
}

impl Learner {
    pub(super) fn new<M: Module>(module: &M, options: OptimizerOptions) -> Self {
        struct Collect(Vec<(ParamId, Vec<usize>, Tensor<1>)>);
        impl ModuleVisitor for Collect {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                let value = param.val();
                self.0.push((param.id, value.dims().to_vec(), flat(value.inner())));
            }
        }
        let mut found = Collect(Vec::new());
        module.visit(&mut found);
        let slot = |(name, (id, shape, value)): (String, (ParamId, Vec<usize>, Tensor<1>))| {
            let is_row = shape.len() < 2 || name.contains("embedding");
            let matrix = [shape[0], value.dims()[0] / shape[0]];
            let matrix = (options.muon && !is_row && matrix.iter().all(|&n| n >= SMALLEST_MATRIX)).then_some(matrix);
            Slot { name, id, matrix, average: value.clone(), value, state: State::New }
        };
        let adam = AdamWConfig::new()
            .with_beta_1(BETA_1)
            .with_beta_2(options.beta_2)
            .with_epsilon(EPSILON)
            .with_weight_decay(options.weight_decay);
        // The velocity is kept here: burn's own can't be saved by name.
        let muon = MuonConfig::new()
            .with_momentum(MomentumConfig { momentum: 0.0, dampening: 0.0, nesterov: false })
            .with_weight_decay(Some(WeightDecayConfig::new(options.weight_decay)))
            .with_adjust_lr_fn(AdjustLrFn::MatchRmsAdamW);
        let on_cpu = found.0.first().is_none_or(|(_, _, value)| is_cpu(&value.device()));
        let slots = parameter_names(module).into_iter().zip(found.0).map(slot).collect();
        Self { slots, adam: adam.build(), muon: muon.build(), options, on_cpu, joined: None }
    }

    /// One step on the mean of the shards' gradients. Returns the module and the gradients' norm before clipping. A parameter
    /// without a gradient stays as it is.
    pub(super) fn update<M: Module>(&mut self, module: M, shards: Vec<GradientsParams>, step: u64) -> (M, f32) {
        struct Take {
            shards: Vec<GradientsParams>,
            taken: Vec<Vec<Tensor<1>>>,
        }
        impl ModuleVisitor for Take {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                let parts = self.shards.iter_mut().filter_map(|shard| shard.remove::<D>(param.id));
                self.taken.push(parts.map(flat).collect());
            }
        }
        let share = 1.0 / shards.len() as f32;
        let mut take = Take { shards, taken: Vec::new() };
        module.visit(&mut take);
        let mean = |parts: Vec<Tensor<1>>| {
            let sum = parts.into_iter().reduce(|sum, part| sum + part)?;
            Some(if share == 1.0 { sum } else { sum * share })
        };
        let gradients = self.each(take.taken, mean);
        let step = StepOptions::new(self.options, step);
        if !self.on_cpu {
            let norm = self.step_joined(&gradients, &step);
            return (self.current(module), norm);
        }
        let norm = self.step_beside(gradients, &step);
        (self.current(module), norm)
    }

    /// A step on a GPU.
    fn step_joined(&mut self, gradients: &[Option<Tensor<1>>], step: &StepOptions) -> f32 {
        let named: Vec<usize> = (0..self.slots.len()).filter(|&slot| gradients[slot].is_some()).collect();
        let Some(&first) = named.first() else { return 0.0 };
        let joined = self.joined.take().filter(|joined| joined.holds(&named));
        let mut joined = joined.unwrap_or_else(|| Joined::new(&self.slots, &named, &self.slots[first].value.device()));
        let norm = joined.step(&mut self.slots, gradients, step);
        self.joined = Some(joined);
        norm
    }

    /// A step on the CPU, parameter by parameter.
    fn step_beside(&mut self, gradients: Vec<Option<Tensor<1>>>, step: &StepOptions) -> f32 {
        let square = |gradient: Option<Tensor<1>>| Some(gradient?.square().sum());
        let squares: Vec<Tensor<1>> = self.each(gradients.clone(), square).into_iter().flatten().collect();
        let squares = if squares.is_empty() { Vec::new() } else { numbers(squares) };
        let norm = squares.iter().copied().map(f64::from).sum::<f64>().sqrt() as f32;
        let scale = step.scale(norm);
        let (adam, muon, rate, decay) = (&self.adam, &self.muon, step.rate, step.average);
        let change = |(mut slot, gradient): (Slot, Option<Tensor<1>>)| {
            let Some(gradient) = gradient else {
                slot.average = slot.value.clone();
                return slot;
            };
            let value = std::mem::replace(&mut slot.value, Tensor::empty([0], &gradient.device()));
            let gradient = gradient * scale;
            let state = std::mem::replace(&mut slot.state, State::New);
            (slot.value, slot.state) = match slot.matrix {
                Some(shape) => {
                    let velocity = match state {
                        State::Velocity(velocity) => velocity * MOMENTUM + gradient.clone(),
                        _ => gradient.clone(),
                    };
                    let ahead = (gradient + velocity.clone() * MOMENTUM).reshape(shape);
                    (flat(muon.step(rate, value.reshape(shape), ahead, None).0), State::Velocity(velocity))
                }
                None => {
                    let moments = if let State::Moments(moments) = state { Some(moments) } else { None };
                    let (value, moments) = adam.step(rate, value, gradient, moments);
                    (value, moments.map_or(State::New, State::Moments))
                }
            };
            slot.average = slot.average.clone() * decay + slot.value.clone() * (1.0 - decay);
            slot
        };
        let slots: Vec<_> = std::mem::take(&mut self.slots).into_iter().zip(gradients).collect();
        self.slots = self.each(slots, change);
        norm
    }

    /// Takes over the parameters of another module; what was learned about the old ones is forgotten.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] if the other one is of another architecture.
    pub(super) fn adopt<M: Module>(&mut self, module: M, other: &M) -> Result<M> {
        struct Values(Vec<Vec<f32>>);
        impl ModuleVisitor for Values {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                self.0.push(kernels::values(param.val()));
            }
        }
        let mut found = Values(Vec::new());
        other.visit(&mut found);
        if !self.slots.iter().map(|slot| slot.value.dims()[0]).eq(found.0.iter().map(Vec::len)) {
            return Err(Error::request("model", "is of another architecture, expected the configuration's"));
        }
        for (slot, values) in self.slots.iter_mut().zip(found.0) {
            let count = values.len();
            slot.value = kernels::tensor(values, [count], &slot.value.device());
            (slot.average, slot.state) = (slot.value.clone(), State::New);
        }
        self.joined = None;
        Ok(self.current(module))
    }

    /// Changes how many steps the learning rate falls over.
    pub(super) fn set_steps(&mut self, steps: u64) {
        self.options.steps = steps;
    }

    /// Work on each parameter: on all cores where they do the arithmetic, and one after the other on a GPU, whose stream belongs to a
    /// thread.
    fn each<T: Send, R: Send>(&self, items: Vec<T>, work: impl Fn(T) -> R + Send + Sync) -> Vec<R> {
        if self.on_cpu { items.into_par_iter().map(work).collect() } else { items.into_iter().map(work).collect() }
    }

    /// The module with the weights as they are, to be trained further. Every copy keeps its own gradients: shards work side by side.
    pub(super) fn current<M: Module>(&self, module: M) -> M {
        put(module, &self.rows(|slot| &slot.value), true)
    }

    /// The module with averaged weights, on its own device.
    pub(super) fn averaged<M: Module>(&self, module: M) -> M {
        put(module, &self.rows(|slot| &slot.average), false)
    }

    fn rows<'a>(&'a self, which: impl Fn(&'a Slot) -> &'a Tensor<1>) -> HashMap<ParamId, &'a Tensor<1>> {
        self.slots.iter().map(|slot| (slot.id, which(slot))).collect()
    }

    /// Replaces a parameter that has no gradient.
    pub(super) fn set(&mut self, id: ParamId, value: Tensor<1>) {
        for slot in self.slots.iter_mut().filter(|slot| slot.id == id) {
            slot.average = value.clone();
            slot.value = value.clone();
        }
    }

    /// Everything that the next step depends on.
    pub(super) fn state(&self) -> Vec<NamedTensor> {
        let mut tensors = Vec::new();
        for slot in &self.slots {
            let mut push = |kind: &str, row: &Tensor<1>| {
                let values = kernels::values(row.clone());
                tensors.push(NamedTensor { name: format!("{kind}.{}", slot.name), shape: vec![values.len()], values });
            };
            push("value", &slot.value);
            push("average", &slot.average);
            match &slot.state {
                State::New => {}
                State::Moments(moments) => {
                    let momentum = &moments.momentum;
                    push("moment_1", &momentum.moment_1);
                    push("moment_2", &momentum.moment_2);
                }
                State::Velocity(velocity) => push("velocity", velocity),
            }
        }
        tensors
    }

    /// Takes up a state; `steps` is how many steps it has seen.
    pub(super) fn restore<M: Module>(&mut self, module: M, state: &Checkpoint, steps: u64) -> Result<M> {
        let read_slot = |slot: &Slot| -> Result<Slot> {
            let device = slot.value.device();
            let length = slot.value.dims()[0];
            let read = |kind: &str| -> Result<Tensor<1>> {
                let name = format!("{kind}.{}", slot.name);
                let values = state.values(&name)?;
                if values.len() != length {
                    let problem =
                        format!("tensor `{name}` has {} numbers, expected {length}: it is another recipe's", values.len());
                    return Err(Error::checkpoint(state.path(), problem));
                }
                Ok(kernels::tensor(values, [length], &device))
            };
            let has = |kind: &str| state.info(&format!("{kind}.{}", slot.name)).is_some();
            let kept = if slot.matrix.is_some() && has("velocity") {
                State::Velocity(read("velocity")?)
            } else if slot.matrix.is_none() && has("moment_1") {
                let momentum = AdaptiveMomentumState::new(steps as usize, read("moment_1")?, read("moment_2")?);
                State::Moments(AdamWState::new(momentum))
            } else {
                State::New
            };
            Ok(Slot { value: read("value")?, average: read("average")?, state: kept, ..slot.clone() })
        };
        // All or nothing: a state that doesn't fit leaves what is there.
        self.slots = self.slots.iter().map(read_slot).collect::<Result<_>>()?;
        self.joined = None;
        Ok(self.current(module))
    }
}

fn flat<const D: usize>(tensor: Tensor<D>) -> Tensor<1> {
    let count = tensor.shape().num_elements();
    tensor.reshape([count])
}

/// The module with the rows in place of its parameters.
fn put<M: Module>(module: M, rows: &HashMap<ParamId, &Tensor<1>>, trained: bool) -> M {
    struct Put<'a> {
        rows: &'a HashMap<ParamId, &'a Tensor<1>>,
        trained: bool,
    }
    impl ModuleMapper for Put<'_> {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let Some(row) = self.rows.get(&param.id) else { return param };
            let shape = param.lazy_shape();
            let value = (*row).clone().reshape::<D, _>(shape);
            let value = if self.trained { Tensor::from_inner(value).require_grad() } else { value };
            Param::initialized(param.id, value)
        }
    }
    module.map(&mut Put { rows, trained })
}
