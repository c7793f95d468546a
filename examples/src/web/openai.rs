//! OpenAI's images API, as far as it makes sense here: <https://platform.openai.com/docs/api-reference/images>.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::App;
use crate::failure::Failure;
use crate::job::Job;
use crate::json::Json;
use crate::settings::{Seed, Settings, read_json};

/// The routes.
pub fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/images/generations", post(generations))
        .route("/v1/models", get(models))
        .route("/v1/models/{name}", get(model))
}

/// The body of a request. Fields that say nothing here, such as `model` and `quality`, are ignored.
#[derive(Deserialize)]
struct Wanted {
    prompt: String,
    n: Option<usize>,
    size: Option<String>,
    response_format: Option<String>,
    output_format: Option<String>,
    stream: Option<bool>,
    /// Not OpenAI's: seed of the first picture.
    seed: Option<Seed>,
    /// Not OpenAI's: strength of guidance.
    guidance: Option<f64>,
}

impl Wanted {
    fn settings(self, side: usize) -> Result<Settings, Failure> {
        let own = format!("{side}x{side}");
        match self.size.as_deref() {
            None | Some("auto") => {}
            Some(size) if size == own => {}
            Some(size) => {
                return Err(Failure::bad("size", format!("\"{size}\", this model makes {own}: leave it out or say \"auto\"")));
            }
        }
        if let Some(format) = self.response_format.filter(|f| f != "b64_json") {
            return Err(Failure::bad("response_format", format!("\"{format}\", expected \"b64_json\", the default here")));
        }
        if let Some(format) = self.output_format.filter(|f| f != "png") {
            return Err(Failure::bad("output_format", format!("\"{format}\", expected \"png\"")));
        }
        if self.stream == Some(true) {
            return Err(Failure::bad("stream", "not supported: see /api/generate for events"));
        }
        Ok(Settings { prompt: self.prompt, seed: self.seed, count: self.n, guidance: self.guidance, ..Settings::default() })
    }
}

/// Cancels the run when the client has gone: the server then drops the handler, and this with it.
struct Connected<'a>(&'a App, Arc<Job>);

impl Drop for Connected<'_> {
    fn drop(&mut self) {
        if !self.1.has_ended() {
            self.0.queue.cancel(&self.1);
        }
    }
}

async fn generations(State(app): State<Arc<App>>, headers: HeaderMap, body: Body) -> Result<Json, Failure> {
    let body: Wanted = read_json(&headers, body).await?;
    let checked = app.check(body.settings(app.hart.config().resolution())?)?;
    let job = Job::new(checked, false);
    app.queue.push(&job)?;
    let connected = Connected(&app, job);
    let job = &connected.1;
    job.ended().await;
    match job.since(0).last() {
        Some(last) if last.name == "done" => {}
        Some(last) if last.name == "error" => {
            let message = last.data["message"].as_str().unwrap_or_default();
            return Err(Failure::new(StatusCode::INTERNAL_SERVER_ERROR, message));
        }
        _ => return Err(Failure::new(StatusCode::SERVICE_UNAVAILABLE, "cancelled: the server is stopping").code("cancelled")),
    }
    let data: Vec<Value> = job
        .pictures()
        .iter()
        .map(|p| json!({ "b64_json": STANDARD.encode(&p.png), "revised_prompt": null, "seed": p.seed }))
        .collect();
    let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    Ok(Json(json!({ "created": created, "data": data, "output_format": "png" })))
}

fn entry(app: &App) -> Value {
    json!({ "id": app.name, "object": "model", "created": 0, "owned_by": "hart" })
}

async fn models(State(app): State<Arc<App>>) -> Json {
    Json(json!({ "object": "list", "data": [entry(&app)] }))
}

async fn model(State(app): State<Arc<App>>, Path(name): Path<String>) -> Result<Json, Failure> {
    if name == app.name {
        Ok(Json(entry(&app)))
    } else {
        Err(Failure::missing(format!("there is no model {name}")).code("model_not_found"))
    }
}
