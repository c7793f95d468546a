//! Events and images of a run, passed to the listener of the worker.

use std::time::Duration;

use hart_core::{Control, Event, Image, Observer, Stage, Step, Timings};
use serde_json::{Value, json};
use wasm_bindgen::prelude::*;
use web_time::Instant;

#[wasm_bindgen]
extern "C" {
    /// The worker's listener.
    pub type Listener;

    /// Receives an event as JSON, with the pixels of its preview in RGBA. Returns `false` to cancel the run.
    #[wasm_bindgen(method)]
    fn event(this: &Listener, json: &str, pixels: Option<Vec<u8>>) -> bool;
}

/// Smallest side of a preview, and the side of a run's first one, in pixels.
const PREVIEW_SIDES: [usize; 2] = [16, 64];
/// Target for the time that a preview takes, as a share of the time since the run started. The side of the previews doubles while
/// it stays below the target, and halves when one takes more than twice the target.
const PREVIEW_SHARE: f64 = 0.05;

/// Observer of a run that passes its events on to JavaScript.
pub(crate) struct Events<'a> {
    listener: &'a Listener,
    start: Instant,
    /// Largest side of a preview; 0 for none.
    largest_preview: usize,
    preview_side: usize,
}

impl<'a> Events<'a> {
    pub(crate) fn new(listener: &'a Listener, largest_preview: usize) -> Self {
        let preview_side = largest_preview.min(PREVIEW_SIDES[1]);
        Self { listener, start: Instant::now(), largest_preview, preview_side }
    }

    /// Decodes the event's preview and chooses the side of the next one.
    fn preview(&mut self, event: &Event<'_>) -> Option<Image> {
        if self.largest_preview == 0 {
            return None;
        }
        let before = self.start.elapsed();
        // An error stops the run itself.
        let image = event.preview(self.preview_side)?.ok()?;
        let share = (self.start.elapsed() - before).as_secs_f64() / before.as_secs_f64().max(1e-3);
        if share < PREVIEW_SHARE {
            self.preview_side = (2 * self.preview_side).min(self.largest_preview);
        } else if share > 2.0 * PREVIEW_SHARE {
            self.preview_side = (self.preview_side / 2).max(PREVIEW_SIDES[0].min(self.largest_preview));
        }
        Some(image)
    }
}

impl Observer for Events<'_> {
    fn event(&mut self, event: &Event<'_>) -> Control {
        let mut data = json!({
            "stage": event.stage.name(),
            "fraction": event.fraction,
            "elapsed": milliseconds(event.elapsed),
        });
        let mut pixels = None;
        let details = match event.step {
            Step::TextLayer { layer: step, layers: steps }
            | Step::Block { block: step, blocks: steps, .. }
            | Step::Diffusion { step, steps }
            | Step::Decoder { block: step, blocks: steps } => json!({ "type": "step", "step": step, "steps": steps }),
            Step::Scale { scale, scales, side } => json!({ "type": "scale", "scale": scale, "scales": scales, "side": side }),
            Step::ScaleDone { scale, scales, side } => match self.preview(event) {
                None => return Control::Continue,
                Some(image) => {
                    pixels = Some(rgba(&image));
                    let size = json!({ "width": image.width(), "height": image.height() });
                    json!({ "type": "preview", "scale": scale, "scales": scales, "side": side, "image": size })
                }
            },
            // The image itself follows.
            _ => return Control::Continue,
        };
        if let (Value::Object(data), Value::Object(details)) = (&mut data, details) {
            data.extend(details);
        }
        if self.listener.event(&data.to_string(), pixels) { Control::Continue } else { Control::Cancel }
    }
}

/// Returns the pixels with four bytes each, as a canvas has them.
pub(crate) fn rgba(image: &Image) -> Vec<u8> {
    image.pixels().as_chunks::<3>().0.iter().flat_map(|&[r, g, b]| [r, g, b, u8::MAX]).collect()
}

/// Returns the milliseconds of each stage and of the whole run.
pub(crate) fn timings(timings: &Timings) -> Value {
    let stages = Stage::ALL.map(|stage| (stage.name().to_string(), milliseconds(timings.of(stage)).into()));
    Value::Object(stages.into_iter().chain([("total".to_string(), milliseconds(timings.total).into())]).collect())
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
