//! OpenAI's images API: <https://platform.openai.com/docs/api-reference/images>.

mod edits;
mod generations;
mod models;
mod parameters;
mod reply;
mod stream;

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::routing::{get, post};

use crate::App;

/// Returns the routes of OpenAI's API.
pub fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/images/generations", post(generations::generations))
        .route("/v1/images/edits", post(edits::edits))
        .route("/v1/images/variations", post(edits::variations))
        .route("/v1/models", get(models::models))
        .route("/v1/models/{name}", get(models::model))
}

/// Returns the seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
