//! Stages of an operand: its tiles move from global memory to registers, and from there to shared memory.

use cubecl::ir::UIntKind;
use cubecl::prelude::*;

use super::super::THREADS;
use super::Layout;

/// Kernel arguments of a [`ConvGeometry`](super::ConvGeometry).
#[derive(CubeLaunch, CubeType)]
pub(super) struct ConvArgs {
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

/// Bytes of a stage along K, of one row or column.
const BLOCK_K_BYTES: usize = 64;
/// Padding of a row in shared memory, which puts neighbouring rows into different banks.
const PADDING_BYTES: usize = 16;
/// Bytes of a stage per row or column of the tile.
pub(super) const STAGE_ROW_BYTES: usize = BLOCK_K_BYTES + PADDING_BYTES;

/// One operand's tile, `extent` x `block_k`, as the kernel is compiled for it.
///
/// Its rows run along the contiguous dimension of the layout: along K if K-major, otherwise along M or N.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct OperandTile {
    pub(super) layout: Layout,
    /// Extent along M or N.
    pub(super) extent: usize,
    /// Elements of a vector load.
    pub(super) vector_width: usize,
    /// Bytes of an element in shared memory.
    pub(super) element_bytes: usize,
    /// `true` if vectors are moved as 32-bit words, because their type stays the same. The compiler would split vectors of half
    /// precision into elements and assemble them again.
    pub(super) copy_bits: bool,
    /// `true` if every slice's K is a multiple of `block_k`, so that no load needs a mask along K.
    pub(super) even_k: bool,
}

impl OperandTile {
    /// Returns the tile's extent along K.
    pub(super) fn block_k(self) -> usize {
        BLOCK_K_BYTES / self.element_bytes
    }

    /// Returns the number of elements of a row.
    fn row_len(self) -> usize {
        if self.layout.is_k_major() { self.block_k() } else { self.extent }
    }

    /// Returns the number of rows.
    fn rows(self) -> usize {
        if self.layout.is_k_major() { self.extent } else { self.block_k() }
    }

    /// Returns the distance from one row to the next in shared memory, in elements.
    pub(super) fn shared_stride(self) -> usize {
        self.row_len() + PADDING_BYTES / self.element_bytes
    }

    /// Returns the element type and the vector width of loads from global memory, where elements have type `element`.
    pub(super) fn load_type(self, element: ElemType) -> (ElemType, usize) {
        match (self.copy_bits, self.vector_width * self.element_bytes) {
            (false, _) => (element, self.vector_width),
            (true, bytes) if bytes.is_multiple_of(4) => (ElemType::UInt(UIntKind::U32), bytes / 4),
            (true, bytes) => (ElemType::UInt(UIntKind::U16), bytes / 2),
        }
    }

    /// Returns the number of vectors of the tile.
    fn vectors(self) -> usize {
        self.extent * self.block_k() / self.vector_width
    }

    /// Returns the number of vectors that each thread moves.
    pub(super) fn vectors_per_thread(self) -> usize {
        self.vectors().div_ceil(THREADS as usize)
    }

    /// Returns the number of vectors of one stage in shared memory, padding included.
    pub(super) fn stage_len(self) -> usize {
        self.rows() * self.shared_stride() / self.vector_width
    }
}

/// The part of an operand in global memory that a cube reads: one row or column of tiles.
#[derive(CubeType)]
pub(super) struct GlobalTiles {
    /// First index of the tiles along M or N.
    pub(super) mn_start: usize,
    /// Extent of the operand along M or N.
    pub(super) mn: usize,
    /// K of this cube's slice.
    pub(super) k: usize,
    pub(super) leading_dim: usize,
    /// Offset of the slice or batch entry: elements, or output pixels with im2col.
    pub(super) offset: usize,
}

/// Loads one vector of the im2col matrix: channels of the map at output pixel `pixel` and index `patch` of its patch
/// `[kernel, kernel, channels]`. Returns zeros in the padding, and if `in_bounds` is false.
///
/// The patch's origin and the offset inside it are computed separately, because along K one of them is constant in each thread.
#[cube]
fn load_im2col<X: Numeric, N: Size>(
    from: &[Vector<X, N>],
    pixel: usize,
    patch: usize,
    in_bounds: bool,
    conv: &ConvArgs,
    #[comptime] tile: OperandTile,
) -> Vector<X, N> {
    let vectors = conv.channels / tile.vector_width;
    let (column, rest) = (pixel % conv.out_width, pixel / conv.out_width);
    let (row, batch) = (rest % conv.out_height, rest / conv.out_height);
    // In the padding above and to the left these wrap around to huge values, which the bounds check below rejects.
    let (row, column) = (row * conv.stride - conv.padding, column * conv.stride - conv.padding);
    let origin = ((batch * conv.height + row) * conv.width + column) * vectors;

    let (channel, tap) = (patch % conv.channels, patch / conv.channels);
    let (dy, dx) = (tap / conv.kernel, tap % conv.kernel);
    let offset = (dy * conv.width + dx) * vectors + channel / tile.vector_width;

    let mut value = Vector::<X, N>::from_int(0);
    if row + dy < conv.height && column + dx < conv.width && in_bounds {
        value = from[origin + offset];
    }
    value
}

/// Loads this thread's vectors of the tile that begins at `k_start` from global memory into registers.
///
/// Elements beyond K are zero. Beyond M or N the last row is loaded again; the products of such rows are never written.
#[cube]
pub(super) fn load_tile<X: Numeric, N: Size>(
    from: &[Vector<X, N>],
    registers: &mut Array<Vector<X, N>>,
    k_start: usize,
    global: &GlobalTiles,
    conv: &ConvArgs,
    #[comptime] tile: OperandTile,
) {
    let row_vectors = comptime!(tile.row_len() / tile.vector_width);
    #[unroll]
    for i in 0..comptime!(tile.vectors_per_thread()) {
        let vector = UNIT_POS as usize + comptime!(i * THREADS as usize);
        let (in_row, row) = (vector % row_vectors * tile.vector_width, vector / row_vectors);
        // Position in the tile along K, and in the matrix along M or N.
        let mut k = in_row;
        let mut mn = row + global.mn_start;
        if comptime!(!tile.layout.is_k_major()) {
            k = vector / row_vectors;
            mn = in_row + global.mn_start;
        }
        let mn = min(mn, global.mn - comptime!(if tile.layout.is_k_major() { 1 } else { tile.vector_width }));
        let mut in_bounds = true;
        if comptime!(!tile.even_k) {
            in_bounds = k_start + k < global.k;
        }
        if comptime!(tile.layout.is_im2col()) {
            let mut pixel = mn + global.offset;
            let mut patch = k_start + k;
            if comptime!(!tile.layout.is_k_major()) {
                pixel = k_start + k + global.offset;
                patch = mn;
            }
            registers[i] = load_im2col::<X, N>(from, pixel, patch, in_bounds, conv, tile);
        } else {
            // The first summand is the same in every iteration of the K loop.
            let mut at = (global.offset + mn * global.leading_dim + k) / tile.vector_width + k_start / tile.vector_width;
            if comptime!(!tile.layout.is_k_major()) {
                at = (global.offset + k * global.leading_dim + mn) / tile.vector_width
                    + k_start * (global.leading_dim / tile.vector_width);
            }
            if comptime!(tile.even_k) {
                registers[i] = from[at];
            } else {
                let mut value = Vector::<X, N>::from_int(0);
                if in_bounds {
                    value = from[at];
                }
                registers[i] = value;
            }
        }
    }
}

/// Stores the registers that [`load_tile`] filled into stage `stage` of shared memory, bit for bit or rounded to the stage's type.
#[cube]
#[allow(clippy::if_same_then_else)] // The condition is left out of kernels whose threads all have equally many vectors.
pub(super) fn store_tile<X: Numeric, NX: Size, S: Float, N: Size>(
    registers: &Array<Vector<X, NX>>,
    shared: &mut Shared<[Vector<S, N>]>,
    stage: usize,
    #[comptime] tile: OperandTile,
) {
    let row_vectors = comptime!(tile.row_len() / tile.vector_width);
    #[unroll]
    for i in 0..comptime!(tile.vectors_per_thread()) {
        let vector = UNIT_POS as usize + comptime!(i * THREADS as usize);
        let at = stage * comptime!(tile.stage_len())
            + vector / row_vectors * comptime!(tile.shared_stride() / tile.vector_width)
            + vector % row_vectors;
        let value = if comptime!(tile.copy_bits) {
            Vector::<S, N>::reinterpret(registers[i])
        } else {
            Vector::<S, N>::cast_from(registers[i])
        };
        if comptime!(tile.vectors().is_multiple_of(THREADS as usize)) {
            shared[at] = value;
        } else if vector < comptime!(tile.vectors()) {
            shared[at] = value;
        }
    }
}

/// Returns one element of a stage whose vectors have one element.
#[cube]
pub(super) fn stage_element<S: Float, N: Size>(
    shared: &Shared<[Vector<S, N>]>,
    stage: usize,
    mn: usize,
    k: usize,
    #[comptime] tile: OperandTile,
) -> f32 {
    let mut at = stage * comptime!(tile.stage_len()) + mn * comptime!(tile.shared_stride()) + k;
    if comptime!(!tile.layout.is_k_major()) {
        at = stage * comptime!(tile.stage_len()) + k * comptime!(tile.shared_stride()) + mn;
    }
    f32::cast_from(shared[at].extract(0usize))
}

/// Returns the offset of a fragment in a stage, in vectors.
#[cube]
pub(super) fn fragment_offset(stage: usize, mn: usize, k: usize, #[comptime] tile: OperandTile) -> usize {
    let mut at = mn * comptime!(tile.shared_stride()) + k;
    if comptime!(!tile.layout.is_k_major()) {
        at = k * comptime!(tile.shared_stride()) + mn;
    }
    stage * comptime!(tile.stage_len()) + at / tile.vector_width
}
