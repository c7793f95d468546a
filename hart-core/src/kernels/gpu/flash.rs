//! FlashAttention-2 (Dao, 2023) on tensor cores in half precision.
//!
//! Each plane owns [`MMA_M`] queries. Their scores, softmax statistics and output accumulators stay in registers; the kernel uses `mma`
//! with the register layout that PTX specifies, so that the accumulator of `q k^T` is the left operand of `p v` without a shuffle.
//!
//! In that layout, lane `l` of a plane holds pairs of neighbouring elements in columns `l % 4 * 2` of two rows, `l / 4` and `l / 4 + 8`:
//! the upper and the lower row. Four lanes share a row.

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::features::MmaConfig;
use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::*;

use super::{PLANE, THREADS, element, empty_like};
use mma::{load_queries, pv, qk};
use softmax::{MASKED, mask_tail, online_softmax};
use stage::{load_block, row_vectors, store_block};

mod mma;
mod softmax;
mod stage;

/// Shape of an `mma` instruction, m16n8k16.
const MMA_M: usize = 16;
const MMA_N: usize = 8;
const MMA_K: usize = 16;
/// Queries of a cube.
const BLOCK_M: usize = THREADS as usize / PLANE * MMA_M;
/// Keys of a stage in shared memory.
const BLOCK_N: usize = 64;
/// Elements of half precision that are loaded at once: 16 bytes, also a row of an 8 x 8 matrix of `ldmatrix`.
const VECTOR: usize = 8;
/// [`VECTOR`] in 32-bit words.
const WORDS: usize = VECTOR / 2;
/// Largest head dimension whose accumulators fit into a thread's registers.
const MAX_HEAD_DIM: usize = 128;
/// Limit of the grid's second dimension.
const MAX_CUBES_Y: usize = 65_535;

/// Operands of [`flash_attention`], all contiguous.
#[derive(Clone, Copy)]
pub(super) struct FlashInputs<'a> {
    /// `[rows, heads, tokens, head_dim]`.
    pub(super) query: &'a CubeTensor,
    /// `[rows, heads, capacity, head_dim]`.
    pub(super) key: &'a CubeTensor,
    /// `[rows, heads, capacity, head_dim]`.
    pub(super) value: &'a CubeTensor,
    /// Keys and values of each head that are filled.
    pub(super) kv_len: usize,
}

/// Returns `softmax(scale q k^T) v` as `[rows, tokens, heads * head_dim]`, with softmax and accumulation in f32.
///
/// Returns `None` if the operands are not of half precision, if the device lacks `mma` m16n8k16 and `ldmatrix`, or if the head dimension
/// is not a multiple of 16 up to 128.
pub(super) fn flash_attention(inputs: FlashInputs<'_>, scale: f64) -> Option<CubeTensor> {
    let FlashInputs { query, key, value, kv_len } = inputs;
    let [rows, heads, tokens, head_dim] = [0, 1, 2, 3].map(|dim| query.meta.shape()[dim]);
    let kind = match query.dtype {
        DType::F16 => FloatKind::F16,
        DType::BF16 => FloatKind::BF16,
        _ => return None,
    };
    let [half, accumulator] = [kind, FloatKind::F32].map(ElemType::Float);
    let config = MmaConfig { a_type: half, b_type: half, cd_type: accumulator, m: MMA_M as u32, n: MMA_N as u32, k: MMA_K as u32 };
    let properties = query.client.properties();
    let plane = PLANE as u32;
    let planes = (properties.hardware.plane_size_min, properties.hardware.plane_size_max) == (plane, plane);
    let tensor_cores = properties.features.matmul.mma.contains(&config) && properties.features.matmul.ldmatrix.contains(&half);
    let fits = head_dim.is_multiple_of(MMA_K) && head_dim <= MAX_HEAD_DIM && rows * heads <= MAX_CUBES_Y;
    if !planes || !tensor_cores || !fits {
        return None;
    }
    let output = empty_like(query, [rows, tokens, heads * head_dim], query.dtype);
    // SAFETY: the kernel masks queries beyond `tokens` and clamps keys to `kv_len`, which is at least 1. Its stages hold two blocks of
    // `BLOCK_N` rows of `row_vectors` vectors, which is how it computes their indices.
    unsafe {
        flash_attention_kernel::launch_unchecked(
            &query.client,
            CubeCount::Static(tokens.div_ceil(BLOCK_M) as u32, (rows * heads) as u32, 1),
            CubeDim::new_1d(THREADS),
            2,
            WORDS,
            VECTOR,
            query.clone().into_buffer_arg(),
            key.clone().into_buffer_arg(),
            value.clone().into_buffer_arg(),
            output.clone().into_buffer_arg(),
            heads,
            tokens,
            key.meta.shape()[2],
            kv_len,
            scale as f32,
            head_dim,
            element(query.dtype),
        );
    }
    Some(output)
}

/// One cube computes the output of [`BLOCK_M`] queries of one head, and each of its planes that of [`MMA_M`] queries. The loop over
/// blocks of [`BLOCK_N`] keys and values is double-buffered.
#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments, clippy::manual_div_ceil)] // CubeCL has no `div_ceil`.
fn flash_attention_kernel<X: Float, N2: Size, N4: Size, N8: Size>(
    query: &[Vector<X, N2>],
    key: &[Vector<u32, N4>],
    value: &[Vector<u32, N4>],
    output: &mut [Vector<X, N2>],
    heads: usize,
    tokens: usize,
    capacity: usize,
    kv_len: usize,
    scale: f32,
    #[comptime] head_dim: usize,
    #[define(X)] _type: ElemType,
) {
    let head = CUBE_POS_Y as usize;
    let lane = UNIT_POS as usize % PLANE;
    // The upper row and the first column that this thread holds.
    let row = CUBE_POS_X as usize * BLOCK_M + UNIT_POS as usize / PLANE * MMA_M + lane / 4;
    let column = lane % 4 * 2;
    let queries = load_queries::<X, N2>(query, head * tokens, row, tokens, column, head_dim);

    let stage_len = comptime!(BLOCK_N * row_vectors(head_dim));
    let mut keys = Shared::<[Vector<X, N8>]>::new_aligned_slice(comptime!(2 * stage_len), 16usize);
    let mut values = Shared::<[Vector<X, N8>]>::new_aligned_slice(comptime!(2 * stage_len), 16usize);
    let start = head * capacity * comptime!(head_dim / VECTOR);
    let vectors_per_thread = comptime!((BLOCK_N * head_dim / VECTOR).div_ceil(THREADS as usize));
    let mut key_registers = Array::<Vector<u32, N4>>::new(vectors_per_thread);
    let mut value_registers = Array::<Vector<u32, N4>>::new(vectors_per_thread);
    // Prologue: fill the first stage.
    load_block::<N4>(key, &mut key_registers, start, 0usize, kv_len, head_dim);
    load_block::<N4>(value, &mut value_registers, start, 0usize, kv_len, head_dim);
    store_block::<X, N4, N8>(&key_registers, &mut keys, 0usize, head_dim);
    store_block::<X, N4, N8>(&value_registers, &mut values, 0usize, head_dim);
    sync_cube();

    // For every MMA_N channels, a pair of the upper row and one of the lower row.
    let mut accumulator = Array::<Vector<f32, N2>>::new(comptime!(2 * head_dim / MMA_N));
    #[unroll]
    for i in 0..comptime!(2 * head_dim / MMA_N) {
        accumulator[i] = Vector::<f32, N2>::from_int(0);
    }
    // Softmax statistics of the upper and the lower row. Each lane sums its own columns only.
    let mut row_max = Array::<f32>::new(2usize);
    let mut row_sum = Array::<f32>::new(2usize);
    #[unroll]
    for half in 0..2usize {
        row_max[half] = MASKED;
        row_sum[half] = 0.0f32;
    }
    let last = (kv_len - 1) / BLOCK_N;
    for block in 0..last {
        let stage = block % 2 * stage_len;
        // Loads of the next block overlap with the computation of this one.
        load_block::<N4>(key, &mut key_registers, start, (block + 1) * BLOCK_N, kv_len, head_dim);
        let mut scores = qk::<X, N2, N8>(&queries, &keys, stage, lane, head_dim);
        store_block::<X, N4, N8>(&key_registers, &mut keys, stage_len - stage, head_dim);
        load_block::<N4>(value, &mut value_registers, start, (block + 1) * BLOCK_N, kv_len, head_dim);
        online_softmax::<N2>(&mut scores, &mut accumulator, &mut row_max, &mut row_sum, scale, head_dim);
        pv::<X, N2, N8>(&mut accumulator, &scores, &values, stage, lane, head_dim);
        store_block::<X, N4, N8>(&value_registers, &mut values, stage_len - stage, head_dim);
        sync_cube();
    }
    // The last block may be partial.
    let stage = last % 2 * stage_len;
    let mut scores = qk::<X, N2, N8>(&queries, &keys, stage, lane, head_dim);
    mask_tail::<N2>(&mut scores, column, kv_len - last * BLOCK_N);
    online_softmax::<N2>(&mut scores, &mut accumulator, &mut row_max, &mut row_sum, scale, head_dim);
    pv::<X, N2, N8>(&mut accumulator, &scores, &values, stage, lane, head_dim);

    // Epilogue: divide by the row's sum, which four lanes share, and write the output.
    #[unroll]
    for half in 0..2usize {
        let mut sum = row_sum[half];
        sum += plane_shuffle_xor(sum, 1u32);
        sum += plane_shuffle_xor(sum, 2u32);
        let token = row + comptime!(half * 8);
        if token < tokens {
            let to = ((head / heads * tokens + token) * heads + head % heads) * head_dim + column;
            #[unroll]
            for tile in 0..comptime!(head_dim / MMA_N) {
                let pair = accumulator[comptime!(2 * tile + half)] * Vector::<f32, N2>::new(1.0f32 / sum);
                output[(to + comptime!(tile * MMA_N)) / 2] = Vector::cast_from(pair);
            }
        }
    }
}
