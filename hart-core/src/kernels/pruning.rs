//! Operations of pruned scales, whose branches compute only some tokens: scores, selection of tokens, and the outputs of an earlier scale
//! that stand in for the others.

use burn::prelude::*;

use super::cpu;
use super::params::{KeptTokens, SCALED_CHANNELS, covered};
use super::tensors::{indices, to_f32, values};
use crate::device::Precision;

/// The outputs of a branch for all tokens of a square scale.
#[derive(Clone, Debug)]
pub(crate) struct TokenMap {
    side: usize,
    values: MapValues,
}

/// The values of a [`TokenMap`], `[rows, side^2, channels]`.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "a tensor is as large everywhere else")]
enum MapValues {
    Tensor(Tensor<3>),
    /// In fewer bits.
    Compact(cpu::CompactMap),
}

impl TokenMap {
    /// Stores outputs `[rows, side^2, channels]`. A CPU stores them in the precision of the model, like keys and values.
    pub(crate) fn new(outputs: Tensor<3>, precision: Precision) -> Self {
        let side = outputs.dims()[1].isqrt();
        let values = match cpu::compact_map(&outputs, precision) {
            Some(map) => MapValues::Compact(map),
            None => MapValues::Tensor(outputs),
        };
        Self { side, values }
    }
}

/// Returns the number of bytes of one token of a [`TokenMap`] on a CPU.
pub(crate) fn token_map_bytes(precision: Precision, channels: usize) -> usize {
    match precision {
        Precision::Bf16 => 2 * channels,
        Precision::Int8 => channels + size_of::<f32>() * channels.div_ceil(SCALED_CHANNELS),
        Precision::Auto | Precision::F32 | Precision::F16 => size_of::<f32>() * channels,
    }
}

/// Computes the squared distance of every token to the mean of its row, `[rows * tokens]`, in f32.
///
/// # Shapes
///
/// - x: `[rows, tokens, channels]`
pub(crate) fn squared_distances(x: &Tensor<3>) -> Vec<f32> {
    cpu::squared_distances(x).unwrap_or_else(|| {
        let x = to_f32(x.clone());
        values((x.clone() - x.mean_dim(1)).square().sum_dim(2))
    })
}

/// Selects the kept tokens of every row.
///
/// # Shapes
///
/// - x: `[rows, tokens, channels]`
/// - output: `[rows, kept tokens, channels]`
pub(crate) fn select_tokens(x: Tensor<3>, kept: &KeptTokens) -> Tensor<3> {
    cpu::select_tokens(&x, kept).unwrap_or_else(|| {
        let [rows, tokens, channels] = x.dims();
        let selected = x.reshape([rows * tokens, channels]).select(0, kept.flat_indices());
        selected.reshape([rows, kept.count(), channels]) // [rows, kept tokens, channels]
    })
}

/// Adds the outputs of a branch to x. The tokens that are not kept take theirs from a map, enlarged by area averaging: along each axis,
/// output `i` is the mean of the inputs `floor(i n / m) .. ceil((i + 1) n / m)`.
///
/// # Shapes
///
/// - x, output: `[rows, side^2, channels]`
/// - y: `[rows, kept tokens, channels]`
pub(crate) fn add_restored(x: Tensor<3>, y: Tensor<3>, map: &TokenMap, kept: &KeptTokens) -> Tensor<3> {
    let x = match &map.values {
        MapValues::Tensor(values) => cpu::add_restored(x, &y, values, map.side, kept),
        MapValues::Compact(values) => cpu::add_compact_restored(x, &y, values, map.side, kept),
    };
    let (x, map_values) = match (x, &map.values) {
        (Ok(sum), _) => return sum,
        (Err(x), MapValues::Tensor(values)) => (x, values.clone()),
        (Err(_), MapValues::Compact(_)) => unreachable!("the CPU's kernel reads its own maps"),
    };
    let [rows, tokens, channels] = x.dims();
    let (side, count) = (tokens.isqrt(), kept.count());
    let flat = |x: Tensor<3>| {
        let [rows, tokens, channels] = x.dims();
        to_f32(x).reshape([rows * tokens, channels]) // [rows * tokens, channels]
    };
    // Average the one to four tokens of the map that each token left out covers. Fewer than four are repeated, which keeps their mean.
    let left_out: Vec<(usize, usize)> = (0..rows).flat_map(|row| kept.left_out(row).map(move |position| (row, position))).collect();
    let map_tokens = map.side * map.side;
    let map_values = flat(map_values);
    let corner = |bottom: usize, right: usize| {
        let covered = |&(row, position): &(usize, usize)| {
            let (line, column) = (covered(position / side, map.side, side), covered(position % side, map.side, side));
            row * map_tokens + line[bottom] * map.side + column[right]
        };
        let covered: Vec<usize> = left_out.iter().map(covered).collect();
        map_values.clone().select(0, indices(&covered, &map_values.device())) // [tokens left out of all rows, channels]
    };
    // Every token takes its row of the list of computed outputs or, after them, of the averages.
    let mut sources = vec![0; rows * tokens];
    for (row, positions) in kept.positions().iter().enumerate() {
        positions.iter().enumerate().for_each(|(i, &position)| sources[row * tokens + position as usize] = row * count + i);
    }
    left_out.iter().enumerate().for_each(|(i, (row, position))| sources[row * tokens + position] = rows * count + i);
    let computed = flat(y); // [kept tokens of all rows, channels]
    let outputs = if left_out.is_empty() {
        computed
    } else {
        let average = ((corner(0, 0) + corner(0, 1)) * 0.5 + (corner(1, 0) + corner(1, 1)) * 0.5) * 0.5;
        Tensor::cat(vec![computed, average], 0)
    };
    let outputs = outputs.select(0, indices(&sources, &x.device())).reshape([rows, tokens, channels]); // [rows, tokens, channels]
    let dtype = x.dtype();
    x + outputs.cast(dtype)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{assert_close, wave};
    use crate::kernels::{area, values};

    /// Returns every third token, starting at the row's index.
    fn thirds(rows: usize, tokens: usize, device: &Device) -> KeptTokens {
        let count = (tokens - rows) / 3;
        let row = |row: usize| (0..count).map(|i| (3 * i + row) as u32).collect();
        KeptTokens::new((0..rows).map(row).collect(), tokens, device)
    }

    /// Returns the mean of `area`, with the kept tokens replaced.
    fn restored(map: &Tensor<3>, y: &Tensor<3>, kept: &KeptTokens, side: usize) -> Vec<f32> {
        let [rows, tokens, channels] = map.dims();
        let from = tokens.isqrt();
        let map = map.clone().swap_dims(1, 2).reshape([rows, channels, from, from]);
        let mut full = values(area(map, side).reshape([rows, channels, side * side]).swap_dims(1, 2));
        let y = values(y.clone());
        for (row, positions) in kept.positions().iter().enumerate() {
            for (i, &position) in positions.iter().enumerate() {
                let (to, from) = (row * side * side + position as usize, row * kept.count() + i);
                full[to * channels..][..channels].copy_from_slice(&y[from * channels..][..channels]);
            }
        }
        full
    }

    /// Covers sides whose ratios are integers and others, and numbers of channels that no vector divides.
    #[test]
    fn tokens_that_are_left_out_take_the_area_average_of_the_map() {
        let device = Device::flex();
        for (from, side, channels) in [(2, 4, 5), (3, 4, 24), (4, 6, 70), (4, 8, 130), (5, 5, 3), (9, 16, 64)] {
            let (x, map) = (wave([2, side * side, channels], 0.7, &device), wave([2, from * from, channels], 0.3, &device) * 2.0);
            let kept = thirds(2, side * side, &device);
            let y = wave([2, kept.count(), channels], 0.9, &device);
            let want = tensor_like(&x, restored(&map, &y, &kept, side)) + x.clone();
            for (precision, tolerance) in [(Precision::F32, 1e-6), (Precision::Bf16, 8e-3), (Precision::Int8, 1e-2)] {
                let map = TokenMap::new(map.clone(), precision);
                let before = values(x.clone());
                assert_close(add_restored(x.clone(), y.clone(), &map, &kept), want.clone(), tolerance);
                assert_eq!(values(x.clone()), before, "the operand is unchanged");
            }
        }
    }

    fn tensor_like(like: &Tensor<3>, values: Vec<f32>) -> Tensor<3> {
        crate::kernels::tensor(values, like.dims(), &like.device())
    }

    #[test]
    fn distances_are_those_to_the_mean_of_a_row() {
        let device = Device::flex();
        for (tokens, channels) in [(1, 3), (7, 5), (130, 40), (300, 1)] {
            let x = wave([3, tokens, channels], 0.37, &device) + 0.5;
            let centred = x.clone() - x.clone().mean_dim(1);
            let want: Tensor<3> = centred.square().sum_dim(2);
            let got = tensor_like(&want, squared_distances(&x));
            assert_close(got, want, 1e-5);
        }
    }

    #[test]
    fn rows_select_their_own_tokens() {
        let device = Device::flex();
        let x = wave([2, 10, 3], 0.7, &device);
        let kept = KeptTokens::new(vec![vec![1, 4], vec![0, 9]], 10, &device);
        let got = values(select_tokens(x.clone(), &kept));
        let x = values(x);
        let want: Vec<f32> = [1, 4, 10, 19].iter().flat_map(|token| x[token * 3..][..3].to_vec()).collect();
        assert_eq!(got, want);
        assert_eq!(kept.left_out(1).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6, 7, 8]);
    }
}
