//! Data parallelism within a process: splits a batch into shards of equal size, which run in parallel.
//!
//! Many of the CPU backend's operations use one thread, so two half batches on two threads are faster than a whole batch on both. The
//! results are added in order. They depend on the number of shards, which is an option, and not on the number of threads.

use burn::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::error::{Error, Result};
use crate::kernels;

/// A thread pool for each shard of a batch.
pub(super) struct Shards {
    pools: Vec<ThreadPool>,
}

impl Shards {
    /// Divides the current threads among `count` shards.
    pub(super) fn new(count: usize) -> Result<Self> {
        if count == 0 {
            return Err(Error::request("shards", "is 0, expected at least 1"));
        }
        let threads = (rayon::current_num_threads() / count).max(1);
        let pool = |_| ThreadPoolBuilder::new().num_threads(threads).build();
        let pools = (0..count).map(pool).collect::<Result<_, _>>();
        Ok(Self { pools: pools.map_err(|e| Error::request("shards", format!("{count}: {e}")))? })
    }

    /// Calls `work` with the index and the items of each shard, in parallel, and returns the results in order. If the batch size is
    /// not a multiple of the number of shards, the last items are dropped.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] if there are fewer items than shards; the error of the first shard that fails.
    pub(super) fn map<I: Sync, T: Send>(&self, batch: &[I], work: impl Fn(u32, &[I]) -> Result<T> + Sync) -> Result<Vec<T>> {
        let size = batch.len() / self.pools.len();
        if size == 0 {
            let problem = format!("holds {} items, expected at least one for each of {} shards", batch.len(), self.pools.len());
            return Err(Error::request("batch", problem));
        }
        if self.pools.len() == 1 {
            // Stays on this thread, which owns the GPU's stream.
            return Ok(vec![work(0, batch)?]);
        }
        let shards = self.pools.iter().zip(batch.chunks_exact(size)).enumerate();
        std::thread::scope(|scope| {
            let work = &work;
            let running: Vec<_> =
                shards.map(|(index, (pool, items))| scope.spawn(move || pool.install(|| work(index as u32, items)))).collect();
            let results = running.into_iter().map(|shard| shard.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            results.collect()
        })
    }
}

/// Reads tensors of one element each, with a single synchronisation of the device.
pub(super) fn read_scalars(scalars: Vec<Tensor<1>>) -> Vec<f32> {
    kernels::values(Tensor::cat(scalars.into_iter().map(Tensor::detach).collect(), 0))
}
