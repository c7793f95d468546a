//! Norms of rows, with gain, bias and modulation in one pass.

use burn::prelude::Tensor;
use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::{Tensor as Strided, *};

#[cfg(feature = "train")]
use super::columns::{add_row, scale_by_row};
use super::{THREADS, cube_number, cube_sum, cubes, element, empty_like, primitive, row_of, tensor, whole};
use crate::kernels::params::Modulation;
#[cfg(feature = "train")]
use crate::kernels::reference::modulate;

/// What a norm does besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Does {
    subtracts_mean: bool,
    gain: bool,
    bias: bool,
    modulates: bool,
}

/// One cube a row: the sums of its values and squares, then the values.
#[cube(launch)]
#[allow(clippy::too_many_arguments)]
fn norm<X: Float, M: Float, G: Float>(
    x: &[X],
    gain: &[G],
    bias: &[G],
    scale: &Strided<M>,
    shift: &Strided<M>,
    y: &mut [G],
    rows: usize,
    width: usize,
    length: usize,
    epsilon: f32,
    #[comptime] does: Does,
    #[comptime] threads: usize,
    #[define(X, M, G)] _types: [ElemType; 3],
) {
    let row = cube_number();
    if row >= rows {
        terminate!();
    }
    let unit = UNIT_POS as usize;
    let start = row * width;
    let mut mean = 0.0f32;
    if comptime!(does.subtracts_mean) {
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
    let factor = 1.0f32 / (cube_sum(squares, threads) / width as f32 + epsilon).sqrt();
    let (batch, token) = (row / length, row % length);
    let mut at_scale = 0usize;
    let mut at_shift = 0usize;
    if comptime!(does.modulates) {
        at_scale = row_of(scale, batch, token);
        at_shift = row_of(shift, batch, token);
    }
    for channel in range_stepped(unit, width, threads) {
        let mut value = (f32::cast_from(x[start + channel]) - mean) * factor;
        if comptime!(does.gain) {
            value *= f32::cast_from(gain[channel]);
        }
        if comptime!(does.bias) {
            value += f32::cast_from(bias[channel]);
        }
        if comptime!(does.modulates) {
            let scale = f32::cast_from(scale[at_scale + channel * scale.stride(2)]);
            let shift = f32::cast_from(shift[at_shift + channel * shift.stride(2)]);
            value = value * (scale + 1.0f32) + shift;
        }
        y[start + channel] = G::cast_from(value);
    }
}

struct Norm<'a> {
    subtracts_mean: bool,
    epsilon: f64,
    gain: Option<Tensor<1>>,
    bias: Option<Tensor<1>>,
    modulation: Option<&'a Modulation>,
}

/// What a norm gives has the type of its gain: half precision in a model whose layers read that, else f32.
fn apply(x: &Tensor<3>, wanted: Norm<'_>) -> Option<Tensor<3>> {
    let [batch, length, width] = x.dims();
    let x = whole(x)?;
    let vector = |vector: &Option<Tensor<1>>| match vector {
        Some(vector) => whole(vector).map(Some),
        None => Some(None),
    };
    let (gain, bias) = (vector(&wanted.gain)?, vector(&wanted.bias)?);
    let to = gain.as_ref().map_or(DType::F32, |gain| gain.dtype);
    if bias.as_ref().is_some_and(|bias| bias.dtype != to) {
        return None;
    }
    let modulation = match wanted.modulation {
        Some(Modulation { scale, shift }) => Some((primitive(scale)?, primitive(shift)?)),
        None => None,
    };
    if modulation.as_ref().is_some_and(|(scale, shift)| scale.dtype != shift.dtype) {
        return None;
    }
    let does =
        Does { subtracts_mean: wanted.subtracts_mean, gain: gain.is_some(), bias: bias.is_some(), modulates: modulation.is_some() };
    let rows = batch * length;
    let y = empty_like(&x, [batch, length, width], to);
    if rows == 0 {
        return Some(tensor(y));
    }
    // What there is none of is never read; something must be bound in its place.
    let nothing: CubeTensor = gain.clone().or_else(|| bias.clone()).unwrap_or_else(|| empty_like(&x, [1], to));
    let unread = || (empty_like(&x, [1, 1, 1], DType::F32), empty_like(&x, [1, 1, 1], DType::F32));
    let (scale, shift) = modulation.unwrap_or_else(unread);
    let types = [element(x.dtype), element(scale.dtype), element(to)];
    norm::launch(
        &x.client.clone(),
        cubes(rows),
        CubeDim::new_1d(THREADS),
        x.into_buffer_arg(),
        gain.unwrap_or_else(|| nothing.clone()).into_buffer_arg(),
        bias.unwrap_or(nothing).into_buffer_arg(),
        scale.into_tensor_arg(),
        shift.into_tensor_arg(),
        y.clone().into_buffer_arg(),
        rows,
        width,
        length,
        wanted.epsilon as f32,
        does,
        THREADS as usize,
        types,
    );
    Some(tensor(y))
}

#[cfg(feature = "train")]
mod tracked {
    use burn::backend::autodiff::checkpoint::base::Checkpointer;
    use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
    use burn::backend::autodiff::grads::Gradients;
    use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
    use burn::backend::tensor::FloatTensor;
    use burn::backend::{Autodiff, Backend, Cube, Dispatch, backend_extension};
    use burn_cubecl::kernel::into_contiguous;

    use super::*;

    /// What is no tensor about a norm.
    #[derive(Clone, Copy, Debug)]
    pub(crate) struct Options {
        subtracts_mean: bool,
        epsilon: f64,
    }

    /// The operation, for which [`Dispatch`] finds the backend.
    #[backend_extension(Cube, Autodiff)]
    pub(crate) trait NormRows: Backend {
        /// The rows `[B, L, C]`, normed.
        fn norm_rows(x: FloatTensor<Self>, options: Options) -> FloatTensor<Self>;
    }

    /// Rows normed, with a gradient in one kernel, where x is tracked on a GPU.
    pub(crate) fn normed(x: &Tensor<3>, subtracts_mean: bool, epsilon: f64) -> Option<Tensor<3>> {
        let device = x.device();
        let here = device.is_autodiff() && super::super::is_here(&device.inner()) && x.dtype() == DType::F32;
        let options = Options { subtracts_mean, epsilon };
        here.then(|| Tensor::from_dispatch(Dispatch::norm_rows(x.clone().into_dispatch(), options)))
    }

    /// One cube a row: of the normed rows' gradient, that of the rows.
    #[cube(launch)]
    #[allow(clippy::too_many_arguments)]
    fn gradient(
        x: &[f32],
        dy: &[f32],
        dx: &mut [f32],
        rows: usize,
        width: usize,
        epsilon: f32,
        #[comptime] subtracts_mean: bool,
        #[comptime] threads: usize,
    ) {
        let row = cube_number();
        if row >= rows {
            terminate!();
        }
        let (unit, start) = (UNIT_POS as usize, row * width);
        let mut mean = 0.0f32;
        if subtracts_mean {
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
        let factor = 1.0f32 / (cube_sum(squares, threads) / width as f32 + epsilon).sqrt();
        // Of the products with the normed numbers.
        let product = cube_sum(products, threads) * factor / width as f32;
        let mut shift = 0.0f32;
        if subtracts_mean {
            shift = cube_sum(sum, threads) / width as f32;
        }
        for channel in range_stepped(unit, width, threads) {
            let value = (x[start + channel] - mean) * factor;
            dx[start + channel] = factor * (dy[start + channel] - shift - value * product);
        }
    }

    impl NormRows for Cube {
        fn norm_rows(x: CubeTensor, options: Options) -> CubeTensor {
            let Options { subtracts_mean, epsilon } = options;
            let wanted = Norm { subtracts_mean, epsilon, gain: None, bias: None, modulation: None };
            primitive(&apply(&tensor(x), wanted).expect("it is a GPU's")).expect("and so is this")
        }
    }

    #[derive(Debug)]
    struct RowsNormed;

    impl Backward<Cube, 1> for RowsNormed {
        type State = (CubeTensor, Options);

        fn backward(self, ops: Ops<Self::State, 1>, gradients: &mut Gradients, _: &mut Checkpointer) {
            let ([to_x], (x, options)) = (ops.parents, ops.state);
            let dy = into_contiguous(gradients.consume::<Cube>(&ops.node));
            let Some(node) = to_x else { return };
            let x = into_contiguous(x);
            let width = x.meta.shape()[2];
            let rows = x.meta.num_elements() / width.max(1);
            let dx = empty_like(&x, x.meta.shape().clone(), DType::F32);
            gradient::launch(
                &x.client.clone(),
                cubes(rows),
                CubeDim::new_1d(THREADS),
                x.into_buffer_arg(),
                dy.into_buffer_arg(),
                dx.clone().into_buffer_arg(),
                rows,
                width,
                options.epsilon as f32,
                options.subtracts_mean,
                THREADS as usize,
            );
            gradients.register::<Cube>(node.id, dx);
        }
    }

    impl<C: CheckpointStrategy> NormRows for Autodiff<Cube, C> {
        fn norm_rows(x: FloatTensor<Self>, options: Options) -> FloatTensor<Self> {
            match RowsNormed.prepare::<C>([x.node()]).compute_bound().stateful() {
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
    let norm = Norm { subtracts_mean: false, epsilon, gain: Some(gain.clone()), bias: None, modulation };
    apply(x, norm).or_else(|| tracked(x, false, Some(gain), None, epsilon, modulation))
}

/// See [`crate::kernels::layer_norm`].
pub(crate) fn layer_norm(
    x: &Tensor<3>,
    gain: Option<&Tensor<1>>,
    bias: Option<&Tensor<1>>,
    epsilon: f64,
    modulation: Option<&Modulation>,
) -> Option<Tensor<3>> {
    let norm = Norm { subtracts_mean: true, epsilon, gain: gain.cloned(), bias: bias.cloned(), modulation };
    apply(x, norm).or_else(|| tracked(x, true, gain, bias, epsilon, modulation))
}

/// Computes a norm with its gradient where x is tracked.
#[cfg(feature = "train")]
fn tracked(
    x: &Tensor<3>,
    subtracts_mean: bool,
    gain: Option<&Tensor<1>>,
    bias: Option<&Tensor<1>>,
    epsilon: f64,
    modulation: Option<&Modulation>,
) -> Option<Tensor<3>> {
    let mut y = tracked::normed(x, subtracts_mean, epsilon)?;
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
