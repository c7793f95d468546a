//! The GPU strategy: concatenates all parameters into a few tensors, so that a step launches a few kernels for all of them.

use burn::optim::{AdamWState, AdaptiveMomentumState};
use burn::prelude::*;
use burn::tensor::Slice;

use super::parameter::{MOMENTUM, OptimizerState, Parameter, StepOptions};
use crate::kernels::{AdamRows, adam};
use crate::train::shards::read_scalars;

/// Alignment of segments, in elements: an aligned segment can be viewed without a copy.
const ALIGNMENT: usize = 128;

/// The concatenated parameters, kept from one step to the next.
#[derive(Default)]
pub(super) struct Flattened {
    parameters: Option<FlatParameters>,
}

impl Flattened {
    /// Updates all parameters that have gradients and returns the global norm of the gradients before clipping.
    pub(super) fn step(&mut self, parameters: &mut [Parameter], gradients: &[Option<Tensor<1>>], step: &StepOptions) -> f32 {
        let trained: Vec<usize> = (0..parameters.len()).filter(|&index| gradients[index].is_some()).collect();
        let Some(&first) = trained.first() else { return 0.0 };
        let flat = self.parameters.take().filter(|flat| flat.contains_exactly(&trained));
        let mut flat = flat.unwrap_or_else(|| FlatParameters::new(parameters, &trained, &parameters[first].value.device()));
        let norm = flat.step(parameters, gradients, step);
        self.parameters = Some(flat);
        norm
    }
}

/// The position of one parameter in a concatenated tensor.
struct Segment {
    /// Index of the parameter.
    parameter: usize,
    /// Offset of its first element.
    offset: usize,
    /// Number of its elements.
    length: usize,
}

impl Segment {
    /// Returns this parameter's part of a concatenated tensor.
    ///
    /// # Shapes
    ///
    /// - flat: `[elements of all]`
    /// - output: `[elements]`
    fn view(&self, flat: &Tensor<1>) -> Tensor<1> {
        flat.clone().narrow(0, self.offset, self.length)
    }
}

/// The segments of a concatenated tensor.
#[derive(Default)]
struct FlatLayout {
    segments: Vec<Segment>,
    length: usize,
}

impl FlatLayout {
    fn push(&mut self, parameter: usize, length: usize) {
        self.segments.push(Segment { parameter, offset: self.length, length });
        self.length += length;
    }

    fn align(&mut self) {
        self.length = self.length.next_multiple_of(ALIGNMENT);
    }

    /// Concatenates one tensor of each parameter. Gaps, and parameters without a tensor, are zero.
    fn concatenate(&self, device: &Device, tensor: impl Fn(usize) -> Option<Tensor<1>>) -> Tensor<1> {
        let mut flat = Tensor::zeros([self.length], device);
        for &Segment { parameter, offset, length } in &self.segments {
            if let Some(part) = tensor(parameter) {
                flat = flat.slice_assign([Slice::from(offset..offset + length)], part);
            }
        }
        flat
    }
}

/// Adjacent matrices of one shape, which are orthogonalized as one batch.
struct MatrixBatch {
    /// Rows and columns of each matrix.
    shape: [usize; 2],
    count: usize,
    offset: usize,
}

impl MatrixBatch {
    fn length(&self) -> usize {
        self.count * self.shape[0] * self.shape[1]
    }

    fn view(&self, flat: &Tensor<1>) -> Tensor<3> {
        let [rows, columns] = self.shape;
        flat.clone().narrow(0, self.offset, self.length()).reshape([self.count, rows, columns]) // [matrices, rows, columns]
    }
}

/// All parameters with gradients, concatenated by the optimizer that updates them.
struct FlatParameters {
    muon: MuonParameters,
    adam: AdamParameters,
}

/// The matrices that Muon updates.
struct MuonParameters {
    layout: FlatLayout,
    batches: Vec<MatrixBatch>,
    value: Tensor<1>,
    ema: Tensor<1>,
    velocity: Tensor<1>,
}

/// The parameters that AdamW updates.
struct AdamParameters {
    layout: FlatLayout,
    tensors: AdamRows,
    /// Number of updates of the moments.
    time: usize,
}

impl FlatParameters {
    /// Concatenates the parameters with the indices `trained`.
    fn new(parameters: &[Parameter], trained: &[usize], device: &Device) -> Self {
        Self { muon: MuonParameters::new(parameters, trained, device), adam: AdamParameters::new(parameters, trained, device) }
    }

    /// Returns whether these are the parameters with the indices `trained`, and no others.
    fn contains_exactly(&self, trained: &[usize]) -> bool {
        let segments = self.muon.layout.segments.iter().chain(&self.adam.layout.segments);
        let mut indices: Vec<usize> = segments.map(|segment| segment.parameter).collect();
        indices.sort_unstable();
        indices == trained
    }

    /// Takes one step, makes `parameters` views of the result, and returns the global norm of the gradients before clipping.
    fn step(&mut self, parameters: &mut [Parameter], gradients: &[Option<Tensor<1>>], step: &StepOptions) -> f32 {
        let device = self.muon.velocity.device();
        let gradient = |index: usize| gradients[index].clone();
        let [muon, adam] = [&self.muon.layout, &self.adam.layout].map(|layout| layout.concatenate(&device, gradient));
        let squares = [&muon, &adam].map(|gradients| gradients.clone().square().sum());
        let norm = read_scalars(squares.to_vec()).into_iter().map(f64::from).sum::<f64>().sqrt() as f32;
        let clip_factor = step.clip_factor(norm);
        self.muon.step(muon * clip_factor, step);
        self.adam.step(&adam, clip_factor, step);
        self.muon.store(parameters);
        self.adam.store(parameters);
        norm
    }
}

impl MuonParameters {
    fn new(parameters: &[Parameter], trained: &[usize], device: &Device) -> Self {
        let mut shapes: Vec<[usize; 2]> = trained.iter().filter_map(|&index| parameters[index].matrix).collect();
        shapes.sort_unstable();
        shapes.dedup();
        let (mut layout, mut batches) = (FlatLayout::default(), Vec::new());
        for shape in shapes {
            layout.align();
            let offset = layout.length;
            for &index in trained.iter().filter(|&&index| parameters[index].matrix == Some(shape)) {
                layout.push(index, parameters[index].value.dims()[0]);
            }
            batches.push(MatrixBatch { shape, count: (layout.length - offset) / (shape[0] * shape[1]), offset });
        }
        let value = layout.concatenate(device, |index| Some(parameters[index].value.clone()));
        let ema = layout.concatenate(device, |index| Some(parameters[index].ema.clone()));
        let velocity = layout.concatenate(device, |index| match &parameters[index].state {
            OptimizerState::Muon(velocity) => Some(velocity.clone()),
            _ => None,
        });
        Self { layout, batches, value, ema, velocity }
    }

    /// Updates all matrices by their clipped gradients.
    fn step(&mut self, gradient: Tensor<1>, step: &StepOptions) {
        if self.batches.is_empty() {
            return;
        }
        self.velocity = self.velocity.clone() * MOMENTUM + gradient.clone();
        // Nesterov momentum.
        let direction = gradient + self.velocity.clone() * MOMENTUM;
        let mut update = direction.zeros_like();
        for batch in &self.batches {
            // Scale the update to the size of AdamW's (Liu et al., 2025).
            let longest = batch.shape[0].max(batch.shape[1]) as f64;
            let part = orthogonalized(batch.view(&direction)) * (step.learning_rate * 0.2 * longest.sqrt());
            let part = part.reshape([batch.length()]); // [elements]
            update = update.slice_assign([Slice::from(batch.offset..batch.offset + batch.length())], part);
        }
        self.value = self.value.clone() * (1.0 - step.learning_rate * f64::from(step.options.weight_decay)) - update;
        self.ema = self.ema.clone() * step.ema_decay + self.value.clone() * (1.0 - step.ema_decay);
    }

    fn store(&self, parameters: &mut [Parameter]) {
        for segment in &self.layout.segments {
            let parameter = &mut parameters[segment.parameter];
            (parameter.value, parameter.ema) = (segment.view(&self.value), segment.view(&self.ema));
            parameter.state = OptimizerState::Muon(segment.view(&self.velocity));
        }
    }
}

impl AdamParameters {
    fn new(parameters: &[Parameter], trained: &[usize], device: &Device) -> Self {
        let mut layout = FlatLayout::default();
        for &index in trained.iter().filter(|&&index| parameters[index].matrix.is_none()) {
            layout.align();
            layout.push(index, parameters[index].value.dims()[0]);
        }
        let moments = |index: usize| match &parameters[index].state {
            OptimizerState::AdamW(state) => Some(&state.momentum),
            _ => None,
        };
        let tensors = AdamRows {
            value: layout.concatenate(device, |index| Some(parameters[index].value.clone())),
            average: layout.concatenate(device, |index| Some(parameters[index].ema.clone())),
            moment_1: layout.concatenate(device, |index| Some(moments(index)?.moment_1.clone())),
            moment_2: layout.concatenate(device, |index| Some(moments(index)?.moment_2.clone())),
        };
        let time = (0..parameters.len()).find_map(|index| Some(moments(index)?.time)).unwrap_or(0);
        Self { layout, tensors, time }
    }

    /// Updates all parameters by their gradients, which the kernel multiplies by `clip_factor`.
    fn step(&mut self, gradient: &Tensor<1>, clip_factor: f32, step: &StepOptions) {
        self.time += 1;
        self.tensors = adam(&self.tensors, gradient, step.adam(self.time, clip_factor)).expect("the tensors are on a GPU");
    }

    fn store(&self, parameters: &mut [Parameter]) {
        let AdamRows { value, average, moment_1, moment_2 } = &self.tensors;
        for segment in &self.layout.segments {
            let parameter = &mut parameters[segment.parameter];
            (parameter.value, parameter.ema) = (segment.view(value), segment.view(average));
            let momentum = AdaptiveMomentumState::new(self.time, segment.view(moment_1), segment.view(moment_2));
            parameter.state = OptimizerState::AdamW(AdamWState::new(momentum));
        }
    }
}

/// Orthogonalizes matrices by the Newton-Schulz iteration with Muon's coefficients.
///
/// # Shapes
///
/// - x, output: `[matrices, rows, columns]`
fn orthogonalized(x: Tensor<3>) -> Tensor<3> {
    const COEFFICIENTS: [f64; 3] = [3.4445, -4.775, 2.0315];
    const ITERATIONS: usize = 5;
    const MIN_NORM: f32 = 1e-7;
    let [_, rows, columns] = x.dims();
    let is_tall = rows > columns;
    let x = if is_tall { x.swap_dims(1, 2) } else { x };
    let norm = x.clone().square().sum_dim(2).sum_dim(1).sqrt().clamp_min(MIN_NORM);
    let mut x = x / norm;
    let [a, b, c] = COEFFICIENTS;
    for _ in 0..ITERATIONS {
        let gram = x.clone().matmul(x.clone().swap_dims(1, 2));
        let polynomial = gram.clone() * b + gram.clone().matmul(gram) * c;
        x = x.clone() * a + polynomial.matmul(x);
    }
    if is_tall { x.swap_dims(1, 2) } else { x }
}

#[cfg(test)]
mod tests {
    use burn::optim::momentum::MomentumConfig;
    use burn::optim::{AdjustLrFn, MuonConfig, Optimizer};

    use super::*;
    use crate::kernels;

    /// Compares wide, tall and square matrices with burn's Muon, which takes one matrix at a time.
    #[test]
    fn batched_matrices_are_orthogonalized_like_single_ones() {
        let device = Device::flex();
        for [rows, columns] in [[32, 48], [48, 32], [40, 40]] {
            let values: Vec<f32> = (0..2 * rows * columns).map(|i| ((i * i) as f32 * 0.37 + i as f32).sin()).collect();
            let x = kernels::tensor(values, [2, rows, columns], &device);
            let muon = MuonConfig::new()
                .with_momentum(MomentumConfig { momentum: 0.0, dampening: 0.0, nesterov: false })
                .with_adjust_lr_fn(AdjustLrFn::MatchRmsAdamW)
                .build();
            let batched = orthogonalized(x.clone());
            for index in 0..2 {
                let one = |x: &Tensor<3>| x.clone().narrow(0, index, 1).reshape([rows, columns]); // [rows, columns]
                let zeros = one(&x).zeros_like();
                let rate = 1.0 / (0.2 * (rows.max(columns) as f64).sqrt());
                let want = muon.step(rate, zeros, one(&x), None).0.neg();
                let error = kernels::values((one(&batched) - want).abs().max())[0];
                assert!(error < 1e-4, "{rows} x {columns}: off by {error}");
            }
        }
    }
}
