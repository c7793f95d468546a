//! The kernel of a product: each cube sums one tile of the output, and has the next tiles of both operands on their way meanwhile.

use cubecl::cmma;
use cubecl::prelude::*;

use super::super::THREADS;
use super::Lies;

/// Kernel arguments of a [`View`].
#[derive(CubeLaunch, CubeType)]
pub(super) struct Map {
    height: usize,
    width: usize,
    channels: usize,
    out_height: usize,
    out_width: usize,
    #[cube(comptime)]
    kernel: usize,
    #[cube(comptime)]
    stride: usize,
    #[cube(comptime)]
    padding: usize,
}

/// Depth that lies in shared memory at once, in bytes of a line.
const STEP_BYTES: usize = 64;
/// Bytes between lines there, so that neighbours lie in different banks.
const GAP_BYTES: usize = 16;
/// Sides of what a matrix unit multiplies.
pub(super) const UNIT: usize = 16;
/// Threads of a plane.
pub(super) const PLANE: usize = 32;

/// One operand's tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Side {
    pub(super) lies: Lies,
    /// Across.
    pub(super) tile: usize,
    /// Numbers that are read at once.
    pub(super) vector: usize,
    /// Bytes of a number in shared memory.
    pub(super) bytes: usize,
}

impl Side {
    fn step(self) -> usize {
        STEP_BYTES / self.bytes
    }

    /// Numbers of a line of the tile.
    fn length(self) -> usize {
        if self.lies.is_deep() { self.step() } else { self.tile }
    }

    /// Numbers from one line to the next.
    fn line(self) -> usize {
        self.length() + GAP_BYTES / self.bytes
    }

    fn lines(self) -> usize {
        if self.lies.is_deep() { self.tile } else { self.step() }
    }

    /// Vectors of the tile.
    fn vectors(self) -> usize {
        self.tile * self.step() / self.vector
    }

    /// Vectors that each thread moves.
    fn each(self) -> usize {
        self.vectors().div_ceil(THREADS as usize)
    }

    /// Vectors that one of two tiles takes in shared memory.
    fn stage(self) -> usize {
        self.lines() * self.line() / self.vector
    }
}

/// How a kernel goes about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Way {
    pub(super) left: Side,
    pub(super) right: Side,
    /// Planes on top of each other; the others lie side by side.
    pub(super) down: usize,
    /// Depth of what a matrix unit multiplies; 0 without one.
    pub(super) unit_depth: usize,
    pub(super) bias: bool,
}

impl Way {
    fn across(self) -> usize {
        THREADS as usize / PLANE / self.down
    }

    /// What a plane sums, down and across, in squares of [`UNIT`]; or, without matrix units, each thread, one number a square.
    fn blocks(self) -> (usize, usize) {
        match self.unit_depth {
            0 => (self.left.tile / UNIT, self.right.tile / UNIT),
            _ => (self.left.tile / self.down / UNIT, self.right.tile / self.across() / UNIT),
        }
    }
}

/// Numbers of an operand from a place on that follow each other in memory; zeros outside of it.
#[cube]
#[allow(clippy::too_many_arguments)]
fn fetch<X: Float, N: Size>(
    from: &[Vector<X, N>],
    across: usize,
    deep: usize,
    acrosses: usize,
    depth: usize,
    line: usize,
    start: usize,
    map: &Map,
    #[comptime] side: Side,
) -> Vector<X, N> {
    let mut value = Vector::<X, N>::from_int(0);
    if comptime!(side.lies.is_map()) {
        let mut place = across + start;
        let mut seen = deep;
        if comptime!(!side.lies.is_deep()) {
            place = deep + start;
            seen = across;
        }
        let (column, rest) = (place % map.out_width, place / map.out_width);
        let (row, batch) = (rest % map.out_height, rest / map.out_height);
        let (channel, tap) = (seen % map.channels, seen / map.channels);
        // Counted from the padding's edge.
        let row = row * map.stride + tap / map.kernel;
        let column = column * map.stride + tap % map.kernel;
        let inside = row >= map.padding && column >= map.padding;
        let inside = inside && row < map.height + map.padding && column < map.width + map.padding;
        if inside && across < acrosses && deep < depth {
            let at = (batch * map.height + row - map.padding) * map.width + column - map.padding;
            value = from[(at * map.channels + channel) / side.vector];
        }
    } else if across < acrosses && deep < depth {
        let mut at = start + across * line + deep;
        if comptime!(!side.lies.is_deep()) {
            at = start + deep * line + across;
        }
        value = from[at / side.vector];
    }
    value
}

/// A thread's part of a tile.
#[cube]
#[allow(clippy::too_many_arguments)]
fn fetch_part<X: Float, N: Size>(
    from: &[Vector<X, N>],
    part: &mut Array<Vector<X, N>>,
    first: usize,
    begin: usize,
    acrosses: usize,
    depth: usize,
    line: usize,
    start: usize,
    map: &Map,
    #[comptime] side: Side,
) {
    let of_line = comptime!(side.length() / side.vector);
    #[unroll]
    for i in 0..comptime!(side.each()) {
        let number = UNIT_POS as usize + comptime!(i * THREADS as usize);
        let (along, across) = (number % of_line * side.vector, number / of_line);
        if comptime!(side.lies.is_deep()) {
            part[i] = fetch::<X, N>(from, first + across, begin + along, acrosses, depth, line, start, map, side);
        } else {
            part[i] = fetch::<X, N>(from, first + along, begin + across, acrosses, depth, line, start, map, side);
        }
    }
}

/// That part to its place in shared memory.
#[cube]
#[allow(clippy::if_same_then_else)] // Kernels of whole tiles have no condition.
fn keep_part<X: Float, S: Float, N: Size>(
    part: &Array<Vector<X, N>>,
    stage: &mut Shared<[Vector<S, N>]>,
    which: usize,
    #[comptime] side: Side,
) {
    let of_line = comptime!(side.length() / side.vector);
    #[unroll]
    for i in 0..comptime!(side.each()) {
        let number = UNIT_POS as usize + comptime!(i * THREADS as usize);
        let at = which * comptime!(side.stage()) + number / of_line * comptime!(side.line() / side.vector) + number % of_line;
        if comptime!(side.vectors().is_multiple_of(THREADS as usize)) {
            stage[at] = Vector::cast_from(part[i]);
        } else if number < comptime!(side.vectors()) {
            stage[at] = Vector::cast_from(part[i]);
        }
    }
}

/// A number of a stage whose vectors are of one number.
#[cube]
fn staged<S: Float, N: Size>(
    stage: &Shared<[Vector<S, N>]>,
    which: usize,
    across: usize,
    deep: usize,
    #[comptime] side: Side,
) -> f32 {
    let mut at = which * comptime!(side.stage()) + across * comptime!(side.line()) + deep;
    if comptime!(!side.lies.is_deep()) {
        at = which * comptime!(side.stage()) + deep * comptime!(side.line()) + across;
    }
    f32::cast_from(stage[at].extract(0usize))
}

/// Where a fragment begins in a stage, in vectors.
#[cube]
fn fragment_at(which: usize, across: usize, deep: usize, #[comptime] side: Side) -> usize {
    let mut at = across * comptime!(side.line()) + deep;
    if comptime!(!side.lies.is_deep()) {
        at = deep * comptime!(side.line()) + across;
    }
    which * comptime!(side.stage()) + at / side.vector
}

/// What a thread has summed up: fragments of its plane, or numbers.
#[derive(CubeType)]
struct Sums {
    fragments: Sequence<cmma::Matrix<f32>>,
    numbers: Array<f32>,
}

#[cube]
impl Sums {
    fn new(#[comptime] way: Way) -> Sums {
        let on_units = comptime!(way.unit_depth > 0);
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
                    way.unit_depth,
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
fn place_of_sums(#[comptime] way: Way) -> (usize, usize) {
    let (down, across) = comptime!(way.blocks());
    let mut row = UNIT_POS as usize / UNIT;
    let mut column = UNIT_POS as usize % UNIT;
    if comptime!(way.unit_depth > 0) {
        let plane = UNIT_POS as usize / PLANE;
        row = plane / comptime!(way.across()) * comptime!(down * UNIT);
        column = plane % comptime!(way.across()) * comptime!(across * UNIT);
    }
    (row, column)
}

/// Adds the products of a stage on the matrix units.
#[cube]
fn add_on_units<S: Float, NL: Size, NR: Size>(
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
    for k in 0..comptime!(way.left.step() / way.unit_depth) {
        let deep = comptime!(k * way.unit_depth);
        let mut rights = Sequence::<cmma::Matrix<S>>::new();
        #[unroll]
        for j in 0..across {
            let at = fragment_at(which, column + comptime!(j * UNIT), deep, way.right);
            // SAFETY: it is filled by the next line.
            let mut fragment =
                unsafe { cmma::Matrix::<S>::uninitialized(cmma::MatrixIdent::B, UNIT, UNIT, way.unit_depth, right_layout) };
            cmma::load(&mut fragment, &right[at..comptime!(2 * way.right.stage())], comptime!(way.right.line() as u32));
            rights.push(fragment);
        }
        #[unroll]
        for i in 0..down {
            let at = fragment_at(which, row + comptime!(i * UNIT), deep, way.left);
            // SAFETY: as above.
            let mut fragment =
                unsafe { cmma::Matrix::<S>::uninitialized(cmma::MatrixIdent::A, UNIT, UNIT, way.unit_depth, left_layout) };
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
fn add_by_threads<S: Float, NL: Size, NR: Size>(
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

/// One cube a tile of the output, and one a product of a batch: `y = left right + bias`, sums in f32.
#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments, clippy::manual_div_ceil)] // A kernel's numbers have no `div_ceil`.
pub(super) fn multiply_tiles<X: Float, S: Float, Y: Float, B: Float, NL: Size, NR: Size>(
    left: &[Vector<X, NL>],
    right: &[Vector<X, NR>],
    bias: &[B],
    y: &mut [Y],
    rows: usize,
    columns: usize,
    all_depth: usize,
    share: usize,
    left_line: usize,
    right_line: usize,
    left_apart: usize,
    right_apart: usize,
    map: Map,
    #[comptime] way: Way,
    #[define(X, S, Y, B)] _types: [ElemType; 4],
) {
    let product = CUBE_POS_Z as usize;
    let depth = min(share, all_depth - product * share);
    let (left_start, right_start) = (product * left_apart, product * right_apart);
    let first_row = CUBE_POS_Y as usize * comptime!(way.left.tile);
    let first_column = CUBE_POS_X as usize * comptime!(way.right.tile);
    let unit = UNIT_POS as usize;
    let step = comptime!(way.left.step());
    let steps = (depth + step - 1) / step;

    let mut stage_left = Shared::<[Vector<S, NL>]>::new_aligned_slice(comptime!(2 * way.left.stage()), 32usize);
    let mut stage_right = Shared::<[Vector<S, NR>]>::new_aligned_slice(comptime!(2 * way.right.stage()), 32usize);
    let mut part_left = Array::<Vector<X, NL>>::new(comptime!(way.left.each()));
    let mut part_right = Array::<Vector<X, NR>>::new(comptime!(way.right.each()));

    fetch_part::<X, NL>(left, &mut part_left, first_row, 0usize, rows, depth, left_line, left_start, &map, way.left);
    fetch_part::<X, NR>(right, &mut part_right, first_column, 0usize, columns, depth, right_line, right_start, &map, way.right);
    keep_part::<X, S, NL>(&part_left, &mut stage_left, 0usize, way.left);
    keep_part::<X, S, NR>(&part_right, &mut stage_right, 0usize, way.right);
    sync_cube();

    let on_units = comptime!(way.unit_depth > 0);
    let mut sums = Sums::new(way);
    for index in 0..steps {
        let now = index % 2;
        // The next tiles are on their way while this one is multiplied.
        if index + 1 < steps {
            let begin = (index + 1) * step;
            fetch_part::<X, NL>(left, &mut part_left, first_row, begin, rows, depth, left_line, left_start, &map, way.left);
            fetch_part::<X, NR>(
                right,
                &mut part_right,
                first_column,
                begin,
                columns,
                depth,
                right_line,
                right_start,
                &map,
                way.right,
            );
        }
        if on_units {
            add_on_units::<S, NL, NR>(&mut sums, &stage_left, &stage_right, now, way);
        } else {
            add_by_threads::<S, NL, NR>(&mut sums, &stage_left, &stage_right, now, way);
        }
        if index + 1 < steps {
            keep_part::<X, S, NL>(&part_left, &mut stage_left, 1 - now, way.left);
            keep_part::<X, S, NR>(&part_right, &mut stage_right, 1 - now, way.right);
        }
        sync_cube();
    }

    // Fragments are opaque: each goes through a plane's own part of shared memory.
    let lanes = comptime!(if on_units { PLANE } else { 1 });
    let each = comptime!(if on_units { UNIT * UNIT / PLANE } else { 1 });
    let mut scratch =
        Shared::<[f32]>::new_aligned_slice(comptime!(if on_units { UNIT * UNIT * THREADS as usize / PLANE } else { 1 }), 32usize);
    let (down, across) = comptime!(way.blocks());
    let (row_of_all, column_of_all) = place_of_sums(way);
    #[unroll]
    for i in 0..down {
        #[unroll]
        for j in 0..across {
            if on_units {
                let begin = unit / PLANE * comptime!(UNIT * UNIT);
                let sum = sums.fragments.index(comptime!(i * across + j));
                cmma::store(&mut scratch[begin..begin + comptime!(UNIT * UNIT)], sum, UNIT as u32, cmma::MatrixLayout::RowMajor);
                sync_plane();
            }
            #[unroll]
            for part in 0..each {
                let number = unit % lanes + comptime!(part * lanes);
                let row = first_row + row_of_all + comptime!(i * UNIT) + number / UNIT;
                let column = first_column + column_of_all + comptime!(j * UNIT) + number % UNIT;
                if row < rows && column < columns {
                    let mut value = 0.0f32;
                    if comptime!(way.bias) {
                        value += f32::cast_from(bias[column]);
                    }
                    if on_units {
                        value += scratch[unit / PLANE * comptime!(UNIT * UNIT) + number];
                    } else {
                        value += sums.numbers[comptime!(i * across + j)];
                    }
                    y[(product * rows + row) * columns + column] = Y::cast_from(value);
                }
            }
            if on_units {
                sync_plane();
            }
        }
    }
}
