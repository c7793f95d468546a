//! The lists of A1111's API: one model, one sampler, and no other parts.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::routing::{get, post};
use serde_json::{Value, json};

use super::generate::{DEFAULT_CFG_SCALE, model_hash};
use crate::App;
use crate::api_error::ApiError;
use crate::body;
use crate::json::Json;

/// Returns the routes.
pub fn routes() -> Router<Arc<App>> {
    let fixed = |value: Value| get(async move || Json(value));
    let empty = || fixed(json!([]));
    let named = |names: &[&str]| fixed(names.iter().map(|name| json!({ "name": name })).collect());
    Router::new()
        .route("/sdapi/v1/options", get(options).post(set_options))
        .route("/sdapi/v1/sd-models", get(models))
        .route("/sdapi/v1/samplers", fixed(json!([{ "name": "HART", "aliases": [], "options": {} }])))
        .route("/sdapi/v1/schedulers", fixed(json!([{ "name": "automatic", "label": "Automatic", "aliases": null }])))
        .route(
            "/sdapi/v1/upscalers",
            fixed(json!([{ "name": "None", "model_name": null, "model_path": null, "model_url": null, "scale": 1 }])),
        )
        .route("/sdapi/v1/latent-upscale-modes", named(&[]))
        .route("/sdapi/v1/sd-vae", empty())
        .route("/sdapi/v1/sd-modules", empty())
        .route("/sdapi/v1/loras", empty())
        .route("/sdapi/v1/hypernetworks", empty())
        .route("/sdapi/v1/face-restorers", empty())
        .route("/sdapi/v1/prompt-styles", empty())
        .route("/sdapi/v1/embeddings", fixed(json!({ "loaded": {}, "skipped": {} })))
        .route("/sdapi/v1/scripts", fixed(json!({ "txt2img": [], "img2img": [] })))
        .route("/sdapi/v1/cmd-flags", fixed(json!({ "api": true })))
        .route("/sdapi/v1/memory", fixed(json!({ "ram": {}, "cuda": {} })))
        .route("/sdapi/v1/refresh-checkpoints", post(async || Json(Value::Null)))
        .route("/sdapi/v1/refresh-vae", post(async || Json(Value::Null)))
        .route("/sdapi/v1/refresh-loras", post(async || Json(Value::Null)))
}

/// Returns the options that clients read.
async fn options(State(app): State<Arc<App>>) -> Json {
    Json(json!({
        "sd_model_checkpoint": app.name,
        "sd_checkpoint_hash": "",
        "sd_vae": "Automatic",
        "CLIP_stop_at_last_layers": 1,
        "samples_format": "png",
        "eta_noise_seed_delta": 0,
        "cfg_scale": DEFAULT_CFG_SCALE,
    }))
}

/// Accepts options without effect: clients select the only model before they generate.
async fn set_options(headers: HeaderMap, body: Body) -> Result<Json, ApiError> {
    body::object(body::read_json(&headers, body).await?)?;
    Ok(Json(Value::Null))
}

/// Lists the model.
async fn models(State(app): State<Arc<App>>) -> Json {
    Json(json!([{
        "title": app.name,
        "model_name": app.name,
        "hash": model_hash(&app.hart),
        "sha256": null,
        "filename": app.name,
        "config": null,
    }]))
}
