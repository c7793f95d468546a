//! The API of AUTOMATIC1111's web UI as far as it applies to HART, for the clients that speak it.

mod generate;
mod info;
mod lists;
mod progress;

use std::sync::Arc;

use axum::Router;
use axum::routing::{get, post};

use crate::App;

/// Returns the routes of A1111's API.
pub fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/sdapi/v1/txt2img", post(generate::txt2img))
        .route("/sdapi/v1/img2img", post(generate::img2img))
        .route("/sdapi/v1/progress", get(progress::progress))
        .route("/sdapi/v1/interrupt", post(progress::interrupt))
        .route("/sdapi/v1/skip", post(progress::interrupt))
        .merge(lists::routes())
}
