//! What a thread sums up of a tile: fragments on matrix units, or numbers.

use cubecl::cmma;
use cubecl::prelude::*;

use super::super::THREADS;
use super::stage::{Side, fragment_at, staged};

/// Sides of what a matrix unit multiplies.
pub(super) const UNIT: usize = 16;
/// Threads of a plane.
pub(super) const PLANE: usize = 32;

/// How a kernel goes about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Way {
    pub(super) left: Side,
    pub(super) right: Side,
    /// Planes on top of each other; the others lie side by side.
    pub(super) down: usize,
    pub(super) on_units: bool,
    pub(super) bias: bool,
}

impl Way {
    fn across(self) -> usize {
        THREADS as usize / PLANE / self.down
    }

    /// What a plane sums, down and across, in squares of [`UNIT`]; or, without matrix units, each thread, one number a square.
    pub(super) fn blocks(self) -> (usize, usize) {
        match self.on_units {
            true => (self.left.tile / self.down / UNIT, self.right.tile / self.across() / UNIT),
            false => (self.left.tile / UNIT, self.right.tile / UNIT),
        }
    }
}

/// What a thread has summed up: fragments of its plane, or numbers.
#[derive(CubeType)]
pub(super) struct Sums {
    pub(super) fragments: Sequence<cmma::Matrix<f32>>,
    pub(super) numbers: Array<f32>,
}

#[cube]
impl Sums {
    pub(super) fn new(#[comptime] way: Way) -> Sums {
        let on_units = comptime!(way.on_units);
        let (down, across) = comptime!(way.blocks());
        let mut fragments = Sequence::<cmma::Matrix<f32>>::new();
        let mut numbers = Array::<f32>::new(comptime!(if on_units { 1 } else { down * across }));
        #[unroll]
        for i in 0..comptime!(down * across) {
            if on_units {
                fragments.push(cmma::Matrix::<f32>::from_value(
                    cmma::MatrixIdent::Accumulator,
                    UNIT,
                    UNIT,
                    UNIT,
                    cmma::MatrixLayout::Undefined,
                    0.0f32,
                ));
            } else {
                numbers[i] = 0.0f32;
            }
        }
        Sums { fragments, numbers }
    }
}

/// Where in the tile this thread's sums begin, row and column: its plane's, or its own, of which every sixteenth is.
#[cube]
pub(super) fn place_of_sums(#[comptime] way: Way) -> (usize, usize) {
    let (down, across) = comptime!(way.blocks());
    let mut row = UNIT_POS as usize / UNIT;
    let mut column = UNIT_POS as usize % UNIT;
    if comptime!(way.on_units) {
        let plane = UNIT_POS as usize / PLANE;
        row = plane / comptime!(way.across()) * comptime!(down * UNIT);
        column = plane % comptime!(way.across()) * comptime!(across * UNIT);
    }
    (row, column)
}

/// Adds the products of a stage on the matrix units.
#[cube]
pub(super) fn add_on_units<S: Float, NL: Size, NR: Size>(
    sums: &mut Sums,
    left: &Shared<[Vector<S, NL>]>,
    right: &Shared<[Vector<S, NR>]>,
    which: usize,
    #[comptime] way: Way,
) {
    let (down, across) = comptime!(way.blocks());
    let (row, column) = place_of_sums(way);
    let (rows, columns) = (cmma::MatrixLayout::RowMajor, cmma::MatrixLayout::ColMajor);
    let left_layout = comptime!(if way.left.lies.is_deep() { rows } else { columns });
    let right_layout = comptime!(if way.right.lies.is_deep() { columns } else { rows });
    #[unroll]
    for k in 0..comptime!(way.left.step() / UNIT) {
        let deep = comptime!(k * UNIT);
        let mut rights = Sequence::<cmma::Matrix<S>>::new();
        #[unroll]
        for j in 0..across {
            let at = fragment_at(which, column + comptime!(j * UNIT), deep, way.right);
            // SAFETY: it is filled by the next line.
            let mut fragment = unsafe { cmma::Matrix::<S>::uninitialized(cmma::MatrixIdent::B, UNIT, UNIT, UNIT, right_layout) };
            cmma::load(&mut fragment, &right[at..comptime!(2 * way.right.stage())], comptime!(way.right.line() as u32));
            rights.push(fragment);
        }
        #[unroll]
        for i in 0..down {
            let at = fragment_at(which, row + comptime!(i * UNIT), deep, way.left);
            // SAFETY: as above.
            let mut fragment = unsafe { cmma::Matrix::<S>::uninitialized(cmma::MatrixIdent::A, UNIT, UNIT, UNIT, left_layout) };
            cmma::load(&mut fragment, &left[at..comptime!(2 * way.left.stage())], comptime!(way.left.line() as u32));
            #[unroll]
            for j in 0..across {
                let sum = sums.fragments.index(comptime!(i * across + j));
                cmma::execute(&fragment, rights.index(j), sum, sum);
            }
        }
    }
}

/// Adds the products of a stage without such units.
#[cube]
pub(super) fn add_by_threads<S: Float, NL: Size, NR: Size>(
    sums: &mut Sums,
    left: &Shared<[Vector<S, NL>]>,
    right: &Shared<[Vector<S, NR>]>,
    which: usize,
    #[comptime] way: Way,
) {
    let (down, across) = comptime!(way.blocks());
    let (row, column) = place_of_sums(way);
    for deep in 0..comptime!(way.left.step()) {
        let mut rights = Array::<f32>::new(across);
        #[unroll]
        for j in 0..across {
            rights[j] = staged::<S, NR>(right, which, column + comptime!(j * UNIT), deep, way.right);
        }
        #[unroll]
        for i in 0..down {
            let value = staged::<S, NL>(left, which, row + comptime!(i * UNIT), deep, way.left);
            #[unroll]
            for j in 0..across {
                sums.numbers[comptime!(i * across + j)] += value * rights[j];
            }
        }
    }
}
