//! The KV cache of a run.

use crate::device::Precision;
use crate::kernels::{KvAppend, KvScratch, KvStore};

/// Keys and values of all blocks and all scales so far.
#[derive(Clone, Debug)]
pub(crate) struct KvCache {
    blocks: Vec<KvStore>,
    /// Memory of the last scale's keys and values, block after block.
    scratch: KvScratch,
}

impl KvCache {
    /// Creates an empty cache for a model of this precision; later scales attend to at most `capacity` tokens of a row.
    pub(crate) fn new(blocks: usize, precision: Precision, capacity: usize) -> Self {
        Self { blocks: vec![KvStore::new(precision, capacity); blocks], scratch: KvScratch::default() }
    }

    /// Returns a block's past keys and values and the destination of new ones. Those of the last scale are not stored: no scale
    /// attends to them.
    pub(crate) fn block(&mut self, index: usize, is_last_scale: bool) -> KvAppend<'_> {
        let block = &mut self.blocks[index];
        if is_last_scale { block.append_last(&mut self.scratch) } else { block.append() }
    }
}
