//! The parallel driver: splits attention into query blocks of all batch rows and heads and computes them on all cores.

use super::amx;
use super::bias::{LoadBiasColumns, ScoreBias};
use super::columns;
use super::flash;
use super::layout::{dword_count, pack_bf16};
use super::quantized_kv::BlockBuffer;
use super::segment::{Segment, SegmentHead};
use super::token_view::{Strides, TokenView};
use crate::kernels::cpu::amx::AmxToken;
use crate::kernels::cpu::simd::{LoopKernel, SimdLevel};
use crate::kernels::cpu::tasks::{self, SyncPtr};

/// Tasks that each thread has at least, if there are enough query blocks.
const TASKS_PER_THREAD: usize = 8;

/// Queries, keys and values of one batch row.
pub(super) struct BatchRow<'a> {
    /// Queries, also scaled by log2(e), since the softmax uses powers of two.
    pub(super) queries: TokenView<'a>,
    /// All keys and values that the queries attend to.
    pub(super) segments: Vec<Segment<'a>>,
    /// Bias on the scores, for a single segment in f32.
    pub(super) bias: Option<ScoreBias<'a>>,
    /// Layout of this row in the output.
    pub(super) output: Strides,
}

/// Sizes of the heads, and the type of keys and values.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeadConfig {
    /// Heads of the queries.
    pub(super) heads: usize,
    /// Heads of keys and values, each shared by `heads / kv_heads` heads of queries.
    pub(super) kv_heads: usize,
    /// Channels of a head.
    pub(super) head_dim: usize,
    /// `true` if keys and values are bf16, two to a dword.
    pub(super) bf16: bool,
}

impl HeadConfig {
    /// Returns whether queries are bf16: if keys are, and the processor multiplies bf16.
    fn bf16_queries(&self, level: SimdLevel) -> bool {
        self.bf16 && level.has_bf16()
    }

    /// Returns the number of dwords of a query: that of a packed key or, if keys have to be widened to f32, that of a widened key.
    fn query_dwords(&self, level: SimdLevel) -> usize {
        let key_dwords = dword_count(self.head_dim, self.bf16);
        if self.bf16 && !level.has_bf16() { 2 * key_dwords } else { key_dwords }
    }

    /// Returns the permission to use AMX, if the processor has it and keys fill whole tiles.
    fn amx(&self, level: SimdLevel) -> Option<AmxToken> {
        level.amx().filter(|_| self.bf16 && self.head_dim.is_multiple_of(2 * amx::TILE_DWORDS))
    }
}

/// Computes `softmax(q k^T) v` of all batch rows into `out`.
///
/// # Panics
///
/// If `out` is too short for a row.
pub(super) fn attend(rows: &[BatchRow<'_>], config: HeadConfig, out: &mut [f32]) {
    attend_with(SimdLevel::best(), rows, config, out);
}

/// Like [`attend`], with chosen instructions.
pub(super) fn attend_with(level: SimdLevel, rows: &[BatchRow<'_>], config: HeadConfig, out: &mut [f32]) {
    let amx = config.amx(level);
    // Keys and values that must be converted are read by several query blocks together, as long as all threads have work.
    let single = rows.iter().map(|row| config.heads * row.queries.tokens.div_ceil(columns::QUERY_BLOCK)).sum::<usize>();
    let blocks = (single / (TASKS_PER_THREAD * rayon::current_num_threads())).clamp(1, flash::MAX_QUERY_BLOCKS);
    let task_size = if amx.is_some() { amx::QUERY_BLOCK } else { blocks * columns::QUERY_BLOCK };
    // One task for each row, head and some queries.
    let mut tasks = Vec::new();
    for row in rows {
        assert!(row.output.end(row.queries.tokens, config.heads, config.head_dim) <= out.len(), "the output holds all rows");
        for head in 0..config.heads {
            tasks.extend((0..row.queries.tokens).step_by(task_size).map(|first| (row, head, first)));
        }
    }
    let out = SyncPtr::new(out.as_mut_ptr());
    let operands = |task: usize| {
        let (row, head, first) = tasks[task];
        let count = (row.queries.tokens - first).min(task_size);
        let kv_head = head * config.kv_heads / config.heads;
        let segments: Vec<SegmentHead<'_>> = row.segments.iter().map(|segment| segment.head(kv_head)).collect();
        // SAFETY: the assertion above shows that the output holds the row, and no other task writes to these queries of it.
        let out = unsafe { out.get().add(row.output.offset(first, head)) };
        let (queries, head_dim, strides) = (&row.queries, config.head_dim, row.output);
        (QueryBlock { queries, head, first, count, head_dim, strides, out }, segments, row.bias)
    };
    if let Some(token) = amx {
        let scratch = || (amx::Scratch::new(config.head_dim), BlockBuffer::default());
        tasks::for_each(tasks.len(), scratch, |(scratch, buffer), task| {
            let (block, segments, _) = operands(task);
            level.run_loop(LoadQueryRows { block, scratch });
            level.run(amx::Attend { token, queries: block.count, segments: &segments, scratch, buffer });
            level.run_loop(StoreOutputRows { block, scratch });
        });
        return;
    }
    let bf16_queries = config.bf16_queries(level);
    let scratch = || flash::Scratch::new(blocks, config.query_dwords(level), config.head_dim);
    tasks::for_each(tasks.len(), scratch, |scratch, task| {
        let (queries, segments, bias) = operands(task);
        let used = queries.count.div_ceil(columns::QUERY_BLOCK);
        for (index, state) in scratch.blocks[..used].iter_mut().enumerate() {
            let block = queries.block(index);
            if let Some(bias) = bias {
                level.run_loop(LoadBiasColumns { bias, first: block.first, count: block.count, to: &mut state.bias });
            }
            level.run_loop(LoadQueryColumns { block, bf16: bf16_queries, state });
        }
        let flash::Scratch { blocks, scores, buffer } = scratch;
        let (bf16, biased) = (config.bf16, bias.is_some());
        level.run(flash::Attend { segments: &segments, bf16, biased, blocks: &mut blocks[..used], scores, buffer });
        for (index, state) in scratch.blocks[..used].iter().enumerate() {
            level.run_loop(StoreOutputColumns { block: queries.block(index), state });
        }
    });
}

/// Some queries of one batch row and head, and their output.
#[derive(Clone, Copy)]
struct QueryBlock<'a> {
    queries: &'a TokenView<'a>,
    head: usize,
    /// First token.
    first: usize,
    /// Number of queries.
    count: usize,
    head_dim: usize,
    /// Layout of the output.
    strides: Strides,
    /// First element of the output, which holds all queries.
    out: *mut f32,
}

impl QueryBlock<'_> {
    /// Returns the part that [`flash`] keeps in one matrix.
    fn block(self, index: usize) -> Self {
        let skip = index * columns::QUERY_BLOCK;
        assert!(skip < self.count, "the block has queries");
        // SAFETY: the output holds all queries, and there are more than are skipped.
        let out = unsafe { self.out.add(skip * self.strides.token) };
        Self { first: self.first + skip, count: (self.count - skip).min(columns::QUERY_BLOCK), out, ..self }
    }

    /// Calls `store` with each query and its channels. A zero follows the last channel if `head_dim` is odd.
    #[inline(always)]
    fn load(&self, mut store: impl FnMut(usize, &[f32])) {
        let mut temp = vec![0.0; self.head_dim];
        let mut channels = vec![0.0; self.head_dim.next_multiple_of(2)];
        for query in 0..self.count {
            self.queries.load(self.first + query, self.head, &mut temp, &mut channels);
            store(query, &channels);
        }
    }

    /// Divides the accumulated output of a query by its row sum and writes it.
    #[inline(always)]
    fn store(&self, query: usize, row_sum: f32, acc: impl Iterator<Item = f32>) {
        let normalizer = 1.0 / row_sum;
        for (channel, x) in acc.take(self.head_dim).enumerate() {
            // SAFETY: `out` holds all queries and channels of the block.
            unsafe { self.out.add(query * self.strides.token + channel * self.strides.channel).write(x * normalizer) };
        }
    }
}

/// Loads a query block for [`flash`], one column per query.
struct LoadQueryColumns<'a> {
    block: QueryBlock<'a>,
    bf16: bool,
    state: &'a mut flash::QueryState,
}

impl LoopKernel for LoadQueryColumns<'_> {
    #[inline(always)]
    fn run(self) {
        self.state.queries = self.block.count;
        self.block.load(|query, channels| match self.bf16 {
            true => self.state.query.set_column(query, channels.chunks_exact(2).map(|pair| pack_bf16(pair[0], pair[1]))),
            false => self.state.query.set_column(query, channels[..self.block.head_dim].iter().copied()),
        });
    }
}

/// Normalises the output of [`flash`] and stores it.
struct StoreOutputColumns<'a> {
    block: QueryBlock<'a>,
    state: &'a flash::QueryState,
}

impl LoopKernel for StoreOutputColumns<'_> {
    #[inline(always)]
    fn run(self) {
        for query in 0..self.block.count {
            let row_sum = self.state.row_sum.column(query).next().expect("there is one row");
            self.block.store(query, row_sum, self.state.acc.column(query));
        }
    }
}

/// Loads a query block for [`amx`], one row per query.
struct LoadQueryRows<'a> {
    block: QueryBlock<'a>,
    scratch: &'a mut amx::Scratch,
}

impl LoopKernel for LoadQueryRows<'_> {
    #[inline(always)]
    fn run(self) {
        self.block.load(|query, channels| {
            let dwords = self.scratch.query_mut(query).iter_mut().zip(channels.as_chunks::<2>().0);
            dwords.for_each(|(to, [low, high])| *to = pack_bf16(*low, *high));
        });
    }
}

/// Normalises the output of [`amx`] and stores it.
struct StoreOutputRows<'a> {
    block: QueryBlock<'a>,
    scratch: &'a amx::Scratch,
}

impl LoopKernel for StoreOutputRows<'_> {
    #[inline(always)]
    fn run(self) {
        for query in 0..self.block.count {
            let (row_sum, acc) = self.scratch.output(query);
            self.block.store(query, row_sum, acc.iter().copied());
        }
    }
}
