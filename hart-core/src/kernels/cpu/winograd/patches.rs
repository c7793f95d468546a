//! What is convolved, laid out with its border.

use rayon::prelude::*;

use super::super::elementwise::silu_of;
use super::super::simd::{LoopKernel, SimdLevel};
use super::group_norm::Normed;
use super::{PATCH, STEP, TILE};

/// How a map becomes what is convolved.
#[derive(Clone, Copy, Debug)]
pub(super) enum Source<'a> {
    /// It is that.
    Itself,
    /// Every place four times: its sides are doubled.
    Doubled,
    /// SiLU of its group norm.
    Normed(&'a Normed),
}

/// A map, channels last.
#[derive(Clone, Copy, Debug)]
pub(super) struct Input<'a> {
    /// `[height][width][channels]`
    pub(super) map: &'a [f32],
    pub(super) height: usize,
    pub(super) width: usize,
    pub(super) channels: usize,
    pub(super) source: Source<'a>,
}

impl Input<'_> {
    /// Height and width of what is convolved.
    pub(super) fn output(&self) -> [usize; 2] {
        let factor = if matches!(self.source, Source::Doubled) { 2 } else { 1 };
        [self.height * factor, self.width * factor]
    }

    /// Room for `rows` rows of `across` tiles.
    pub(super) fn band(&self, rows: usize, across: usize) -> Band {
        let padded = self.channels.next_multiple_of(STEP);
        let row = (across * TILE + 2) * padded;
        Band { numbers: vec![0.0; (rows * TILE + 2) * row], row, padded }
    }
}

/// Rows of a map with a border: `[rows of tiles * 4 + 2][tiles * 4 + 2][channels, and zeros to a multiple of STEP]`.
pub(super) struct Band {
    numbers: Vec<f32>,
    row: usize,
    padded: usize,
}

impl Band {
    /// From one row to the next.
    pub(super) fn row(&self) -> usize {
        self.row
    }

    /// The numbers from a patch's first one on.
    pub(super) fn patch(&self, row: usize, column: usize) -> &[f32] {
        &self.numbers[row * TILE * self.row + column * TILE * self.padded..]
    }

    /// Lays out what is convolved from row `first` of tiles on: bands follow each other.
    pub(super) fn fill(&mut self, level: SimdLevel, x: &Input<'_>, first: usize) {
        let count = self.numbers.len() / self.row;
        let kept = if first == 0 { 0 } else { PATCH - TILE };
        // The last rows of the band before are the first ones of this.
        self.numbers.copy_within((count - kept) * self.row.., 0);
        let padded = self.padded;
        self.numbers.par_chunks_mut(self.row).enumerate().skip(kept).for_each(|(row, numbers)| {
            // There is a row of zeros above.
            let at = (first * TILE + row).checked_sub(1).filter(|at| *at < x.output()[0]);
            match at {
                Some(at) => level.run_loop(Row { x, at, numbers: &mut numbers[padded..], padded }),
                None => numbers.fill(0.0),
            }
        });
    }
}

/// A row of what is convolved.
struct Row<'a> {
    x: &'a Input<'a>,
    at: usize,
    numbers: &'a mut [f32],
    padded: usize,
}

impl LoopKernel for Row<'_> {
    #[inline(always)]
    fn run(self) {
        let Input { map, width, channels, source, .. } = *self.x;
        let row = |at: usize| map[at * width * channels..][..width * channels].chunks(channels);
        let places = self.numbers.chunks_mut(self.padded).map(|place| &mut place[..channels]);
        match source {
            Source::Itself => places.zip(row(self.at)).for_each(|(place, x)| place.copy_from_slice(x)),
            Source::Doubled => {
                let twice = row(self.at / 2).flat_map(|x| [x, x]);
                places.zip(twice).for_each(|(place, x)| place.copy_from_slice(x));
            }
            Source::Normed(Normed { mean, factor, shift }) => {
                let (mean, factor, shift) = (&mean[..channels], &factor[..channels], &shift[..channels]);
                for (place, x) in places.zip(row(self.at)) {
                    // One length for all, so that the compiler needs to look at none inside the loop.
                    let (place, x) = (&mut place[..channels], &x[..channels]);
                    for i in 0..channels {
                        place[i] = silu_of((x[i] - mean[i]) * factor[i] + shift[i]);
                    }
                }
            }
        }
    }
}
