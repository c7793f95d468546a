//! One request on its way: what has happened to it, for any number of listeners at any time.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hart_core::{CancelToken, Request};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::settings::{Checked, random};

/// Progress and previews that are kept for a listener that comes late or reads slowly.
const KEPT_MOMENTS: usize = 64;
/// Whoever made a request is expected to listen within this time, and previews are made for them already.
const EXPECTED: Duration = Duration::from_secs(2);
/// A run that nobody listens to any more is cancelled after this time.
const ABANDONED: Duration = Duration::from_secs(5);

/// A finished picture.
#[derive(Debug)]
pub struct Picture {
    /// The PNG file.
    pub png: Vec<u8>,
    /// Its seed.
    pub seed: u64,
}

/// One thing that happened.
#[derive(Debug)]
pub struct Happened {
    /// Rises by one.
    pub number: u64,
    /// Its name in the event stream.
    pub name: &'static str,
    /// Its data.
    pub data: Value,
}

impl Happened {
    /// Whether it matters only for a moment.
    fn is_moment(&self) -> bool {
        matches!(self.name, "queued" | "progress" | "preview")
    }

    /// Whether nothing comes after it.
    pub fn is_last(&self) -> bool {
        matches!(self.name, "done" | "cancelled" | "error")
    }
}

/// A request, and what has happened to it.
#[derive(Debug)]
pub struct Job {
    /// Its name in addresses; can't be guessed.
    pub id: String,
    /// What to make.
    pub request: Request,
    /// What to draw.
    pub prompt: String,
    /// Seed of the first picture.
    pub seed: u64,
    /// Whether someone may listen and fetch pictures; else they go to the maker alone.
    pub public: bool,
    cancel: CancelToken,
    made: Instant,
    state: Mutex<State>,
    changes: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct State {
    log: VecDeque<Arc<Happened>>,
    next: u64,
    pictures: Vec<Option<Arc<Picture>>>,
    listeners: usize,
    /// How often the last listener has left.
    left: u64,
    ended: bool,
}

impl Job {
    /// A request that waits for its turn.
    pub fn new(checked: Checked, public: bool) -> Arc<Self> {
        Arc::new(Self {
            id: format!("{:016x}{:016x}", random(), random()),
            request: checked.request,
            prompt: checked.prompt,
            seed: checked.seed,
            public,
            cancel: checked.cancel,
            made: Instant::now(),
            state: Mutex::default(),
            changes: watch::Sender::new(()),
        })
    }

    /// Nothing that is done under the lock can leave it half-done.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells all listeners. After the last event nothing more is told.
    pub fn tell(&self, name: &'static str, data: Value) {
        let mut state = self.state();
        if state.ended {
            return;
        }
        let happened = Happened { number: state.next, name, data };
        state.next += 1;
        state.ended = happened.is_last();
        state.log.push_back(Arc::new(happened));
        let moments = state.log.iter().filter(|h| h.is_moment()).count();
        if moments > KEPT_MOMENTS
            && let Some(oldest) = state.log.iter().position(|h| h.is_moment())
        {
            state.log.remove(oldest);
        }
        drop(state);
        self.changes.send_replace(());
    }

    /// Keeps a finished picture, and tells of it.
    pub fn add(&self, picture: Arc<Picture>) {
        let mut state = self.state();
        let index = state.pictures.len();
        let seed = picture.seed.to_string();
        state.pictures.push(Some(picture));
        drop(state);
        self.tell("image", json!({ "index": index, "seed": seed, "url": format!("/api/images/{}/{index}.png", self.id) }));
    }

    /// Cancels it, wherever it is, and tells so at once.
    pub fn cancel(&self) {
        self.cancel.cancel();
        let finished = self.state().pictures.len();
        self.tell("cancelled", json!({ "finished": finished }));
    }

    /// Whether its token was used.
    pub fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }

    /// Whether its last event was told.
    pub fn has_ended(&self) -> bool {
        self.state().ended
    }

    /// Whether anybody sees previews, or is about to.
    pub fn is_watched(&self) -> bool {
        self.public && (self.state().listeners > 0 || self.made.elapsed() < EXPECTED)
    }

    /// What happened from `number` on.
    pub fn since(&self, number: u64) -> Vec<Arc<Happened>> {
        self.state().log.iter().filter(|h| h.number >= number).cloned().collect()
    }

    /// A finished picture, if it is still kept.
    pub fn picture(&self, index: usize) -> Option<Arc<Picture>> {
        self.state().pictures.get(index).cloned().flatten()
    }

    /// All finished pictures that are still kept.
    pub fn pictures(&self) -> Vec<Arc<Picture>> {
        self.state().pictures.iter().flatten().cloned().collect()
    }

    /// Forgets a picture.
    pub fn drop_picture(&self, index: usize) {
        if let Some(place) = self.state().pictures.get_mut(index) {
            *place = None;
        }
    }

    /// Forgets what mattered only for a moment.
    pub fn drop_moments(&self) {
        self.state().log.retain(|h| !h.is_moment());
    }

    /// Waits for the last event.
    pub async fn ended(&self) {
        let mut changes = self.changes.subscribe();
        while !self.has_ended() && changes.changed().await.is_ok() {}
    }
}

/// Somebody who hears what happens to a job. If the last one leaves and none comes back, the job is cancelled.
pub struct Listener {
    job: Arc<Job>,
    changes: watch::Receiver<()>,
    next: u64,
}

impl Listener {
    /// Hears everything from `next` on that is still kept.
    pub fn new(job: Arc<Job>, next: u64) -> Self {
        job.state().listeners += 1;
        let changes = job.changes.subscribe();
        Self { job, changes, next }
    }

    /// What has happened since it last heard something; nothing at the end.
    pub async fn hear(&mut self) -> Vec<Arc<Happened>> {
        loop {
            let ended = self.job.has_ended();
            let news = self.job.since(self.next);
            if let Some(last) = news.last() {
                self.next = last.number + 1;
                return news;
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
        state.left += 1;
        let left = state.left;
        if state.listeners > 0 || state.ended {
            return;
        }
        drop(state);
        let job = self.job.clone();
        // Without a runtime the server is gone, and the job with it.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                tokio::time::sleep(ABANDONED).await;
                let state = job.state();
                let abandoned = state.listeners == 0 && state.left == left && !state.ended;
                drop(state);
                if abandoned {
                    job.cancel();
                }
            });
        }
    }
}
