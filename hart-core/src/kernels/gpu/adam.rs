//! One step of AdamW, with the running average of the parameters, in one kernel.

use burn::prelude::Tensor;
use cubecl::prelude::*;

use super::{contiguous, elementwise_dims, empty_like, tensor, thread_index};
use crate::kernels::params::{AdamRows, AdamStep};

/// Updates parameters, their running average and both moments. One thread updates one parameter.
#[cube(launch)]
#[allow(clippy::too_many_arguments)]
fn adam_kernel(
    gradient: &[f32],
    value: &[f32],
    average: &[f32],
    moment_1: &[f32],
    moment_2: &[f32],
    next_value: &mut [f32],
    next_average: &mut [f32],
    next_moment_1: &mut [f32],
    next_moment_2: &mut [f32],
    count: usize,
    scale: f32,
    beta_1: f32,
    beta_2: f32,
    correction_1: f32,
    correction_2: f32,
    epsilon: f32,
    learning_rate: f32,
    weight_decay: f32,
    average_decay: f32,
) {
    let i = thread_index();
    if i < count {
        let gradient = gradient[i] * scale;
        let first = moment_1[i] * beta_1 + gradient * (1.0f32 - beta_1);
        let second = moment_2[i] * beta_2 + gradient * gradient * (1.0f32 - beta_2);
        let update = first / correction_1 / ((second / correction_2).sqrt() + epsilon);
        let next = value[i] * weight_decay - update * learning_rate;
        next_moment_1[i] = first;
        next_moment_2[i] = second;
        next_value[i] = next;
        next_average[i] = average[i] * average_decay + next * (1.0f32 - average_decay);
    }
}

/// Returns the parameters after one step, or `None` if they are not on a GPU.
pub(crate) fn adam(before: &AdamRows, gradient: &Tensor<1>, step: AdamStep) -> Option<AdamRows> {
    let gradient = contiguous(gradient)?;
    let (value, average) = (contiguous(&before.value)?, contiguous(&before.average)?);
    let (moment_1, moment_2) = (contiguous(&before.moment_1)?, contiguous(&before.moment_2)?);
    let count = value.meta.num_elements();
    let allocate = || empty_like(&value, [count], value.dtype);
    let (next_value, next_average, next_moment_1, next_moment_2) = (allocate(), allocate(), allocate(), allocate());
    let bias_correction = |beta: f32| 1.0 - beta.powi(step.time as i32);
    let (grid, cube) = elementwise_dims(count);
    adam_kernel::launch(
        &value.client.clone(),
        grid,
        cube,
        gradient.into_buffer_arg(),
        value.clone().into_buffer_arg(),
        average.into_buffer_arg(),
        moment_1.into_buffer_arg(),
        moment_2.into_buffer_arg(),
        next_value.clone().into_buffer_arg(),
        next_average.clone().into_buffer_arg(),
        next_moment_1.clone().into_buffer_arg(),
        next_moment_2.clone().into_buffer_arg(),
        count,
        step.scale,
        step.beta_1,
        step.beta_2,
        bias_correction(step.beta_1),
        bias_correction(step.beta_2),
        step.epsilon,
        step.rate as f32,
        (1.0 - step.rate * f64::from(step.weight_decay)) as f32,
        step.average as f32,
    );
    let [value, average, moment_1, moment_2] = [next_value, next_average, next_moment_1, next_moment_2].map(tensor);
    Some(AdamRows { value, average, moment_1, moment_2 })
}
