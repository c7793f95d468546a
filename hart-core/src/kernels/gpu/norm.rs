//! RMSNorm and LayerNorm fused with gain, bias and modulation, and their gradients.

use burn::prelude::Tensor;
use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::{Tensor as Strided, *};

#[cfg(feature = "train")]
use super::broadcast::{add_row, scale_by_row};
use super::{THREADS, broadcast_offset, contiguous, cube_count, cube_index, cube_sum, element, empty_like, primitive, tensor};
use crate::kernels::params::Modulation;
#[cfg(feature = "train")]
use crate::kernels::reference::modulate;

/// Compile-time parameters of [`norm_kernel`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct NormConfig {
    /// `true` if the mean is subtracted, as in LayerNorm.
    subtract_mean: bool,
    gain: bool,
    bias: bool,
    modulate: bool,
}

/// Computes the norm of every row. One cube computes one row, and its threads every `threads`th channel of it, in separate passes for
/// the mean, the variance and the output.
#[cube(launch)]
#[allow(clippy::too_many_arguments)]
fn norm_kernel<X: Float, M: Float, G: Float>(
    x: &[X],
    gain: &[G],
    bias: &[G],
    scale: &Strided<M>,
    shift: &Strided<M>,
    y: &mut [G],
    rows: usize,
    width: usize,
    tokens: usize,
    epsilon: f32,
    #[comptime] config: NormConfig,
    #[comptime] threads: usize,
    #[define(X, M, G)] _types: [ElemType; 3],
) {
    let row = cube_index();
    if row >= rows {
        terminate!();
    }
    let unit = UNIT_POS as usize;
    let start = row * width;
    let mut mean = 0.0f32;
    if comptime!(config.subtract_mean) {
        let mut sum = 0.0f32;
        for channel in range_stepped(unit, width, threads) {
            sum += f32::cast_from(x[start + channel]);
        }
        mean = cube_sum(sum, threads) / width as f32;
    }
    let mut squares = 0.0f32;
    for channel in range_stepped(unit, width, threads) {
        let value = f32::cast_from(x[start + channel]) - mean;
        squares += value * value;
    }
    let inverse_std = 1.0f32 / (cube_sum(squares, threads) / width as f32 + epsilon).sqrt();
    let (batch, token) = (row / tokens, row % tokens);
    let mut scale_start = 0usize;
    let mut shift_start = 0usize;
    if comptime!(config.modulate) {
        scale_start = broadcast_offset(scale, batch, token);
        shift_start = broadcast_offset(shift, batch, token);
    }
    for channel in range_stepped(unit, width, threads) {
        let mut value = (f32::cast_from(x[start + channel]) - mean) * inverse_std;
        if comptime!(config.gain) {
            value *= f32::cast_from(gain[channel]);
        }
        if comptime!(config.bias) {
            value += f32::cast_from(bias[channel]);
        }
        if comptime!(config.modulate) {
            let scale = f32::cast_from(scale[scale_start + channel * scale.stride(2)]);
            let shift = f32::cast_from(shift[shift_start + channel * shift.stride(2)]);
            value = value * (scale + 1.0f32) + shift;
        }
        y[start + channel] = G::cast_from(value);
    }
}

/// A norm with its optional operands.
struct Norm<'a> {
    /// `true` if the mean is subtracted, as in LayerNorm.
    subtract_mean: bool,
    epsilon: f64,
    gain: Option<Tensor<1>>,
    bias: Option<Tensor<1>>,
    modulation: Option<&'a Modulation>,
}

/// Computes the norm. The output has the type of the gain, or f32 without one.
fn launch_norm(x: &Tensor<3>, norm: Norm<'_>) -> Option<Tensor<3>> {
    let [batch, tokens, width] = x.dims();
    let x = contiguous(x)?;
    let optional = |row: &Option<Tensor<1>>| match row {
        Some(row) => contiguous(row).map(Some),
        None => Some(None),
    };
    let (gain, bias) = (optional(&norm.gain)?, optional(&norm.bias)?);
    let dtype = gain.as_ref().map_or(DType::F32, |gain| gain.dtype);
    if bias.as_ref().is_some_and(|bias| bias.dtype != dtype) {
        return None;
    }
    let modulation = match norm.modulation {
        Some(Modulation { scale, shift }) => Some((primitive(scale)?, primitive(shift)?)),
        None => None,
    };
    if modulation.as_ref().is_some_and(|(scale, shift)| scale.dtype != shift.dtype) {
        return None;
    }
    let config = NormConfig {
        subtract_mean: norm.subtract_mean,
        gain: gain.is_some(),
        bias: bias.is_some(),
        modulate: modulation.is_some(),
    };
    let rows = batch * tokens;
    let y = empty_like(&x, [batch, tokens, width], dtype);
    if rows == 0 {
        return Some(tensor(y));
    }
    // A kernel without an operand still binds a buffer for it, which it does not read.
    let unread_row: CubeTensor = gain.clone().or_else(|| bias.clone()).unwrap_or_else(|| empty_like(&x, [1], dtype));
    let unread_rows = || (empty_like(&x, [1, 1, 1], DType::F32), empty_like(&x, [1, 1, 1], DType::F32));
    let (scale, shift) = modulation.unwrap_or_else(unread_rows);
    let types = [element(x.dtype), element(scale.dtype), element(dtype)];
    norm_kernel::launch(
        &x.client.clone(),
        cube_count(rows),
        CubeDim::new_1d(THREADS),
        x.into_buffer_arg(),
        gain.unwrap_or_else(|| unread_row.clone()).into_buffer_arg(),
        bias.unwrap_or(unread_row).into_buffer_arg(),
        scale.into_tensor_arg(),
        shift.into_tensor_arg(),
        y.clone().into_buffer_arg(),
        rows,
        width,
        tokens,
        norm.epsilon as f32,
        config,
        THREADS as usize,
        types,
    );
    Some(tensor(y))
}

#[cfg(feature = "train")]
mod gradients {
    use burn::backend::autodiff::checkpoint::base::Checkpointer;
    use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
    use burn::backend::autodiff::grads::Gradients;
    use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
    use burn::backend::tensor::FloatTensor;
    use burn::backend::{Autodiff, Backend, Cube, Dispatch, backend_extension};
    use burn_cubecl::kernel::into_contiguous;

    use super::*;

    /// Parameters of a norm that are not tensors.
    #[derive(Clone, Copy, Debug)]
    pub(crate) struct NormOptions {
        subtract_mean: bool,
        epsilon: f64,
    }

    /// The operation. [`Dispatch`] selects the backend.
    #[backend_extension(Cube, Autodiff)]
    pub(crate) trait NormRows: Backend {
        /// Normalises the rows of `[batch, tokens, channels]`, without gain and bias.
        fn norm_rows(x: FloatTensor<Self>, options: NormOptions) -> FloatTensor<Self>;
    }

    /// Normalises rows whose gradient is tracked; `None` if `x` is not tracked, not on a GPU or not f32.
    pub(crate) fn norm_rows(x: &Tensor<3>, subtract_mean: bool, epsilon: f64) -> Option<Tensor<3>> {
        let device = x.device();
        let applies = device.is_autodiff() && super::super::is_gpu(&device.inner()) && x.dtype() == DType::F32;
        let options = NormOptions { subtract_mean, epsilon };
        applies.then(|| Tensor::from_dispatch(Dispatch::norm_rows(x.clone().into_dispatch(), options)))
    }

    /// Computes `dx` from `dy`, the gradient of the normalised rows. One cube computes one row, and its threads every `threads`th channel.
    #[cube(launch)]
    #[allow(clippy::too_many_arguments)]
    fn norm_gradient_kernel(
        x: &[f32],
        dy: &[f32],
        dx: &mut [f32],
        rows: usize,
        width: usize,
        epsilon: f32,
        #[comptime] subtract_mean: bool,
        #[comptime] threads: usize,
    ) {
        let row = cube_index();
        if row >= rows {
            terminate!();
        }
        let (unit, start) = (UNIT_POS as usize, row * width);
        let mut mean = 0.0f32;
        if subtract_mean {
            let mut sum = 0.0f32;
            for channel in range_stepped(unit, width, threads) {
                sum += x[start + channel];
            }
            mean = cube_sum(sum, threads) / width as f32;
        }
        let mut squares = 0.0f32;
        let mut products = 0.0f32;
        let mut sum = 0.0f32;
        for channel in range_stepped(unit, width, threads) {
            let value = x[start + channel] - mean;
            squares += value * value;
            products += value * dy[start + channel];
            sum += dy[start + channel];
        }
        let inverse_std = 1.0f32 / (cube_sum(squares, threads) / width as f32 + epsilon).sqrt();
        // Mean of dy times the normalised values.
        let mean_product = cube_sum(products, threads) * inverse_std / width as f32;
        let mut mean_dy = 0.0f32;
        if subtract_mean {
            mean_dy = cube_sum(sum, threads) / width as f32;
        }
        for channel in range_stepped(unit, width, threads) {
            let value = (x[start + channel] - mean) * inverse_std;
            dx[start + channel] = inverse_std * (dy[start + channel] - mean_dy - value * mean_product);
        }
    }

    impl NormRows for Cube {
        fn norm_rows(x: CubeTensor, options: NormOptions) -> CubeTensor {
            let NormOptions { subtract_mean, epsilon } = options;
            let norm = Norm { subtract_mean, epsilon, gain: None, bias: None, modulation: None };
            primitive(&launch_norm(&tensor(x), norm).expect("a tensor of the GPU")).expect("a tensor of the GPU")
        }
    }

    /// Backward pass of [`NormRows::norm_rows`].
    #[derive(Debug)]
    struct NormRowsBackward;

    impl Backward<Cube, 1> for NormRowsBackward {
        /// `x` and the options.
        type State = (CubeTensor, NormOptions);

        fn backward(self, ops: Ops<Self::State, 1>, gradients: &mut Gradients, _: &mut Checkpointer) {
            let ([x_node], (x, options)) = (ops.parents, ops.state);
            let dy = into_contiguous(gradients.consume::<Cube>(&ops.node));
            let Some(node) = x_node else { return };
            let x = into_contiguous(x);
            let width = x.meta.shape()[2];
            let rows = x.meta.num_elements() / width.max(1);
            let dx = empty_like(&x, x.meta.shape().clone(), DType::F32);
            norm_gradient_kernel::launch(
                &x.client.clone(),
                cube_count(rows),
                CubeDim::new_1d(THREADS),
                x.into_buffer_arg(),
                dy.into_buffer_arg(),
                dx.clone().into_buffer_arg(),
                rows,
                width,
                options.epsilon as f32,
                options.subtract_mean,
                THREADS as usize,
            );
            gradients.register::<Cube>(node.id, dx);
        }
    }

    impl<C: CheckpointStrategy> NormRows for Autodiff<Cube, C> {
        fn norm_rows(x: FloatTensor<Self>, options: NormOptions) -> FloatTensor<Self> {
            match NormRowsBackward.prepare::<C>([x.node()]).compute_bound().stateful() {
                OpsKind::Tracked(prepared) => {
                    let x = x.into_primitive();
                    prepared.finish((x.clone(), options), Cube::norm_rows(x, options))
                }
                OpsKind::UnTracked(prepared) => prepared.finish(Cube::norm_rows(x.into_primitive(), options)),
            }
        }
    }
}

/// See [`crate::kernels::rms_norm`].
pub(crate) fn rms_norm(x: &Tensor<3>, gain: &Tensor<1>, epsilon: f64, modulation: Option<&Modulation>) -> Option<Tensor<3>> {
    let norm = Norm { subtract_mean: false, epsilon, gain: Some(gain.clone()), bias: None, modulation };
    launch_norm(x, norm).or_else(|| tracked(x, false, Some(gain), None, epsilon, modulation))
}

/// See [`crate::kernels::layer_norm`].
pub(crate) fn layer_norm(
    x: &Tensor<3>,
    gain: Option<&Tensor<1>>,
    bias: Option<&Tensor<1>>,
    epsilon: f64,
    modulation: Option<&Modulation>,
) -> Option<Tensor<3>> {
    let norm = Norm { subtract_mean: true, epsilon, gain: gain.cloned(), bias: bias.cloned(), modulation };
    launch_norm(x, norm).or_else(|| tracked(x, true, gain, bias, epsilon, modulation))
}

/// Computes a norm whose gradients are tracked; `None` if `x` is not tracked.
#[cfg(feature = "train")]
fn tracked(
    x: &Tensor<3>,
    subtract_mean: bool,
    gain: Option<&Tensor<1>>,
    bias: Option<&Tensor<1>>,
    epsilon: f64,
    modulation: Option<&Modulation>,
) -> Option<Tensor<3>> {
    let mut y = gradients::norm_rows(x, subtract_mean, epsilon)?;
    if let Some(gain) = gain {
        y = scale_by_row(y, gain.clone());
    }
    if let Some(bias) = bias {
        y = add_row(y, bias.clone());
    }
    Some(modulate(y, modulation))
}

#[cfg(not(feature = "train"))]
fn tracked(
    _: &Tensor<3>,
    _: bool,
    _: Option<&Tensor<1>>,
    _: Option<&Tensor<1>>,
    _: f64,
    _: Option<&Modulation>,
) -> Option<Tensor<3>> {
    None
}
