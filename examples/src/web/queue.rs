//! The queue of jobs and the store of their results, both of bounded size.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::api_error::ApiError;
use crate::job::{FinishedImage, Job};

/// Maximum number of stored images; the oldest are dropped first.
pub const MAX_STORED_IMAGES: usize = 200;
/// Maximum size of all stored images, in bytes. The newest image is stored even if it is larger.
const MAX_STORED_BYTES: usize = 512 << 20;
/// Maximum number of ended jobs that clients can still look up; the oldest are dropped first.
const MAX_ENDED_JOBS: usize = 200;
/// Maximum `Retry-After`, in seconds. Clients ignore longer times, or give up.
const MAX_RETRY_AFTER: u64 = 60;
/// Weight of a run in the mean time of an image.
const MEAN_WEIGHT: f64 = 0.3;

/// Jobs that wait, run or have ended.
pub struct Queue {
    state: Mutex<QueueState>,
    /// Wakes the workers.
    work: Condvar,
    /// Maximum number of jobs that wait while others run.
    limit: usize,
    /// Maximum number of jobs that run.
    workers: usize,
}

#[derive(Default)]
struct QueueState {
    waiting: VecDeque<Arc<Job>>,
    /// The oldest one first.
    running: Vec<Running>,
    ended: VecDeque<Arc<Job>>,
    /// Stored images, oldest first: job, index in the job, size in bytes.
    images: VecDeque<(Arc<Job>, usize, usize)>,
    /// Size of all stored images.
    bytes: usize,
    /// Mean time from one finished image to the next in the last runs, in seconds.
    image_seconds: Option<f64>,
    /// Refused jobs: when their clients were asked to come back, and their numbers of images.
    promised: VecDeque<(Instant, usize)>,
    /// True once no more jobs are accepted.
    draining: bool,
    closed: bool,
}

/// A job that a worker runs.
struct Running {
    job: Arc<Job>,
    started: Instant,
}

impl Queue {
    /// Creates a queue in which at most `limit` jobs wait while as many run as there are workers.
    pub fn new(limit: usize, workers: usize) -> Self {
        Self { state: Mutex::default(), work: Condvar::new(), limit, workers }
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
        if state.draining || state.closed {
            return Err(ApiError::stopping());
        }
        if state.waiting.len() + state.running.len() >= self.limit + self.workers {
            let seconds = state.promise(job.count);
            return Err(ApiError::queue_full(state.waiting.len(), seconds));
        }
        state.waiting.push_back(job.clone());
        job.emit("queued", json!({ "position": self.position(&state, state.waiting.len() - 1) }));
        drop(state);
        self.work.notify_one();
        Ok(())
    }

    /// Waits for the next job and marks it as running. Returns `None` once the queue is closed. Called by the workers.
    pub fn next(&self) -> Option<Arc<Job>> {
        let mut state = self.state();
        loop {
            if state.closed {
                return None;
            }
            state.waiting.retain(|j| !j.has_ended());
            if let Some(job) = state.waiting.pop_front() {
                state.running.push(Running { job: job.clone(), started: Instant::now() });
                self.emit_positions(&state);
                return Some(job);
            }
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Records that a running job has ended and how long it took.
    pub fn finish(&self, job: Arc<Job>, took: Duration) {
        let mut state = self.state();
        let at_once = state.running.len().max(1);
        state.running.retain(|running| !Arc::ptr_eq(&running.job, &job));
        let finished = job.finished();
        if finished > 0 {
            // The other jobs have finished about as many images meanwhile.
            let seconds = took.as_secs_f64() / (finished * at_once) as f64;
            let mean = state.image_seconds.unwrap_or(seconds);
            state.image_seconds = Some(mean + MEAN_WEIGHT * (seconds - mean));
        }
        record_ended(&mut state, job);
        self.emit_positions(&state);
    }

    /// Stores a finished image and drops the oldest ones beyond the limits.
    pub fn add_image(&self, job: &Arc<Job>, index: usize, image: FinishedImage) {
        let image = Arc::new(image);
        if job.delivery.public {
            let mut state = self.state();
            state.bytes += image.file.len();
            state.images.push_back((job.clone(), index, image.file.len()));
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
        let running = state.running.iter().map(|running| &running.job);
        let mut all = state.waiting.iter().chain(running).chain(&state.ended).chain(with_images);
        all.find(|j| j.delivery.public && j.id == id).cloned()
    }

    /// Returns the running jobs that have not emitted their last events, the oldest one first.
    pub fn running(&self) -> Vec<Arc<Job>> {
        let state = self.state();
        state.running.iter().map(|running| &running.job).filter(|job| !job.has_ended()).cloned().collect()
    }

    /// Returns the numbers of waiting and of running jobs.
    pub fn lengths(&self) -> (usize, usize) {
        let state = self.state();
        (
            state.waiting.iter().filter(|job| !job.has_ended()).count(),
            state.running.iter().filter(|running| !running.job.has_ended()).count(),
        )
    }

    /// Returns the size of all stored images, in bytes.
    pub fn stored_bytes(&self) -> usize {
        self.state().bytes
    }

    /// Returns whether jobs are accepted.
    pub fn is_open(&self) -> bool {
        let state = self.state();
        !state.draining && !state.closed
    }

    /// Accepts no more jobs. Those that wait or run continue.
    pub fn drain(&self) {
        self.state().draining = true;
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
        self.emit_positions(&state);
    }

    /// Returns the number of jobs that must end before a waiting job begins.
    fn position(&self, state: &QueueState, index: usize) -> usize {
        (index + state.running.len() + 1).saturating_sub(self.workers)
    }

    /// Emits the position of every waiting job.
    fn emit_positions(&self, state: &QueueState) {
        for (index, job) in state.waiting.iter().enumerate() {
            job.emit("queued", json!({ "position": self.position(state, index) }));
        }
    }

    /// Cancels all jobs and accepts no more.
    pub fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        let waiting = std::mem::take(&mut state.waiting);
        let jobs: Vec<_> = waiting.into_iter().chain(state.running.iter().map(|running| running.job.clone())).collect();
        drop(state);
        for job in jobs {
            job.cancel();
        }
        self.work.notify_all();
    }
}

impl QueueState {
    /// Returns the seconds after which the client of a refused job should come back: the time that all jobs before it need, and those
    /// that were refused before it. Clients that come back at different times find room.
    fn promise(&mut self, images: usize) -> u64 {
        let now = Instant::now();
        self.promised.retain(|(time, _)| *time > now);
        let elapsed = self.running.first().map_or(0.0, |oldest| oldest.started.elapsed().as_secs_f64());
        let finished: usize = self.running.iter().map(|running| running.job.finished()).sum();
        let left: usize = self.running.iter().map(|running| running.job.count.saturating_sub(running.job.finished())).sum();
        // Before the first run has ended, the running ones tell the time of an image.
        let image_seconds =
            self.image_seconds.unwrap_or_else(|| if finished > 0 { elapsed / finished as f64 } else { elapsed.max(1.0) });
        let ahead = left + self.waiting.iter().map(|job| job.count).sum::<usize>();
        let promised = self.promised.iter().map(|(_, images)| images).sum::<usize>();
        let seconds = ((ahead + promised) as f64 * image_seconds).ceil().clamp(1.0, MAX_RETRY_AFTER as f64) as u64;
        // Beyond the maximum, another promise changes nothing.
        if seconds < MAX_RETRY_AFTER {
            self.promised.push_back((now + Duration::from_secs(seconds), images));
        }
        seconds
    }
}

/// Stores an ended job and drops the oldest beyond the limit.
fn record_ended(state: &mut QueueState, job: Arc<Job>) {
    // Listeners of the previous job have had the duration of a whole run to receive its transient events.
    if let Some(previous) = state.ended.back() {
        previous.drop_transient_events();
    }
    if job.delivery.public {
        state.ended.push_back(job);
    }
    if state.ended.len() > MAX_ENDED_JOBS {
        state.ended.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{Delivery, Interface};
    use crate::output::Output;
    use crate::settings::Settings;
    use hart_core::ImageFormat;

    fn job_of(count: usize) -> Arc<Job> {
        let settings = Settings { prompt: "a parrot".into(), count: Some(count), ..Settings::default() };
        let output = Output::default();
        let delivery = Delivery { interface: Interface::Page, public: true, output, partial_images: 0 };
        Job::new(settings.check(count).unwrap(), delivery)
    }

    fn job() -> Arc<Job> {
        job_of(1)
    }

    fn file(file: Vec<u8>) -> FinishedImage {
        FinishedImage { file, format: ImageFormat::Png, seed: 0 }
    }

    #[test]
    fn refused_clients_are_asked_to_come_back_one_after_the_other() {
        let queue = Queue::new(1, 1);
        let first = job_of(8);
        queue.push(&first).unwrap();
        queue.next().unwrap();
        for index in 0..8 {
            queue.add_image(&first, index, file(vec![0]));
        }
        queue.finish(first, Duration::from_secs(4));
        for _ in 0..2 {
            queue.push(&job_of(8)).unwrap();
        }
        // Two jobs of eight images wait, half a second each; then one more for every client that was refused.
        let seconds: Vec<u64> = (0..20).map(|_| queue.state().promise(8)).collect();
        assert_eq!(seconds[..3], [8, 12, 16]);
        assert_eq!(seconds.last(), Some(&MAX_RETRY_AFTER));
        queue.drain();
        assert!(!queue.is_open() && queue.push(&job()).is_err() && queue.next().is_some());
    }

    #[test]
    fn only_the_newest_images_are_stored() {
        let (queue, first, second) = (Queue::new(1, 1), job(), job());
        queue.add_image(&first, 0, file(vec![0]));
        for index in 0..MAX_STORED_IMAGES - 1 {
            queue.add_image(&second, index, file(vec![0]));
        }
        assert!(first.image(0).is_some());
        queue.add_image(&second, MAX_STORED_IMAGES - 1, file(vec![0]));
        assert!(first.image(0).is_none() && second.image(0).is_some());
        let large = vec![0; MAX_STORED_BYTES + 1];
        queue.add_image(&second, MAX_STORED_IMAGES, file(large));
        assert_eq!(second.images().len(), 1);
    }

    #[test]
    fn the_oldest_ended_jobs_are_dropped() {
        let (queue, first) = (Queue::new(0, 1), job());
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
        let (queue, jobs) = (Queue::new(3, 1), [job(), job(), job()]);
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

    #[test]
    fn several_jobs_run_at_once() {
        let (queue, jobs) = (Queue::new(2, 2), [job_of(4), job_of(4), job_of(4), job_of(4)]);
        let position = |job: &Job| job.events_since(0).last().map(|e| (e.name, e.data["position"].as_u64()));
        for (job, expected) in jobs.iter().zip([0, 0, 1, 2]) {
            queue.push(job).unwrap();
            assert_eq!(position(job), Some(("queued", Some(expected))));
        }
        assert!(queue.push(&job()).is_err(), "two run and two wait");
        assert!(queue.next().unwrap().id == jobs[0].id && queue.next().unwrap().id == jobs[1].id);
        assert_eq!((queue.lengths(), queue.running().len()), ((2, 2), 2));
        assert_eq!([position(&jobs[2]), position(&jobs[3])], [Some(("queued", Some(1))), Some(("queued", Some(2)))]);
        for index in 0..4 {
            queue.add_image(&jobs[1], index, file(vec![0]));
        }
        // Four images in four seconds, next to another job: one every half second. Four are left, two jobs of four wait, and one image
        // was refused.
        jobs[1].cancel();
        queue.finish(jobs[1].clone(), Duration::from_secs(4));
        assert_eq!(queue.state().promise(1), 7);
        assert_eq!([position(&jobs[2]), position(&jobs[3])], [Some(("queued", Some(0))), Some(("queued", Some(1)))]);
        assert!(queue.find(&jobs[0].id).is_some() && queue.running()[0].id == jobs[0].id);
        queue.cancel(&jobs[0]);
        assert_eq!(queue.lengths(), (2, 0));
        queue.close();
        assert!(jobs.iter().all(|job| job.has_ended()));
        assert!(queue.next().is_none());
    }
}
