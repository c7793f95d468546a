//! Work in many equal parts, on all threads.

use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

/// Does `work` for each of so many tasks. A thread makes its `room` once, and takes one task after the other: whoever is done early,
/// takes from the others to the end.
pub(super) fn each<R>(count: usize, room: impl Fn() -> R + Sync, work: impl Fn(&mut R, usize) + Sync) {
    let next = AtomicUsize::new(0);
    (0..rayon::current_num_threads().min(count)).into_par_iter().with_max_len(1).for_each(|_| {
        let mut room = room();
        loop {
            let task = next.fetch_add(1, Ordering::Relaxed);
            if task >= count {
                break;
            }
            work(&mut room, task);
        }
    });
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
                each(
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
