//! A request in progress and the events that it has emitted, for any number of listeners at any time.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hart_core::{CancelToken, Request, SystemPrompt};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::settings::{CheckedSettings, random};

/// Number of progress and preview events kept for a listener that connects late or reads slowly.
const MAX_TRANSIENT_EVENTS: usize = 64;
/// Time in which the client is expected to open the event stream. Previews are decoded during it even without a listener.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Time after which a run without listeners is cancelled.
const ABANDON_TIMEOUT: Duration = Duration::from_secs(5);

/// A finished image.
#[derive(Debug)]
pub struct FinishedImage {
    /// The PNG file.
    pub png: Vec<u8>,
    /// Seed of the image.
    pub seed: u64,
}

/// An entry of a job's event stream.
#[derive(Debug)]
pub struct JobEvent {
    /// Sequence number, from 0.
    pub number: u64,
    /// Name in the event stream.
    pub name: &'static str,
    /// Data as JSON.
    pub data: Value,
}

impl JobEvent {
    /// Returns whether later events make this one obsolete.
    fn is_transient(&self) -> bool {
        matches!(self.name, "queued" | "progress" | "preview")
    }

    /// Returns whether this is the last event of its job.
    pub fn is_last(&self) -> bool {
        matches!(self.name, "done" | "cancelled" | "error")
    }
}

/// A request, its events and its finished images.
#[derive(Debug)]
pub struct Job {
    /// Identifier in URLs; random, so that it can't be guessed.
    pub id: String,
    /// The request to run.
    pub request: Request,
    /// The prompt.
    pub prompt: String,
    /// The system prompt.
    pub system_prompt: SystemPrompt,
    /// Seed of the first image.
    pub seed: u64,
    /// True if clients may fetch events and images by the identifier. If not, only the handler that created the job gets its
    /// images.
    pub public: bool,
    cancel: CancelToken,
    created: Instant,
    state: Mutex<JobState>,
    /// Notifies listeners of new events.
    changes: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct JobState {
    events: VecDeque<Arc<JobEvent>>,
    next_number: u64,
    images: Vec<Option<Arc<FinishedImage>>>,
    listeners: usize,
    /// Number of listeners that have disconnected.
    disconnects: u64,
    ended: bool,
}

impl Job {
    /// Creates a job that waits for its turn.
    pub fn new(checked: CheckedSettings, public: bool) -> Arc<Self> {
        Arc::new(Self {
            id: format!("{:016x}{:016x}", random(), random()),
            request: checked.request,
            prompt: checked.prompt,
            system_prompt: checked.system_prompt,
            seed: checked.seed,
            public,
            cancel: checked.cancel,
            created: Instant::now(),
            state: Mutex::default(),
            changes: watch::Sender::new(()),
        })
    }

    /// Locks the state. A poisoned lock is used as it is: no panic can leave the state half changed.
    fn state(&self) -> MutexGuard<'_, JobState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends an event and notifies all listeners. Does nothing after the last event.
    pub fn emit(&self, name: &'static str, data: Value) {
        let mut state = self.state();
        if state.ended {
            return;
        }
        let event = JobEvent { number: state.next_number, name, data };
        state.next_number += 1;
        state.ended = event.is_last();
        state.events.push_back(Arc::new(event));
        let transient = state.events.iter().filter(|e| e.is_transient()).count();
        if transient > MAX_TRANSIENT_EVENTS
            && let Some(oldest) = state.events.iter().position(|e| e.is_transient())
        {
            state.events.remove(oldest);
        }
        drop(state);
        self.changes.send_replace(());
    }

    /// Stores a finished image and emits its event.
    pub fn add_image(&self, image: Arc<FinishedImage>) {
        let mut state = self.state();
        let index = state.images.len();
        let seed = image.seed.to_string();
        state.images.push(Some(image));
        drop(state);
        self.emit("image", json!({ "index": index, "seed": seed, "url": format!("/api/images/{}/{index}.png", self.id) }));
    }

    /// Cancels the job, waiting or running, and emits `cancelled` at once.
    pub fn cancel(&self) {
        self.cancel.cancel();
        let finished = self.state().images.len();
        self.emit("cancelled", json!({ "finished": finished }));
    }

    /// Returns whether the job has been cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }

    /// Returns whether the last event has been emitted.
    pub fn has_ended(&self) -> bool {
        self.state().ended
    }

    /// Returns whether a listener receives previews or is expected to connect soon.
    pub fn is_watched(&self) -> bool {
        self.public && (self.state().listeners > 0 || self.created.elapsed() < CONNECT_TIMEOUT)
    }

    /// Returns the stored events from sequence number `number` on.
    pub fn events_since(&self, number: u64) -> Vec<Arc<JobEvent>> {
        self.state().events.iter().filter(|e| e.number >= number).cloned().collect()
    }

    /// Returns a finished image, or `None` if it is not finished or no longer stored.
    pub fn image(&self, index: usize) -> Option<Arc<FinishedImage>> {
        self.state().images.get(index).cloned().flatten()
    }

    /// Returns all finished images that are still stored.
    pub fn images(&self) -> Vec<Arc<FinishedImage>> {
        self.state().images.iter().flatten().cloned().collect()
    }

    /// Frees a finished image.
    pub fn drop_image(&self, index: usize) {
        if let Some(slot) = self.state().images.get_mut(index) {
            *slot = None;
        }
    }

    /// Frees the events that are obsolete.
    pub fn drop_transient_events(&self) {
        self.state().events.retain(|e| !e.is_transient());
    }

    /// Waits for the last event.
    pub async fn ended(&self) {
        let mut changes = self.changes.subscribe();
        while !self.has_ended() && changes.changed().await.is_ok() {}
    }
}

/// A receiver of a job's events. When the last one is dropped and none follows in time, the job is cancelled.
pub struct Listener {
    job: Arc<Job>,
    changes: watch::Receiver<()>,
    next_number: u64,
}

impl Listener {
    /// Creates a listener for the stored events from sequence number `next_number` on, and all later ones.
    pub fn new(job: Arc<Job>, next_number: u64) -> Self {
        job.state().listeners += 1;
        let changes = job.changes.subscribe();
        Self { job, changes, next_number }
    }

    /// Waits for events and returns those not yet received; empty after the last event.
    pub async fn receive(&mut self) -> Vec<Arc<JobEvent>> {
        loop {
            let ended = self.job.has_ended();
            let events = self.job.events_since(self.next_number);
            if let Some(last) = events.last() {
                self.next_number = last.number + 1;
                return events;
            }
            if ended || self.changes.changed().await.is_err() {
                return Vec::new();
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut state = self.job.state();
        state.listeners -= 1;
        state.disconnects += 1;
        let disconnects = state.disconnects;
        if state.listeners > 0 || state.ended {
            return;
        }
        drop(state);
        let job = self.job.clone();
        // Without a runtime the server has stopped, and the job with it.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                tokio::time::sleep(ABANDON_TIMEOUT).await;
                let state = job.state();
                let abandoned = state.listeners == 0 && state.disconnects == disconnects && !state.ended;
                drop(state);
                if abandoned {
                    job.cancel();
                }
            });
        }
    }
}
