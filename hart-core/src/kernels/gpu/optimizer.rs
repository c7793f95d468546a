//! One step of AdamW and of the running average in one kernel.

use burn::prelude::Tensor;
use cubecl::prelude::*;

use super::{empty_like, tensor, thread_number, threads_for, whole};
use crate::kernels::params::{AdamRows, AdamStep};

#[cube(launch)]
#[allow(clippy::too_many_arguments)]
fn step_kernel(
    gradient: &[f32],
    value: &[f32],
    average: &[f32],
    moment_1: &[f32],
    moment_2: &[f32],
    next_value: &mut [f32],
    next_average: &mut [f32],
    next_1: &mut [f32],
    next_2: &mut [f32],
    count: usize,
    scale: f32,
    beta_1: f32,
    beta_2: f32,
    correction_1: f32,
    correction_2: f32,
    epsilon: f32,
    rate: f32,
    keep: f32,
    decay: f32,
) {
    let i = thread_number();
    if i < count {
        let gradient = gradient[i] * scale;
        let first = moment_1[i] * beta_1 + gradient * (1.0f32 - beta_1);
        let second = moment_2[i] * beta_2 + gradient * gradient * (1.0f32 - beta_2);
        let change = first / correction_1 / ((second / correction_2).sqrt() + epsilon);
        let next = value[i] * keep - change * rate;
        next_1[i] = first;
        next_2[i] = second;
        next_value[i] = next;
        next_average[i] = average[i] * decay + next * (1.0f32 - decay);
    }
}

/// The step; None where the device isn't a GPU.
pub(crate) fn adam(before: &AdamRows, gradient: &Tensor<1>, step: AdamStep) -> Option<AdamRows> {
    let gradient = whole(gradient)?;
    let (value, average) = (whole(&before.value)?, whole(&before.average)?);
    let (moment_1, moment_2) = (whole(&before.moment_1)?, whole(&before.moment_2)?);
    let count = value.meta.num_elements();
    let next = || empty_like(&value, [count], value.dtype);
    let (next_value, next_average, next_1, next_2) = (next(), next(), next(), next());
    let correction = |beta: f32| 1.0 - beta.powi(step.time as i32);
    let (all, dim) = threads_for(count);
    step_kernel::launch(
        &value.client.clone(),
        all,
        dim,
        gradient.into_buffer_arg(),
        value.clone().into_buffer_arg(),
        average.into_buffer_arg(),
        moment_1.into_buffer_arg(),
        moment_2.into_buffer_arg(),
        next_value.clone().into_buffer_arg(),
        next_average.clone().into_buffer_arg(),
        next_1.clone().into_buffer_arg(),
        next_2.clone().into_buffer_arg(),
        count,
        step.scale,
        step.beta_1,
        step.beta_2,
        correction(step.beta_1),
        correction(step.beta_2),
        step.epsilon,
        step.rate as f32,
        (1.0 - step.rate * f64::from(step.weight_decay)) as f32,
        step.average as f32,
    );
    let [value, average, moment_1, moment_2] = [next_value, next_average, next_1, next_2].map(tensor);
    Some(AdamRows { value, average, moment_1, moment_2 })
}
