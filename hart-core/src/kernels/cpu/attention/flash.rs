//! Attention of a block of queries over all keys, without ever holding all scores: keys are taken a few at a time, and what has been
//! summed so far is scaled down where a larger score comes (Dao et al., "FlashAttention", 2022; Milakov and Gimelshein, "Online
//! normalizer calculation for softmax", 2018).
//!
//! Queries lie along the lanes of a vector, so that a softmax needs no sums across lanes, and keys and values are read number by
//! number. Both products are one tile: eight rows, of keys or of channels, times up to three vectors of queries. (Where the processor
//! multiplies whole matrices, [`super::amx`] does it instead.)
//!
//! A word is 32 bits along the sum of a product: one f32 or two bf16 (`PAIRS`), that is two channels of a query and a key, or two keys
//! of a weight and a value. Sums and the softmax are f32 with either. Where the processor multiplies no pairs, keys and values that are
//! kept so become f32 a block at a time.
//!
//! A query's result is the same sums in the same order, wherever it lies in a block and whoever computes it.

use super::layout::{KEYS, PANEL, Part, words};
use super::quantized::{Decoded, Source};
use crate::kernels::cpu::simd::{MAGIC_BIAS, SimdF32, SimdKernel};

/// Queries that are computed together: three of the widest vectors.
pub(super) const QUERIES: usize = 48;
/// Rows of a panel and vectors of queries in a tile.
const ROWS: usize = 8;
const VECTORS: usize = 3;
/// The same where there are 16 registers.
const FEW_ROWS: usize = 4;
const FEW_VECTORS: usize = 2;
/// Stands for the largest score before there is one: adding to it overflows nothing.
pub(super) const NO_SCORE: f32 = -1e30;

/// A cache line, so that no vector of queries lies across two.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line([f32; 16]);

/// `[rows][QUERIES]`.
#[derive(Default)]
pub(super) struct Columns(Vec<Line>);

impl Columns {
    const LINES: usize = QUERIES / 16;

    fn new(rows: usize) -> Self {
        Self(vec![Line([0.0; 16]); rows * Self::LINES])
    }

    fn rows(&self) -> usize {
        self.0.len() / Self::LINES
    }

    /// A query's numbers, row after row.
    #[inline(always)]
    pub(super) fn of(&self, query: usize) -> impl Iterator<Item = f32> {
        self.0[query / 16..].iter().step_by(Self::LINES).map(move |line| line.0[query % 16])
    }

    /// Sets a query's numbers from the first row on.
    #[inline(always)]
    pub(super) fn set(&mut self, query: usize, numbers: impl Iterator<Item = f32>) {
        let lines = self.0[query / 16..].iter_mut().step_by(Self::LINES);
        lines.zip(numbers).for_each(|(line, number)| line.0[query % 16] = number);
    }

    fn row(&mut self, row: usize) -> *mut f32 {
        self.0[row * Self::LINES..].as_mut_ptr().cast()
    }
}

/// What a task works in: its queries before, their mixes of values after.
pub(super) struct Scratch {
    /// `[words of a query][QUERIES]`, times the scale and log2(e): a softmax over powers of two.
    pub(super) query: Columns,
    /// `[channels, whole panels][QUERIES]`: sums of weighted values.
    pub(super) mixed: Columns,
    /// `[1][QUERIES]`: sums of weights.
    pub(super) weight: Columns,
    largest: Columns,
    scores: Columns,
}

impl Scratch {
    /// For queries of so many words.
    pub(super) fn new(depth: usize, channels: usize) -> Self {
        Self {
            query: Columns::new(depth),
            mixed: Columns::new(channels.next_multiple_of(PANEL)),
            weight: Columns::new(1),
            largest: Columns::new(1),
            scores: Columns::new(KEYS),
        }
    }
}

/// A block of queries over all parts of one head.
pub(super) struct Block<'a> {
    /// How many queries there are, at most [`QUERIES`].
    pub(super) queries: usize,
    pub(super) parts: &'a [Source<'a>],
    /// Whether the parts' words are two bf16.
    pub(super) pairs: bool,
    /// Made for these parts and lanes.
    pub(super) scratch: &'a mut Scratch,
    pub(super) decoded: &'a mut Decoded,
}

impl SimdKernel for Block<'_> {
    #[inline(always)]
    unsafe fn run<S: SimdF32>(self) {
        // SAFETY: the processor has the lanes.
        unsafe { if self.pairs && S::HAS_BF16 { self.all::<S, true>() } else { self.all::<S, false>() } }
    }
}

impl Block<'_> {
    /// # Safety
    ///
    /// The processor has the lanes.
    #[inline(always)]
    unsafe fn all<S: SimdF32, const PAIRS: bool>(self) {
        assert!(self.queries <= QUERIES);
        let (depth, channels) = (self.scratch.query.rows(), self.scratch.mixed.rows());
        let widened = self.pairs && !PAIRS;
        let kept = if widened { depth / 2 } else { depth };
        for part in self.parts {
            let fits = match part {
                Source::Packed(part) => part.fits(kept, channels, self.pairs),
                Source::Rounded(part) => self.pairs && part.fits(kept, channels),
            };
            assert!(fits, "a part has its panels");
        }
        self.scratch.mixed.0.fill(Line([0.0; 16]));
        self.scratch.weight.0.fill(Line([0.0; 16]));
        self.scratch.largest.0.fill(Line([NO_SCORE; 16]));
        for source in self.parts {
            for first in (0..source.count()).step_by(KEYS) {
                let count = (source.count() - first).min(KEYS);
                // The part in which these keys lie, and from where on.
                let (part, first) = match source {
                    Source::Packed(part) if widened => (self.decoded.widened(part, first, count, kept, channels), 0),
                    Source::Packed(part) => (*part, first),
                    Source::Rounded(part) => (self.decoded.read::<PAIRS>(part, first, count), 0),
                };
                let vectors = if S::HAS_32_REGISTERS { VECTORS } else { FEW_VECTORS };
                let mut lane = 0;
                while lane < self.queries {
                    // SAFETY: the processor has the lanes; the lengths were seen above, or just made, and lane is a multiple of the
                    // vectors' width.
                    unsafe {
                        match (self.queries - lane).div_ceil(S::LANES).min(vectors) {
                            1 => step::<S, 1, PAIRS>(self.scratch, &part, first, count, lane),
                            2 => step::<S, 2, PAIRS>(self.scratch, &part, first, count, lane),
                            _ => step::<S, VECTORS, PAIRS>(self.scratch, &part, first, count, lane),
                        }
                    }
                    lane += vectors * S::LANES;
                }
            }
        }
    }
}

/// Some keys of a part, for `V` vectors of queries from `lane` on.
///
/// # Safety
///
/// The processor has the lanes; the part and the scratch are as long as [`Block`] asks, `first` is a multiple of [`KEYS`] and
/// `count` what is left, at most as many, `lane + V * S::LANES <= QUERIES`.
#[inline(always)]
unsafe fn step<S: SimdF32, const V: usize, const PAIRS: bool>(
    scratch: &mut Scratch,
    part: &Part<'_>,
    first: usize,
    count: usize,
    lane: usize,
) {
    // SAFETY: as this function's.
    unsafe {
        let (depth, channels) = (scratch.query.rows(), scratch.mixed.rows());
        let query = scratch.query.row(0).add(lane).cast_const();
        let scores = scratch.scores.row(0).add(lane);
        let [keys, values] = part.block(first, count, depth, channels, PAIRS).map(<[f32]>::as_ptr);
        let length = words(count, PAIRS);
        let mut tops = [S::splat(NO_SCORE); V];
        for panel in (0..count).step_by(PANEL) {
            let (keys, scores, rows) = (keys.add(panel * depth), scores.add(panel * QUERIES), (count - panel).min(PANEL));
            let mut row = 0;
            while row < rows {
                let (keys, scores) = (keys.add(row), scores.add(row * QUERIES));
                if S::HAS_32_REGISTERS {
                    tops = ask::<S, V, ROWS, PAIRS>(keys, query, depth, scores, tops);
                    row += ROWS;
                } else {
                    tops = ask::<S, V, FEW_ROWS, PAIRS>(keys, query, depth, scores, tops);
                    row += FEW_ROWS;
                }
            }
        }
        let shrink = softmax::<S, V, PAIRS>(scratch, tops, count, part.log_weight, lane);
        let mut channel = 0;
        while channel < channels {
            let values = values.add(channel / PANEL * PANEL * length + channel % PANEL);
            let mixed = scratch.mixed.row(channel).add(lane);
            if S::HAS_32_REGISTERS {
                answer::<S, V, ROWS, PAIRS>(values, scores, length, mixed, shrink);
                channel += ROWS;
            } else {
                answer::<S, V, FEW_ROWS, PAIRS>(values, scores, length, mixed, shrink);
                channel += FEW_ROWS;
            }
        }
    }
}

/// Scores of `R` keys of a panel, and the largest so far.
///
/// # Safety
///
/// As [`tile`]; there is room for `R` rows of scores.
#[inline(always)]
unsafe fn ask<S: SimdF32, const V: usize, const R: usize, const PAIRS: bool>(
    keys: *const f32,
    query: *const f32,
    depth: usize,
    scores: *mut f32,
    mut tops: [S; V],
) -> [S; V] {
    // SAFETY: as this function's.
    unsafe {
        let sums = tile::<S, V, R, PAIRS>([[S::zero(); V]; R], keys, query, depth);
        store(sums, scores);
        for row in &sums {
            for (top, score) in tops.iter_mut().zip(row) {
                *top = top.max(*score);
            }
        }
        tops
    }
}

/// `R` channels of a panel, weighted, added to what is there once that has shrunk.
///
/// # Safety
///
/// As [`tile`]; `mixed` has `R` rows.
#[inline(always)]
unsafe fn answer<S: SimdF32, const V: usize, const R: usize, const PAIRS: bool>(
    values: *const f32,
    weights: *const f32,
    length: usize,
    mixed: *mut f32,
    shrink: [S; V],
) {
    // SAFETY: as this function's.
    unsafe {
        let mut sums = [[S::zero(); V]; R];
        for (row, sums) in sums.iter_mut().enumerate() {
            for v in 0..V {
                sums[v] = sums[v].add_product(S::load(mixed.add(row * QUERIES + v * S::LANES)), shrink[v]);
            }
        }
        store(tile::<S, V, R, PAIRS>(sums, values, weights, length), mixed);
    }
}

/// The sums and the products of `R` of a panel's rows with columns: `sums[r][q] + panel[0..steps][r] . columns[0..steps][q]`.
///
/// # Safety
///
/// The processor has the lanes, the panel has so many steps and so have the columns.
#[inline(always)]
unsafe fn tile<S: SimdF32, const V: usize, const R: usize, const PAIRS: bool>(
    mut sums: [[S; V]; R],
    mut panel: *const f32,
    mut columns: *const f32,
    steps: usize,
) -> [[S; V]; R] {
    // SAFETY: as this function's.
    unsafe {
        for _ in 0..steps {
            let column: [S; V] = std::array::from_fn(|v| S::load(columns.add(v * S::LANES)));
            for (row, sums) in sums.iter_mut().enumerate() {
                let number = S::splat(*panel.add(row));
                for v in 0..V {
                    sums[v] = if PAIRS { sums[v].add_bf16_dot(number, column[v]) } else { sums[v].add_product(number, column[v]) };
                }
            }
            panel = panel.add(PANEL);
            columns = columns.add(QUERIES);
        }
        sums
    }
}

/// Writes a tile.
///
/// # Safety
///
/// The processor has the lanes, and there is room for `R` rows.
#[inline(always)]
unsafe fn store<S: SimdF32, const V: usize, const R: usize>(sums: [[S; V]; R], to: *mut f32) {
    for (row, sums) in sums.iter().enumerate() {
        for (v, sum) in sums.iter().enumerate() {
            // SAFETY: as this function's.
            unsafe { sum.store(to.add(row * QUERIES + v * S::LANES)) };
        }
    }
}

/// Scores to weights, in their place; what the sums so far must be multiplied by comes back.
///
/// # Safety
///
/// The processor has the lanes; `count <= KEYS`, `lane + V * S::LANES <= QUERIES`.
#[inline(always)]
unsafe fn softmax<S: SimdF32, const V: usize, const PAIRS: bool>(
    scratch: &mut Scratch,
    tops: [S; V],
    count: usize,
    log_weight: f32,
    lane: usize,
) -> [S; V] {
    // SAFETY: as this function's.
    unsafe {
        let scores = scratch.scores.row(0).add(lane);
        let (largest, weight) = (scratch.largest.row(0).add(lane), scratch.weight.row(0).add(lane));
        // Without closures, in which the compiler doesn't know of the vectors.
        let (mut tops, mut less, mut shrink, mut sums) = (tops, [S::zero(); V], [S::zero(); V], [S::zero(); V]);
        for v in 0..V {
            let before = S::load(largest.add(v * S::LANES));
            tops[v] = before.max(tops[v].add(S::splat(log_weight)));
            less[v] = S::splat(log_weight).add_product(S::splat(-1.0), tops[v]);
            shrink[v] = exp2(before.add_product(S::splat(-1.0), tops[v]));
            sums[v] = S::zero().add_product(S::load(weight.add(v * S::LANES)), shrink[v]);
        }
        for word in 0..words(count, PAIRS) {
            for v in 0..V {
                let from = scores.add(v * S::LANES);
                let to = from.add(word * QUERIES);
                if !PAIRS {
                    let power = exp2(S::load(to).add(less[v]));
                    sums[v] = sums[v].add(power);
                    power.store(to);
                    continue;
                }
                let low = exp2(S::load(from.add(2 * word * QUERIES)).add(less[v]));
                let mut high = S::zero();
                if 2 * word + 1 < count {
                    high = exp2(S::load(from.add((2 * word + 1) * QUERIES)).add(less[v]));
                }
                sums[v] = sums[v].add(low.add(high));
                S::interleave_bf16(low, high).store(to);
            }
        }
        for v in 0..V {
            tops[v].store(largest.add(v * S::LANES));
            sums[v].store(weight.add(v * S::LANES));
        }
        shrink
    }
}

/// `2^x` to 2 units in the last place for x of at most 0: x is a whole number and a rest of at most 1/2, whose power is a polynomial
/// (Cephes' `exp2f`). Below the range of f32 it stays at the end; NaN stays NaN.
///
/// # Safety
///
/// The processor has the lanes.
#[inline(always)]
pub(super) unsafe fn exp2<S: SimdF32>(x: S) -> S {
    const LEAST: f32 = -126.0;
    const POLYNOMIAL: [f32; 6] = [1.339_887_4e-3, 9.618_437e-3, 5.550_332_5e-2, 2.402_264_8e-1, 6.931_472e-1, 1.0];
    // SAFETY: as this function's.
    unsafe {
        let x = S::splat(LEAST).max(x);
        let whole = x.add(S::splat(MAGIC_BIAS));
        let rest = x.add_product(S::splat(-1.0), whole.add(S::splat(-MAGIC_BIAS)));
        let mut power = S::splat(1.535_336_2e-4);
        for coefficient in POLYNOMIAL {
            power = S::splat(coefficient).add_product(power, rest);
        }
        power.ldexp(whole)
    }
}
