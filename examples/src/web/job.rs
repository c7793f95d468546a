//! A request in progress and the events that it has emitted, for any number of listeners at any time.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::http::HeaderValue;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, StreamExt, stream};
use hart_core::{CancelToken, ImageFormat, Request, SystemPrompt};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::output::Output;
use crate::settings::{CheckedSettings, random};

/// Number of progress and preview events kept for a listener that connects late or reads slowly.
const MAX_TRANSIENT_EVENTS: usize = 64;
/// Time in which the client is expected to open the event stream. Previews are decoded during it even without a listener.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Time after which a run without listeners is cancelled.
const ABANDON_TIMEOUT: Duration = Duration::from_secs(5);

/// Time for which a client that polls the progress counts as watching.
const POLL_TIMEOUT: Duration = Duration::from_secs(5);

/// A finished image.
#[derive(Debug)]
pub struct FinishedImage {
    /// The file.
    pub file: Vec<u8>,
    /// Format of the file.
    pub format: ImageFormat,
    /// Seed of the image.
    pub seed: u64,
}

/// The interface that created a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interface {
    /// The page.
    Page,
    /// OpenAI's API.
    OpenAi,
    /// A1111's API.
    A1111,
}

/// The files and events that the client of a job receives.
#[derive(Debug)]
pub struct Delivery {
    /// The interface that created the job.
    pub interface: Interface,
    /// True if clients may fetch events and images by the identifier. If not, only the handler that created the job gets its
    /// images.
    pub public: bool,
    /// The form of the files.
    pub output: Output,
    /// Number of partial images of each image, spread over the scales.
    pub partial_images: usize,
}

impl Delivery {
    /// Returns the index of the partial image that is due after a scale, from 1, of `scales`.
    pub fn partial_image(&self, scale: usize, scales: usize) -> Option<usize> {
        let parts = self.partial_images + 1;
        // Rounded to the nearest scale, and never the last one, which is the image.
        let is_due = |index: usize| (2 * (index + 1) * scales + parts) / (2 * parts) == scale;
        (0..self.partial_images).find(|&index| scale < scales && is_due(index))
    }
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
        matches!(self.name, "queued" | "progress" | "preview" | "partial")
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
    /// Number of images.
    pub count: usize,
    /// The files and events that the client receives.
    pub delivery: Delivery,
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
    /// Time at which a client last asked for the progress.
    polled: Option<Instant>,
    /// Number of tokens of the prompt, once it is encoded.
    prompt_tokens: usize,
    /// Number of listeners that have disconnected.
    disconnects: u64,
    ended: bool,
}

impl Job {
    /// Creates a job that waits for its turn.
    pub fn new(checked: CheckedSettings, delivery: Delivery) -> Arc<Self> {
        Arc::new(Self {
            id: format!("{:016x}{:016x}", random(), random()),
            request: checked.request,
            prompt: checked.prompt,
            system_prompt: checked.system_prompt,
            seed: checked.seed,
            count: checked.count,
            delivery,
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
        let (seed, url) = (image.seed.to_string(), self.image_path(index, image.format));
        state.images.push(Some(image));
        drop(state);
        self.emit("image", json!({ "index": index, "seed": seed, "url": url }));
    }

    /// Returns the path at which clients fetch an image of a public job.
    pub fn image_path(&self, index: usize, format: ImageFormat) -> String {
        format!("/api/images/{}/{index}.{}", self.id, extension(format))
    }

    /// Returns the number of finished images.
    pub fn finished(&self) -> usize {
        self.state().images.len()
    }

    /// Records the number of tokens of the prompt.
    pub fn set_prompt_tokens(&self, tokens: usize) {
        self.state().prompt_tokens = tokens;
    }

    /// Returns the number of tokens of the prompt, or 0 before it is encoded.
    pub fn prompt_tokens(&self) -> usize {
        self.state().prompt_tokens
    }

    /// Records that a client polls the progress, so that previews are decoded, and returns the newest event with a name.
    pub fn poll(&self, name: &str) -> Option<Arc<JobEvent>> {
        let mut state = self.state();
        state.polled = Some(Instant::now());
        state.events.iter().rev().find(|event| event.name == name).cloned()
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

    /// Returns whether a client receives previews or is expected to ask for them soon.
    pub fn is_watched(&self) -> bool {
        let state = self.state();
        match self.delivery.interface {
            Interface::Page => state.listeners > 0 || self.created.elapsed() < CONNECT_TIMEOUT,
            Interface::A1111 => state.polled.is_some_and(|polled| polled.elapsed() < POLL_TIMEOUT),
            Interface::OpenAi => false,
        }
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

/// Returns the ending of a file's name.
pub fn extension(format: ImageFormat) -> &'static str {
    match format {
        ImageFormat::Jpeg { .. } => "jpeg",
        ImageFormat::WebP => "webp",
        _ => "png",
    }
}

/// Answers with server-sent events.
pub fn respond<S>(events: S) -> Response
where
    S: Stream<Item = Event> + Send + 'static,
{
    let mut response = Sse::new(events.map(Ok::<_, Infallible>)).keep_alive(KeepAlive::default()).into_response();
    // Turns off buffering in proxies such as nginx.
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
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

    /// Returns the events as a stream, which ends after the last one.
    pub fn events(self) -> impl Stream<Item = Arc<JobEvent>> {
        let batches = stream::unfold(self, async |mut listener| {
            let events = listener.receive().await;
            if events.is_empty() { None } else { Some((stream::iter(events), listener)) }
        });
        batches.flatten()
    }

    /// Waits for events and returns those not yet received; empty after the last event.
    async fn receive(&mut self) -> Vec<Arc<JobEvent>> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partial_images_are_spread_over_the_scales() {
        let scales_of = |partial_images, scales| {
            let output = Output::default();
            let delivery = Delivery { interface: Interface::OpenAi, public: false, output, partial_images };
            let due = |scale| delivery.partial_image(scale, scales).map(|index| (scale, index));
            (1..=scales).filter_map(due).collect::<Vec<_>>()
        };
        assert_eq!(scales_of(0, 6), []);
        assert_eq!(scales_of(1, 6), [(3, 0)]);
        assert_eq!(scales_of(2, 6), [(2, 0), (4, 1)]);
        assert_eq!(scales_of(3, 6), [(2, 0), (3, 1), (5, 2)]);
        assert_eq!(scales_of(3, 14), [(4, 0), (7, 1), (11, 2)]);
        assert_eq!(scales_of(3, 1), []);
    }
}
