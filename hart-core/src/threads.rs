//! The threads that a model works on: those of the program, or its own.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::error::{Error, Result};
use crate::image::Image;
use crate::progress::{Control, Event, Observer, Stage, Step};

/// Most threads of a model.
const MAX_THREADS: usize = 1024;

thread_local! {
    /// Whether this thread is telling an observer something, while one of a model's own threads waits for the answer.
    static TELLING: Cell<bool> = const { Cell::new(false) };
}

/// A model's own threads; none: those of rayon's current pool.
#[derive(Clone, Debug)]
pub(crate) struct Threads(Option<Arc<ThreadPool>>);

impl Threads {
    /// `count` own threads, or none.
    pub(crate) fn new(count: Option<usize>) -> Result<Self> {
        let Some(count) = count else { return Ok(Self::none()) };
        if !(1..=MAX_THREADS).contains(&count) {
            return Err(Error::request("threads", format!("{count}, expected 1 to {MAX_THREADS}; leave it out for all cores")));
        }
        let pool = pool(count).map_err(|e| Error::Device { name: "cpu".into(), problem: format!("{count} threads: {e}") });
        Ok(Self(Some(pool?)))
    }

    /// No threads of its own.
    pub(crate) const fn none() -> Self {
        Self(None)
    }

    /// The own threads; as many others for what an observer asks for, since the one that waits for it may be the only one.
    fn free(&self) -> Option<Arc<ThreadPool>> {
        let own = self.0.as_ref()?;
        if TELLING.get() { pool(own.current_num_threads()).ok() } else { Some(own.clone()) }
    }

    /// Does the work here.
    pub(crate) fn install<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        match self.free() {
            Some(pool) => pool.install(work),
            None => work(),
        }
    }

    /// Does the work here, while the observer hears of it on the calling thread.
    pub(crate) fn observe<R: Send>(&self, observer: &mut dyn Observer, work: impl FnOnce(&mut dyn Observer) -> R + Send) -> R {
        let Some(pool) = self.free() else { return work(observer) };
        let ((reports, heard), (answers, replies), (pictures, previews)) = (channel(), channel(), channel());
        let relay = Relay { reports, replies, pictures };
        let mut result = None;
        let place = &mut result;
        // This thread's ends of the channels go with the closure: if the observer panics, the relay finds them closed and gives up.
        pool.in_place_scope(move |scope| {
            scope.spawn(move |_| {
                let mut relay = relay;
                *place = Some(work(&mut relay));
            });
            // Ends when the work does, which drops the relay.
            for report in heard {
                let answer = report.tell(observer, &answers, &previews);
                if answers.send(Reply::Control(answer)).is_err() {
                    break;
                }
            }
        });
        result.expect("the scope has waited for the work, and passed on its panic")
    }
}

fn pool(count: usize) -> std::result::Result<Arc<ThreadPool>, rayon::ThreadPoolBuildError> {
    ThreadPoolBuilder::new().num_threads(count).thread_name(|i| format!("hart-{i}")).build().map(Arc::new)
}

/// While it is there, this thread is telling an observer something.
struct Telling(bool);

impl Telling {
    fn begin() -> Self {
        Self(TELLING.replace(true))
    }
}

impl Drop for Telling {
    fn drop(&mut self) {
        TELLING.set(self.0);
    }
}

/// What the working thread tells the calling one.
enum Report {
    Event { stage: Stage, step: Step, elapsed: Duration, fraction: f32, has_preview: bool },
    Picture(Image),
}

/// What the calling thread answers: last of all, a control.
enum Reply {
    Control(Control),
    Preview(usize),
}

impl Report {
    fn tell(self, observer: &mut dyn Observer, answers: &Sender<Reply>, previews: &Receiver<Result<Image>>) -> Control {
        let preview = |max_side| {
            answers.send(Reply::Preview(max_side)).map_err(|_| Error::Cancelled)?;
            previews.recv().map_err(|_| Error::Cancelled)?
        };
        let _telling = Telling::begin();
        match self {
            Self::Picture(image) => {
                observer.image(&image);
                Control::Continue
            }
            Self::Event { stage, step, elapsed, fraction, has_preview } => {
                observer.event(&Event { stage, step, elapsed, fraction, preview: if has_preview { Some(&preview) } else { None } })
            }
        }
    }
}

/// The observer on the working thread: passes everything on and waits for the answer, making previews meanwhile.
struct Relay {
    reports: Sender<Report>,
    replies: Receiver<Reply>,
    pictures: Sender<Result<Image>>,
}

impl Relay {
    fn pass(&self, report: Report, event: Option<&Event<'_>>) -> Control {
        // A calling thread that has gone has panicked: its panic goes on when the work has stopped.
        if self.reports.send(report).is_err() {
            return Control::Cancel;
        }
        loop {
            match self.replies.recv() {
                Ok(Reply::Control(control)) => return control,
                Ok(Reply::Preview(max_side)) => {
                    if let Some(picture) = event.and_then(|e| e.preview(max_side)) {
                        // If nobody takes it any more the next receive says so.
                        let _ = self.pictures.send(picture);
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
        self.pass(Report::Event { stage, step, elapsed, fraction, has_preview: preview.is_some() }, Some(event))
    }

    fn image(&mut self, image: &Image) {
        self.pass(Report::Picture(image.clone()), None);
    }
}
