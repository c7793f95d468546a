//! Sums over the rows of a matrix, which gradients of biases and gains are, and the two operations that have such gradients.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Cube, Dispatch, backend_extension};
use burn::prelude::Tensor;
use burn::tensor::{DType, Shape};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::{THREADS, cube_number, cubes, element, empty_like, is_here};

/// Columns that a cube sums side by side.
pub(super) const COLUMNS: u32 = 32;
/// Threads that share each.
pub(super) const LINES: u32 = THREADS / COLUMNS;
/// Rows of a cube.
pub(super) const ROWS: usize = 256;

/// Sums over some rows, of values or of their products: `[parts, columns]`.
#[cube(launch)]
fn sum_kernel<X: Float>(
    x: &[X],
    factor: &[X],
    y: &mut [f32],
    rows: usize,
    columns: usize,
    parts: usize,
    #[comptime] times: bool,
    #[define(X)] _type: ElemType,
) {
    let number = cube_number();
    let (part, stretch) = (number % parts, number / parts);
    let mut shared = Shared::<[f32]>::new_slice(THREADS as usize);
    let column = stretch * COLUMNS as usize + UNIT_POS_X as usize;
    let first = part * ROWS;
    let mut sum = 0.0f32;
    if column < columns {
        for row in range_stepped(first + UNIT_POS_Y as usize, min(first + ROWS, rows), LINES as usize) {
            let at = row * columns + column;
            let mut value = f32::cast_from(x[at]);
            if comptime!(times) {
                value *= f32::cast_from(factor[at]);
            }
            sum += value;
        }
    }
    shared[UNIT_POS as usize] = sum;
    sync_cube();
    if UNIT_POS_Y == 0 && column < columns {
        let mut sum = 0.0f32;
        for line in 0..LINES as usize {
            sum += shared[line * COLUMNS as usize + UNIT_POS_X as usize];
        }
        y[part * columns + column] = sum;
    }
}

/// The sum over the rows of `[rows, columns]`, or of a product of two such: `[columns]` in f32. The order is the same every time.
pub(super) fn sum_rows(x: &CubeTensor, factor: Option<&CubeTensor>, columns: usize) -> CubeTensor {
    let (x, factor) = (into_contiguous(x.clone()), factor.map(|factor| into_contiguous(factor.clone())));
    let rows = x.meta.num_elements() / columns.max(1);
    let parts = rows.div_ceil(ROWS).max(1);
    let y = empty_like(&x, [parts, columns], DType::F32);
    let times = factor.is_some();
    if columns > 0 {
        sum_kernel::launch(
            &x.client,
            cubes(columns.div_ceil(COLUMNS as usize) * parts),
            CubeDim::new_2d(COLUMNS, LINES),
            x.clone().into_buffer_arg(),
            factor.unwrap_or_else(|| x.clone()).into_buffer_arg(),
            y.clone().into_buffer_arg(),
            rows,
            columns,
            parts,
            times,
            element(x.dtype),
        );
    }
    if parts > 1 { sum_rows(&y, None, columns) } else { Cube::float_reshape(y, Shape::from([columns])) }
}

/// Operations with a row that all rows of a tensor share.
#[backend_extension(Cube, Autodiff)]
pub(crate) trait PerColumn: Backend {
    /// `x + row`.
    fn add_row(x: FloatTensor<Self>, row: FloatTensor<Self>) -> FloatTensor<Self>;
    /// `x row`, element by element.
    fn scale_by_row(x: FloatTensor<Self>, row: FloatTensor<Self>) -> FloatTensor<Self>;
}

/// `x + row` with a quick gradient, where x is tracked on a GPU.
pub(crate) fn add_row<const D: usize>(x: Tensor<D>, row: Tensor<1>) -> Tensor<D> {
    if !is_here(&x.device().inner()) {
        return x + row.unsqueeze();
    }
    Tensor::from_dispatch(Dispatch::add_row(x.into_dispatch(), row.into_dispatch()))
}

/// `x row` likewise.
pub(crate) fn scale_by_row<const D: usize>(x: Tensor<D>, row: Tensor<1>) -> Tensor<D> {
    if !is_here(&x.device().inner()) {
        return x * row.unsqueeze();
    }
    Tensor::from_dispatch(Dispatch::scale_by_row(x.into_dispatch(), row.into_dispatch()))
}

/// A row as a tensor of as many dimensions as another.
fn beside(x: &CubeTensor, row: CubeTensor) -> CubeTensor {
    let mut shape = vec![1; x.meta.num_dims()];
    shape[x.meta.num_dims() - 1] = row.meta.num_elements();
    Cube::float_reshape(row, Shape::from(shape))
}

impl PerColumn for Cube {
    fn add_row(x: CubeTensor, row: CubeTensor) -> CubeTensor {
        let row = beside(&x, row);
        Cube::float_add(x, row)
    }

    fn scale_by_row(x: CubeTensor, row: CubeTensor) -> CubeTensor {
        let row = beside(&x, row);
        Cube::float_mul(x, row)
    }
}

#[derive(Debug)]
struct Adding;

impl Backward<Cube, 2> for Adding {
    type State = usize;

    fn backward(self, ops: Ops<usize, 2>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let ([to_x, to_row], columns) = (ops.parents, ops.state);
        let dy = gradients.consume::<Cube>(&ops.node);
        if let Some(node) = to_row {
            gradients.register::<Cube>(node.id, sum_rows(&dy, None, columns));
        }
        if let Some(node) = to_x {
            gradients.register::<Cube>(node.id, dy);
        }
    }
}

#[derive(Debug)]
struct Scaling;

impl Backward<Cube, 2> for Scaling {
    type State = (CubeTensor, CubeTensor);

    fn backward(self, ops: Ops<Self::State, 2>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let ([to_x, to_row], (x, row)) = (ops.parents, ops.state);
        let dy = gradients.consume::<Cube>(&ops.node);
        if let Some(node) = to_row {
            gradients.register::<Cube>(node.id, sum_rows(&dy, Some(&x), row.meta.num_elements()));
        }
        if let Some(node) = to_x {
            gradients.register::<Cube>(node.id, Cube::scale_by_row(dy, row));
        }
    }
}

impl<C: CheckpointStrategy> PerColumn for Autodiff<Cube, C> {
    fn add_row(x: FloatTensor<Self>, row: FloatTensor<Self>) -> FloatTensor<Self> {
        match Adding.prepare::<C>([x.node(), row.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => {
                let (x, row) = (x.into_primitive(), row.into_primitive());
                prepared.finish(row.meta.num_elements(), Cube::add_row(x, row))
            }
            OpsKind::UnTracked(prepared) => prepared.finish(Cube::add_row(x.into_primitive(), row.into_primitive())),
        }
    }

    fn scale_by_row(x: FloatTensor<Self>, row: FloatTensor<Self>) -> FloatTensor<Self> {
        match Scaling.prepare::<C>([x.node(), row.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => {
                let (x, row) = (x.into_primitive(), row.into_primitive());
                prepared.finish((x.clone(), row.clone()), Cube::scale_by_row(x, row))
            }
            OpsKind::UnTracked(prepared) => prepared.finish(Cube::scale_by_row(x.into_primitive(), row.into_primitive())),
        }
    }
}
