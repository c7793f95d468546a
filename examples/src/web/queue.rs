//! What waits, what is worked on, and what was made. All of it is bounded.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::json;

use crate::failure::Failure;
use crate::job::{Job, Picture};

/// Finished pictures that are kept, the newest.
pub const KEPT_IMAGES: usize = 200;
/// Bytes of finished pictures that are kept, at most; the newest picture is kept however large it is.
const KEPT_BYTES: usize = 512 << 20;
/// Ended requests that are known, the newest.
const KEPT_JOBS: usize = 200;
/// Longest wait that a client is told.
const MAX_RETRY: u64 = 600;

/// Requests from first to last.
pub struct Queue {
    state: Mutex<State>,
    /// Wakes the worker.
    work: Condvar,
    /// Most that wait while one is worked on.
    limit: usize,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Arc<Job>>,
    running: Option<Arc<Job>>,
    ended: VecDeque<Arc<Job>>,
    pictures: VecDeque<(Arc<Job>, usize, usize)>,
    bytes: usize,
    last_run: Duration,
    closed: bool,
}

impl Queue {
    /// At most `limit` requests wait while one is worked on.
    pub fn new(limit: usize) -> Self {
        Self { state: Mutex::default(), work: Condvar::new(), limit }
    }

    /// Nothing that is done under the lock can leave it half-done.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a request at the end.
    ///
    /// # Errors
    ///
    /// Too many wait already.
    pub fn push(&self, job: &Arc<Job>) -> Result<(), Failure> {
        let mut state = self.state();
        state.waiting.retain(|j| !j.has_ended());
        let busy = usize::from(state.running.is_some());
        if state.closed || state.waiting.len() + busy > self.limit {
            // When the last run's time has passed again, one less waits.
            let seconds = state.last_run.as_secs_f64().ceil() as u64;
            return Err(Failure::full(state.waiting.len(), seconds.clamp(1, MAX_RETRY)));
        }
        state.waiting.push_back(job.clone());
        job.tell("queued", json!({ "position": state.waiting.len() - 1 + busy }));
        drop(state);
        self.work.notify_one();
        Ok(())
    }

    /// The next request, once there is one; none when the queue is closed. For the one worker.
    pub fn next(&self) -> Option<Arc<Job>> {
        let mut state = self.state();
        loop {
            if state.closed {
                return None;
            }
            state.waiting.retain(|j| !j.has_ended());
            if let Some(job) = state.waiting.pop_front() {
                state.running = Some(job.clone());
                tell_positions(&state);
                return Some(job);
            }
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The worker is done with a request.
    pub fn finished(&self, job: Arc<Job>, took: Duration) {
        let mut state = self.state();
        state.running = None;
        state.last_run = took;
        end(&mut state, job);
    }

    /// Keeps a finished picture, and lets go of the oldest ones.
    pub fn add(&self, job: &Arc<Job>, index: usize, picture: Picture) {
        let picture = Arc::new(picture);
        if job.public {
            let mut state = self.state();
            state.bytes += picture.png.len();
            state.pictures.push_back((job.clone(), index, picture.png.len()));
            while state.pictures.len() > KEPT_IMAGES || (state.bytes > KEPT_BYTES && state.pictures.len() > 1) {
                let Some((job, index, bytes)) = state.pictures.pop_front() else { break };
                state.bytes -= bytes;
                job.drop_picture(index);
            }
        }
        job.add(picture);
    }

    /// A request by its name, if it is still known.
    pub fn find(&self, id: &str) -> Option<Arc<Job>> {
        let state = self.state();
        let with_pictures = state.pictures.iter().map(|(job, ..)| job);
        let mut all = state.waiting.iter().chain(&state.running).chain(&state.ended).chain(with_pictures);
        all.find(|j| j.public && j.id == id).cloned()
    }

    /// Cancels a request, waiting or not.
    pub fn cancel(&self, job: &Arc<Job>) {
        job.cancel();
        self.sweep();
    }

    /// Takes requests that were cancelled while they waited out of the queue.
    fn sweep(&self) {
        let mut state = self.state();
        let (gone, waiting) = std::mem::take(&mut state.waiting).into_iter().partition::<VecDeque<_>, _>(|j| j.has_ended());
        state.waiting = waiting;
        for job in gone {
            end(&mut state, job);
        }
        tell_positions(&state);
    }

    /// Cancels everything and takes nothing more.
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

/// Tells those that wait how many are before them.
fn tell_positions(state: &State) {
    let busy = usize::from(state.running.is_some());
    for (index, job) in state.waiting.iter().enumerate() {
        job.tell("queued", json!({ "position": index + busy }));
    }
}

fn end(state: &mut State, job: Arc<Job>) {
    // Whoever listens to the one before has had a whole run's time to hear it all.
    if let Some(before) = state.ended.back() {
        before.drop_moments();
    }
    if job.public {
        state.ended.push_back(job);
    }
    if state.ended.len() > KEPT_JOBS {
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
    fn only_the_newest_pictures_are_kept() {
        let (queue, first, second) = (Queue::new(1), job(), job());
        queue.add(&first, 0, Picture { png: vec![0], seed: 0 });
        for index in 0..KEPT_IMAGES - 1 {
            queue.add(&second, index, Picture { png: vec![0], seed: 0 });
        }
        assert!(first.picture(0).is_some());
        queue.add(&second, KEPT_IMAGES - 1, Picture { png: vec![0], seed: 0 });
        assert!(first.picture(0).is_none() && second.picture(0).is_some());
        let large = vec![0; KEPT_BYTES + 1];
        queue.add(&second, KEPT_IMAGES, Picture { png: large, seed: 0 });
        assert_eq!(second.pictures().len(), 1);
    }

    #[test]
    fn ended_requests_are_forgotten_in_time() {
        let (queue, first) = (Queue::new(0), job());
        for index in 0..=KEPT_JOBS {
            let job = if index == 0 { first.clone() } else { job() };
            queue.push(&job).unwrap();
            assert!(queue.push(&self::job()).is_err(), "one waits and none may");
            assert_eq!(queue.next().unwrap().id, job.id);
            assert!(queue.find(&first.id).is_some());
            job.cancel();
            queue.finished(job, Duration::ZERO);
        }
        assert!(queue.find(&first.id).is_none());
        queue.close();
        assert!(queue.next().is_none() && queue.push(&job()).is_err());
    }

    #[test]
    fn places_in_the_queue_are_told() {
        let (queue, jobs) = (Queue::new(3), [job(), job(), job()]);
        for job in &jobs {
            queue.push(job).unwrap();
        }
        let position = |job: &Job| job.since(0).last().map(|h| (h.name, h.data["position"].as_u64()));
        assert_eq!(position(&jobs[2]), Some(("queued", Some(2))));
        queue.next();
        queue.cancel(&jobs[1]);
        assert_eq!(position(&jobs[1]), Some(("cancelled", None)));
        assert_eq!(position(&jobs[2]), Some(("queued", Some(1))));
    }
}
