//! The KV cache of a run.

use crate::kernels::{KvAppend, KvScratch, KvStore};

/// Keys and values of all blocks and all scales so far.
#[derive(Clone, Debug)]
pub(crate) struct KvCache {
    blocks: Vec<KvStore>,
    /// Memory of the last scale's keys and values, which one block after another uses.
    scratch: KvScratch,
}

impl KvCache {
    /// Creates a cache from the empty store of each block.
    pub(crate) fn new(blocks: Vec<KvStore>) -> Self {
        Self { blocks, scratch: KvScratch::default() }
    }

    /// Returns a block's past keys and values and the destination of new ones. Those of the last scale are not stored: no scale
    /// attends to them.
    pub(crate) fn block(&mut self, index: usize, is_last_scale: bool) -> KvAppend<'_> {
        let block = &mut self.blocks[index];
        if is_last_scale { block.append_last(&mut self.scratch) } else { block.append() }
    }
}
