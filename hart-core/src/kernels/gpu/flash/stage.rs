//! Stages of keys and values: blocks move from global memory to registers, and from there to shared memory.

use cubecl::prelude::*;

use super::super::THREADS;
use super::{BLOCK_N, VECTOR};

/// Returns the number of vectors of one key or value in shared memory. The last one is padding, which puts neighbouring rows into
/// different banks.
pub(super) const fn row_vectors(head_dim: usize) -> usize {
    head_dim / VECTOR + 1
}

/// Loads this thread's vectors of the block of keys or values that begins at token `first` from global memory into registers.
///
/// Vectors are words of bits, since the compiler would split vectors of half precision into elements. Beyond `kv_len` the last token is
/// loaded again; its scores are masked.
#[cube]
pub(super) fn load_block<N4: Size>(
    from: &[Vector<u32, N4>],
    registers: &mut Array<Vector<u32, N4>>,
    start: usize,
    first: usize,
    kv_len: usize,
    #[comptime] head_dim: usize,
) {
    let token_vectors = comptime!(head_dim / VECTOR);
    #[unroll]
    for i in 0..comptime!((BLOCK_N * token_vectors).div_ceil(THREADS as usize)) {
        let vector = UNIT_POS as usize + comptime!(i * THREADS as usize);
        let token = min(first + vector / token_vectors, kv_len - 1);
        registers[i] = from[start + token * token_vectors + vector % token_vectors];
    }
}

/// Stores the registers that [`load_block`] filled into the stage of shared memory at offset `stage`.
#[cube]
#[allow(clippy::if_same_then_else)] // The condition is left out of kernels whose threads all have equally many vectors.
pub(super) fn store_block<X: Float, N4: Size, N8: Size>(
    registers: &Array<Vector<u32, N4>>,
    shared: &mut Shared<[Vector<X, N8>]>,
    stage: usize,
    #[comptime] head_dim: usize,
) {
    let token_vectors = comptime!(head_dim / VECTOR);
    #[unroll]
    for i in 0..comptime!((BLOCK_N * token_vectors).div_ceil(THREADS as usize)) {
        let vector = UNIT_POS as usize + comptime!(i * THREADS as usize);
        let at = stage + vector / token_vectors * comptime!(row_vectors(head_dim)) + vector % token_vectors;
        if comptime!((BLOCK_N * token_vectors).is_multiple_of(THREADS as usize)) {
            shared[at] = Vector::<X, N8>::reinterpret(registers[i]);
        } else if vector < comptime!(BLOCK_N * token_vectors) {
            shared[at] = Vector::<X, N8>::reinterpret(registers[i]);
        }
    }
}
