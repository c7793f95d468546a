//! The two products of attention, `q k^T` and `p v`, on fragments in registers.

use cubecl::cmma::{MatrixIdent, MmaDefinition};
use cubecl::prelude::*;

use super::stage::row_vectors;
use super::{BLOCK_N, MMA_K, MMA_M, MMA_N, VECTOR};

/// Loads a plane's queries as left operands of `mma`. For every [`MMA_K`] channels these are four pairs: one of the upper and one
/// of the lower row, and the same 8 channels further. Queries beyond `tokens` are zero.
#[cube]
pub(super) fn load_queries<X: Float, N2: Size>(
    query: &[Vector<X, N2>],
    start: usize,
    row: usize,
    tokens: usize,
    column: usize,
    #[comptime] head_dim: usize,
) -> Array<Vector<X, N2>> {
    let mut queries = Array::<Vector<X, N2>>::new(comptime!(head_dim / 4));
    #[unroll]
    for i in 0..comptime!(head_dim / 4) {
        let token = row + comptime!(i % 2 * 8);
        let mut pair = Vector::<X, N2>::from_int(0);
        if token < tokens {
            pair = query[((start + token) * head_dim + column + comptime!(i / 4 * MMA_K + i / 2 % 2 * 8)) / 2];
        }
        queries[i] = pair;
    }
    queries
}

/// Returns the scores `q k^T` of a plane's queries and the keys of the stage at offset `stage`: for every [`MMA_N`] keys, a pair of the
/// upper row and one of the lower row.
#[cube]
pub(super) fn qk<X: Float, N2: Size, N8: Size>(
    queries: &Array<Vector<X, N2>>,
    keys: &Shared<[Vector<X, N8>]>,
    stage: usize,
    lane: usize,
    #[comptime] head_dim: usize,
) -> Array<Vector<f32, N2>> {
    let mma = MmaDefinition::<X, X, f32>::new(MMA_M, MMA_N, MMA_K);
    let mut scores = Array::<Vector<f32, N2>>::new(comptime!(2 * BLOCK_N / MMA_N));
    // `ldmatrix` loads four 8 x 8 matrices; each lane provides the address of one row. They are channels 0..8 and 8..16 of the first 8
    // keys, and the same of the next 8 keys.
    let base = stage + (lane / 16 * 8 + lane % 8) * comptime!(row_vectors(head_dim)) + lane / 8 % 2;
    #[unroll]
    for tile in 0..comptime!(BLOCK_N / MMA_N / 2) {
        let mut first = Array::<Vector<f32, N2>>::new(2usize);
        let mut second = Array::<Vector<f32, N2>>::new(2usize);
        #[unroll]
        for i in 0..2usize {
            first[i] = Vector::<f32, N2>::from_int(0);
            second[i] = Vector::<f32, N2>::from_int(0);
        }
        #[unroll]
        for k in 0..comptime!(head_dim / MMA_K) {
            let mut a = Array::<Vector<X, N2>>::new(4usize);
            #[unroll]
            for i in 0..4usize {
                a[i] = queries[comptime!(4 * k + i)];
            }
            let at = base + comptime!(2 * tile * MMA_N * row_vectors(head_dim) + k * MMA_K / VECTOR);
            let b = mma.load_matrix::<Vector<X, N8>, N2>(&keys[at..at + 1], MatrixIdent::B, 4usize, false);
            mma_pair::<X, N2>(&mma, &a, &b, &mut first, &mut second);
        }
        #[unroll]
        for i in 0..2usize {
            scores[comptime!(4 * tile + i)] = first[i];
            scores[comptime!(4 * tile + 2 + i)] = second[i];
        }
    }
    scores
}

/// Adds `p v` to the accumulator: attention weights of a plane's queries times the values of the stage at offset `stage`.
#[cube]
pub(super) fn pv<X: Float, N2: Size, N8: Size>(
    accumulator: &mut Array<Vector<f32, N2>>,
    weights: &Array<Vector<f32, N2>>,
    values: &Shared<[Vector<X, N8>]>,
    stage: usize,
    lane: usize,
    #[comptime] head_dim: usize,
) {
    let mma = MmaDefinition::<X, X, f32>::new(MMA_M, MMA_N, MMA_K);
    // `ldmatrix` with transposition loads keys 0..8 and 8..16 of the first 8 channels, and the same of the next 8 channels.
    let base = stage + lane % 16 * comptime!(row_vectors(head_dim)) + lane / 16;
    #[unroll]
    for k in 0..comptime!(BLOCK_N / MMA_K) {
        // The accumulator layout of two score tiles is the layout of one left operand.
        let mut a = Array::<Vector<X, N2>>::new(4usize);
        #[unroll]
        for i in 0..4usize {
            a[i] = Vector::cast_from(weights[comptime!(4 * k + i)]);
        }
        #[unroll]
        for tile in 0..comptime!(head_dim / MMA_N / 2) {
            let mut first = Array::<Vector<f32, N2>>::new(2usize);
            let mut second = Array::<Vector<f32, N2>>::new(2usize);
            #[unroll]
            for i in 0..2usize {
                first[i] = accumulator[comptime!(4 * tile + i)];
                second[i] = accumulator[comptime!(4 * tile + 2 + i)];
            }
            let at = base + comptime!(k * MMA_K * row_vectors(head_dim) + 2 * tile);
            let b = mma.load_matrix::<Vector<X, N8>, N2>(&values[at..at + 1], MatrixIdent::B, 4usize, true);
            mma_pair::<X, N2>(&mma, &a, &b, &mut first, &mut second);
            #[unroll]
            for i in 0..2usize {
                accumulator[comptime!(4 * tile + i)] = first[i];
                accumulator[comptime!(4 * tile + 2 + i)] = second[i];
            }
        }
    }
}

/// Executes two `mma` instructions with the same left operand. `b` holds both right operands, one after the other.
#[cube]
fn mma_pair<X: Float, N2: Size>(
    mma: &MmaDefinition<X, X, f32>,
    a: &Array<Vector<X, N2>>,
    b: &Array<Vector<X, N2>>,
    first: &mut Array<Vector<f32, N2>>,
    second: &mut Array<Vector<f32, N2>>,
) {
    let mut right = Array::<Vector<X, N2>>::new(2usize);
    right[0] = b[0];
    right[1] = b[1];
    mma.execute_inplace(a, &right, first);
    let mut right = Array::<Vector<X, N2>>::new(2usize);
    right[0] = b[2];
    right[1] = b[3];
    mma.execute_inplace(a, &right, second);
}
