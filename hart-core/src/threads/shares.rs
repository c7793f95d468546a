//! Shares of a model's threads, for images that are generated at once.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rayon::ThreadPool;

use super::pool::OwnPool;

/// Time between two looks at the cancel token of an image that waits.
const POLL: Duration = Duration::from_millis(5);

/// The images that a model generates at once, and the pools that they use.
///
/// An image uses all threads if it is alone. Otherwise it uses a pool with its share of the threads, on which nothing else runs.
#[derive(Debug)]
pub(super) struct Shares {
    parallel: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Number of images that are being generated.
    running: usize,
    /// The images that wait, the first one in front, by number.
    waiting: VecDeque<u64>,
    /// Number of the next image that waits.
    next: u64,
    /// Pools that no image uses, with their numbers of threads. The last one was used last.
    idle: Vec<(usize, OwnPool)>,
}

impl Shares {
    /// Creates the shares of a model that generates at most `parallel` images at once.
    pub(super) fn new(parallel: usize) -> Self {
        Self { parallel, state: Mutex::default(), changed: Condvar::new() }
    }

    /// Returns the maximum number of images at once.
    pub(super) fn parallel(&self) -> usize {
        self.parallel
    }

    /// Waits until an image can begin, in the order of the calls. `threads` is the number of threads of all images, and `siblings` the
    /// number of images that its run wants to generate at once. Returns `None` if the image is cancelled while it waits.
    pub(super) fn enter(&self, threads: usize, siblings: usize, is_cancelled: impl Fn() -> bool) -> Option<Share<'_>> {
        let mut state = self.lock();
        let number = state.next;
        state.next += 1;
        state.waiting.push_back(number);
        while state.running >= self.parallel || state.waiting.front() != Some(&number) {
            if is_cancelled() {
                state.waiting.retain(|other| *other != number);
                self.changed.notify_all();
                return None;
            }
            state = self.changed.wait_timeout(state, POLL).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.waiting.pop_front();
        let at_once = siblings.max(state.running + 1 + state.waiting.len());
        let count = share(threads, at_once.next_power_of_two().min(self.parallel), state.running);
        let pool = (count < threads).then(|| {
            let found = state.idle.iter().rposition(|(idle, _)| *idle == count);
            found.map_or_else(|| (count, OwnPool::new()), |at| state.idle.remove(at))
        });
        state.running += 1;
        self.changed.notify_all();
        drop(state);
        let mut share = Share { shares: self, threads, pool, started: None };
        // Without a pool of its own, the image uses all threads.
        share.started = share.pool.as_ref().and_then(|(count, pool)| pool.get(Some(*count)).ok());
        Some(share)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the number of threads of an image while `running` others are generated, if `at_once` images divide the threads.
fn share(threads: usize, at_once: usize, running: usize) -> usize {
    // The first images get what is left over.
    ((threads + at_once - 1 - running.min(at_once - 1)) / at_once).max(1)
}

/// An image's share of the threads, until it is dropped.
#[derive(Debug)]
pub(super) struct Share<'a> {
    shares: &'a Shares,
    /// Number of threads of all images.
    threads: usize,
    pool: Option<(usize, OwnPool)>,
    started: Option<Arc<ThreadPool>>,
}

impl Share<'_> {
    /// Returns the image's own pool, or `None` if it uses all threads.
    pub(super) fn pool(&self) -> Option<&ThreadPool> {
        self.started.as_deref()
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        self.started = None;
        let mut state = self.shares.lock();
        state.running -= 1;
        state.idle.extend(self.pool.take());
        // Pools of sizes that are no longer used are stopped.
        let mut total = 0;
        let kept = state.idle.iter().rev().take_while(|(count, _)| {
            total += count;
            total <= self.threads
        });
        let stopped = state.idle.len() - kept.count();
        let stopped: Vec<(usize, OwnPool)> = state.idle.drain(..stopped).collect();
        self.shares.changed.notify_all();
        drop(state);
        drop(stopped);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use super::*;

    #[test]
    fn images_divide_the_threads() {
        let shares = |threads, at_once| (0..at_once).map(|running| share(threads, at_once, running)).collect::<Vec<usize>>();
        assert_eq!(shares(4, 1), [4]);
        assert_eq!(shares(4, 2), [2, 2]);
        assert_eq!(shares(7, 3), [3, 2, 2]);
        assert_eq!(shares(2, 4), [1, 1, 1, 1]);
        assert_eq!(share(6, 2, 5), 3);
    }

    #[test]
    fn an_image_alone_has_all_threads_and_pools_are_used_again() {
        let shares = Shares::new(2);
        let enter = |siblings| shares.enter(4, siblings, || false).unwrap();
        let threads = |share: &Share<'_>| share.pool().map(ThreadPool::current_num_threads);
        let alone = enter(1);
        assert_eq!(threads(&alone), None);
        let second = enter(1);
        assert_eq!(threads(&second), Some(2));
        drop((alone, second));
        assert_eq!(shares.lock().idle.len(), 1);
        let (first, second) = (enter(2), enter(2));
        assert_eq!((threads(&first), threads(&second)), (Some(2), Some(2)));
        drop((first, second));
        assert_eq!(shares.lock().running, 0);
        assert_eq!(shares.lock().idle.len(), 2);
        // Pools of another size replace them.
        drop([1, 1].map(|_| shares.enter(2, 2, || false).unwrap()));
        assert!(shares.lock().idle.iter().all(|(count, _)| *count == 1));
    }

    #[test]
    fn images_wait_for_their_turn_and_can_be_cancelled_meanwhile() {
        let (shares, running, most) = (Shares::new(3), AtomicUsize::new(0), AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        let _share = shares.enter(3, 1, || false).unwrap();
                        most.fetch_max(running.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
                        thread::sleep(Duration::from_micros(100));
                        running.fetch_sub(1, Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(most.load(Ordering::Relaxed), 3);
        let all = [1, 1, 1].map(|_| shares.enter(3, 1, || false).unwrap());
        assert!(shares.enter(3, 1, || true).is_none());
        assert!(shares.lock().waiting.is_empty());
        drop(all);
        assert_eq!(shares.lock().running, 0);
    }
}
