//! The events of images that are generated side by side, on their way to the observer on the calling thread.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use super::relay::InObserver;
use crate::error::Result;
use crate::image::Image;
use crate::progress::{Control, Event, Observer, OwnedPreview, Stage, Step, Work};

/// Maximum number of events of each image at once that wait for the observer. Their latents take memory.
const MAX_WAITING: usize = 64;

/// A finished image of several that are generated side by side.
pub(crate) struct Finished {
    pub(crate) image: Image,
    /// Decodes the image in a smaller size.
    pub(crate) preview: OwnedPreview,
}

/// A message of an image to the calling thread.
enum Report {
    Event { stage: Stage, step: Step, elapsed: Duration, fraction: f32, image_index: usize, preview: Option<OwnedPreview> },
    Finished { index: usize, finished: Box<Finished> },
}

/// Returns the images' end and the calling thread's end of a channel for `at_once` images.
pub(super) fn channel(at_once: usize, stop: &AtomicBool) -> (Events<'_>, Reports) {
    let (reports, received) = sync_channel(at_once * MAX_WAITING);
    (Events { reports, stop }, Reports { received })
}

/// The observer of an image. It passes events on without waiting for the run's observer, which may be busy: with a file, for example.
#[derive(Clone)]
pub(super) struct Events<'a> {
    reports: SyncSender<Report>,
    /// `true` when all images are to stop.
    stop: &'a AtomicBool,
}

impl Events<'_> {
    /// Passes on a finished image.
    pub(super) fn finish(&self, index: usize, finished: Finished) {
        self.send(Report::Finished { index, finished: Box::new(finished) });
    }

    /// Sends a report, or stops all images if the observer has panicked. Its panic continues when they have stopped.
    fn send(&self, report: Report) {
        if self.reports.send(report).is_err() {
            self.stop.store(true, Ordering::Relaxed);
        }
    }
}

impl Observer for Events<'_> {
    fn event(&mut self, event: &Event<'_>) -> Control {
        if !self.stop.load(Ordering::Relaxed) {
            let Event { stage, step, elapsed, fraction, image_index, owned_preview, .. } = *event;
            let preview = owned_preview.map(|preview| preview());
            self.send(Report::Event { stage, step, elapsed, fraction, image_index, preview });
        }
        if self.stop.load(Ordering::Relaxed) { Control::Cancel } else { Control::Continue }
    }
}

/// The calling thread's end. If it is dropped, because the observer panics, the images stop at their next event.
pub(super) struct Reports {
    received: Receiver<Report>,
}

/// Runs the decoding of a preview in the model's threads.
pub(super) type Decode<'a> = &'a dyn Fn(&OwnedPreview, usize) -> Result<Image>;

/// The observer of a run, and what it has received.
struct Delivery<'a> {
    observer: &'a mut dyn Observer,
    /// Number of images of the run.
    count: usize,
    work: &'a Work,
    decode: Decode<'a>,
    /// The finished images that the observer has received.
    images: Vec<Image>,
    /// Finished images that wait for those before them.
    waiting: BTreeMap<usize, Box<Finished>>,
    /// Time and fraction of the last event. Images may send their events in another order than that of their clocks.
    elapsed: Duration,
    fraction: f32,
}

impl Reports {
    /// Calls the observer for every report until all senders are dropped, and for the finished images in their order. Sets `stop` when
    /// the observer cancels, and drops events when it is set. Returns the images that the observer has received.
    pub(super) fn deliver(
        self,
        observer: &mut dyn Observer,
        count: usize,
        work: &Work,
        stop: &AtomicBool,
        decode: Decode<'_>,
    ) -> Vec<Image> {
        let (images, waiting) = (Vec::with_capacity(count), BTreeMap::new());
        let mut delivery = Delivery { observer, count, work, decode, images, waiting, elapsed: Duration::ZERO, fraction: 0.0 };
        let mut cancelled = false;
        for report in self.received {
            let control = match report {
                // The observer receives finished images even if another one has failed.
                Report::Finished { index, finished } if !cancelled => {
                    delivery.waiting.insert(index, finished);
                    delivery.finished()
                }
                Report::Event { stage, step, elapsed, fraction, image_index, preview } if !stop.load(Ordering::Relaxed) => {
                    delivery.event((stage, step), elapsed, fraction, image_index, preview.as_ref())
                }
                _ => Control::Continue,
            };
            if control == Control::Cancel {
                cancelled = true;
                stop.store(true, Ordering::Relaxed);
            }
        }
        delivery.images
    }
}

impl Delivery<'_> {
    /// Passes an event to the observer.
    fn event(
        &mut self,
        (stage, step): (Stage, Step),
        elapsed: Duration,
        fraction: f32,
        image_index: usize,
        preview: Option<&OwnedPreview>,
    ) -> Control {
        self.elapsed = self.elapsed.max(elapsed);
        self.fraction = self.fraction.max(fraction);
        let finished = if matches!(step, Step::Images { .. }) { self.images.last() } else { None };
        let decode = |max_side: usize| match (finished, preview) {
            (Some(image), _) if image.width().max(image.height()) <= max_side => Ok(image.clone()),
            (_, Some(preview)) => (self.decode)(preview, max_side),
            (_, None) => unreachable!("events without a preview are passed on without one"),
        };
        let decode: Option<&dyn Fn(usize) -> Result<Image>> = if preview.is_some() { Some(&decode) } else { None };
        let (elapsed, fraction) = (self.elapsed, self.fraction);
        let event = Event { stage, step, elapsed, fraction, image_index, preview: decode, owned_preview: None };
        let _in_observer = InObserver::begin();
        self.observer.event(&event)
    }

    /// Passes the finished images whose turn it is to the observer.
    fn finished(&mut self) -> Control {
        while let Some(finished) = self.waiting.remove(&self.images.len()) {
            let Finished { image, preview } = *finished;
            {
                let _in_observer = InObserver::begin();
                self.observer.image(&image);
            }
            self.images.push(image);
            let step = Step::Images { finished: self.images.len(), total: self.count };
            let (elapsed, fraction) = (self.work.elapsed(), self.work.add(0.0));
            let index = self.images.len() - 1;
            if self.event((Stage::Decode, step), elapsed, fraction, index, Some(&preview)) == Control::Cancel {
                return Control::Cancel;
            }
        }
        Control::Continue
    }
}
