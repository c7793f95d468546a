//! One operand's tiles in shared memory: which numbers a thread fetches, and where they lie there.

use cubecl::ir::UIntKind;
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
/// Bytes from one line to the next.
pub(super) const LINE_BYTES: usize = STEP_BYTES + GAP_BYTES;

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
    /// Whether vectors are read as words of bits, since they are kept as they are. Numbers of half precision would be taken apart and
    /// put together again on the way.
    pub(super) words: bool,
    /// Whether every step is as deep as the others, in every product.
    pub(super) whole: bool,
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

    /// What its vectors are read as, and how many of these a vector is, of numbers of such a type.
    pub(super) fn read_as(self, from: ElemType) -> (ElemType, usize) {
        match (self.words, self.vector * self.bytes) {
            (false, _) => (from, self.vector),
            (true, bytes) if bytes.is_multiple_of(4) => (ElemType::UInt(UIntKind::U32), bytes / 4),
            (true, bytes) => (ElemType::UInt(UIntKind::U16), bytes / 2),
        }
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

/// What an operand's tiles are read from, and how much of it there is.
#[derive(CubeType)]
pub(super) struct Source {
    /// Lines of the tile begin here.
    pub(super) first: usize,
    pub(super) acrosses: usize,
    pub(super) depth: usize,
    pub(super) line: usize,
    pub(super) start: usize,
}

/// Numbers of a map that a place looks at; zeros outside of it. Where a place begins and how far from there it looks are found apart: of a
/// thread one of them stays while it goes through a product's depth.
#[cube]
fn fetch_seen<X: Numeric, N: Size>(
    from: &[Vector<X, N>],
    place: usize,
    seen: usize,
    there: bool,
    map: &Map,
    #[comptime] side: Side,
) -> Vector<X, N> {
    let vectors = map.channels / side.vector;
    let (column, rest) = (place % map.out_width, place / map.out_width);
    let (row, batch) = (rest % map.out_height, rest / map.out_height);
    // Above and to the left of the map these are below zero, which is very far to the right and down.
    let (row, column) = (row * map.stride - map.padding, column * map.stride - map.padding);
    let begin = ((batch * map.height + row) * map.width + column) * vectors;

    let (channel, tap) = (seen % map.channels, seen / map.channels);
    let (down, across) = (tap / map.kernel, tap % map.kernel);
    let further = (down * map.width + across) * vectors + channel / side.vector;

    let mut value = Vector::<X, N>::from_int(0);
    if row + down < map.height && column + across < map.width && there {
        value = from[begin + further];
    }
    value
}

/// A thread's part of a tile, so far in; zeros beyond the operand's depth. Lines that lie outside are others', and sums of them are not
/// written.
#[cube]
pub(super) fn fetch_part<X: Numeric, N: Size>(
    from: &[Vector<X, N>],
    part: &mut Array<Vector<X, N>>,
    begin: usize,
    source: &Source,
    map: &Map,
    #[comptime] side: Side,
) {
    let of_line = comptime!(side.length() / side.vector);
    #[unroll]
    for i in 0..comptime!(side.each()) {
        let number = UNIT_POS as usize + comptime!(i * THREADS as usize);
        let (along, across) = (number % of_line * side.vector, number / of_line);
        let mut deep = along;
        let mut across = across + source.first;
        if comptime!(!side.lies.is_deep()) {
            deep = number / of_line;
            across = along + source.first;
        }
        // Beyond the last line another one is read.
        let inside = min(across, source.acrosses - comptime!(if side.lies.is_deep() { 1 } else { side.vector }));
        let mut there = true;
        if comptime!(!side.whole) {
            there = begin + deep < source.depth;
        }
        if comptime!(side.lies.is_map()) {
            let mut place = inside + source.start;
            let mut seen = begin + deep;
            if comptime!(!side.lies.is_deep()) {
                place = begin + deep + source.start;
                seen = inside;
            }
            part[i] = fetch_seen::<X, N>(from, place, seen, there, map, side);
        } else {
            // What doesn't change from one tile to the next comes first.
            let mut at = (source.start + inside * source.line + deep) / side.vector + begin / side.vector;
            if comptime!(!side.lies.is_deep()) {
                at = (source.start + deep * source.line + inside) / side.vector + begin * (source.line / side.vector);
            }
            if comptime!(side.whole) {
                part[i] = from[at];
            } else {
                let mut value = Vector::<X, N>::from_int(0);
                if there {
                    value = from[at];
                }
                part[i] = value;
            }
        }
    }
}

/// That part to its place in shared memory: the same bits, where they are read as words, or rounded.
#[cube]
#[allow(clippy::if_same_then_else)] // Kernels of whole tiles have no condition.
pub(super) fn keep_part<X: Numeric, NX: Size, S: Float, N: Size>(
    part: &Array<Vector<X, NX>>,
    stage: &mut Shared<[Vector<S, N>]>,
    which: usize,
    #[comptime] side: Side,
) {
    let of_line = comptime!(side.length() / side.vector);
    #[unroll]
    for i in 0..comptime!(side.each()) {
        let number = UNIT_POS as usize + comptime!(i * THREADS as usize);
        let at = which * comptime!(side.stage()) + number / of_line * comptime!(side.line() / side.vector) + number % of_line;
        let value = if comptime!(side.words) { Vector::<S, N>::reinterpret(part[i]) } else { Vector::<S, N>::cast_from(part[i]) };
        if comptime!(side.vectors().is_multiple_of(THREADS as usize)) {
            stage[at] = value;
        } else if number < comptime!(side.vectors()) {
            stage[at] = value;
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
