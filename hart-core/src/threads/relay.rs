//! The relay of events from the threads of a model to the calling thread.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::image::Image;
use crate::progress::{Control, Event, Observer, Stage, Step, Work};

thread_local! {
    /// `true` on a thread that is calling an observer while a thread of the model's pool waits for the answer.
    static IN_OBSERVER: Cell<bool> = const { Cell::new(false) };
}

/// Returns whether this thread is calling an observer while a thread of a model's pool waits for the answer.
pub(super) fn in_observer() -> bool {
    IN_OBSERVER.get()
}

/// Returns an observer for the working thread, and the calling thread's end of its channels.
pub(super) fn connect<'a>() -> (Relay<'a>, Reports<'a>) {
    let (mut relays, reports) = connect_all(1);
    (relays.remove(0), reports)
}

/// Returns an observer for each of several working threads, and the calling thread's end of their channels.
pub(super) fn connect_all<'a>(count: usize) -> (Vec<Relay<'a>>, Reports<'a>) {
    let (reports, received) = channel();
    let connect = |sender| {
        let ((answers, replies), (decoded, previews)) = (channel(), channel());
        (Relay { sender, reports: reports.clone(), replies, decoded }, Answers { answers, previews })
    };
    let (relays, answers) = (0..count).map(connect).unzip();
    (relays, Reports { received, answers })
}

/// The calling thread's end. If it is dropped, because the observer panics, the relays cancel the run.
pub(super) struct Reports<'a> {
    received: Receiver<(usize, Report<'a>)>,
    /// One for each relay.
    answers: Vec<Answers>,
}

/// The channels to a relay.
struct Answers {
    answers: Sender<Reply>,
    previews: Receiver<Result<Image>>,
}

/// The images of a run that are generated side by side.
pub(super) struct Run<'a> {
    /// Number of images.
    pub(super) images: usize,
    pub(super) work: &'a Work,
    /// `true` when no more image is to begin, and those that have begun are to stop.
    pub(super) stop: &'a AtomicBool,
}

impl Reports<'_> {
    /// Calls the observer for every report until the work ends and drops the relay.
    pub(super) fn deliver(self, observer: &mut dyn Observer) {
        for (sender, report) in self.received {
            let answers = &self.answers[sender];
            let control = report.deliver(observer, answers);
            if answers.answers.send(Reply::Control(control)).is_err() {
                break;
            }
        }
    }

    /// Calls the observer for every report until the work ends and drops the relays, and for the finished images in their order. Cancels
    /// everything as soon as the observer cancels or the run is to stop. Returns the images that the observer received.
    ///
    /// `decode` runs the decoding of a preview in a place where the model's threads are free.
    pub(super) fn deliver_in_order(
        self,
        observer: &mut dyn Observer,
        run: &Run<'_>,
        decode: &dyn Fn(&(dyn Fn() -> Result<Image> + Sync)) -> Result<Image>,
    ) -> Vec<Image> {
        let mut images = Vec::with_capacity(run.images);
        let mut waiting = BTreeMap::new();
        let (mut latest, mut cancelled) = ((Duration::ZERO, 0.0f32), false);
        for (sender, report) in self.received {
            let (answers, needs_answer) = (&self.answers[sender], !matches!(report, Report::Finished { .. }));
            let control = match report {
                // The observer receives finished images even if another one has failed.
                Report::Finished { index, finished } if !cancelled => {
                    waiting.insert(index, finished);
                    deliver_finished(observer, run, &mut images, &mut waiting, &mut latest, decode)
                }
                Report::Event { stage, step, elapsed, fraction, image_index, has_preview } if !run.stop.load(Ordering::Relaxed) => {
                    // Threads may send their reports in another order than that of their clocks.
                    latest = (latest.0.max(elapsed), latest.1.max(fraction));
                    let report = Report::Event { stage, step, elapsed: latest.0, fraction: latest.1, image_index, has_preview };
                    report.deliver(observer, answers)
                }
                _ => Control::Cancel,
            };
            if control == Control::Cancel {
                cancelled |= !run.stop.swap(true, Ordering::Relaxed);
            }
            if needs_answer {
                // A relay that is gone has failed, which stops the run.
                let _ = answers.answers.send(Reply::Control(control));
            }
        }
        images
    }
}

/// Passes the finished images to the observer whose turn it is.
fn deliver_finished<'a>(
    observer: &mut dyn Observer,
    run: &Run<'_>,
    images: &mut Vec<Image>,
    waiting: &mut BTreeMap<usize, Box<Finished<'a>>>,
    latest: &mut (Duration, f32),
    decode: &dyn Fn(&(dyn Fn() -> Result<Image> + Sync)) -> Result<Image>,
) -> Control {
    while let Some(finished) = waiting.remove(&images.len()) {
        let _in_observer = InObserver::begin();
        let Finished { image, preview } = *finished;
        observer.image(&image);
        let index = images.len();
        images.push(image);
        let preview = |max_side: usize| match &images[index] {
            image if image.width().max(image.height()) <= max_side => Ok(image.clone()),
            _ => decode(&|| preview(max_side)),
        };
        *latest = (latest.0.max(run.work.elapsed()), latest.1.max(run.work.add(0.0)));
        let step = Step::Images { finished: index + 1, total: run.images };
        let (elapsed, fraction) = *latest;
        let event = Event { stage: Stage::Decode, step, elapsed, fraction, image_index: index, preview: Some(&preview) };
        if observer.event(&event) == Control::Cancel {
            return Control::Cancel;
        }
    }
    Control::Continue
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

/// A finished image of several that are generated side by side.
pub(crate) struct Finished<'a> {
    pub(crate) image: Image,
    /// Decodes the image in a smaller size, given the maximum side in pixels.
    pub(crate) preview: Box<dyn Fn(usize) -> Result<Image> + Send + Sync + 'a>,
}

/// A message from the working thread to the calling thread.
enum Report<'a> {
    Event {
        stage: Stage,
        step: Step,
        elapsed: Duration,
        fraction: f32,
        image_index: usize,
        has_preview: bool,
    },
    Image(Box<Image>),
    /// An image of several. It needs no answer.
    Finished {
        index: usize,
        finished: Box<Finished<'a>>,
    },
}

/// A message from the calling thread to the working thread. The last one for each report is a control.
enum Reply {
    Control(Control),
    Preview(usize),
}

impl Report<'_> {
    fn deliver(self, observer: &mut dyn Observer, Answers { answers, previews }: &Answers) -> Control {
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
            Self::Event { stage, step, elapsed, fraction, image_index, has_preview } => {
                let preview: Option<&dyn Fn(usize) -> Result<Image>> = if has_preview { Some(&preview) } else { None };
                observer.event(&Event { stage, step, elapsed, fraction, image_index, preview })
            }
            Self::Finished { .. } => Control::Continue,
        }
    }
}

/// The observer on the working thread. Forwards every report, and decodes previews on request while it waits for the answer.
pub(super) struct Relay<'a> {
    /// Index of this relay.
    sender: usize,
    reports: Sender<(usize, Report<'a>)>,
    replies: Receiver<Reply>,
    decoded: Sender<Result<Image>>,
}

impl<'a> Relay<'a> {
    /// Passes on a finished image of several, without waiting for the observer.
    pub(super) fn finish(&self, index: usize, finished: Finished<'a>) {
        // If the channel is closed, the observer has panicked, and the next event stops the work.
        let _ = self.reports.send((self.sender, Report::Finished { index, finished: Box::new(finished) }));
    }

    fn forward(&self, report: Report<'a>, event: Option<&Event<'_>>) -> Control {
        // A closed channel means that the observer has panicked. Its panic continues when the work has stopped.
        if self.reports.send((self.sender, report)).is_err() {
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

impl Observer for Relay<'_> {
    fn event(&mut self, event: &Event<'_>) -> Control {
        let Event { stage, step, elapsed, fraction, image_index, preview } = *event;
        self.forward(Report::Event { stage, step, elapsed, fraction, image_index, has_preview: preview.is_some() }, Some(event))
    }

    fn image(&mut self, image: &Image) {
        self.forward(Report::Image(Box::new(image.clone())), None);
    }
}
