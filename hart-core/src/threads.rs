//! The thread pool of a model: rayon's current pool, or its own.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::error::{Error, Result};
use crate::image::Image;
use crate::progress::{Control, Event, Observer, Stage, Step};

/// Maximum number of threads of a model.
const MAX_THREADS: usize = 1024;

thread_local! {
    /// Whether this thread is calling an observer while a thread of the model's own pool waits for the answer.
    static IN_OBSERVER: Cell<bool> = const { Cell::new(false) };
}

/// A model's own thread pool, or `None` for rayon's current pool.
#[derive(Clone, Debug)]
pub(crate) struct Threads(Option<Arc<ThreadPool>>);

impl Threads {
    /// Creates a pool of `count` threads, if there is a count.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] if the count is out of range, [`Error::Device`] if the threads cannot be started.
    pub(crate) fn new(count: Option<usize>) -> Result<Self> {
        let Some(count) = count else { return Ok(Self(None)) };
        if !(1..=MAX_THREADS).contains(&count) {
            return Err(Error::request("threads", format!("{count}, expected 1 to {MAX_THREADS}; leave it out for all cores")));
        }
        let pool = pool(count).map_err(|e| Error::Device { name: "cpu".into(), problem: format!("{count} threads: {e}") });
        Ok(Self(Some(pool?)))
    }

    /// Returns the model's own pool. Inside an observer, returns a new pool of the same size, because the thread that waits for the
    /// observer may be the only one of the model's own pool.
    fn available(&self) -> Option<Arc<ThreadPool>> {
        let own = self.0.as_ref()?;
        if IN_OBSERVER.get() { pool(own.current_num_threads()).ok() } else { Some(own.clone()) }
    }

    /// Runs work on the pool.
    pub(crate) fn install<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        match self.available() {
            Some(pool) => pool.install(work),
            None => work(),
        }
    }

    /// Runs work on the pool while the observer is called on the calling thread.
    pub(crate) fn observe<R: Send>(&self, observer: &mut dyn Observer, work: impl FnOnce(&mut dyn Observer) -> R + Send) -> R {
        let Some(pool) = self.available() else { return work(observer) };
        let ((reports, received), (answers, replies), (decoded, previews)) = (channel(), channel(), channel());
        let relay = Relay { reports, replies, decoded };
        let mut result = None;
        let output = &mut result;
        // The closure owns this thread's ends of the channels. If the observer panics, they close and the relay cancels the run.
        pool.in_place_scope(move |scope| {
            scope.spawn(move |_| {
                let mut relay = relay;
                *output = Some(work(&mut relay));
            });
            // The loop ends when the work ends and drops the relay.
            for report in received {
                let control = report.deliver(observer, &answers, &previews);
                if answers.send(Reply::Control(control)).is_err() {
                    break;
                }
            }
        });
        result.expect("the scope waits for the work and propagates its panic")
    }
}

fn pool(count: usize) -> std::result::Result<Arc<ThreadPool>, rayon::ThreadPoolBuildError> {
    ThreadPoolBuilder::new().num_threads(count).thread_name(|i| format!("hart-{i}")).build().map(Arc::new)
}

/// Marks this thread as calling an observer until it is dropped.
struct InObserver(bool);

impl InObserver {
    fn begin() -> Self {
        Self(IN_OBSERVER.replace(true))
    }
}

impl Drop for InObserver {
    fn drop(&mut self) {
        IN_OBSERVER.set(self.0);
    }
}

/// A message from the working thread to the calling thread.
enum Report {
    Event { stage: Stage, step: Step, elapsed: Duration, fraction: f32, has_preview: bool },
    Image(Image),
}

/// A message from the calling thread to the working thread. The last one for each report is a control.
enum Reply {
    Control(Control),
    Preview(usize),
}

impl Report {
    fn deliver(self, observer: &mut dyn Observer, answers: &Sender<Reply>, previews: &Receiver<Result<Image>>) -> Control {
        let preview = |max_side| {
            answers.send(Reply::Preview(max_side)).map_err(|_| Error::Cancelled)?;
            previews.recv().map_err(|_| Error::Cancelled)?
        };
        let _in_observer = InObserver::begin();
        match self {
            Self::Image(image) => {
                observer.image(&image);
                Control::Continue
            }
            Self::Event { stage, step, elapsed, fraction, has_preview } => {
                observer.event(&Event { stage, step, elapsed, fraction, preview: if has_preview { Some(&preview) } else { None } })
            }
        }
    }
}

/// The observer on the working thread. Forwards every report, and decodes previews on request while it waits for the answer.
struct Relay {
    reports: Sender<Report>,
    replies: Receiver<Reply>,
    decoded: Sender<Result<Image>>,
}

impl Relay {
    fn forward(&self, report: Report, event: Option<&Event<'_>>) -> Control {
        // A closed channel means that the observer has panicked. Its panic continues when the work has stopped.
        if self.reports.send(report).is_err() {
            return Control::Cancel;
        }
        loop {
            match self.replies.recv() {
                Ok(Reply::Control(control)) => return control,
                Ok(Reply::Preview(max_side)) => {
                    if let Some(image) = event.and_then(|e| e.preview(max_side)) {
                        // If the channel is closed, the next receive fails.
                        let _ = self.decoded.send(image);
                    }
                }
                Err(_) => return Control::Cancel,
            }
        }
    }
}

impl Observer for Relay {
    fn event(&mut self, event: &Event<'_>) -> Control {
        let Event { stage, step, elapsed, fraction, preview } = *event;
        self.forward(Report::Event { stage, step, elapsed, fraction, has_preview: preview.is_some() }, Some(event))
    }

    fn image(&mut self, image: &Image) {
        self.forward(Report::Image(image.clone()), None);
    }
}
