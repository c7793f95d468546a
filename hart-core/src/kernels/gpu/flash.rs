//! Attention without a matrix of scores (Dao, "FlashAttention-2", 2023). Every plane has sixteen queries; their scores, shares and sums
//! stay in registers, since it is known which number of a product lies with which thread.

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::cmma::{MatrixIdent, MmaDefinition};
use cubecl::ir::features::MmaConfig;
use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::*;

use super::{THREADS, element, empty_like};

/// Threads of a plane.
const PLANE: usize = 32;
/// Queries of a plane, and the depth and the columns of one product.
const ROWS: usize = 16;
const DEPTH: usize = 16;
const COLUMNS: usize = 8;
/// Queries of a cube.
const QUERIES: usize = THREADS as usize / PLANE * ROWS;
/// Keys that lie in shared memory at once.
const KEYS: usize = 64;
/// Half numbers that are read at once: 16 bytes, also what a matrix of eight by eight has in a line.
const VECTOR: usize = 8;
/// Words of that.
const WORDS: usize = VECTOR / 2;
/// Most channels of a head: what a thread has registers for.
const MOST_CHANNELS: usize = 128;
/// Most cubes in a second dimension.
const MOST_CUBES: usize = 65_535;
/// Less than any score.
const LEAST: f32 = -1e30;

/// Vectors of a key in shared memory, of which the last is a gap, so that neighbours lie in different banks.
const fn line(channels: usize) -> usize {
    channels / VECTOR + 1
}

/// A head's queries, keys and values.
#[derive(Clone, Copy)]
pub(super) struct Heads<'a> {
    /// `[rows, heads, length, channels]`.
    pub(super) query: &'a CubeTensor,
    /// `[rows, heads, room, channels]`, as are values.
    pub(super) key: &'a CubeTensor,
    pub(super) value: &'a CubeTensor,
    /// Keys that are there.
    pub(super) tokens: usize,
}

/// `softmax(scale q k^T) v` as `[rows, length, heads * channels]`, with softmax and sums in f32; None where a device has no such units,
/// and for numbers that aren't of half precision.
pub(super) fn attend(heads: Heads<'_>, scale: f64) -> Option<CubeTensor> {
    let Heads { query, key, value, tokens } = heads;
    let [rows, count, length, channels] = [0, 1, 2, 3].map(|dim| query.meta.shape()[dim]);
    let kind = match query.dtype {
        DType::F16 => FloatKind::F16,
        DType::BF16 => FloatKind::BF16,
        _ => return None,
    };
    let [half, sum] = [kind, FloatKind::F32].map(ElemType::Float);
    let config = MmaConfig { a_type: half, b_type: half, cd_type: sum, m: ROWS as u32, n: COLUMNS as u32, k: DEPTH as u32 };
    let properties = query.client.properties();
    let plane = PLANE as u32;
    let planes = (properties.hardware.plane_size_min, properties.hardware.plane_size_max) == (plane, plane);
    let units = properties.features.matmul.mma.contains(&config) && properties.features.matmul.ldmatrix.contains(&half);
    let fits = channels.is_multiple_of(DEPTH) && channels <= MOST_CHANNELS && rows * count <= MOST_CUBES;
    if !planes || !units || !fits {
        return None;
    }
    let mixed = empty_like(query, [rows, length, count * channels], query.dtype);
    // SAFETY: queries and keys beyond the last are neither read nor written; the stages hold KEYS keys of `line` vectors each, twice.
    unsafe {
        attend_kernel::launch_unchecked(
            &query.client,
            CubeCount::Static(length.div_ceil(QUERIES) as u32, (rows * count) as u32, 1),
            CubeDim::new_1d(THREADS),
            2,
            WORDS,
            VECTOR,
            query.clone().into_buffer_arg(),
            key.clone().into_buffer_arg(),
            value.clone().into_buffer_arg(),
            mixed.clone().into_buffer_arg(),
            count,
            length,
            key.meta.shape()[2],
            tokens,
            scale as f32,
            channels,
            element(query.dtype),
        );
    }
    Some(mixed)
}

/// One cube a few queries of one head.
#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments, clippy::manual_div_ceil)] // A kernel's numbers have no `div_ceil`.
fn attend_kernel<X: Float, N2: Size, N4: Size, N8: Size>(
    query: &[Vector<X, N2>],
    key: &[Vector<u32, N4>],
    value: &[Vector<u32, N4>],
    mixed: &mut [Vector<X, N2>],
    heads: usize,
    length: usize,
    room: usize,
    tokens: usize,
    scale: f32,
    #[comptime] channels: usize,
    #[define(X)] _type: ElemType,
) {
    let head = CUBE_POS_Y as usize;
    let lane = UNIT_POS as usize % PLANE;
    // A thread has two numbers beside each other in rows `lane / 4` and eight below, of products and of what is multiplied.
    let row = CUBE_POS_X as usize * QUERIES + UNIT_POS as usize / PLANE * ROWS + lane / 4;
    let column = lane % 4 * 2;
    let queries = read_queries::<X, N2>(query, head * length, row, length, column, channels);

    let stage = comptime!(KEYS * line(channels));
    let mut keys = Shared::<[Vector<X, N8>]>::new_aligned_slice(comptime!(2 * stage), 16usize);
    let mut values = Shared::<[Vector<X, N8>]>::new_aligned_slice(comptime!(2 * stage), 16usize);
    let start = head * room * comptime!(channels / VECTOR);
    let each = comptime!((KEYS * channels / VECTOR).div_ceil(THREADS as usize));
    let mut next_keys = Array::<Vector<u32, N4>>::new(each);
    let mut next_values = Array::<Vector<u32, N4>>::new(each);
    fetch::<N4>(key, &mut next_keys, start, 0usize, tokens, channels);
    fetch::<N4>(value, &mut next_values, start, 0usize, tokens, channels);
    keep::<X, N4, N8>(&next_keys, &mut keys, 0usize, channels);
    keep::<X, N4, N8>(&next_values, &mut values, 0usize, channels);
    sync_cube();

    // Of every eight channels, the upper row's two numbers and the lower one's.
    let mut sums = Array::<Vector<f32, N2>>::new(comptime!(2 * channels / COLUMNS));
    #[unroll]
    for i in 0..comptime!(2 * channels / COLUMNS) {
        sums[i] = Vector::<f32, N2>::from_int(0);
    }
    let mut greatest = Array::<f32>::new(2usize);
    let mut total = Array::<f32>::new(2usize);
    #[unroll]
    for half in 0..2usize {
        greatest[half] = LEAST;
        total[half] = 0.0f32;
    }
    let last = (tokens - 1) / KEYS;
    for step in 0..last {
        let now = step % 2 * stage;
        // The next ones are on their way while these are looked at.
        fetch::<N4>(key, &mut next_keys, start, (step + 1) * KEYS, tokens, channels);
        let mut scores = scores_of::<X, N2, N8>(&queries, &keys, now, lane, channels);
        keep::<X, N4, N8>(&next_keys, &mut keys, stage - now, channels);
        fetch::<N4>(value, &mut next_values, start, (step + 1) * KEYS, tokens, channels);
        become_shares::<N2>(&mut scores, &mut sums, &mut greatest, &mut total, scale, channels);
        add_values::<X, N2, N8>(&mut sums, &scores, &values, now, lane, channels);
        keep::<X, N4, N8>(&next_values, &mut values, stage - now, channels);
        sync_cube();
    }
    let now = last % 2 * stage;
    let mut scores = scores_of::<X, N2, N8>(&queries, &keys, now, lane, channels);
    leave_out::<N2>(&mut scores, column, tokens - last * KEYS);
    become_shares::<N2>(&mut scores, &mut sums, &mut greatest, &mut total, scale, channels);
    add_values::<X, N2, N8>(&mut sums, &scores, &values, now, lane, channels);

    #[unroll]
    for half in 0..2usize {
        let mut sum = total[half];
        sum += plane_shuffle_xor(sum, 1u32);
        sum += plane_shuffle_xor(sum, 2u32);
        let at = row + comptime!(half * COLUMNS);
        if at < length {
            let to = ((head / heads * length + at) * heads + head % heads) * channels + column;
            #[unroll]
            for tile in 0..comptime!(channels / COLUMNS) {
                let pair = sums[comptime!(2 * tile + half)] * Vector::<f32, N2>::new(1.0f32 / sum);
                mixed[(to + comptime!(tile * COLUMNS)) / 2] = Vector::cast_from(pair);
            }
        }
    }
}

/// A plane's queries as left operands, four pairs for every sixteen channels: this row's and the lower one's, then eight channels on.
#[cube]
fn read_queries<X: Float, N2: Size>(
    query: &[Vector<X, N2>],
    start: usize,
    row: usize,
    length: usize,
    column: usize,
    #[comptime] channels: usize,
) -> Array<Vector<X, N2>> {
    let mut queries = Array::<Vector<X, N2>>::new(comptime!(channels / 4));
    #[unroll]
    for i in 0..comptime!(channels / 4) {
        let at = row + comptime!(i % 2 * 8);
        let mut pair = Vector::<X, N2>::from_int(0);
        if at < length {
            pair = query[((start + at) * channels + column + comptime!(i / 4 * DEPTH + i / 2 % 2 * 8)) / 2];
        }
        queries[i] = pair;
    }
    queries
}

/// A thread's part of the next keys, or values, as words of bits: numbers of half precision would be taken apart on the way. Beyond the
/// last one it is the last one again, whose share is zero there.
#[cube]
fn fetch<N4: Size>(
    from: &[Vector<u32, N4>],
    part: &mut Array<Vector<u32, N4>>,
    start: usize,
    begin: usize,
    tokens: usize,
    #[comptime] channels: usize,
) {
    let of_key = comptime!(channels / VECTOR);
    #[unroll]
    for i in 0..comptime!((KEYS * of_key).div_ceil(THREADS as usize)) {
        let number = UNIT_POS as usize + comptime!(i * THREADS as usize);
        let token = min(begin + number / of_key, tokens - 1);
        part[i] = from[start + token * of_key + number % of_key];
    }
}

/// That part to its place in shared memory.
#[cube]
#[allow(clippy::if_same_then_else)] // Some kernels have no condition.
fn keep<X: Float, N4: Size, N8: Size>(
    part: &Array<Vector<u32, N4>>,
    stage: &mut Shared<[Vector<X, N8>]>,
    begin: usize,
    #[comptime] channels: usize,
) {
    let of_key = comptime!(channels / VECTOR);
    #[unroll]
    for i in 0..comptime!((KEYS * of_key).div_ceil(THREADS as usize)) {
        let number = UNIT_POS as usize + comptime!(i * THREADS as usize);
        let at = begin + number / of_key * comptime!(line(channels)) + number % of_key;
        if comptime!((KEYS * of_key).is_multiple_of(THREADS as usize)) {
            stage[at] = Vector::<X, N8>::reinterpret(part[i]);
        } else if number < comptime!(KEYS * of_key) {
            stage[at] = Vector::<X, N8>::reinterpret(part[i]);
        }
    }
}

/// Scores of a plane's queries, two pairs for every eight keys: this row's and the lower one's.
#[cube]
fn scores_of<X: Float, N2: Size, N8: Size>(
    queries: &Array<Vector<X, N2>>,
    keys: &Shared<[Vector<X, N8>]>,
    begin: usize,
    lane: usize,
    #[comptime] channels: usize,
) -> Array<Vector<f32, N2>> {
    let units = MmaDefinition::<X, X, f32>::new(ROWS, COLUMNS, DEPTH);
    let mut scores = Array::<Vector<f32, N2>>::new(comptime!(2 * KEYS / COLUMNS));
    // Of four matrices of eight by eight each lane names a line: of eight keys, the first and the next eight channels; of the next.
    let place = begin + (lane / 16 * 8 + lane % 8) * comptime!(line(channels)) + lane / 8 % 2;
    #[unroll]
    for tile in 0..comptime!(KEYS / COLUMNS / 2) {
        let mut first = Array::<Vector<f32, N2>>::new(2usize);
        let mut second = Array::<Vector<f32, N2>>::new(2usize);
        #[unroll]
        for i in 0..2usize {
            first[i] = Vector::<f32, N2>::from_int(0);
            second[i] = Vector::<f32, N2>::from_int(0);
        }
        #[unroll]
        for k in 0..comptime!(channels / DEPTH) {
            let mut left = Array::<Vector<X, N2>>::new(4usize);
            #[unroll]
            for i in 0..4usize {
                left[i] = queries[comptime!(4 * k + i)];
            }
            let at = place + comptime!(2 * tile * COLUMNS * line(channels) + k * DEPTH / VECTOR);
            let four = units.load_matrix::<Vector<X, N8>, N2>(&keys[at..at + 1], MatrixIdent::B, 4usize, false);
            multiply_twice::<X, N2>(&units, &left, &four, &mut first, &mut second);
        }
        #[unroll]
        for i in 0..2usize {
            scores[comptime!(4 * tile + i)] = first[i];
            scores[comptime!(4 * tile + 2 + i)] = second[i];
        }
    }
    scores
}

/// Keys from so many on are not there.
#[cube]
fn leave_out<N2: Size>(scores: &mut Array<Vector<f32, N2>>, column: usize, keys: usize) {
    #[unroll]
    for i in 0..comptime!(2 * KEYS / COLUMNS) {
        let mut pair = scores[i];
        #[unroll]
        for part in 0..2usize {
            if comptime!(i / 2 * COLUMNS) + column + part >= keys {
                pair.insert(part, LEAST);
            }
        }
        scores[i] = pair;
    }
}

/// Scores become shares of what the greatest one so far would have, and so do the sums until now.
#[cube]
fn become_shares<N2: Size>(
    scores: &mut Array<Vector<f32, N2>>,
    sums: &mut Array<Vector<f32, N2>>,
    greatest: &mut Array<f32>,
    total: &mut Array<f32>,
    scale: f32,
    #[comptime] channels: usize,
) {
    #[unroll]
    for half in 0..2usize {
        let mut most = greatest[half];
        #[unroll]
        for tile in 0..comptime!(KEYS / COLUMNS) {
            let pair = scores[comptime!(2 * tile + half)];
            most = max(most, max(pair.extract(0usize), pair.extract(1usize)));
        }
        // A row lies with four threads.
        most = max(most, plane_shuffle_xor(most, 1u32));
        most = max(most, plane_shuffle_xor(most, 2u32));
        let fade = ((greatest[half] - most) * scale).exp();
        greatest[half] = most;
        let (factor, shift) = (Vector::<f32, N2>::new(scale), Vector::<f32, N2>::new(-most * scale));
        let mut sum = total[half] * fade;
        #[unroll]
        for tile in 0..comptime!(KEYS / COLUMNS) {
            // Scaled and without the greatest by one operation.
            let pair = fma(scores[comptime!(2 * tile + half)], factor, shift).exp();
            sum += pair.extract(0usize) + pair.extract(1usize);
            scores[comptime!(2 * tile + half)] = pair;
        }
        total[half] = sum;
        #[unroll]
        for tile in 0..comptime!(channels / COLUMNS) {
            let faded = sums[comptime!(2 * tile + half)] * Vector::<f32, N2>::new(fade);
            sums[comptime!(2 * tile + half)] = faded;
        }
    }
}

/// Adds values in their shares.
#[cube]
fn add_values<X: Float, N2: Size, N8: Size>(
    sums: &mut Array<Vector<f32, N2>>,
    shares: &Array<Vector<f32, N2>>,
    values: &Shared<[Vector<X, N8>]>,
    begin: usize,
    lane: usize,
    #[comptime] channels: usize,
) {
    let units = MmaDefinition::<X, X, f32>::new(ROWS, COLUMNS, DEPTH);
    // Of four matrices: of eight channels the first and the next eight keys; of the next eight channels.
    let place = begin + lane % 16 * comptime!(line(channels)) + lane / 16;
    #[unroll]
    for k in 0..comptime!(KEYS / DEPTH) {
        // What a product gives lies just as what the next one takes.
        let mut left = Array::<Vector<X, N2>>::new(4usize);
        #[unroll]
        for i in 0..4usize {
            left[i] = Vector::cast_from(shares[comptime!(4 * k + i)]);
        }
        #[unroll]
        for tile in 0..comptime!(channels / COLUMNS / 2) {
            let mut first = Array::<Vector<f32, N2>>::new(2usize);
            let mut second = Array::<Vector<f32, N2>>::new(2usize);
            #[unroll]
            for i in 0..2usize {
                first[i] = sums[comptime!(4 * tile + i)];
                second[i] = sums[comptime!(4 * tile + 2 + i)];
            }
            let at = place + comptime!(k * DEPTH * line(channels) + 2 * tile);
            let four = units.load_matrix::<Vector<X, N8>, N2>(&values[at..at + 1], MatrixIdent::B, 4usize, true);
            multiply_twice::<X, N2>(&units, &left, &four, &mut first, &mut second);
            #[unroll]
            for i in 0..2usize {
                sums[comptime!(4 * tile + i)] = first[i];
                sums[comptime!(4 * tile + 2 + i)] = second[i];
            }
        }
    }
}

/// Two products with the same left operand, whose right ones lie behind each other.
#[cube]
fn multiply_twice<X: Float, N2: Size>(
    units: &MmaDefinition<X, X, f32>,
    left: &Array<Vector<X, N2>>,
    four: &Array<Vector<X, N2>>,
    first: &mut Array<Vector<f32, N2>>,
    second: &mut Array<Vector<f32, N2>>,
) {
    let mut right = Array::<Vector<X, N2>>::new(2usize);
    right[0] = four[0];
    right[1] = four[1];
    units.execute_inplace(left, &right, first);
    let mut right = Array::<Vector<X, N2>>::new(2usize);
    right[0] = four[2];
    right[1] = four[3];
    units.execute_inplace(left, &right, second);
}
