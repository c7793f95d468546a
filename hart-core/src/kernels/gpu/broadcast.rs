//! Addition and multiplication of a row that is broadcast over a tensor, and the reduction over rows in their gradients.

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

use super::{THREADS, cube_count, cube_index, element, empty_like, is_gpu};

/// Columns that a cube reduces.
pub(super) const CUBE_COLUMNS: u32 = 32;
/// Threads that share a column.
pub(super) const COLUMN_THREADS: u32 = THREADS / CUBE_COLUMNS;
/// Rows that a cube reduces.
pub(super) const CUBE_ROWS: usize = 256;

/// Reduces [`CUBE_ROWS`] rows of [`CUBE_COLUMNS`] columns per cube: sums of `x`, or of `x * factor`. Each thread sums one column of
/// every [`COLUMN_THREADS`]th row. The output is `[chunks, columns]`.
#[cube(launch)]
fn sum_rows_kernel<X: Float>(
    x: &[X],
    factor: &[X],
    y: &mut [f32],
    rows: usize,
    columns: usize,
    chunks: usize,
    #[comptime] multiply: bool,
    #[define(X)] _type: ElemType,
) {
    let cube = cube_index();
    let (chunk, column_block) = (cube % chunks, cube / chunks);
    let mut shared = Shared::<[f32]>::new_slice(THREADS as usize);
    let column = column_block * CUBE_COLUMNS as usize + UNIT_POS_X as usize;
    let first = chunk * CUBE_ROWS;
    let mut sum = 0.0f32;
    if column < columns {
        for row in range_stepped(first + UNIT_POS_Y as usize, min(first + CUBE_ROWS, rows), COLUMN_THREADS as usize) {
            let at = row * columns + column;
            let mut value = f32::cast_from(x[at]);
            if comptime!(multiply) {
                value *= f32::cast_from(factor[at]);
            }
            sum += value;
        }
    }
    shared[UNIT_POS as usize] = sum;
    sync_cube();
    if UNIT_POS_Y == 0 && column < columns {
        let mut sum = 0.0f32;
        for thread in 0..COLUMN_THREADS as usize {
            sum += shared[thread * CUBE_COLUMNS as usize + UNIT_POS_X as usize];
        }
        y[chunk * columns + column] = sum;
    }
}

/// Returns the sum over the rows of `x`, or of `x * factor`. The order of summation is deterministic.
///
/// # Shapes
///
/// - x, factor: `[rows, columns]`
/// - output: `[columns]` in f32
pub(super) fn sum_rows(x: &CubeTensor, factor: Option<&CubeTensor>, columns: usize) -> CubeTensor {
    let (x, factor) = (into_contiguous(x.clone()), factor.map(|factor| into_contiguous(factor.clone())));
    let rows = x.meta.num_elements() / columns.max(1);
    let chunks = rows.div_ceil(CUBE_ROWS).max(1);
    let y = empty_like(&x, [chunks, columns], DType::F32);
    let multiply = factor.is_some();
    if columns > 0 {
        sum_rows_kernel::launch(
            &x.client,
            cube_count(columns.div_ceil(CUBE_COLUMNS as usize) * chunks),
            CubeDim::new_2d(CUBE_COLUMNS, COLUMN_THREADS),
            x.clone().into_buffer_arg(),
            factor.unwrap_or_else(|| x.clone()).into_buffer_arg(),
            y.clone().into_buffer_arg(),
            rows,
            columns,
            chunks,
            multiply,
            element(x.dtype),
        );
    }
    if chunks > 1 { sum_rows(&y, None, columns) } else { Cube::float_reshape(y, Shape::from([columns])) }
}

/// Operations of a tensor `[.., columns]` and a row `[columns]` that is broadcast. [`Dispatch`] selects the backend.
#[backend_extension(Cube, Autodiff)]
pub(crate) trait RowBroadcast: Backend {
    /// Returns `x + row`.
    fn add_row(x: FloatTensor<Self>, row: FloatTensor<Self>) -> FloatTensor<Self>;
    /// Returns `x * row`, element by element.
    fn scale_by_row(x: FloatTensor<Self>, row: FloatTensor<Self>) -> FloatTensor<Self>;
}

/// Returns `x + row`; on a GPU, the row's gradient is computed by [`sum_rows`].
pub(crate) fn add_row<const D: usize>(x: Tensor<D>, row: Tensor<1>) -> Tensor<D> {
    if !is_gpu(&x.device().inner()) {
        return x + row.unsqueeze();
    }
    Tensor::from_dispatch(Dispatch::add_row(x.into_dispatch(), row.into_dispatch()))
}

/// Returns `x * row`, element by element; on a GPU, the row's gradient is computed by [`sum_rows`].
pub(crate) fn scale_by_row<const D: usize>(x: Tensor<D>, row: Tensor<1>) -> Tensor<D> {
    if !is_gpu(&x.device().inner()) {
        return x * row.unsqueeze();
    }
    Tensor::from_dispatch(Dispatch::scale_by_row(x.into_dispatch(), row.into_dispatch()))
}

/// Reshapes a row to `[1, .., columns]`, with as many dimensions as `x`.
fn unsqueeze_like(x: &CubeTensor, row: CubeTensor) -> CubeTensor {
    let mut shape = vec![1; x.meta.num_dims()];
    shape[x.meta.num_dims() - 1] = row.meta.num_elements();
    Cube::float_reshape(row, Shape::from(shape))
}

impl RowBroadcast for Cube {
    fn add_row(x: CubeTensor, row: CubeTensor) -> CubeTensor {
        let row = unsqueeze_like(&x, row);
        Cube::float_add(x, row)
    }

    fn scale_by_row(x: CubeTensor, row: CubeTensor) -> CubeTensor {
        let row = unsqueeze_like(&x, row);
        Cube::float_mul(x, row)
    }
}

/// Backward pass of [`RowBroadcast::add_row`].
#[derive(Debug)]
struct AddRowBackward;

impl Backward<Cube, 2> for AddRowBackward {
    /// Columns.
    type State = usize;

    fn backward(self, ops: Ops<usize, 2>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let ([x_node, row_node], columns) = (ops.parents, ops.state);
        let dy = gradients.consume::<Cube>(&ops.node);
        if let Some(node) = row_node {
            gradients.register::<Cube>(node.id, sum_rows(&dy, None, columns));
        }
        if let Some(node) = x_node {
            gradients.register::<Cube>(node.id, dy);
        }
    }
}

/// Backward pass of [`RowBroadcast::scale_by_row`].
#[derive(Debug)]
struct ScaleByRowBackward;

impl Backward<Cube, 2> for ScaleByRowBackward {
    /// `x` and the row.
    type State = (CubeTensor, CubeTensor);

    fn backward(self, ops: Ops<Self::State, 2>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let ([x_node, row_node], (x, row)) = (ops.parents, ops.state);
        let dy = gradients.consume::<Cube>(&ops.node);
        if let Some(node) = row_node {
            gradients.register::<Cube>(node.id, sum_rows(&dy, Some(&x), row.meta.num_elements()));
        }
        if let Some(node) = x_node {
            gradients.register::<Cube>(node.id, Cube::scale_by_row(dy, row));
        }
    }
}

impl<C: CheckpointStrategy> RowBroadcast for Autodiff<Cube, C> {
    fn add_row(x: FloatTensor<Self>, row: FloatTensor<Self>) -> FloatTensor<Self> {
        match AddRowBackward.prepare::<C>([x.node(), row.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => {
                let (x, row) = (x.into_primitive(), row.into_primitive());
                prepared.finish(row.meta.num_elements(), Cube::add_row(x, row))
            }
            OpsKind::UnTracked(prepared) => prepared.finish(Cube::add_row(x.into_primitive(), row.into_primitive())),
        }
    }

    fn scale_by_row(x: FloatTensor<Self>, row: FloatTensor<Self>) -> FloatTensor<Self> {
        match ScaleByRowBackward.prepare::<C>([x.node(), row.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => {
                let (x, row) = (x.into_primitive(), row.into_primitive());
                prepared.finish((x.clone(), row.clone()), Cube::scale_by_row(x, row))
            }
            OpsKind::UnTracked(prepared) => prepared.finish(Cube::scale_by_row(x.into_primitive(), row.into_primitive())),
        }
    }
}
