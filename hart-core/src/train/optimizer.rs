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

#[cfg(any(feature = "cuda", feature = "wgpu"))]
use super::joined::Joined;
use super::ranges::{DECAY, Ranged, UNIT};
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

/// Most steps: a saved state counts them in f32, which is exact up to here.
const MOST_STEPS: f64 = (1 << 24) as f64;

impl OptimizerOptions {
    /// What each number may be, named as part of the options of a trainer.
    pub(super) fn ranges(&self) -> [Ranged; 7] {
        [
            ("optimizer.learning_rate", self.learning_rate, UNIT),
            ("optimizer.steps", self.steps as f64, 1.0..=MOST_STEPS),
            ("optimizer.final_ratio", self.final_ratio, UNIT),
            ("optimizer.weight_decay", f64::from(self.weight_decay), UNIT),
            ("optimizer.beta_2", f64::from(self.beta_2), DECAY),
            ("optimizer.clip", f64::from(self.clip), 0.001..=1e6),
            ("optimizer.average", self.average, UNIT),
        ]
    }
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
pub(super) struct Slot {
    name: String,
    id: ParamId,
    /// Rows and columns, if it is a matrix that Muon changes.
    pub(super) matrix: Option<[usize; 2]>,
    pub(super) value: Tensor<1>,
    pub(super) average: Tensor<1>,
    pub(super) state: State,
}

/// What an optimizer keeps about a parameter.
#[allow(clippy::large_enum_variant, reason = "handles; the numbers lie elsewhere")]
#[derive(Clone)]
pub(super) enum State {
    New,
    Moments(AdamWState<1>),
    Velocity(Tensor<1>),
}

/// Decay of AdamW's averaged gradients.
const BETA_1: f32 = 0.9;
/// What AdamW adds to the root that it divides by.
const EPSILON: f32 = 1e-8;
/// Decay of Muon's velocity.
pub(super) const MOMENTUM: f64 = 0.95;
/// A matrix with fewer rows or columns leads into the model or out of it, and is AdamW's.
const SMALLEST_MATRIX: usize = 32;

/// Numbers of one step.
pub(super) struct StepOptions {
    pub(super) options: OptimizerOptions,
    pub(super) rate: f64,
    /// Decay of the running average.
    pub(super) average: f64,
}

impl StepOptions {
    fn new(options: OptimizerOptions, step: u64) -> Self {
        // As TensorFlow's moving average does: young averages forget quickly.
        let average = options.average.min((1.0 + step as f64) / (10.0 + step as f64));
        Self { options, rate: learning_rate(&options, step), average }
    }

    /// What gradients of such a norm are multiplied by, so that they measure no more than they may.
    pub(super) fn scale(&self, norm: f32) -> f32 {
        const SMALLEST_NORM: f32 = 1e-6;
        (self.options.clip / (norm + SMALLEST_NORM)).min(1.0)
    }

    #[cfg(any(feature = "cuda", feature = "wgpu"))]
    pub(super) fn adam(&self, time: usize, scale: f32) -> kernels::cube::AdamStep {
        let OptimizerOptions { beta_2, weight_decay, .. } = self.options;
        let (rate, average) = (self.rate, self.average);
        kernels::cube::AdamStep { beta_1: BETA_1, beta_2, epsilon: EPSILON, time, rate, weight_decay, scale, average }
    }
}

/// Weights under way. Parameters are kept as rows beside each other: all cores update them at once, and on a GPU they are parts of a few
/// rows.
pub(super) struct Learner {
    slots: Vec<Slot>,
    adam: AdamW,
    muon: Muon,
    options: OptimizerOptions,
    on_cpu: bool,
    #[cfg(any(feature = "cuda", feature = "wgpu"))]
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
        Self {
            slots,
            adam: adam.build(),
            muon: muon.build(),
            options,
            on_cpu,
            #[cfg(any(feature = "cuda", feature = "wgpu"))]
            joined: None,
        }
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
        #[cfg(any(feature = "cuda", feature = "wgpu"))]
        if !self.on_cpu {
            let norm = self.step_joined(&gradients, &step);
            return (self.current(module), norm);
        }
        let norm = self.step_beside(gradients, &step);
        (self.current(module), norm)
    }

    /// A step on a GPU.
    #[cfg(any(feature = "cuda", feature = "wgpu"))]
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
        #[cfg(any(feature = "cuda", feature = "wgpu"))]
        {
            self.joined = None;
        }
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
        #[cfg(any(feature = "cuda", feature = "wgpu"))]
        {
            self.joined = None;
        }
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

#[cfg(all(test, any(feature = "cuda", feature = "wgpu")))]
mod tests {
    use burn::nn::{Linear, LinearConfig};

    use super::*;
    use crate::kernels::cube::tests::{device, wave};

    /// Matrices by Muon, rows by AdamW, clipped; and a state that is taken up in between.
    #[test]
    fn steps_on_a_gpu_equal_the_cpus() {
        let options = OptimizerOptions {
            learning_rate: 1e-2,
            warmup: 2,
            steps: 10,
            final_ratio: 0.1,
            weight_decay: 0.1,
            beta_2: 0.99,
            muon: true,
            clip: 1.0,
            average: 0.9,
        };
        let run = |device: &Device| {
            let tracked = device.clone().autodiff();
            let mut layers: Vec<Linear> = Vec::new();
            for (from, to) in [(40, 48), (48, 40), (40, 48), (48, 7)] {
                let mut layer = LinearConfig::new(from, to).init(&tracked);
                layer.weight = layer.weight.map(|_| wave([from, to], 0.37, &tracked).require_grad());
                layer.bias = layer.bias.map(|bias| bias.map(|_| wave([to], 0.7, &tracked).require_grad()));
                layers.push(layer);
            }
            let mut learner = Learner::new(&layers, options);
            let mut norms = Vec::new();
            for step in 0..4 {
                let x: Tensor<2> = wave([5, 40], 0.3 + step as f32, &tracked);
                let y = layers.iter().fold(x, |x, layer| layer.forward(x).tanh());
                let gradients = GradientsParams::from_grads((y.square().sum() * 3.0).backward(), &layers);
                let norm;
                (layers, norm) = learner.update(layers, vec![gradients], step);
                norms.push(norm);
            }
            (norms, learner.state())
        };
        let ((norms, got), (other_norms, want)) = (run(&device()), run(&Device::flex()));
        assert!(
            norms.iter().zip(&other_norms).all(|(got, want)| (got / want - 1.0).abs() < 1e-2),
            "{norms:?} and not {other_norms:?}"
        );
        for (got, want) in got.iter().zip(&want) {
            assert_eq!((&got.name, &got.shape), (&want.name, &want.shape));
            let most = want.values.iter().fold(1e-2f32, |most, v| most.max(v.abs()));
            let error = got.values.iter().zip(&want.values).map(|(g, w)| (g - w).abs() / most).fold(0.0, f32::max);
            assert!(error < 2e-2, "{}: off by {error}", got.name);
        }
    }
}
