//! Accumulators of a tile: fragments on tensor cores, or f32 values in each thread.

use cubecl::cmma;
use cubecl::prelude::*;

use super::super::{PLANE, THREADS};
use super::stage::{OperandTile, fragment_offset, stage_element};

/// Rows and columns of a fragment: tensor cores multiply 16 x 16 by 16 x 16.
pub(super) const FRAGMENT: usize = 16;

/// Compile-time parameters of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct KernelConfig {
    pub(super) a: OperandTile,
    pub(super) b: OperandTile,
    /// Planes along M; the others are along N.
    pub(super) planes_m: usize,
    pub(super) tensor_cores: bool,
    pub(super) bias: bool,
}

impl KernelConfig {
    fn planes_n(self) -> usize {
        THREADS as usize / PLANE / self.planes_m
    }

    /// Returns the number of accumulators along M and N: fragments of each plane on tensor cores, otherwise values of each thread,
    /// which are [`FRAGMENT`] rows and columns apart.
    pub(super) fn accumulators(self) -> (usize, usize) {
        match self.tensor_cores {
            true => (self.a.extent / self.planes_m / FRAGMENT, self.b.extent / self.planes_n() / FRAGMENT),
            false => (self.a.extent / FRAGMENT, self.b.extent / FRAGMENT),
        }
    }
}

/// A thread's accumulators, `[m, n]` in row-major order: fragments shared with its plane, or values in registers.
#[derive(CubeType)]
pub(super) struct Accumulator {
    pub(super) fragments: Sequence<cmma::Matrix<f32>>,
    pub(super) values: Array<f32>,
}

#[cube]
impl Accumulator {
    /// Creates accumulators of zeros.
    pub(super) fn new(#[comptime] config: KernelConfig) -> Accumulator {
        let tensor_cores = comptime!(config.tensor_cores);
        let (count_m, count_n) = comptime!(config.accumulators());
        let mut fragments = Sequence::<cmma::Matrix<f32>>::new();
        let mut values = Array::<f32>::new(comptime!(if tensor_cores { 1 } else { count_m * count_n }));
        #[unroll]
        for i in 0..comptime!(count_m * count_n) {
            if tensor_cores {
                fragments.push(cmma::Matrix::<f32>::from_value(
                    cmma::MatrixIdent::Accumulator,
                    FRAGMENT,
                    FRAGMENT,
                    FRAGMENT,
                    cmma::MatrixLayout::Undefined,
                    0.0f32,
                ));
            } else {
                values[i] = 0.0f32;
            }
        }
        Accumulator { fragments, values }
    }
}

/// Returns row and column of this thread's first accumulator in the tile.
#[cube]
pub(super) fn accumulator_origin(#[comptime] config: KernelConfig) -> (usize, usize) {
    let (count_m, count_n) = comptime!(config.accumulators());
    let mut row = UNIT_POS as usize / FRAGMENT;
    let mut column = UNIT_POS as usize % FRAGMENT;
    if comptime!(config.tensor_cores) {
        let plane = UNIT_POS as usize / PLANE;
        row = plane / comptime!(config.planes_n()) * comptime!(count_m * FRAGMENT);
        column = plane % comptime!(config.planes_n()) * comptime!(count_n * FRAGMENT);
    }
    (row, column)
}

/// Multiplies the stage's tiles on tensor cores and adds the product to the accumulators.
#[cube]
pub(super) fn accumulate_fragments<S: Float, NA: Size, NB: Size>(
    accumulator: &mut Accumulator,
    a: &Shared<[Vector<S, NA>]>,
    b: &Shared<[Vector<S, NB>]>,
    stage: usize,
    #[comptime] config: KernelConfig,
) {
    let (count_m, count_n) = comptime!(config.accumulators());
    let (row, column) = accumulator_origin(config);
    let (row_major, col_major) = (cmma::MatrixLayout::RowMajor, cmma::MatrixLayout::ColMajor);
    let a_layout = comptime!(if config.a.layout.is_k_major() { row_major } else { col_major });
    let b_layout = comptime!(if config.b.layout.is_k_major() { col_major } else { row_major });
    #[unroll]
    for step in 0..comptime!(config.a.block_k() / FRAGMENT) {
        let k = comptime!(step * FRAGMENT);
        let mut b_fragments = Sequence::<cmma::Matrix<S>>::new();
        #[unroll]
        for j in 0..count_n {
            let at = fragment_offset(stage, column + comptime!(j * FRAGMENT), k, config.b);
            // SAFETY: `cmma::load` initialises every element of the fragment before it is read.
            let mut fragment =
                unsafe { cmma::Matrix::<S>::uninitialized(cmma::MatrixIdent::B, FRAGMENT, FRAGMENT, FRAGMENT, b_layout) };
            cmma::load(&mut fragment, &b[at..comptime!(2 * config.b.stage_len())], comptime!(config.b.shared_stride() as u32));
            b_fragments.push(fragment);
        }
        #[unroll]
        for i in 0..count_m {
            let at = fragment_offset(stage, row + comptime!(i * FRAGMENT), k, config.a);
            // SAFETY: `cmma::load` initialises every element of the fragment before it is read.
            let mut fragment =
                unsafe { cmma::Matrix::<S>::uninitialized(cmma::MatrixIdent::A, FRAGMENT, FRAGMENT, FRAGMENT, a_layout) };
            cmma::load(&mut fragment, &a[at..comptime!(2 * config.a.stage_len())], comptime!(config.a.shared_stride() as u32));
            #[unroll]
            for j in 0..count_n {
                let sum = accumulator.fragments.index(comptime!(i * count_n + j));
                cmma::execute(&fragment, b_fragments.index(j), sum, sum);
            }
        }
    }
}

/// Multiplies the stage's tiles without tensor cores and adds the product to the accumulators.
#[cube]
pub(super) fn accumulate_values<S: Float, NA: Size, NB: Size>(
    accumulator: &mut Accumulator,
    a: &Shared<[Vector<S, NA>]>,
    b: &Shared<[Vector<S, NB>]>,
    stage: usize,
    #[comptime] config: KernelConfig,
) {
    let (count_m, count_n) = comptime!(config.accumulators());
    let (row, column) = accumulator_origin(config);
    for k in 0..comptime!(config.a.block_k()) {
        let mut b_values = Array::<f32>::new(count_n);
        #[unroll]
        for j in 0..count_n {
            b_values[j] = stage_element::<S, NB>(b, stage, column + comptime!(j * FRAGMENT), k, config.b);
        }
        #[unroll]
        for i in 0..count_m {
            let value = stage_element::<S, NA>(a, stage, row + comptime!(i * FRAGMENT), k, config.a);
            #[unroll]
            for j in 0..count_n {
                accumulator.values[comptime!(i * count_n + j)] += value * b_values[j];
            }
        }
    }
}
