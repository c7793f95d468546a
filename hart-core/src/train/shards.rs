//! A batch in equal parts, worked on side by side.
//!
//! Many of the CPU backend's operations run on one thread, so a batch in two halves on two threads is quicker than a whole one on
//! both. The parts are added in order: the result depends on how many there are, which is a setting, and not on the threads.

use burn::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::error::{Error, Result};
use crate::kernels;

/// Threads for each part of a batch.
pub(super) struct Shards {
    pools: Vec<ThreadPool>,
}

impl Shards {
    /// As many parts as asked for, sharing the current threads.
    pub(super) fn new(count: usize) -> Result<Self> {
        if count == 0 {
            return Err(Error::request("shards", "is 0, expected at least 1"));
        }
        let threads = (rayon::current_num_threads() / count).max(1);
        let pool = |_| ThreadPoolBuilder::new().num_threads(threads).build();
        let pools = (0..count).map(pool).collect::<Result<_, _>>();
        Ok(Self { pools: pools.map_err(|e| Error::request("shards", format!("{count}: {e}")))? })
    }

    /// Works on each part of a batch; results in the batch's order. A batch that doesn't divide loses its last items.
    ///
    /// # Errors
    ///
    /// The first part's that fails; or if the batch is smaller than the number of parts.
    pub(super) fn each<I: Sync, T: Send>(&self, batch: &[I], work: impl Fn(u32, &[I]) -> Result<T> + Sync) -> Result<Vec<T>> {
        let size = batch.len() / self.pools.len();
        if size == 0 {
            let problem = format!("holds {} items, expected at least one for each of {} shards", batch.len(), self.pools.len());
            return Err(Error::request("batch", problem));
        }
        if self.pools.len() == 1 {
            // Here, on the thread whose stream a GPU's other work is on.
            return Ok(vec![work(0, batch)?]);
        }
        let parts = self.pools.iter().zip(batch.chunks_exact(size)).enumerate();
        std::thread::scope(|scope| {
            let work = &work;
            let running: Vec<_> =
                parts.map(|(index, (pool, part))| scope.spawn(move || pool.install(|| work(index as u32, part)))).collect();
            let done = running.into_iter().map(|part| part.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            done.collect()
        })
    }
}

/// Losses on the host, all read at once: a GPU is waited for only then.
pub(super) fn numbers(losses: Vec<Tensor<1>>) -> Vec<f32> {
    kernels::values(Tensor::cat(losses.into_iter().map(Tensor::detach).collect(), 0))
}
