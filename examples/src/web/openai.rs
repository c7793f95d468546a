//! The part of OpenAI's images API that applies to HART: <https://platform.openai.com/docs/api-reference/images>.

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
use crate::api_error::ApiError;
use crate::job::Job;
use crate::json::Json;
use crate::settings::{Seed, Settings, read_json};

/// Returns the routes of OpenAI's API.
pub fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/images/generations", post(generations))
        .route("/v1/models", get(models))
        .route("/v1/models/{name}", get(model))
}

/// The body of `POST /v1/images/generations`. Fields that don't apply, such as `model` and `quality`, are ignored.
#[derive(Deserialize)]
struct GenerationsBody {
    prompt: String,
    n: Option<usize>,
    size: Option<String>,
    response_format: Option<String>,
    output_format: Option<String>,
    stream: Option<bool>,
    /// Extension: seed of the first image.
    seed: Option<Seed>,
    /// Extension: guidance scale.
    guidance: Option<f64>,
}

impl GenerationsBody {
    /// Converts the body to settings for a model that generates images of `side` x `side` pixels.
    fn settings(self, side: usize) -> Result<Settings, ApiError> {
        let native = format!("{side}x{side}");
        match self.size.as_deref() {
            None | Some("auto") => {}
            Some(size) if size == native => {}
            Some(size) => {
                return Err(ApiError::bad_request(
                    "size",
                    format!("\"{size}\", expected \"{native}\", the size of this model's images, or \"auto\""),
                ));
            }
        }
        if let Some(format) = self.response_format.filter(|f| f != "b64_json") {
            return Err(ApiError::bad_request(
                "response_format",
                format!("\"{format}\", expected \"b64_json\", the default of this server"),
            ));
        }
        if let Some(format) = self.output_format.filter(|f| f != "png") {
            return Err(ApiError::bad_request("output_format", format!("\"{format}\", expected \"png\"")));
        }
        if self.stream == Some(true) {
            return Err(ApiError::bad_request("stream", "not supported: use the events of /api/generate"));
        }
        Ok(Settings { prompt: self.prompt, seed: self.seed, count: self.n, guidance: self.guidance, ..Settings::default() })
    }
}

/// Guard that cancels the run when the client disconnects: the server then drops the handler, which owns the guard.
struct CancelOnDisconnect<'a>(&'a App, Arc<Job>);

impl Drop for CancelOnDisconnect<'_> {
    fn drop(&mut self) {
        if !self.1.has_ended() {
            self.0.queue.cancel(&self.1);
        }
    }
}

async fn generations(State(app): State<Arc<App>>, headers: HeaderMap, body: Body) -> Result<Json, ApiError> {
    let body: GenerationsBody = read_json(&headers, body).await?;
    let checked = app.check(body.settings(app.hart.config().resolution())?)?;
    let job = Job::new(checked, false);
    app.queue.push(&job)?;
    let guard = CancelOnDisconnect(&app, job);
    let job = &guard.1;
    job.ended().await;
    match job.events_since(0).last() {
        Some(last) if last.name == "done" => {}
        Some(last) if last.name == "error" => {
            let message = last.data["message"].as_str().unwrap_or_default();
            return Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, message));
        }
        _ => return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "cancelled: the server is stopping").code("cancelled")),
    }
    let data: Vec<Value> = job
        .images()
        .iter()
        .map(|image| json!({ "b64_json": STANDARD.encode(&image.png), "revised_prompt": null, "seed": image.seed }))
        .collect();
    let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    Ok(Json(json!({ "created": created, "data": data, "output_format": "png" })))
}

/// Returns the API's description of the model.
fn model_object(app: &App) -> Value {
    json!({ "id": app.name, "object": "model", "created": 0, "owned_by": "hart" })
}

async fn models(State(app): State<Arc<App>>) -> Json {
    Json(json!({ "object": "list", "data": [model_object(&app)] }))
}

async fn model(State(app): State<Arc<App>>, Path(name): Path<String>) -> Result<Json, ApiError> {
    if name == app.name {
        Ok(Json(model_object(&app)))
    } else {
        Err(ApiError::not_found(format!("there is no model {name}")).code("model_not_found"))
    }
}
