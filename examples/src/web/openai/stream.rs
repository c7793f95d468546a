//! Answers as server-sent events: partial images, then each finished image.

use axum::response::Response;
use axum::response::sse::Event;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::{StreamExt, future};
use serde_json::Value;

use super::now;
use super::reply::{common, usage};
use crate::job::{self, JobEvent, Listener};
use crate::run::{CancelOnDisconnect, failure};

/// The job of a stream. When the client disconnects, the server drops it and the guard cancels the run.
struct Events {
    guard: CancelOnDisconnect,
    prefix: &'static str,
    quality: String,
}

/// Streams the images of a queued job.
pub fn respond(guard: CancelOnDisconnect, prefix: &'static str, quality: &str) -> Response {
    let received = Listener::new(guard.job.clone(), 0).events();
    let events = Events { guard, prefix, quality: quality.into() };
    job::respond(received.filter_map(move |event| future::ready(events.convert(&event))))
}

impl Events {
    /// Converts an event of the job. Returns `None` for events that the API does not have.
    fn convert(&self, event: &JobEvent) -> Option<Event> {
        match event.name {
            "partial" => {
                let mut data = self.image_event("partial_image", event.data["file"].clone());
                data["partial_image_index"] = event.data["index"].clone();
                Some(named(&data))
            }
            "image" => {
                let index = event.data["index"].as_u64()? as usize;
                let image = self.guard.job.image(index)?;
                // The client has it now.
                self.guard.job.drop_image(index);
                let mut data = self.image_event("completed", STANDARD.encode(&image.file).into());
                data["usage"] = usage(&self.guard, 1);
                data["seed"] = event.data["seed"].clone();
                Some(named(&data))
            }
            // Clients raise the error of an event whose data has one.
            "error" | "cancelled" => Some(Event::default().event("error").data(failure(event)?.to_json().to_string())),
            _ => None,
        }
    }

    fn image_event(&self, kind: &str, file: Value) -> Value {
        let mut data = common(&self.guard, &self.quality);
        data["type"] = format!("{}.{kind}", self.prefix).into();
        data["b64_json"] = file;
        data["created_at"] = now().into();
        data
    }
}

/// Creates an event that is named after its type.
fn named(data: &Value) -> Event {
    Event::default().event(data["type"].as_str().unwrap_or_default()).data(data.to_string())
}
