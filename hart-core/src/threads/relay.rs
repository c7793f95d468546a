//! The relay of events from a pool's thread to the calling thread.

use std::cell::Cell;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::image::Image;
use crate::progress::{Control, Event, Observer, Stage, Step};

thread_local! {
    /// `true` on a thread that is calling an observer while a thread of the model's pool waits for the answer.
    static IN_OBSERVER: Cell<bool> = const { Cell::new(false) };
}

/// Returns whether this thread is calling an observer while a thread of a model's pool waits for the answer.
pub(super) fn in_observer() -> bool {
    IN_OBSERVER.get()
}

/// Returns an observer for the working thread, and the calling thread's end of its channels.
pub(super) fn connect() -> (Relay, Reports) {
    let ((reports, received), (answers, replies), (decoded, previews)) = (channel(), channel(), channel());
    (Relay { reports, replies, decoded }, Reports { received, answers, previews })
}

/// The calling thread's end. If it is dropped, because the observer panics, the relay cancels the run.
pub(super) struct Reports {
    received: Receiver<Report>,
    answers: Sender<Reply>,
    previews: Receiver<Result<Image>>,
}

impl Reports {
    /// Calls the observer for every report until the work ends and drops the relay.
    pub(super) fn deliver(self, observer: &mut dyn Observer) {
        for report in self.received {
            let control = report.deliver(observer, &self.answers, &self.previews);
            if self.answers.send(Reply::Control(control)).is_err() {
                break;
            }
        }
    }
}

/// Marks this thread as calling an observer until it is dropped.
pub(super) struct InObserver(bool);

impl InObserver {
    pub(super) fn begin() -> Self {
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
    Event { stage: Stage, step: Step, elapsed: Duration, fraction: f32, image_index: usize, has_preview: bool },
    Image(Box<Image>),
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
            Self::Event { stage, step, elapsed, fraction, image_index, has_preview } => {
                let preview: Option<&dyn Fn(usize) -> Result<Image>> = if has_preview { Some(&preview) } else { None };
                observer.event(&Event { stage, step, elapsed, fraction, image_index, preview, owned_preview: None })
            }
        }
    }
}

/// The observer on the working thread. Forwards every report, and decodes previews on request while it waits for the answer.
pub(super) struct Relay {
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
        let Event { stage, step, elapsed, fraction, image_index, preview, .. } = *event;
        let has_preview = preview.is_some();
        self.forward(Report::Event { stage, step, elapsed, fraction, image_index, has_preview }, Some(event))
    }

    fn image(&mut self, image: &Image) {
        self.forward(Report::Image(Box::new(image.clone())), None);
    }
}
