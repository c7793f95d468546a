//! Matrix product (GEMM) `c = a b + bias` with tiles in double-buffered shared memory, on tensor cores where the device has them.
//!
//! `a` is `[M, K]`, `b` is `[K, N]` and `c` is `[M, N]`. Either operand may be the im2col matrix of a feature map, whose elements are
//! addressed inside the map and never stored (implicit GEMM): a convolution is then a GEMM too.
//!
//! A kernel is compiled for element types, tile shape and layouts, not for sizes, so that few kernels serve a whole model.

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::features::MmaConfig;
use cubecl::ir::{ElemType, FloatKind, HardwareProperties};
use cubecl::prelude::*;

use super::{PLANE, THREADS, element, empty_like, grid_dims};
use accumulator::{FRAGMENT, KernelConfig};
use kernel::gemm_kernel;
use stage::{ConvArgsLaunch, OperandTile, STAGE_ROW_BYTES};

mod accumulator;
mod kernel;
mod stage;

/// Memory layout of an operand, in CUTLASS's terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Layout {
    /// Contiguous along K: `a` in row-major order, `b` in column-major order.
    KMajor,
    /// Contiguous along M or N: `a` in column-major order, `b` in row-major order.
    MnMajor,
    /// The im2col matrix `[output pixels, kernel * kernel * channels]` of a map `[batch, height, width, channels]`; K is the patch.
    Im2colKMajor,
    /// The same matrix with the output pixels as K.
    Im2colMnMajor,
}

impl Layout {
    fn is_k_major(self) -> bool {
        matches!(self, Self::KMajor | Self::Im2colKMajor)
    }

    fn is_im2col(self) -> bool {
        matches!(self, Self::Im2colKMajor | Self::Im2colMnMajor)
    }
}

/// One operand of a GEMM.
#[derive(Clone)]
pub(super) struct Operand {
    pub(super) tensor: CubeTensor,
    pub(super) layout: Layout,
    /// Leading dimension: the distance from one row (or column) to the next in elements. 0 with im2col.
    pub(super) leading_dim: usize,
    /// Distance from one matrix of a batch, or one split-K slice, to the next: in elements, or in output pixels with im2col.
    pub(super) batch_stride: usize,
}

impl Operand {
    /// Creates an operand that is stored as a matrix.
    pub(super) fn new(tensor: CubeTensor, layout: Layout, leading_dim: usize) -> Self {
        Self { tensor, layout, leading_dim, batch_stride: 0 }
    }

    /// Creates the im2col matrix of a map `[batch, height, width, channels]`.
    pub(super) fn im2col(tensor: CubeTensor, layout: Layout) -> Self {
        Self { tensor, layout, leading_dim: 0, batch_stride: 0 }
    }

    pub(super) fn with_batch_stride(self, batch_stride: usize) -> Self {
        Self { batch_stride, ..self }
    }

    /// Returns the number of elements that a thread loads at once: 16 bytes if every row starts and ends on such a boundary, otherwise 1.
    ///
    /// `mn` is the operand's extent along M or N.
    fn vector_width(&self, mn: usize, k: usize, conv: &ConvGeometry) -> usize {
        let widest = 16 / self.tensor.dtype.size();
        let contiguous = match self.layout {
            Layout::KMajor => k,
            Layout::MnMajor => mn,
            Layout::Im2colKMajor | Layout::Im2colMnMajor => conv.channels,
        };
        let batch_stride = if self.layout.is_im2col() { 0 } else { self.batch_stride };
        let aligned = [contiguous, self.leading_dim, batch_stride].iter().all(|n| n.is_multiple_of(widest));
        if aligned { widest } else { 1 }
    }
}

/// Sizes of a convolution, from which im2col addresses are computed. All zero if no operand is an im2col matrix.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ConvGeometry {
    pub(super) height: usize,
    pub(super) width: usize,
    pub(super) channels: usize,
    pub(super) out_height: usize,
    pub(super) out_width: usize,
    /// Height and width of the square kernel.
    pub(super) kernel: usize,
    pub(super) stride: usize,
    /// Zeros above and to the left of the map.
    pub(super) padding: usize,
}

/// Sizes of a GEMM, of a batch of them, or of one whose K is split.
///
/// The kernel treats a batch and split-K alike: `total_k` is cut into slices of `slice_k`, and each slice has a separate output.
#[derive(Clone, Copy, Debug)]
pub(super) struct GemmShape {
    pub(super) m: usize,
    pub(super) n: usize,
    /// K of all slices together.
    pub(super) total_k: usize,
    /// K of one slice. The last slice may be shorter.
    pub(super) slice_k: usize,
    /// The tile on tensor cores; `None` lets the cost model choose.
    tile: Option<Tile>,
}

impl GemmShape {
    /// Creates the shape of a single GEMM.
    pub(super) fn new(m: usize, n: usize, k: usize) -> Self {
        Self { m, n, total_k: k, slice_k: k, tile: None }
    }

    /// Returns the shape of a batch of `count` GEMMs of this shape.
    pub(super) fn batched(self, count: usize) -> Self {
        Self { total_k: count * self.total_k, ..self }
    }

    #[cfg(test)]
    pub(super) fn with_tile(self, tile: Tile) -> Self {
        Self { tile: Some(tile), ..self }
    }

    /// Creates the shape of a GEMM with split-K, for a long K and an output with too few tiles to fill the device. The caller adds the
    /// slices' outputs.
    pub(super) fn split_k(m: usize, n: usize, k: usize) -> Self {
        /// A multiple of every K block and vector width.
        const SLICE_K: usize = 2048;
        Self { slice_k: SLICE_K.min(k), ..Self::new(m, n, k) }
    }

    fn slices(&self) -> usize {
        self.total_k.div_ceil(self.slice_k.max(1))
    }
}

/// Arithmetic of a GEMM whose operands are f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum F32Mode {
    /// In f32, without tensor cores.
    Full,
    /// On tensor cores with operands rounded to bf16 and f32 accumulation, where the device has such cores; otherwise in f32. Accurate
    /// enough for training and many times as fast.
    Bf16,
}

/// Returns the type of the operands in shared memory for tensor cores, or `None` if the GEMM cannot use them.
fn tensor_core_type(like: &CubeTensor, mode: F32Mode) -> Option<ElemType> {
    let kind = match (like.dtype, mode) {
        (DType::F16, _) => FloatKind::F16,
        (DType::BF16, _) | (_, F32Mode::Bf16) => FloatKind::BF16,
        (_, F32Mode::Full) => return None,
    };
    let properties = like.client.properties();
    let planes = (properties.hardware.plane_size_min, properties.hardware.plane_size_max) == (PLANE as u32, PLANE as u32);
    let [operand, accumulator] = [kind, FloatKind::F32].map(ElemType::Float);
    let side = FRAGMENT as u32;
    let config = MmaConfig { a_type: operand, b_type: operand, cd_type: accumulator, m: side, n: side, k: side };
    (planes && properties.features.matmul.cmma.contains(&config)).then_some(operand)
}

/// The part of the output that one cube computes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tile {
    pub(super) m: usize,
    pub(super) n: usize,
    /// Planes along M; the cube's other planes are along N.
    planes_m: usize,
    /// Cubes that fit on a streaming multiprocessor at once.
    occupancy: usize,
}

const fn tile(m: usize, n: usize, planes_m: usize, occupancy: usize) -> Tile {
    Tile { m, n, planes_m, occupancy }
}

/// Tiles to choose from. The widest one suits the decoder, whose channels are multiples of 160; its accumulators leave registers for
/// only one cube per multiprocessor.
pub(super) const TILES: [Tile; 6] =
    [tile(128, 160, 4, 1), tile(128, 128, 4, 2), tile(128, 64, 4, 2), tile(64, 64, 2, 2), tile(128, 32, 4, 2), tile(32, 64, 2, 2)];

/// Returns the number of bytes of shared memory that a tile takes: two stages of both operands, and one output fragment of each
/// plane.
fn shared_bytes(tile: &Tile) -> usize {
    2 * (tile.m + tile.n) * STAGE_ROW_BYTES + THREADS as usize / PLANE * FRAGMENT * FRAGMENT * size_of::<f32>()
}

/// Returns the fastest tile by a cost model, among those that fit into shared memory.
///
/// The cost is the number of waves (each fills all multiprocessors) times the work of a wave: multiplications, and loads of operands.
/// With one cube per multiprocessor it is a quarter higher, since no other cube hides its latencies.
fn select_tile(shape: GemmShape, hardware: &HardwareProperties) -> Tile {
    let processors = hardware.num_streaming_multiprocessors.unwrap_or(16) as usize;
    let cost = |&Tile { m, n, occupancy, .. }: &Tile| {
        let tiles = shape.m.div_ceil(m) * shape.n.div_ceil(n) * shape.slices();
        let latency = if occupancy == 1 { 5 } else { 4 };
        tiles.div_ceil(occupancy * processors) * occupancy * (m * n + 48 * (m + n)) * latency
    };
    let fits = |tile: &Tile| shared_bytes(tile) <= hardware.max_shared_memory_size;
    TILES.into_iter().filter(fits).min_by_key(cost).unwrap_or(TILES[TILES.len() - 1])
}

/// Computes `a b + bias` in the type `to`, with f32 accumulation.
///
/// `conv` is the geometry of the im2col operand, if there is one. A K of 0 gives no slices and an empty output.
///
/// # Shapes
///
/// - bias: `[n]`
/// - output: `[slices, m, n]`
pub(super) fn gemm(
    a: &Operand,
    b: &Operand,
    shape: GemmShape,
    conv: ConvGeometry,
    bias: Option<&CubeTensor>,
    to: DType,
    mode: F32Mode,
) -> CubeTensor {
    let like = &a.tensor;
    let c = empty_like(like, [shape.slices(), shape.m, shape.n], to);
    if c.meta.num_elements() == 0 {
        return c;
    }
    let tensor_cores = tensor_core_type(like, mode);
    let Tile { m: tile_m, n: tile_n, planes_m, .. } = match tensor_cores {
        Some(_) => shape.tile.unwrap_or_else(|| select_tile(shape, &like.client.properties().hardware)),
        None => tile(64, 64, 2, 2),
    };
    let staged = tensor_cores.unwrap_or(ElemType::Float(FloatKind::F32));
    let loaded = element(like.dtype);
    let copy_bits = tensor_cores == Some(loaded) && like.client.properties().features.matmul.ldmatrix.contains(&loaded);
    let operand_tile = |operand: &Operand, mn: usize, extent: usize| {
        let vector_width = if tensor_cores.is_some() { operand.vector_width(mn, shape.slice_k, &conv) } else { 1 };
        let tile =
            OperandTile { layout: operand.layout, extent, vector_width, element_bytes: staged.size(), copy_bits, even_k: false };
        let even_k = [shape.total_k, shape.slice_k].iter().all(|k| *k > 0 && k.is_multiple_of(tile.block_k()));
        OperandTile { even_k, ..tile }
    };
    let a_tile = operand_tile(a, shape.m, tile_m);
    let b_tile = operand_tile(b, shape.n, tile_n);
    let config = KernelConfig { a: a_tile, b: b_tile, planes_m, tensor_cores: tensor_cores.is_some(), bias: bias.is_some() };
    // A kernel without bias still binds a buffer, which it does not read.
    let bias = bias.unwrap_or(like);
    let ((a_type, a_width), (b_type, b_width)) = (a_tile.load_type(loaded), b_tile.load_type(loaded));
    let types = [a_type, b_type, staged, element(to), element(bias.dtype)];
    let tiles_n = shape.n.div_ceil(tile_n);
    let (grid_x, grid_y) = grid_dims(tiles_n * shape.m.div_ceil(tile_m));
    let conv = ConvArgsLaunch::new(
        conv.height,
        conv.width,
        conv.channels,
        conv.out_height,
        conv.out_width,
        conv.kernel,
        conv.stride,
        conv.padding,
    );
    // SAFETY: the kernel clamps or masks every index into `a`, `b`, `bias` and `c`, also with im2col, and the shared memory that it
    // allocates has the sizes of `a_tile` and `b_tile`, which its indices are computed from.
    unsafe {
        gemm_kernel::launch_unchecked(
            &like.client,
            CubeCount::Static(grid_x, grid_y, shape.slices() as u32),
            CubeDim::new_1d(THREADS),
            a_width,
            b_width,
            a_tile.vector_width,
            b_tile.vector_width,
            a.tensor.clone().into_buffer_arg(),
            b.tensor.clone().into_buffer_arg(),
            bias.clone().into_buffer_arg(),
            c.clone().into_buffer_arg(),
            shape.m,
            shape.n,
            shape.total_k,
            shape.slice_k,
            a.leading_dim,
            b.leading_dim,
            a.batch_stride,
            b.batch_stride,
            conv,
            tiles_n,
            config,
            types,
        );
    }
    c
}
