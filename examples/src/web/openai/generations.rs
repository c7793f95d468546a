//! `POST /v1/images/generations`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;

use super::parameters::Parameters;
use super::reply;
use crate::App;
use crate::api_error::ApiError;
use crate::body;

/// Generates images from a prompt.
pub async fn generations(State(app): State<Arc<App>>, headers: HeaderMap, body: Body) -> Result<Response, ApiError> {
    let fields = body::object(body::read_json(&headers, body).await?)?;
    let parameters = Parameters::parse(fields, &app)?;
    let prompt = parameters.prompt.clone().ok_or_else(|| body::invalid("prompt is missing").param("prompt"))?;
    let checked = parameters.settings(&app, prompt, None)?;
    let delivery = parameters.delivery(None, app.signing.clone());
    reply::run(app, &headers, checked, delivery, &parameters, "image_generation").await
}
