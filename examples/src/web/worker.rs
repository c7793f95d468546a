//! The worker threads, which run the jobs and emit their events. There are as many as images that the model generates at once.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hart_core::{Control, Event, Generation, Hart, Image, Observer, Stage, Step};
use hart_examples::cli::{output, prompt_syntax};
use serde_json::{Value, json};

use crate::App;
use crate::contexts::Contexts;
use crate::job::{FinishedImage, Job};
use crate::output::Output;

/// Smallest and largest side of a preview, in pixels. Twice the side takes four times as long to decode: seconds, on a CPU.
const PREVIEW_SIDES: [usize; 2] = [64, 256];
/// Target for the time that a preview takes, as a share of the time since the run started. The side of the previews doubles while
/// it stays below the target, and halves when one takes more than twice the target.
const PREVIEW_SHARE: f64 = 0.05;
/// Minimum time between two progress events of the same scale.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// Runs jobs until the queue is closed. The workers share the contexts.
pub fn run(app: &App, contexts: &Mutex<Contexts>) {
    while let Some(job) = app.queue.next() {
        let start = Instant::now();
        let mut observer = JobObserver {
            app,
            job: &job,
            start,
            finished: 0,
            held_partials: Vec::new(),
            scales: BTreeMap::new(),
            preview_side: PREVIEW_SIDES[0],
            last_progress: None,
            failed: None,
        };
        // A panic in a run must not end the server.
        let generation = catch_unwind(AssertUnwindSafe(|| generate(&app.hart, &job, contexts, &mut observer)));
        let failed = observer.failed;
        match generation {
            _ if failed.is_some() => job.emit("error", json!({ "message": failed })),
            Ok(Ok((generation, encoding))) => job.emit("done", done(&job, &generation, encoding)),
            Ok(Err(error)) if error.is_cancelled() => job.cancel(),
            Ok(Err(error)) => job.emit("error", json!({ "message": error.to_string() })),
            Err(_) => job.emit("error", json!({ "message": "internal error: see the server's output" })),
        }
        app.metrics.run(start.elapsed());
        app.queue.finish(job, start.elapsed());
    }
}

/// Generates the images of a job. Encodes its prompt only if its context is not kept, and returns the time that this took.
fn generate(
    hart: &Hart,
    job: &Job,
    contexts: &Mutex<Contexts>,
    observer: &mut JobObserver<'_>,
) -> hart_core::Result<(Generation, Duration)> {
    let start = Instant::now();
    let contexts = || contexts.lock().unwrap_or_else(PoisonError::into_inner);
    let kept = contexts().find(&job.prompt, &job.system_prompt);
    let context = match kept {
        Some(context) => context,
        None => {
            let context = hart.encode_with(&job.request, observer)?;
            contexts().insert(context.clone());
            context
        }
    };
    job.set_prompt_tokens(context.mask(0).map_or(0, |mask| mask.iter().filter(|&&is_token| is_token).count()));
    let encoding = start.elapsed();
    Ok((hart.generate_with(&job.request.clone().context(context), observer)?, encoding))
}

/// Returns the data of the `done` event. `encoding` is the time spent on the context.
fn done(job: &Job, generation: &Generation, encoding: Duration) -> Value {
    let truncated = generation.truncated.iter().map(|t| {
        let which = if t.prompt.is_some() { "prompt" } else { "system prompt" };
        format!("The {which} has {} tokens, the model reads only {}. Left out: \"{}\"", t.tokens, t.kept, t.cut)
    });
    let notes: Vec<String> =
        truncated.chain(prompt_syntax::hints(&[&job.prompt]).into_iter().map(|hint| format!("{hint}."))).collect();
    let mut milliseconds = output::milliseconds(&generation.timings);
    for part in [Stage::Text.name(), "total"] {
        let sum = milliseconds[part].as_f64().unwrap_or(0.0) + encoding.as_secs_f64() * 1e3;
        milliseconds[part] = json!((sum * 100.0).round() / 100.0);
    }
    json!({ "images": generation.images.len(), "milliseconds": milliseconds, "notes": notes })
}

/// Observer of a run that emits the job's events.
struct JobObserver<'a> {
    app: &'a App,
    job: &'a Arc<Job>,
    /// Time at which the run started.
    start: Instant,
    /// Number of finished images.
    finished: usize,
    /// Partial images of images that are generated ahead of the first one that is not finished, with the indices of those images. A
    /// client that receives partial images expects one image after the other.
    held_partials: Vec<(usize, Value)>,
    /// Current scale from 1 and number of scales, of each image that is being generated, by its index.
    scales: BTreeMap<usize, (usize, usize)>,
    /// Side of the next preview.
    preview_side: usize,
    /// Time of the last progress event.
    last_progress: Option<Instant>,
    /// Error that made the observer stop the run.
    failed: Option<String>,
}

impl JobObserver<'_> {
    /// Returns the current scale of an event's image, from 1, or 0 before the first, and the number of scales.
    fn scale(&self, event: &Event<'_>) -> (usize, usize) {
        self.scales.get(&event.image_index).copied().unwrap_or_default()
    }

    fn progress(&mut self, event: &Event<'_>) {
        self.last_progress = Some(Instant::now());
        let (scale, scales) = self.scale(event);
        // The prompt is encoded in a run of its own, whose fraction is not that of the job.
        let fraction = if event.stage == Stage::Text { 0.0 } else { f64::from(event.fraction) };
        let data = json!({
            "stage": event.stage.name(),
            "image": event.image_index,
            "scale": scale,
            "scales": scales,
            "fraction": (fraction * 1e4).round() / 1e4,
            "seconds": (self.start.elapsed().as_secs_f64() * 1e3).round() / 1e3,
        });
        self.job.emit("progress", data);
    }

    fn preview(&mut self, event: &Event<'_>) {
        let start = Instant::now();
        // A preview that fails is skipped; if the error is serious, the run itself returns it.
        let Some(Ok(image)) = event.preview(self.preview_side) else { return };
        let share = start.elapsed().as_secs_f64() / self.start.elapsed().as_secs_f64();
        let [smallest, largest] = PREVIEW_SIDES;
        if 4.0 * share < PREVIEW_SHARE {
            self.preview_side = largest.min(2 * self.preview_side);
        } else if share > 2.0 * PREVIEW_SHARE {
            self.preview_side = smallest.max(self.preview_side / 2);
        }
        let Ok(png) = image.to_png() else { return };
        let (scale, scales) = self.scale(event);
        let data = json!({ "image": event.image_index, "scale": scale, "scales": scales, "png": STANDARD.encode(png) });
        self.job.emit("preview", data);
    }

    /// Emits a partial image in the size and format of the finished ones.
    fn partial_image(&mut self, event: &Event<'_>, index: usize) {
        let Some(Ok(image)) = event.preview(PREVIEW_SIDES[1]) else { return };
        let output = &self.job.delivery.output;
        let (width, height) = output.size(self.app.hart.config().resolution());
        let output = Output { size: Some((width, height)), ..output.clone() };
        let Ok(file) = output.render(&image) else { return };
        self.held_partials
            .push((event.image_index, json!({ "image": event.image_index, "index": index, "file": STANDARD.encode(file) })));
        self.emit_partials();
    }

    /// Emits the partial images of the first image that is not finished.
    fn emit_partials(&mut self) {
        for (_, data) in self.held_partials.extract_if(.., |(image, _)| *image == self.finished) {
            self.job.emit("partial", data);
        }
    }
}

impl Observer for JobObserver<'_> {
    fn event(&mut self, event: &Event<'_>) -> Control {
        let mut is_due = self.last_progress.is_none_or(|last| last.elapsed() >= PROGRESS_INTERVAL);
        match event.step {
            Step::Scale { scale, scales, .. } => {
                self.scales.insert(event.image_index, (scale, scales));
                is_due = true;
            }
            // The image's own event has been emitted by `image`.
            Step::Images { finished, .. } => {
                self.finished = finished;
                self.emit_partials();
                self.scales.remove(&event.image_index);
            }
            Step::ScaleDone { scale, scales, .. } => {
                if self.job.is_watched() {
                    self.preview(event);
                }
                if let Some(index) = self.job.delivery.partial_image(scale, scales) {
                    self.partial_image(event, index);
                }
            }
            _ => {}
        }
        if is_due {
            self.progress(event);
        }
        if self.failed.is_some() || self.job.is_cancelled() { Control::Cancel } else { Control::Continue }
    }

    fn image(&mut self, image: &Image) {
        // The `cancelled` event has already reported the number of images.
        if self.job.has_ended() {
            return;
        }
        let seed = image.provenance.as_ref().map_or(self.job.seed, |p| p.seed);
        let output = &self.job.delivery.output;
        match output.render(image) {
            Ok(file) => {
                self.app.metrics.image();
                self.app.queue.add_image(self.job, self.finished, FinishedImage { file, format: output.format, seed });
            }
            Err(error) => self.failed = Some(format!("can't encode the image: {error}")),
        }
    }
}
