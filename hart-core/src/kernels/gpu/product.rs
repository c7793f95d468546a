//! Matrix products, tile by tile, on the matrix units where a device has them; what each place of a feature map looks at may be one of
//! the matrices, read where it lies (implicit GEMM), so that a convolution is a product too.
//!
//! A kernel knows numbers' types, the tile and how the operands lie, and no sizes: few kernels serve a whole model.

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::features::MmaConfig;
use cubecl::ir::{ElemType, FloatKind, HardwareProperties};
use cubecl::prelude::*;

use super::{THREADS, element, empty_like, fold};
use stage::{LINE_BYTES, MapLaunch, Side};
use sums::{PLANE, UNIT, Way};
use tiles::multiply_tiles;

mod stage;
mod sums;
mod tiles;

/// How the numbers of an operand follow each other in memory. Its depth is what the product sums over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Lies {
    /// Along the depth: a left matrix in rows, a right one in columns.
    Deep,
    /// Across it.
    Wide,
    /// A map `[batch, height, width, channels]`, of which every line is what a place looks at, as for [`Lies::Deep`].
    Places,
    /// The same map, summed over places, as for [`Lies::Wide`].
    PlacesWide,
}

impl Lies {
    fn is_deep(self) -> bool {
        matches!(self, Self::Deep | Self::Places)
    }

    fn is_map(self) -> bool {
        matches!(self, Self::Places | Self::PlacesWide)
    }
}

/// One matrix of a product.
#[derive(Clone)]
pub(super) struct Operand {
    pub(super) tensor: CubeTensor,
    pub(super) lies: Lies,
    /// Numbers from one line to the next; of a map 0.
    pub(super) line: usize,
    /// Numbers from one product of a batch to the next; of a map places.
    pub(super) apart: usize,
}

impl Operand {
    /// Lines that follow each other.
    pub(super) fn new(tensor: CubeTensor, lies: Lies, line: usize) -> Self {
        Self { tensor, lies, line, apart: 0 }
    }

    /// What the places of a map look at.
    pub(super) fn map(tensor: CubeTensor, lies: Lies) -> Self {
        Self { tensor, lies, line: 0, apart: 0 }
    }

    pub(super) fn apart(self, apart: usize) -> Self {
        Self { apart, ..self }
    }

    /// How many numbers are read at once: 16 bytes, if everything begins and ends with so many.
    fn vector(&self, across: usize, depth: usize, view: &View) -> usize {
        let most = 16 / self.tensor.dtype.size();
        let along = match self.lies {
            Lies::Deep => depth,
            Lies::Wide => across,
            Lies::Places | Lies::PlacesWide => view.channels,
        };
        let apart = if self.lies.is_map() { 0 } else { self.apart };
        let fits = [along, self.line, apart].iter().all(|n| n.is_multiple_of(most));
        if fits { most } else { 1 }
    }
}

/// How the places of an output look at a map.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct View {
    pub(super) height: usize,
    pub(super) width: usize,
    pub(super) channels: usize,
    pub(super) out_height: usize,
    pub(super) out_width: usize,
    pub(super) kernel: usize,
    pub(super) stride: usize,
    /// Zeros above and to the left.
    pub(super) padding: usize,
}

/// Sizes of a product.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) depth: usize,
    /// How much of the depth each product of a batch sums over: all of it where there is one product. The last one has the rest.
    pub(super) share: usize,
    /// The tile on matrix units, unless the soonest done is to be found.
    tile: Option<Tile>,
}

impl Sizes {
    /// Of one product.
    pub(super) fn new(rows: usize, columns: usize, depth: usize) -> Self {
        Self { rows, columns, depth, share: depth, tile: None }
    }

    /// Of so many products side by side.
    pub(super) fn times(self, count: usize) -> Self {
        Self { depth: count * self.depth, ..self }
    }

    #[cfg(test)]
    pub(super) fn in_tile(self, tile: Tile) -> Self {
        Self { tile: Some(tile), ..self }
    }

    /// Of a long sum in shares that are summed side by side, since its matrix is small.
    pub(super) fn in_shares(rows: usize, columns: usize, depth: usize) -> Self {
        /// A multiple of every step and vector.
        const SHARE: usize = 2048;
        Self { share: SHARE.min(depth), ..Self::new(rows, columns, depth) }
    }

    fn batch(&self) -> usize {
        self.depth.div_ceil(self.share.max(1))
    }
}

/// How f32 is multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Single {
    /// As it is, by a device's ordinary threads.
    Exact,
    /// Rounded to bf16, which matrix units take, where there are any, with sums in f32: good enough for training, and many times as
    /// fast.
    Rounded,
}

/// Type of the operands in shared memory, for matrix units, if such are to be used and there are any.
fn units(like: &CubeTensor, single: Single) -> Option<ElemType> {
    let kind = match (like.dtype, single) {
        (DType::F16, _) => FloatKind::F16,
        (DType::BF16, _) | (_, Single::Rounded) => FloatKind::BF16,
        (_, Single::Exact) => return None,
    };
    let properties = like.client.properties();
    let planes = (properties.hardware.plane_size_min, properties.hardware.plane_size_max) == (PLANE as u32, PLANE as u32);
    let [kind, sum] = [kind, FloatKind::F32].map(ElemType::Float);
    let side = UNIT as u32;
    let config = MmaConfig { a_type: kind, b_type: kind, cd_type: sum, m: side, n: side, k: side };
    (planes && properties.features.matmul.cmma.contains(&config)).then_some(kind)
}

/// Rows and columns of a tile, planes on top of each other, and how many a multiprocessor works on at once.
pub(super) type Tile = (usize, usize, usize, usize);

/// The widest one is for the decoder, whose channels are multiples of 160; of its sums there is no room for two at once.
pub(super) const TILES: [Tile; 6] =
    [(128, 160, 4, 1), (128, 128, 4, 2), (128, 64, 4, 2), (64, 64, 2, 2), (128, 32, 4, 2), (32, 64, 2, 2)];

/// Bytes of shared memory that a tile takes: two of each operand, and a square of sums of each plane.
fn shared_bytes(&(rows, columns, ..): &Tile) -> usize {
    2 * (rows + columns) * LINE_BYTES + THREADS as usize / PLANE * UNIT * UNIT * size_of::<f32>()
}

/// The tile that is done the soonest, of those that a device has room for: how often all its multiprocessors work on as many as they
/// can, times what that costs, the tiles' products and the reading of their operands. A quarter more where no other tile's work fills
/// what one waits for.
fn tile(sizes: Sizes, hardware: &HardwareProperties) -> Tile {
    let processors = hardware.num_streaming_multiprocessors.unwrap_or(16) as usize;
    let cost = |&(rows, columns, _, at_once): &Tile| {
        let tiles = sizes.rows.div_ceil(rows) * sizes.columns.div_ceil(columns) * sizes.batch();
        let waits = if at_once == 1 { 5 } else { 4 };
        tiles.div_ceil(at_once * processors) * at_once * (rows * columns + 48 * (rows + columns)) * waits
    };
    let fits = |tile: &Tile| shared_bytes(tile) <= hardware.max_shared_memory_size;
    TILES.into_iter().filter(fits).min_by_key(cost).unwrap_or(TILES[TILES.len() - 1])
}

/// `left right + bias`, `[shares, rows, columns]`, of the type asked for; the view is the map's, if one is.
///
/// Nothing is summed over a depth of 0: there is then no product.
pub(super) fn multiply(
    left: &Operand,
    right: &Operand,
    sizes: Sizes,
    view: View,
    bias: Option<&CubeTensor>,
    to: DType,
    single: Single,
) -> CubeTensor {
    let like = &left.tensor;
    let y = empty_like(like, [sizes.batch(), sizes.rows, sizes.columns], to);
    if y.meta.num_elements() == 0 {
        return y;
    }
    let found = units(like, single);
    let (tile_rows, tile_columns, down, _) = match found {
        Some(_) => sizes.tile.unwrap_or_else(|| tile(sizes, &like.client.properties().hardware)),
        None => (64, 64, 2, 2),
    };
    let kind = found.unwrap_or(ElemType::Float(FloatKind::F32));
    let from = element(like.dtype);
    let words = found == Some(from) && like.client.properties().features.matmul.ldmatrix.contains(&from);
    let side = |operand: &Operand, across: usize, tile: usize| {
        let vector = if found.is_some() { operand.vector(across, sizes.share, &view) } else { 1 };
        let side = Side { lies: operand.lies, tile, vector, bytes: kind.size(), words, whole: false };
        let whole = [sizes.depth, sizes.share].iter().all(|depth| *depth > 0 && depth.is_multiple_of(side.step()));
        Side { whole, ..side }
    };
    let left_side = side(left, sizes.rows, tile_rows);
    let right_side = side(right, sizes.columns, tile_columns);
    let way = Way { left: left_side, right: right_side, down, on_units: found.is_some(), bias: bias.is_some() };
    // What there is none of is never read; something must be bound in its place.
    let bias = bias.unwrap_or(like);
    let (left_read, right_read) = (left_side.read_as(from), right_side.read_as(from));
    let types = [left_read.0, right_read.0, kind, element(to), element(bias.dtype)];
    let across = sizes.columns.div_ceil(tile_columns);
    let (x, y_cubes) = fold(across * sizes.rows.div_ceil(tile_rows));
    let map = MapLaunch::new(
        view.height,
        view.width,
        view.channels,
        view.out_height,
        view.out_width,
        view.kernel,
        view.stride,
        view.padding,
    );
    // SAFETY: what lies outside of the matrices, and outside of the map, is neither read nor written; stages are as large as both
    // sides say.
    unsafe {
        multiply_tiles::launch_unchecked(
            &like.client,
            CubeCount::Static(x, y_cubes, sizes.batch() as u32),
            CubeDim::new_1d(THREADS),
            left_read.1,
            right_read.1,
            left_side.vector,
            right_side.vector,
            left.tensor.clone().into_buffer_arg(),
            right.tensor.clone().into_buffer_arg(),
            bias.clone().into_buffer_arg(),
            y.clone().into_buffer_arg(),
            sizes.rows,
            sizes.columns,
            sizes.depth,
            sizes.share,
            left.line,
            right.line,
            left.apart,
            right.apart,
            map,
            across,
            way,
            types,
        );
    }
    y
}
