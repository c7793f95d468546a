//! Runs a job and answers with its images.

use std::sync::Arc;

use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::parameters::Parameters;
use super::{now, stream};
use crate::App;
use crate::api_error::ApiError;
use crate::job::{Delivery, Job, extension};
use crate::json::Json;
use crate::run::{CancelOnDisconnect, failure};
use crate::settings::CheckedSettings;

/// Queues a job and answers with its images: as JSON, or as a stream of events whose names start with `prefix`.
///
/// # Errors
///
/// Returns an error if the queue is full, the run fails, or the server stops.
pub async fn run(
    app: Arc<App>,
    headers: &HeaderMap,
    checked: CheckedSettings,
    delivery: Delivery,
    parameters: &Parameters,
    prefix: &'static str,
) -> Result<Response, ApiError> {
    let job = Job::new(checked, delivery);
    app.queue.push(&job)?;
    let guard = CancelOnDisconnect { app, job };
    let mut response = if parameters.stream {
        stream::respond(guard, prefix, &parameters.quality)
    } else {
        guard.job.ended().await;
        if let Some(error) = guard.job.events_since(0).last().and_then(|last| failure(last)) {
            return Err(error);
        }
        Json(images(&guard, headers, parameters)).into_response()
    };
    if let Ok(value) = HeaderValue::from_str(&printable(&parameters.warnings.join("; ")))
        && !parameters.warnings.is_empty()
    {
        response.headers_mut().insert("x-hart-warning", value);
    }
    Ok(response)
}

/// Returns the body with all images.
fn images(guard: &CancelOnDisconnect, headers: &HeaderMap, parameters: &Parameters) -> Value {
    let job = &guard.job;
    let data: Vec<Value> = job
        .images()
        .iter()
        .enumerate()
        .map(|(index, image)| {
            let seed = image.seed.to_string();
            if parameters.urls {
                let url = format!("{}{}", server(headers), job.image_path(index, image.format));
                json!({ "url": url, "revised_prompt": null, "seed": seed })
            } else {
                json!({ "b64_json": STANDARD.encode(&image.file), "revised_prompt": null, "seed": seed })
            }
        })
        .collect();
    let usage = usage(guard, data.len());
    let mut body = common(guard, &parameters.quality);
    body["created"] = now().into();
    body["data"] = data.into();
    body["usage"] = usage;
    if !parameters.warnings.is_empty() {
        body["warnings"] = json!(parameters.warnings);
    }
    body
}

/// Returns the fields that answers and events share.
pub fn common(guard: &CancelOnDisconnect, quality: &str) -> Value {
    let output = &guard.job.delivery.output;
    let (width, height) = output.size(guard.app.hart.config().resolution());
    json!({
        "background": "opaque",
        "output_format": extension(output.format),
        "quality": quality,
        "size": format!("{width}x{height}"),
    })
}

/// Returns the tokens that a number of images took. The tokens of an image are the positions of all its scales.
pub fn usage(guard: &CancelOnDisconnect, images: usize) -> Value {
    let positions: usize = guard.app.hart.config().transformer.sides.iter().map(|side| side * side).sum();
    let image = if guard.job.delivery.output.original.is_some() { positions } else { 0 };
    let (text, output) = (guard.job.prompt_tokens(), images * positions);
    json!({
        "input_tokens": text + image,
        "input_tokens_details": { "text_tokens": text, "image_tokens": image },
        "output_tokens": output,
        "output_tokens_details": { "image_tokens": output, "text_tokens": 0 },
        "total_tokens": text + image + output,
    })
}

/// Returns the address of this server as the client knows it.
fn server(headers: &HeaderMap) -> String {
    let text = |name: header::HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let secure = text(header::HeaderName::from_static("x-forwarded-proto")) == Some("https");
    format!("{}://{}", if secure { "https" } else { "http" }, text(header::HOST).unwrap_or("localhost"))
}

/// Replaces characters that a header can't contain, and shortens the text.
fn printable(text: &str) -> String {
    text.chars().take(500).map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).collect()
}
