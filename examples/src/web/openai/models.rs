//! The list of models, which has one entry.

use std::sync::Arc;

use axum::extract::{Path, State};
use serde_json::{Value, json};

use crate::App;
use crate::api_error::ApiError;
use crate::json::Json;

/// Returns the API's description of the model.
fn model_object(app: &App) -> Value {
    json!({ "id": app.name, "object": "model", "created": 0, "owned_by": "hart" })
}

/// Lists the model.
pub async fn models(State(app): State<Arc<App>>) -> Json {
    Json(json!({ "object": "list", "data": [model_object(&app)] }))
}

/// Describes the model.
pub async fn model(State(app): State<Arc<App>>, Path(name): Path<String>) -> Result<Json, ApiError> {
    if name == app.name {
        Ok(Json(model_object(&app)))
    } else {
        Err(ApiError::not_found(format!("there is no model {name}")).code("model_not_found"))
    }
}
