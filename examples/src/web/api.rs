//! The page's own API: requests, their events, their pictures.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::{StreamExt, stream};
use hart_core::{MAX_GUIDANCE, Request};
use serde_json::json;

use crate::App;
use crate::failure::Failure;
use crate::job::{Happened, Job, Listener};
use crate::json::Json;
use crate::settings::{Settings, read_json};

/// Time after which a browser that lost an event stream comes back; well before the run counts as abandoned.
const RETRY: std::time::Duration = std::time::Duration::from_millis(1000);
/// Most characters of a file's name that come from the prompt.
const NAME_LENGTH: usize = 60;

/// Their routes.
pub fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/api/model", get(model))
        .route("/api/generate", post(generate))
        .route("/api/generate/{id}/events", get(events))
        .route("/api/generate/{id}/cancel", post(cancel))
        .route("/api/images/{id}/{file}", get(image))
}

async fn model(State(app): State<Arc<App>>) -> Json {
    let (config, side) = (app.hart.config(), app.hart.config().resolution());
    let own = app.hart.sampling(&Request::new(""));
    Json(json!({
        "name": app.name,
        "version": env!("CARGO_PKG_VERSION"),
        "width": side,
        "height": side,
        "scales": config.transformer.sides.len(),
        "max_images": app.max_images,
        "max_guidance": MAX_GUIDANCE,
        "defaults": {
            "guidance": own.guidance,
            "soft": own.smoothing,
            "top_k": own.top_k,
            "top_p": own.top_p,
            "steps": own.steps.to_string(),
        },
    }))
}

async fn generate(State(app): State<Arc<App>>, headers: HeaderMap, body: Body) -> Result<Response, Failure> {
    let settings: Settings = read_json(&headers, body).await?;
    let checked = app.check(settings)?;
    let count = checked.count;
    let job = Job::new(checked, true);
    app.queue.push(&job)?;
    let answer = json!({
        "id": job.id,
        "seed": job.seed.to_string(),
        "count": count,
        "events": format!("/api/generate/{}/events", job.id),
    });
    Ok((StatusCode::ACCEPTED, Json(answer)).into_response())
}

fn find(app: &App, id: &str) -> Result<Arc<Job>, Failure> {
    app.queue.find(id).ok_or_else(|| Failure::missing("there is no such request, or it is too long ago"))
}

async fn events(State(app): State<Arc<App>>, Path(id): Path<String>, headers: HeaderMap) -> Result<Response, Failure> {
    let job = find(&app, &id)?;
    // A browser that comes back says what it heard last.
    let last = headers.get("last-event-id").and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<u64>().ok());
    let listener = Listener::new(job, last.map_or(0, |n| n.saturating_add(1)));
    let heard = stream::unfold((listener, VecDeque::<Arc<Happened>>::new()), async |(mut listener, mut news)| {
        if news.is_empty() {
            news.extend(listener.hear().await);
        }
        let event = news.pop_front()?;
        Some((Ok::<_, Infallible>(to_event(&event)), (listener, news)))
    });
    let retry = stream::iter([Ok(Event::default().retry(RETRY))]);
    let mut response = Sse::new(retry.chain(heard)).keep_alive(KeepAlive::default()).into_response();
    // Proxies such as nginx would wait for the end.
    response.headers_mut().insert("x-accel-buffering", header::HeaderValue::from_static("no"));
    Ok(response)
}

fn to_event(happened: &Happened) -> Event {
    Event::default().id(happened.number.to_string()).event(happened.name).data(happened.data.to_string())
}

async fn cancel(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Json, Failure> {
    let job = find(&app, &id)?;
    let ended = job.has_ended();
    app.queue.cancel(&job);
    // Cancelling what has ended changes nothing, and is no error: the end and the click may cross.
    Ok(Json(json!({ "cancelled": !ended })))
}

async fn image(
    State(app): State<Arc<App>>,
    Path((id, file)): Path<(String, String)>,
    RawQuery(query): RawQuery,
) -> Result<Response, Failure> {
    let job = find(&app, &id)?;
    let index = file.strip_suffix(".png").and_then(|n| n.parse().ok());
    let picture =
        index.and_then(|n| job.picture(n)).ok_or_else(|| Failure::missing("there is no such picture, or it is too long ago"))?;
    let mut response = picture.png.clone().into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("image/png"));
    headers.insert(header::CACHE_CONTROL, header::HeaderValue::from_static("private, max-age=86400, immutable"));
    if query.is_some_and(|q| q.split('&').any(|part| part == "download" || part.starts_with("download="))) {
        let value = format!("attachment; filename=\"{}\"", file_name(&job.prompt, picture.seed));
        if let Ok(value) = value.parse() {
            headers.insert(header::CONTENT_DISPOSITION, value);
        }
    }
    Ok(response)
}

/// A name of prompt and seed that every system takes.
fn file_name(prompt: &str, seed: u64) -> String {
    let letters = prompt.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { ' ' });
    let words: Vec<String> = letters.collect::<String>().split_whitespace().map(Into::into).collect();
    let mut name: String = words.join("-").chars().take(NAME_LENGTH).collect();
    name.truncate(name.trim_end_matches('-').len());
    if name.is_empty() {
        name.push_str("picture");
    }
    format!("{name}-{seed}.png")
}

#[cfg(test)]
mod tests {
    use super::file_name;

    #[test]
    fn files_are_named_after_prompt_and_seed() {
        assert_eq!(file_name("A red heart, on \"yellow\"", 7), "a-red-heart-on-yellow-7.png");
        assert_eq!(file_name("../../etc/passwd\r\nX: y", 0), "etc-passwd-x-y-0.png");
        assert_eq!(file_name("心 🦜", 1), "picture-1.png");
        assert!(file_name(&"long ".repeat(100), u64::MAX).len() < 90);
    }
}
