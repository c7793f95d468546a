//! One operand's tiles in shared memory: which numbers a thread fetches, and where they lie there.

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
    pub(super) fn step(self) -> usize {
        STEP_BYTES / self.bytes
    }

    /// Numbers of a line of the tile.
    fn length(self) -> usize {
        if self.lies.is_deep() { self.step() } else { self.tile }
    }

    /// Numbers from one line to the next.
    pub(super) fn line(self) -> usize {
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
    pub(super) fn each(self) -> usize {
        self.vectors().div_ceil(THREADS as usize)
    }

    /// Vectors that one of two tiles takes in shared memory.
    pub(super) fn stage(self) -> usize {
        self.lines() * self.line() / self.vector
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
pub(super) fn fetch_part<X: Float, N: Size>(
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
pub(super) fn keep_part<X: Float, S: Float, N: Size>(
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
pub(super) fn staged<S: Float, N: Size>(
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
pub(super) fn fragment_at(which: usize, across: usize, deep: usize, #[comptime] side: Side) -> usize {
    let mut at = across * comptime!(side.line()) + deep;
    if comptime!(!side.lies.is_deep()) {
        at = deep * comptime!(side.line()) + across;
    }
    which * comptime!(side.stage()) + at / side.vector
}
