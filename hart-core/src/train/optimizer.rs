//! AdamW or Muon with a clipped global norm, warm-up and cosine, and a running average of the weights.

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

/// How weights are changed.
#[derive(Clone, Copy, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimizerOptions {
    /// Largest learning rate.
    pub learning_rate: f64,
    /// Steps in which the rate rises to it, linearly.
    pub warmup: u64,
    /// Steps after which it has fallen to `final_ratio` of it, by a cosine.
    pub steps: u64,
    /// Share of the largest rate that is left in the end.
    pub final_ratio: f64,
    /// Decay of the weights, times the learning rate.
    pub weight_decay: f32,
    /// Decay of the squared gradients' average.
    pub beta_2: f32,
    /// Whether the matrices between layers are changed by Muon (Jordan and others, 2024; scaled to AdamW's learning rates as by Liu
    /// and others, arXiv 2502.16982): a step in all directions alike. It needs fewer steps, and more time for each.
    pub muon: bool,
    /// Most that all gradients together may measure, as one vector.
    pub clip: f32,
    /// Decay of the running average of the weights; early steps average over a tenth of what was.
    pub average: f64,
}

/// The learning rate of a step, from 0.
pub fn learning_rate(options: &OptimizerOptions, step: u64) -> f64 {
    let (step, warmup, steps) = (step as f64, options.warmup as f64, options.steps as f64);
    if step < warmup {
        return options.learning_rate * (step + 1.0) / warmup;
    }
    let done = ((step - warmup) / (steps - warmup).max(1.0)).min(1.0);
    let wave = (1.0 + (std::f64::consts::PI * done).cos()) / 2.0;
    options.learning_rate * (options.final_ratio + (1.0 - options.final_ratio) * wave)
}

/// One parameter, as a row of numbers, and what is kept about it.
#[derive(Clone)]
struct Slot {
    name: String,
    id: ParamId,
    /// Rows and columns, if it is a matrix that Muon changes.
    matrix: Option<[usize; 2]>,
    value: Tensor<1>,
    average: Tensor<1>,
    state: State,
}

/// What an optimizer keeps about a parameter.
#[allow(clippy::large_enum_variant, reason = "handles; the numbers lie elsewhere")]
#[derive(Clone)]
enum State {
    New,
    Moments(AdamWState<1>),
    Velocity(Tensor<1>),
}

/// Decay of AdamW's averaged gradients.
const BETA_1: f32 = 0.9;
/// What AdamW adds to the root that it divides by.
const EPSILON: f32 = 1e-8;
/// Decay of Muon's velocity.
const MOMENTUM: f64 = 0.95;
/// A matrix with fewer rows or columns leads into the model or out of it, and is AdamW's.
const SMALLEST_MATRIX: usize = 32;

/// Weights under way. Parameters are kept as rows beside each other, so that all cores update them at once.
pub(super) struct Learner {
    slots: Vec<Slot>,
    adam: AdamW,
    muon: Muon,
    options: OptimizerOptions,
    on_cpu: bool,
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
        Self { slots, adam: adam.build(), muon: muon.build(), options, on_cpu }
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
        let mean = |parts: Vec<Tensor<1>>| Some(parts.into_iter().reduce(|sum, part| sum + part)? * share);
        let gradients = self.each(take.taken, mean);
        let square = |gradient: Option<Tensor<1>>| Some(gradient?.square().sum());
        let squares: Vec<Tensor<1>> = self.each(gradients.clone(), square).into_iter().flatten().collect();
        let squares = if squares.is_empty() { Vec::new() } else { numbers(squares) };
        let norm = squares.iter().copied().map(f64::from).sum::<f64>().sqrt() as f32;
        const SMALLEST_NORM: f32 = 1e-6;
        let scale = (self.options.clip / (norm + SMALLEST_NORM)).min(1.0);
        let (adam, muon, rate) = (&self.adam, &self.muon, learning_rate(&self.options, step));
        // As TensorFlow's moving average does: young averages forget quickly.
        let decay = self.options.average.min((1.0 + step as f64) / (10.0 + step as f64));
        let on_cpu = self.on_cpu;
        let change = |(mut slot, gradient): (Slot, Option<Tensor<1>>)| {
            let Some(gradient) = gradient else {
                // What had no gradient stays as it is; matrices may have had their step already.
                if on_cpu || !matches!(slot.state, State::Velocity(_)) {
                    slot.average = slot.value.clone();
                }
                return slot;
            };
            let value = std::mem::replace(&mut slot.value, Tensor::empty([0], &gradient.device()));
            #[cfg(any(feature = "cuda", feature = "wgpu"))]
            if slot.matrix.is_none()
                && let Some(next) = fused(&slot, &value, &gradient, scale, rate, decay, &self.options)
            {
                return next;
            }
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
        let slots = if self.on_cpu { slots } else { self.together(slots, scale, rate, decay) };
        self.slots = self.each(slots, change);
        (self.current(module), norm)
    }

    /// Changes how many steps the learning rate falls over.
    pub(super) fn set_steps(&mut self, steps: u64) {
        self.options.steps = steps;
    }

    /// Muon's step for all matrices of one shape together: on a GPU the products of one matrix are too small to fill it. Whatever has
    /// had its step comes back without a gradient.
    fn together(&self, slots: Vec<(Slot, Option<Tensor<1>>)>, scale: f32, rate: f64, decay: f64) -> Vec<(Slot, Option<Tensor<1>>)> {
        let mut shapes: Vec<[usize; 2]> =
            slots.iter().filter(|(_, gradient)| gradient.is_some()).filter_map(|(slot, _)| slot.matrix).collect();
        shapes.sort_unstable();
        shapes.dedup();
        let mut slots = slots;
        for shape in shapes {
            let mut group: Vec<_> = slots.iter_mut().filter(|(s, g)| s.matrix == Some(shape) && g.is_some()).collect();
            let stack = |rows: Vec<Tensor<1>>| {
                let count = rows.len();
                Tensor::cat(rows, 0).reshape([count, shape[0], shape[1]])
            };
            let gradient = stack(group.iter().map(|(_, gradient)| gradient.clone().expect("just looked at")).collect()) * scale;
            let velocities = group.iter().map(|(slot, _)| match &slot.state {
                State::Velocity(velocity) => velocity.clone(),
                _ => slot.value.zeros_like(),
            });
            let velocity = stack(velocities.collect()) * MOMENTUM + gradient.clone();
            let change = orthogonalized(gradient + velocity.clone() * MOMENTUM);
            let [rows, columns] = shape.map(|n| n as f64);
            let change = change * (rate * 0.2 * rows.max(columns).sqrt());
            let value = stack(group.iter().map(|(slot, _)| slot.value.clone()).collect());
            let value = value * (1.0 - rate * f64::from(self.options.weight_decay)) - change;
            let average =
                stack(group.iter().map(|(slot, _)| slot.average.clone()).collect()) * decay + value.clone() * (1.0 - decay);
            let row = |stack: &Tensor<3>, index: usize| flat(stack.clone().narrow(0, index, 1));
            for (index, (slot, gradient)) in group.iter_mut().enumerate() {
                (slot.value, slot.average) = (row(&value, index), row(&average, index));
                slot.state = State::Velocity(row(&velocity, index));
                *gradient = None;
            }
        }
        slots
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
        Ok(self.current(module))
    }
}

/// AdamW's step and the average's in one, on a GPU.
#[cfg(any(feature = "cuda", feature = "wgpu"))]
fn fused(
    slot: &Slot,
    value: &Tensor<1>,
    gradient: &Tensor<1>,
    scale: f32,
    rate: f64,
    decay: f64,
    options: &OptimizerOptions,
) -> Option<Slot> {
    use kernels::cube::{Adam, AdamStep, adam};
    let (time, moment_1, moment_2) = match &slot.state {
        State::Moments(moments) => {
            let momentum = &moments.momentum;
            (momentum.time + 1, momentum.moment_1.clone(), momentum.moment_2.clone())
        }
        _ => (1, value.zeros_like(), value.zeros_like()),
    };
    let before = Adam { value: value.clone(), average: slot.average.clone(), moment_1, moment_2 };
    let OptimizerOptions { beta_2, weight_decay, .. } = *options;
    let step = AdamStep { beta_1: BETA_1, beta_2, epsilon: EPSILON, time, rate, weight_decay, scale, average: decay };
    let Adam { value, average, moment_1, moment_2 } = adam(&before, gradient, step)?;
    let state = State::Moments(AdamWState::new(AdaptiveMomentumState::new(time, moment_1, moment_2)));
    Some(Slot { value, average, state, ..slot.clone() })
}

/// The nearest matrices with orthogonal rows or columns, by Newton and Schulz's iteration; the coefficients are Muon's own.
///
/// # Shapes
///
/// - x, output: `[N, rows, columns]`
fn orthogonalized(x: Tensor<3>) -> Tensor<3> {
    const COEFFICIENTS: [f64; 3] = [3.4445, -4.775, 2.0315];
    const ITERATIONS: usize = 5;
    const SMALLEST_NORM: f32 = 1e-7;
    let [_, rows, columns] = x.dims();
    let tall = rows > columns;
    let x = if tall { x.swap_dims(1, 2) } else { x };
    let norm = x.clone().square().sum_dim(2).sum_dim(1).sqrt().clamp_min(SMALLEST_NORM);
    let mut x = x / norm;
    let [a, b, c] = COEFFICIENTS;
    for _ in 0..ITERATIONS {
        let square = x.clone().matmul(x.clone().swap_dims(1, 2));
        let factor = square.clone() * b + square.clone().matmul(square) * c;
        x = x.clone() * a + factor.matmul(x);
    }
    if tall { x.swap_dims(1, 2) } else { x }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Wide, tall and square ones: rows or columns end up close to orthogonal, as burn's own does one by one.
    #[test]
    fn matrices_together_are_orthogonalized_as_one_by_one() {
        let device = Device::flex();
        for [rows, columns] in [[32, 48], [48, 32], [40, 40]] {
            let values: Vec<f32> = (0..2 * rows * columns).map(|i| ((i * i) as f32 * 0.37 + i as f32).sin()).collect();
            let x = kernels::tensor(values, [2, rows, columns], &device);
            let muon = MuonConfig::new()
                .with_momentum(MomentumConfig { momentum: 0.0, dampening: 0.0, nesterov: false })
                .with_adjust_lr_fn(AdjustLrFn::MatchRmsAdamW)
                .build();
            let together = orthogonalized(x.clone());
            for index in 0..2 {
                let one = |x: &Tensor<3>| x.clone().narrow(0, index, 1).reshape([rows, columns]);
                let zeros = one(&x).zeros_like();
                let rate = 1.0 / (0.2 * (rows.max(columns) as f64).sqrt());
                let want = muon.step(rate, zeros, one(&x), None).0.neg();
                let error = kernels::values((one(&together) - want).abs().max())[0];
                assert!(error < 1e-4, "{rows} x {columns}: off by {error}");
            }
        }
    }
}
