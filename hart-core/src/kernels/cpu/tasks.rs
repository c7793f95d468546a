//! Parallel work in many equal tasks, and the pointer by which tasks share their output.

use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

/// Runs `work` for every task below `count` on all threads. Each thread allocates its scratch memory once and then takes the next
/// task until none is left, which balances the load.
pub(super) fn for_each<T>(count: usize, scratch: impl Fn() -> T + Sync, work: impl Fn(&mut T, usize) + Sync) {
    let next = AtomicUsize::new(0);
    (0..rayon::current_num_threads().min(count)).into_par_iter().with_max_len(1).for_each(|_| {
        let mut scratch = scratch();
        loop {
            let task = next.fetch_add(1, Ordering::Relaxed);
            if task >= count {
                break;
            }
            work(&mut scratch, task);
        }
    });
}

/// A pointer to output that tasks write in parallel, each to its own elements.
pub(super) struct SyncPtr<T>(*mut T);

// SAFETY: the pointer is dereferenced only in unsafe code, which must keep the tasks' elements disjoint.
unsafe impl<T: Send> Sync for SyncPtr<T> {}

impl<T> SyncPtr<T> {
    pub(super) fn new(pointer: *mut T) -> Self {
        Self(pointer)
    }

    #[inline(always)]
    pub(super) fn get(&self) -> *mut T {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_is_done_once_with_any_number_of_threads() {
        for (threads, count) in [(1, 5), (3, 1000), (5, 2), (2, 0)] {
            let done: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                for_each(
                    count,
                    || (),
                    |(), task| {
                        done[task].fetch_add(1, Ordering::Relaxed);
                    },
                )
            });
            assert!(done.iter().all(|times| times.load(Ordering::Relaxed) == 1));
        }
    }
}
