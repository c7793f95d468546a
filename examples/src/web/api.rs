//! The page's API: requests, their events and their images.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::sse::Event;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::{StreamExt, stream};
use hart_core::{ImageFormat, MAX_GUIDANCE, Request};
use serde_json::json;

use crate::App;
use crate::api_error::ApiError;
use crate::body;
use crate::job::{self, Delivery, Interface, Job, JobEvent, Listener, extension};
use crate::json::Json;
use crate::output::Output;
use crate::settings::Settings;

/// Time after which a browser reopens a lost event stream; well before the run counts as abandoned.
const RECONNECT_DELAY: std::time::Duration = std::time::Duration::from_millis(1000);
/// Maximum number of characters that a file name takes from the prompt.
const MAX_NAME_LENGTH: usize = 60;

/// Returns the routes of the page's API.
pub fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/api/model", get(model))
        .route("/api/generate", post(generate))
        .route("/api/generate/{id}/events", get(events))
        .route("/api/generate/{id}/cancel", post(cancel))
        .route("/api/images/{id}/{file}", get(image))
}

/// Describes the model, its defaults and the limits.
async fn model(State(app): State<Arc<App>>) -> Json {
    let (config, side) = (app.hart.config(), app.hart.config().resolution());
    let defaults = app.hart.sampling(&Request::new(""));
    Json(json!({
        "name": app.name,
        "version": env!("CARGO_PKG_VERSION"),
        "width": side,
        "height": side,
        "scales": config.transformer.sides.len(),
        "max_images": app.max_images,
        "max_guidance": MAX_GUIDANCE,
        "defaults": {
            "guidance": defaults.guidance,
            "smoothing": defaults.smoothing,
            "top_k": defaults.top_k,
            "top_p": defaults.top_p,
            "steps": defaults.steps.to_string(),
        },
    }))
}

/// Queues a request.
async fn generate(State(app): State<Arc<App>>, headers: HeaderMap, body: Body) -> Result<Response, ApiError> {
    let settings = serde_json::from_value::<Settings>(body::read_json(&headers, body).await?);
    let checked = app.check(settings.map_err(|e| body::invalid(&e.to_string()))?)?;
    let count = checked.count;
    let output = Output { signing: app.signing.clone(), ..Output::default() };
    let delivery = Delivery { interface: Interface::Page, public: true, output, partial_images: 0 };
    let job = Job::new(checked, delivery);
    app.queue.push(&job)?;
    let accepted = json!({
        "id": job.id,
        "seed": job.seed.to_string(),
        "count": count,
        "events": format!("/api/generate/{}/events", job.id),
    });
    Ok((StatusCode::ACCEPTED, Json(accepted)).into_response())
}

/// Looks up a job.
fn find(app: &App, id: &str) -> Result<Arc<Job>, ApiError> {
    app.queue.find(id).ok_or_else(|| ApiError::not_found("there is no such request, or it is no longer stored"))
}

/// Streams the events of a request. A browser that reconnects sends the number of the last event that it received.
async fn events(State(app): State<Arc<App>>, Path(id): Path<String>, headers: HeaderMap) -> Result<Response, ApiError> {
    let job = find(&app, &id)?;
    let last = headers.get("last-event-id").and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<u64>().ok());
    let events = Listener::new(job, last.map_or(0, |n| n.saturating_add(1))).events();
    let retry = stream::iter([Event::default().retry(RECONNECT_DELAY)]);
    Ok(job::respond(retry.chain(events.map(|event| to_sse(&event)))))
}

fn to_sse(event: &JobEvent) -> Event {
    Event::default().id(event.number.to_string()).event(event.name).data(event.data.to_string())
}

/// Cancels a request. Cancelling one that has ended has no effect and is not an error, since it may end while the
/// request to cancel is on its way.
async fn cancel(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Json, ApiError> {
    let job = find(&app, &id)?;
    let ended = job.has_ended();
    app.queue.cancel(&job);
    Ok(Json(json!({ "cancelled": !ended })))
}

/// Returns the file of a finished image.
async fn image(
    State(app): State<Arc<App>>,
    Path((id, file)): Path<(String, String)>,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let job = find(&app, &id)?;
    let format = job.delivery.output.format;
    let index = file.strip_suffix(extension(format)).and_then(|name| name.strip_suffix('.')).and_then(|n| n.parse().ok());
    let image =
        index.and_then(|n| job.image(n)).ok_or_else(|| ApiError::not_found("there is no such image, or it is no longer stored"))?;
    let mut response = image.file.clone().into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(format.media_type()));
    headers.insert(header::CACHE_CONTROL, header::HeaderValue::from_static("private, max-age=86400, immutable"));
    if query.is_some_and(|q| q.split('&').any(|part| part == "download" || part.starts_with("download="))) {
        let value = format!("attachment; filename=\"{}\"", file_name(&job.prompt, image.seed, format));
        if let Ok(value) = value.parse() {
            headers.insert(header::CONTENT_DISPOSITION, value);
        }
    }
    Ok(response)
}

/// Returns a file name made of prompt and seed that is valid on every system.
fn file_name(prompt: &str, seed: u64, format: ImageFormat) -> String {
    let letters = prompt.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { ' ' });
    let words: Vec<String> = letters.collect::<String>().split_whitespace().map(Into::into).collect();
    let mut name: String = words.join("-").chars().take(MAX_NAME_LENGTH).collect();
    name.truncate(name.trim_end_matches('-').len());
    if name.is_empty() {
        name.push_str("image");
    }
    format!("{name}-{seed}.{}", extension(format))
}

#[cfg(test)]
mod tests {
    use hart_core::ImageFormat;

    #[test]
    fn files_are_named_after_prompt_and_seed() {
        let file_name = |prompt: &str, seed| super::file_name(prompt, seed, ImageFormat::Png);
        assert_eq!(file_name("A red heart, on \"yellow\"", 7), "a-red-heart-on-yellow-7.png");
        assert_eq!(file_name("../../etc/passwd\r\nX: y", 0), "etc-passwd-x-y-0.png");
        assert_eq!(file_name("心 🦜", 1), "image-1.png");
        assert!(file_name(&"long ".repeat(100), u64::MAX).len() < 90);
    }
}
