//! The one thread that generates, and what it tells.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hart_core::{Control, Event, Generation, Image, Observer, Step};
use hart_examples::cli::output;
use serde_json::{Value, json};

use crate::App;
use crate::job::{Job, Picture};

/// Smallest and largest side of a preview. Twice the side takes four times the time to decode: seconds, on a CPU.
const PREVIEW_SIDES: [usize; 2] = [64, 256];
/// Previews grow as long as one takes at most this share of the run's time until then, and shrink if one takes twice as much.
const PREVIEW_SHARE: f64 = 0.05;
/// Shortest time between two reports of progress within a scale.
const PROGRESS_TIME: Duration = Duration::from_millis(100);

/// Works until the queue is closed.
pub fn work(app: &App) {
    while let Some(job) = app.queue.next() {
        let start = Instant::now();
        let mut teller =
            Teller { app, job: &job, finished: 0, scale: (0, 0), preview_side: PREVIEW_SIDES[0], told: None, failed: None };
        // A bug in a run must not end the server.
        let made = catch_unwind(AssertUnwindSafe(|| app.hart.generate(&job.request, &mut teller)));
        let failed = teller.failed;
        match made {
            _ if failed.is_some() => job.tell("error", json!({ "message": failed })),
            Ok(Ok(made)) => job.tell("done", done(&made)),
            Ok(Err(error)) if error.is_cancelled() => job.cancel(),
            Ok(Err(error)) => job.tell("error", json!({ "message": error.to_string() })),
            Err(_) => job.tell("error", json!({ "message": "an internal error; the server's output says more" })),
        }
        app.queue.finished(job, start.elapsed());
    }
}

fn done(made: &Generation) -> Value {
    let notes: Vec<String> = made
        .truncated
        .iter()
        .map(|t| {
            let which = if t.prompt.is_some() { "prompt" } else { "system prompt" };
            format!("The {which} has {} tokens, the model reads {}. Not read: \"{}\"", t.tokens, t.kept, t.cut)
        })
        .collect();
    json!({ "images": made.images.len(), "milliseconds": output::milliseconds(&made.timings), "notes": notes })
}

/// Tells a job's listeners what its run reports.
struct Teller<'a> {
    app: &'a App,
    job: &'a Arc<Job>,
    finished: usize,
    scale: (usize, usize),
    preview_side: usize,
    told: Option<Instant>,
    failed: Option<String>,
}

impl Teller<'_> {
    fn progress(&mut self, event: &Event<'_>) {
        self.told = Some(Instant::now());
        let (scale, scales) = self.scale;
        let data = json!({
            "stage": event.stage.name(),
            "image": self.finished,
            "scale": scale,
            "scales": scales,
            "fraction": (f64::from(event.fraction) * 1e4).round() / 1e4,
            "seconds": (event.elapsed.as_secs_f64() * 1e3).round() / 1e3,
        });
        self.job.tell("progress", data);
    }

    fn preview(&mut self, event: &Event<'_>) {
        let start = Instant::now();
        // A preview that can't be made is no reason to stop; the run itself will say what is wrong.
        let Some(Ok(image)) = event.preview(self.preview_side) else { return };
        let share = start.elapsed().as_secs_f64() / event.elapsed.as_secs_f64();
        let [smallest, largest] = PREVIEW_SIDES;
        if 4.0 * share < PREVIEW_SHARE {
            self.preview_side = largest.min(2 * self.preview_side);
        } else if share > 2.0 * PREVIEW_SHARE {
            self.preview_side = smallest.max(self.preview_side / 2);
        }
        let Ok(png) = image.to_png() else { return };
        let (scale, scales) = self.scale;
        let data = json!({ "image": self.finished, "scale": scale, "scales": scales, "png": STANDARD.encode(png) });
        self.job.tell("preview", data);
    }
}

impl Observer for Teller<'_> {
    fn event(&mut self, event: &Event<'_>) -> Control {
        let mut is_news = self.told.is_none_or(|told| told.elapsed() >= PROGRESS_TIME);
        match event.step {
            Step::Scale { scale, scales, .. } => {
                self.scale = (scale, scales);
                is_news = true;
            }
            // The picture itself was told already.
            Step::Images { finished, .. } => {
                self.finished = finished;
                self.scale.0 = 0;
            }
            Step::ScaleDone { .. } if self.job.is_watched() => self.preview(event),
            _ => {}
        }
        if is_news {
            self.progress(event);
        }
        if self.failed.is_some() || self.job.is_cancelled() { Control::Cancel } else { Control::Continue }
    }

    fn image(&mut self, image: &Image) {
        // Whoever cancelled was told how many pictures there are.
        if self.job.has_ended() {
            return;
        }
        let seed = image.provenance.as_ref().map_or(self.job.seed, |p| p.seed);
        match image.to_png() {
            Ok(png) => self.app.queue.add(self.job, self.finished, Picture { png, seed }),
            Err(error) => self.failed = Some(format!("the picture's file: {error}")),
        }
    }
}
