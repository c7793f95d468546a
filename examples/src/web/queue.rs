//! The queue of jobs and the store of their results, both of bounded size.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::json;

use crate::api_error::ApiError;
use crate::job::{FinishedImage, Job};

/// Maximum number of stored images; the oldest are dropped first.
pub const MAX_STORED_IMAGES: usize = 200;
/// Maximum size of all stored images, in bytes. The newest image is stored even if it is larger.
const MAX_STORED_BYTES: usize = 512 << 20;
/// Maximum number of ended jobs that clients can still look up; the oldest are dropped first.
const MAX_ENDED_JOBS: usize = 200;
/// Maximum `Retry-After`, in seconds.
const MAX_RETRY_AFTER: u64 = 600;

/// Jobs that wait, run or have ended.
pub struct Queue {
    state: Mutex<QueueState>,
    /// Wakes the worker.
    work: Condvar,
    /// Maximum number of jobs that wait while one runs.
    limit: usize,
}

#[derive(Default)]
struct QueueState {
    waiting: VecDeque<Arc<Job>>,
    running: Option<Arc<Job>>,
    ended: VecDeque<Arc<Job>>,
    /// Stored images, oldest first: job, index in the job, size in bytes.
    images: VecDeque<(Arc<Job>, usize, usize)>,
    /// Size of all stored images.
    bytes: usize,
    /// Duration of the last job.
    last_run: Duration,
    closed: bool,
}

impl Queue {
    /// Creates a queue in which at most `limit` jobs wait while one runs.
    pub fn new(limit: usize) -> Self {
        Self { state: Mutex::default(), work: Condvar::new(), limit }
    }

    /// Locks the state. A poisoned lock is used as it is: no panic can leave the state half changed.
    fn state(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends a job.
    ///
    /// # Errors
    ///
    /// Returns an error if the queue is full or closed.
    pub fn push(&self, job: &Arc<Job>) -> Result<(), ApiError> {
        let mut state = self.state();
        state.waiting.retain(|j| !j.has_ended());
        let busy = usize::from(state.running.is_some());
        if state.closed || state.waiting.len() + busy > self.limit {
            // Estimate the time until a job ends by the duration of the last one.
            let seconds = state.last_run.as_secs_f64().ceil() as u64;
            return Err(ApiError::queue_full(state.waiting.len(), seconds.clamp(1, MAX_RETRY_AFTER)));
        }
        state.waiting.push_back(job.clone());
        job.emit("queued", json!({ "position": state.waiting.len() - 1 + busy }));
        drop(state);
        self.work.notify_one();
        Ok(())
    }

    /// Waits for the next job and marks it as running. Returns `None` once the queue is closed. Called by the only worker.
    pub fn next(&self) -> Option<Arc<Job>> {
        let mut state = self.state();
        loop {
            if state.closed {
                return None;
            }
            state.waiting.retain(|j| !j.has_ended());
            if let Some(job) = state.waiting.pop_front() {
                state.running = Some(job.clone());
                emit_positions(&state);
                return Some(job);
            }
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Records that the running job has ended and how long it took.
    pub fn finish(&self, job: Arc<Job>, took: Duration) {
        let mut state = self.state();
        state.running = None;
        state.last_run = took;
        record_ended(&mut state, job);
    }

    /// Stores a finished image and drops the oldest ones beyond the limits.
    pub fn add_image(&self, job: &Arc<Job>, index: usize, image: FinishedImage) {
        let image = Arc::new(image);
        if job.public {
            let mut state = self.state();
            state.bytes += image.png.len();
            state.images.push_back((job.clone(), index, image.png.len()));
            while state.images.len() > MAX_STORED_IMAGES || (state.bytes > MAX_STORED_BYTES && state.images.len() > 1) {
                let Some((job, index, bytes)) = state.images.pop_front() else { break };
                state.bytes -= bytes;
                job.drop_image(index);
            }
        }
        job.add_image(image);
    }

    /// Returns the public job with an identifier, if it is still known.
    pub fn find(&self, id: &str) -> Option<Arc<Job>> {
        let state = self.state();
        let with_images = state.images.iter().map(|(job, ..)| job);
        let mut all = state.waiting.iter().chain(&state.running).chain(&state.ended).chain(with_images);
        all.find(|j| j.public && j.id == id).cloned()
    }

    /// Cancels a job, waiting or running.
    pub fn cancel(&self, job: &Arc<Job>) {
        job.cancel();
        self.remove_cancelled();
    }

    /// Removes the waiting jobs that were cancelled.
    fn remove_cancelled(&self) {
        let mut state = self.state();
        let (cancelled, waiting) = std::mem::take(&mut state.waiting).into_iter().partition::<VecDeque<_>, _>(|j| j.has_ended());
        state.waiting = waiting;
        for job in cancelled {
            record_ended(&mut state, job);
        }
        emit_positions(&state);
    }

    /// Cancels all jobs and accepts no more.
    pub fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        let waiting = std::mem::take(&mut state.waiting);
        let jobs: Vec<_> = waiting.into_iter().chain(state.running.clone()).collect();
        drop(state);
        for job in jobs {
            job.cancel();
        }
        self.work.notify_all();
    }
}

/// Emits the position of every waiting job: the number of jobs ahead of it.
fn emit_positions(state: &QueueState) {
    let busy = usize::from(state.running.is_some());
    for (index, job) in state.waiting.iter().enumerate() {
        job.emit("queued", json!({ "position": index + busy }));
    }
}

/// Stores an ended job and drops the oldest beyond the limit.
fn record_ended(state: &mut QueueState, job: Arc<Job>) {
    // Listeners of the previous job have had the duration of a whole run to receive its transient events.
    if let Some(previous) = state.ended.back() {
        previous.drop_transient_events();
    }
    if job.public {
        state.ended.push_back(job);
    }
    if state.ended.len() > MAX_ENDED_JOBS {
        state.ended.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Settings;

    fn job() -> Arc<Job> {
        let settings = Settings { prompt: "a parrot".into(), ..Settings::default() };
        Job::new(settings.check(1).unwrap(), true)
    }

    #[test]
    fn only_the_newest_images_are_stored() {
        let (queue, first, second) = (Queue::new(1), job(), job());
        queue.add_image(&first, 0, FinishedImage { png: vec![0], seed: 0 });
        for index in 0..MAX_STORED_IMAGES - 1 {
            queue.add_image(&second, index, FinishedImage { png: vec![0], seed: 0 });
        }
        assert!(first.image(0).is_some());
        queue.add_image(&second, MAX_STORED_IMAGES - 1, FinishedImage { png: vec![0], seed: 0 });
        assert!(first.image(0).is_none() && second.image(0).is_some());
        let large = vec![0; MAX_STORED_BYTES + 1];
        queue.add_image(&second, MAX_STORED_IMAGES, FinishedImage { png: large, seed: 0 });
        assert_eq!(second.images().len(), 1);
    }

    #[test]
    fn the_oldest_ended_jobs_are_dropped() {
        let (queue, first) = (Queue::new(0), job());
        for index in 0..=MAX_ENDED_JOBS {
            let job = if index == 0 { first.clone() } else { job() };
            queue.push(&job).unwrap();
            assert!(queue.push(&self::job()).is_err(), "one job waits and the limit is 0");
            assert_eq!(queue.next().unwrap().id, job.id);
            assert!(queue.find(&first.id).is_some());
            job.cancel();
            queue.finish(job, Duration::ZERO);
        }
        assert!(queue.find(&first.id).is_none());
        queue.close();
        assert!(queue.next().is_none() && queue.push(&job()).is_err());
    }

    #[test]
    fn positions_in_the_queue_are_emitted() {
        let (queue, jobs) = (Queue::new(3), [job(), job(), job()]);
        for job in &jobs {
            queue.push(job).unwrap();
        }
        let position = |job: &Job| job.events_since(0).last().map(|e| (e.name, e.data["position"].as_u64()));
        assert_eq!(position(&jobs[2]), Some(("queued", Some(2))));
        queue.next();
        queue.cancel(&jobs[1]);
        assert_eq!(position(&jobs[1]), Some(("cancelled", None)));
        assert_eq!(position(&jobs[2]), Some(("queued", Some(1))));
    }
}
