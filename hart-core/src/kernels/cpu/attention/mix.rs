//! Attention of all rows, heads and blocks of queries, on all cores.

use super::amx;
use super::flash::{self, Scratch};
use super::layout::words;
use super::panels::Panels;
use super::quantized::{Decoded, Rounded, Source};
use super::rows::{Rows, Strides, pair};
use crate::kernels::cpu::amx::AmxToken;
use crate::kernels::cpu::simd::{LoopKernel, SimdLevel};
use crate::kernels::cpu::tasks::{self, SyncPtr};

/// One row of a batch: what asks, what is asked, and where the answer goes.
pub(super) struct Question<'a> {
    /// Their scale holds log2(e) besides.
    pub(super) queries: Rows<'a>,
    /// All that they may look at.
    pub(super) panels: Vec<Keyed<'a>>,
    pub(super) to: Strides,
}

/// Keys and values that came together.
#[derive(Clone, Copy)]
pub(super) enum Keyed<'a> {
    Packed(&'a Panels),
    Rounded(&'a Rounded),
}

impl<'a> Keyed<'a> {
    fn part(self, head: usize) -> Source<'a> {
        match self {
            Self::Packed(panels) => Source::Packed(panels.part(head)),
            Self::Rounded(rounded) => Source::Rounded(rounded.part(head)),
        }
    }
}

/// Sizes that all rows share.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heads {
    /// Heads of the queries.
    pub(super) count: usize,
    /// Heads of the keys and values, of which each serves as many queries' heads.
    pub(super) groups: usize,
    /// Channels of a head.
    pub(super) channels: usize,
    /// Whether a word of keys and values holds two bf16.
    pub(super) pairs: bool,
}

impl Heads {
    /// Whether a word of queries does too.
    fn together(&self, level: SimdLevel) -> bool {
        self.pairs && level.has_bf16()
    }

    /// Words of a query: as many as a key has, by itself or as f32.
    fn depth(&self, level: SimdLevel) -> usize {
        let pairs = words(self.channels, self.pairs);
        if self.pairs && !level.has_bf16() { 2 * pairs } else { pairs }
    }

    /// Registers for matrices, where the processor has them and keys fill them.
    fn matrices(&self, level: SimdLevel) -> Option<AmxToken> {
        level.amx().filter(|_| self.pairs && self.channels.is_multiple_of(2 * amx::TILE_DWORDS))
    }
}

/// Weighted means of values, into `out`.
///
/// # Panics
///
/// If an answer has no room.
pub(super) fn mix(questions: &[Question<'_>], heads: Heads, out: &mut [f32]) {
    mix_by(SimdLevel::best(), questions, heads, out);
}

pub(super) fn mix_by(level: SimdLevel, questions: &[Question<'_>], heads: Heads, out: &mut [f32]) {
    let matrices = heads.matrices(level);
    let most = if matrices.is_some() { amx::QUERIES } else { flash::QUERIES };
    let mut tasks = Vec::new();
    for question in questions {
        assert!(question.to.end(question.queries.tokens, heads.count, heads.channels) <= out.len(), "an answer has room");
        for head in 0..heads.count {
            tasks.extend((0..question.queries.tokens).step_by(most).map(|first| (question, head, first)));
        }
    }
    let out = SyncPtr::new(out.as_mut_ptr());
    let asked = |task: usize| {
        let (question, head, first) = tasks[task];
        let queries = (question.queries.tokens - first).min(most);
        let parts: Vec<Source<'_>> = question.panels.iter().map(|panels| panels.part(head * heads.groups / heads.count)).collect();
        // SAFETY: there is room from here on for these queries, as checked above, and no other task has any of it.
        let to = unsafe { out.get().add(question.to.at(first, head)) };
        let (rows, strides, channels) = (&question.queries, question.to, heads.channels);
        (Asked { rows, head, first, queries, channels, strides, to }, parts)
    };
    if let Some(token) = matrices {
        let room = || (amx::Scratch::new(heads.channels), Decoded::default());
        tasks::for_each(tasks.len(), room, |(scratch, decoded), task| {
            let (asked, parts) = asked(task);
            level.run_loop(AskRows { asked, scratch });
            level.run(amx::Block { token, queries: asked.queries, parts: &parts, scratch, decoded });
            level.run_loop(AnswerRows { asked, scratch });
        });
        return;
    }
    let together = heads.together(level);
    let room = || (Scratch::new(heads.depth(level), heads.channels), Decoded::default());
    tasks::for_each(tasks.len(), room, |(scratch, decoded), task| {
        let (asked, parts) = asked(task);
        level.run_loop(Ask { asked, together, scratch });
        level.run(flash::Block { queries: asked.queries, parts: &parts, pairs: heads.pairs, scratch, decoded });
        level.run_loop(Answer { asked, scratch });
    });
}

/// Some queries of one head, and where their answers go.
#[derive(Clone, Copy)]
struct Asked<'a> {
    rows: &'a Rows<'a>,
    head: usize,
    first: usize,
    queries: usize,
    channels: usize,
    strides: Strides,
    /// There is room for all.
    to: *mut f32,
}

impl Asked<'_> {
    /// Prepares them one after the other; where a channel has no other to be a word with, a zero follows it.
    #[inline(always)]
    fn each(&self, mut take: impl FnMut(usize, &[f32])) {
        let mut bare = vec![0.0; self.channels];
        let mut row = vec![0.0; self.channels.next_multiple_of(2)];
        for query in 0..self.queries {
            self.rows.prepare(self.first + query, self.head, &mut bare, &mut row);
            take(query, &row);
        }
    }

    /// Writes one's weighted sums of values, of so many weights.
    #[inline(always)]
    fn answer(&self, query: usize, weights: f32, mixed: impl Iterator<Item = f32>) {
        let share = 1.0 / weights;
        for (channel, number) in mixed.take(self.channels).enumerate() {
            // SAFETY: whoever made this has seen that there is room.
            unsafe { self.to.add(query * self.strides.token + channel * self.strides.channel).write(number * share) };
        }
    }
}

/// Queries into columns.
struct Ask<'a> {
    asked: Asked<'a>,
    /// Whether a word holds two bf16.
    together: bool,
    scratch: &'a mut Scratch,
}

impl LoopKernel for Ask<'_> {
    #[inline(always)]
    fn run(self) {
        self.asked.each(|query, row| match self.together {
            true => self.scratch.query.set(query, row.chunks_exact(2).map(|two| pair(two[0], two[1]))),
            false => self.scratch.query.set(query, row[..self.asked.channels].iter().copied()),
        });
    }
}

/// Columns of sums into places, divided by the sums of weights.
struct Answer<'a> {
    asked: Asked<'a>,
    scratch: &'a Scratch,
}

impl LoopKernel for Answer<'_> {
    #[inline(always)]
    fn run(self) {
        for query in 0..self.asked.queries {
            let weights = self.scratch.weight.of(query).next().expect("there is one row");
            self.asked.answer(query, weights, self.scratch.mixed.of(query));
        }
    }
}

/// Queries into rows.
struct AskRows<'a> {
    asked: Asked<'a>,
    scratch: &'a mut amx::Scratch,
}

impl LoopKernel for AskRows<'_> {
    #[inline(always)]
    fn run(self) {
        self.asked.each(|query, row| {
            let words = self.scratch.query(query).iter_mut().zip(row.as_chunks::<2>().0);
            words.for_each(|(to, [low, high])| *to = pair(*low, *high));
        });
    }
}

/// Rows of sums into places, divided by the sums of weights.
struct AnswerRows<'a> {
    asked: Asked<'a>,
    scratch: &'a amx::Scratch,
}

impl LoopKernel for AnswerRows<'_> {
    #[inline(always)]
    fn run(self) {
        for query in 0..self.asked.queries {
            let (weights, mixed) = self.scratch.mixed(query);
            self.asked.answer(query, weights, mixed.iter().copied());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::rows::Preparation;
    use super::*;

    fn waves(count: usize, speed: f64) -> Vec<f32> {
        (0..count).map(|i| (i as f64 * speed).sin() as f32).collect()
    }

    /// Keys that come in several parts, the first of which count several times.
    struct Case {
        heads: Heads,
        queries: usize,
        keys: Vec<usize>,
        times: usize,
    }

    const SCALE: f64 = 0.7;

    impl Case {
        fn rows<'a>(&self, numbers: &'a [f32], heads: usize, first: usize, tokens: usize, scale: f64) -> Rows<'a> {
            let channels = self.heads.channels;
            let strides = Strides { start: first * heads * channels, token: heads * channels, head: channels, channel: 1 };
            Rows { numbers, strides, tokens, preparation: Preparation { scale: scale as f32, ..Preparation::NONE } }
        }

        /// Queries, keys, values.
        fn numbers(&self) -> [Vec<f32>; 3] {
            let Heads { count, groups, channels, .. } = self.heads;
            let keys: usize = self.keys.iter().sum();
            let lengths = [self.queries * count * channels, keys * groups * channels, keys * groups * channels];
            [(lengths[0], 0.7), (lengths[1], 0.31), (lengths[2], 1.3)].map(|(length, speed)| waves(length, speed))
        }

        fn answer(&self, level: SimdLevel) -> Vec<f32> {
            self.answer_of(level, false)
        }

        /// With all but the last keys and values in 8 bits.
        fn answer_of(&self, level: SimdLevel, rounded: bool) -> Vec<f32> {
            let Heads { count, groups, channels, pairs } = self.heads;
            let [q, k, v] = self.numbers();
            let mut first = 0;
            let panels: Vec<Panels> = self
                .keys
                .iter()
                .map(|&keys| {
                    let (key, value) = (self.rows(&k, groups, first, keys, 1.0), self.rows(&v, groups, first, keys, 1.0));
                    let panels = Panels::default().packed(&key, &value, groups, channels, pairs);
                    let panels = if first == 0 { panels.counting(self.times) } else { panels };
                    first += keys;
                    panels
                })
                .collect();
            let queries = self.rows(&q, count, 0, self.queries, SCALE * std::f64::consts::LOG2_E);
            let before: Vec<Rounded> = panels[..panels.len() - 1].iter().map(|panels| Rounded::of(panels, channels)).collect();
            let last = panels.last().map(Keyed::Packed);
            let panels = match rounded {
                true => before.iter().map(Keyed::Rounded).chain(last).collect(),
                false => panels.iter().map(Keyed::Packed).collect(),
            };
            let question = Question { queries, panels, to: queries.strides };
            let mut out = vec![0.0; q.len()];
            mix_by(level, &[question], self.heads, &mut out);
            out
        }

        /// A plain softmax in f64.
        fn expected(&self) -> Vec<f64> {
            let Heads { count, groups, channels, .. } = self.heads;
            let [q, k, v] = self.numbers();
            let keys: usize = self.keys.iter().sum();
            let row =
                |numbers: &[f32], at: usize| numbers[at * channels..][..channels].iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
            let mut all = Vec::new();
            for (query, head) in (0..self.queries).flat_map(|query| (0..count).map(move |head| (query, head))) {
                let asked = row(&q, query * count + head);
                let group = head * groups / count;
                let weights: Vec<f64> = (0..keys)
                    .map(|key| {
                        let dot: f64 = row(&k, key * groups + group).iter().zip(&asked).map(|(a, b)| a * b).sum();
                        (dot * SCALE).exp() * if key < self.keys[0] { self.times as f64 } else { 1.0 }
                    })
                    .collect();
                let sum: f64 = weights.iter().sum();
                for channel in 0..channels {
                    let value = |key: usize| f64::from(v[(key * groups + group) * channels + channel]);
                    all.push(weights.iter().enumerate().map(|(key, weight)| weight * value(key)).sum::<f64>() / sum);
                }
            }
            all
        }
    }

    fn cases(pairs: bool) -> Vec<Case> {
        let case = |(count, groups, channels, queries, times), keys: &[usize]| Case {
            heads: Heads { count, groups, channels, pairs },
            queries,
            keys: keys.to_vec(),
            times,
        };
        vec![
            case((1, 1, 8, 1, 1), &[1]),
            case((4, 2, 16, 5, 300), &[1, 4, 9]),
            case((3, 3, 24, 49, 7), &[3, 129, 257, 8]),
            case((2, 1, 64, 97, 1), &[300, 1, 64]),
            case((1, 1, 96, 131, 5), &[33, 140]),
            case((1, 1, 640, 33, 2), &[70]),
            case((2, 2, 7, 20, 5), &[11, 130]),
        ]
    }

    /// bf16 keeps 8 bits of queries, keys, weights and values.
    #[test]
    fn every_level_gives_the_softmax() {
        for (pairs, tolerance) in [(false, 5e-6), (true, 2e-2)] {
            for case in cases(pairs) {
                let want = case.expected();
                for level in SimdLevel::all() {
                    let got = case.answer(level);
                    let error = got.iter().zip(&want).map(|(got, want)| (f64::from(*got) - want).abs()).fold(0.0, f64::max);
                    assert!(error < tolerance, "{level:?}, {:?}, keys {:?}: off by {error}", case.heads, case.keys);
                }
            }
        }
    }

    /// A hundredth of what keys and values measure, beside bf16.
    #[test]
    fn rounded_keys_and_values_are_close() {
        for case in cases(true).into_iter().chain([Case { queries: 700, ..cases(true).remove(3) }]) {
            let want = case.answer(SimdLevel::best());
            for level in SimdLevel::all() {
                let got = case.answer_of(level, true);
                let error = got.iter().zip(&want).map(|(got, want)| (got - want).abs()).fold(0.0, f32::max);
                assert!(error < 2e-2, "{level:?}, {:?}, keys {:?}: off by {error}", case.heads, case.keys);
                assert!(case.keys.len() == 1 || got != want, "something was rounded");
            }
        }
    }

    #[test]
    fn same_bits_with_any_number_of_threads() {
        for case in cases(false).iter().chain(&cases(true)) {
            let with = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| case.answer(SimdLevel::best())).into_iter().map(f32::to_bits).collect::<Vec<_>>()
            };
            assert!(with(1) == with(2) && with(1) == with(5));
        }
    }

    /// Far below zero everywhere, as long as no score is larger; and what isn't a number stays none.
    #[test]
    fn scores_of_any_size() {
        let heads = Heads { count: 1, groups: 1, channels: 2, pairs: false };
        let case = Case { heads, queries: 2, keys: vec![3], times: 1 };
        let answer = |q: [f32; 4], k: [f32; 6]| {
            let v = [1.0, 2.0, 3.0, 4.0, 5.0, 9.0];
            let panels = Panels::default().packed(&case.rows(&k, 1, 0, 3, 1.0), &case.rows(&v, 1, 0, 3, 1.0), 1, 2, false);
            let queries = case.rows(&q, 1, 0, 2, 1.0);
            let mut out = vec![0.0; 4];
            mix(&[Question { queries, panels: vec![Keyed::Packed(&panels)], to: queries.strides }], heads, &mut out);
            out
        };
        let far = answer([-1e4, 0.0, 0.0, 0.0], [1.0, 0.0, 1.0, 0.0, 1.0, 0.0]);
        assert_eq!(far, [3.0, 5.0, 3.0, 5.0]);
        let none = answer([f32::NAN, 0.0, 0.0, 1.0], [0.0; 6]);
        assert!(none[..2].iter().all(|x| x.is_nan()) && none[2..] == [3.0, 5.0]);
    }

    /// Blocks of keys with small scores, with large ones and far below zero, in any order: those with the largest are what counts. What
    /// isn't a number spoils nobody else.
    #[test]
    fn scores_of_every_size_among_each_other() {
        let (channels, keys) = (32, 128);
        let heads = Heads { count: 1, groups: 1, channels, pairs: true };
        let case = Case { heads, queries: 35, keys: vec![3 * keys], times: 1 };
        let (mut q, none) = (vec![1.0; case.queries * channels], 3);
        q[none * channels] = f32::NAN;
        for scores in
            [[1.0, 100.0, -300.0], [100.0, 1.0, -300.0], [-300.0, 1.0, 100.0], [-300.0, -200.0, -300.0], [1.0, -300.0, 0.0]]
        {
            let of = |numbers: [f32; 3]| numbers.into_iter().flat_map(|x| vec![x; keys * channels]).collect::<Vec<_>>();
            let (k, v) = (of(scores.map(|score| score / channels as f32)), of([1.0, 2.0, 4.0]));
            let panels = Panels::default().packed(
                &case.rows(&k, 1, 0, 3 * keys, 1.0),
                &case.rows(&v, 1, 0, 3 * keys, 1.0),
                1,
                channels,
                true,
            );
            let queries = case.rows(&q, 1, 0, case.queries, 1.0);
            let weights = scores.map(|score| 2f32.powf(score - scores.into_iter().fold(f32::MIN, f32::max)));
            let want = (weights[0] + 2.0 * weights[1] + 4.0 * weights[2]) / weights.iter().sum::<f32>();
            for level in SimdLevel::all() {
                let mut out = vec![0.0; q.len()];
                mix_by(level, &[Question { queries, panels: vec![Keyed::Packed(&panels)], to: queries.strides }], heads, &mut out);
                for (query, got) in out.chunks(channels).enumerate() {
                    let right = |x: &f32| if query == none { x.is_nan() } else { (x - want).abs() < 2e-2 };
                    assert!(got.iter().all(right), "{level:?}, {scores:?}, query {query}: {} and not {want}", got[0]);
                }
            }
        }
    }
}
