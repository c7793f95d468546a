//! An optimizer's step on a GPU: all parameters lie end to end in a few rows of numbers, so that a step takes a few kernels for all of
//! them and not a few for each.

use burn::optim::{AdamWState, AdaptiveMomentumState};
use burn::prelude::*;
use burn::tensor::Slice;

use super::{MOMENTUM, Slot, State, StepOptions};
use crate::train::shards::numbers;

/// Numbers to whose multiples parts are moved: a part that begins so is looked at where it lies, without a copy.
const ALIGNMENT: usize = 128;

/// Where some slots' numbers lie in a row.
struct Layout {
    /// Slot, first number, length.
    places: Vec<(usize, usize, usize)>,
    length: usize,
}

impl Layout {
    fn new() -> Self {
        Self { places: Vec::new(), length: 0 }
    }

    fn push(&mut self, slot: usize, length: usize) {
        self.places.push((slot, self.length, length));
        self.length += length;
    }

    fn align(&mut self) {
        self.length = self.length.next_multiple_of(ALIGNMENT);
    }

    /// All slots' numbers in one row, with zeros between them.
    fn join(&self, device: &Device, of_slot: impl Fn(usize) -> Option<Tensor<1>>) -> Tensor<1> {
        let mut row = Tensor::zeros([self.length], device);
        for &(slot, start, length) in &self.places {
            if let Some(part) = of_slot(slot) {
                row = row.slice_assign([Slice::from(start..start + length)], part);
            }
        }
        row
    }
}

/// Matrices of one shape, which follow each other.
struct Group {
    shape: [usize; 2],
    count: usize,
    start: usize,
}

impl Group {
    fn length(&self) -> usize {
        self.count * self.shape[0] * self.shape[1]
    }

    fn of(&self, row: &Tensor<1>) -> Tensor<3> {
        row.clone().narrow(0, self.start, self.length()).reshape([self.count, self.shape[0], self.shape[1]])
    }
}

/// The parameters that have gradients.
pub(super) struct Joined {
    /// Those that Muon changes, and those that AdamW does.
    matrices: Layout,
    others: Layout,
    groups: Vec<Group>,
    values: [Tensor<1>; 2],
    averages: [Tensor<1>; 2],
    velocity: Tensor<1>,
    moments: [Tensor<1>; 2],
    /// Steps that AdamW has seen.
    time: usize,
}

impl Joined {
    /// What the slots hold, of those that are named.
    pub(super) fn new(slots: &[Slot], named: &[usize], device: &Device) -> Self {
        let length = |slot: usize| slots[slot].value.dims()[0];
        let mut shapes: Vec<[usize; 2]> = named.iter().filter_map(|&slot| slots[slot].matrix).collect();
        shapes.sort_unstable();
        shapes.dedup();
        let (mut matrices, mut groups) = (Layout::new(), Vec::new());
        for shape in shapes {
            matrices.align();
            let start = matrices.length;
            named.iter().filter(|&&slot| slots[slot].matrix == Some(shape)).for_each(|&slot| matrices.push(slot, length(slot)));
            groups.push(Group { shape, count: (matrices.length - start) / (shape[0] * shape[1]), start });
        }
        let mut others = Layout::new();
        for &slot in named.iter().filter(|&&slot| slots[slot].matrix.is_none()) {
            others.align();
            others.push(slot, length(slot));
        }
        let both =
            |of: &dyn Fn(&Slot) -> Tensor<1>| [&matrices, &others].map(|layout| layout.join(device, |slot| Some(of(&slots[slot]))));
        let moment = |second: bool| {
            others.join(device, |slot| match &slots[slot].state {
                State::Moments(state) if second => Some(state.momentum.moment_2.clone()),
                State::Moments(state) => Some(state.momentum.moment_1.clone()),
                _ => None,
            })
        };
        let velocity = matrices.join(device, |slot| match &slots[slot].state {
            State::Velocity(velocity) => Some(velocity.clone()),
            _ => None,
        });
        let time =
            slots.iter().find_map(|slot| if let State::Moments(state) = &slot.state { Some(state.momentum.time) } else { None });
        let (values, averages) = (both(&|slot| slot.value.clone()), both(&|slot| slot.average.clone()));
        let moments = [moment(false), moment(true)];
        Self { values, averages, velocity, moments, time: time.unwrap_or(0), matrices, others, groups }
    }

    /// Whether it holds just these slots.
    pub(super) fn holds(&self, named: &[usize]) -> bool {
        let mut slots: Vec<usize> = self.matrices.places.iter().chain(&self.others.places).map(|place| place.0).collect();
        slots.sort_unstable();
        slots == named
    }

    /// One step; the gradients' norm before clipping comes back, and the slots see what has changed.
    pub(super) fn step(&mut self, slots: &mut [Slot], gradients: &[Option<Tensor<1>>], step: &StepOptions) -> f32 {
        let device = self.velocity.device();
        let gradient = |slot: usize| gradients[slot].clone();
        let [of_matrices, of_others] = [&self.matrices, &self.others].map(|layout| layout.join(&device, gradient));
        let squares = [&of_matrices, &of_others].map(|row| row.clone().square().sum());
        let norm = numbers(squares.to_vec()).into_iter().map(f64::from).sum::<f64>().sqrt() as f32;
        let scale = step.scale(norm);
        self.step_muon(of_matrices * scale, step);
        self.step_adam(&of_others, scale, step);
        let part = |row: &Tensor<1>, start: usize, length: usize| row.clone().narrow(0, start, length);
        for (layout, index) in [(&self.matrices, 0), (&self.others, 1)] {
            for &(slot, start, length) in &layout.places {
                let of = |row: &Tensor<1>| part(row, start, length);
                let slot = &mut slots[slot];
                (slot.value, slot.average) = (of(&self.values[index]), of(&self.averages[index]));
                slot.state = match index {
                    0 => State::Velocity(of(&self.velocity)),
                    _ => {
                        let [first, second] = [0, 1].map(|moment: usize| of(&self.moments[moment]));
                        State::Moments(AdamWState::new(AdaptiveMomentumState::new(self.time, first, second)))
                    }
                };
            }
        }
        norm
    }

    fn step_muon(&mut self, gradient: Tensor<1>, step: &StepOptions) {
        if self.groups.is_empty() {
            return;
        }
        self.velocity = self.velocity.clone() * MOMENTUM + gradient.clone();
        let ahead = gradient + self.velocity.clone() * MOMENTUM;
        let mut change = ahead.zeros_like();
        for group in &self.groups {
            let longest = group.shape[0].max(group.shape[1]) as f64;
            let part = orthogonalized(group.of(&ahead)) * (step.rate * 0.2 * longest.sqrt());
            change = change.slice_assign([Slice::from(group.start..group.start + group.length())], part.reshape([group.length()]));
        }
        self.values[0] = self.values[0].clone() * (1.0 - step.rate * f64::from(step.options.weight_decay)) - change;
        self.averages[0] = self.averages[0].clone() * step.average + self.values[0].clone() * (1.0 - step.average);
    }

    fn step_adam(&mut self, gradient: &Tensor<1>, scale: f32, step: &StepOptions) {
        use crate::kernels::{AdamRows, adam};
        self.time += 1;
        let [moment_1, moment_2] = self.moments.clone();
        let before = AdamRows { value: self.values[1].clone(), average: self.averages[1].clone(), moment_1, moment_2 };
        let AdamRows { value, average, moment_1, moment_2 } =
            adam(&before, gradient, step.adam(self.time, scale)).expect("these rows are a GPU's");
        (self.values[1], self.averages[1], self.moments) = (value, average, [moment_1, moment_2]);
    }
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

#[cfg(test)]
mod tests {
    use burn::optim::momentum::MomentumConfig;
    use burn::optim::{AdjustLrFn, MuonConfig, Optimizer};

    use super::*;
    use crate::kernels;

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
