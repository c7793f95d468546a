//! Errors as JSON in the form of OpenAI's API.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use hart_core::Error;
use serde_json::json;

use crate::body;
use crate::json::Json;

/// An error response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    status: StatusCode,
    message: String,
    /// Name of the request field at fault.
    param: Option<&'static str>,
    /// Machine-readable name of the error.
    code: Option<&'static str>,
    /// Seconds after which the client may try again.
    retry_after: Option<u64>,
}

impl ApiError {
    /// Creates an error with a human-readable message.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, code: None, retry_after: None }
    }

    /// Creates an error for an invalid request field (400).
    pub fn bad_request(param: &'static str, message: impl Into<String>) -> Self {
        Self { param: Some(param), ..Self::new(StatusCode::BAD_REQUEST, message) }
    }

    /// Creates an error for an unknown resource (404).
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message).code("not_found")
    }

    /// Creates an error for a failure of the server (500).
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// Creates an error for a server that is stopping (503).
    pub fn stopping() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "cancelled: the server is stopping").code("cancelled")
    }

    /// Creates an error for a full queue (429).
    pub fn queue_full(waiting: usize, retry_after: u64) -> Self {
        let message = format!("the queue is full, {waiting} requests are waiting: try again later");
        Self { retry_after: Some(retry_after), ..Self::new(StatusCode::TOO_MANY_REQUESTS, message).code("queue_full") }
    }

    /// Sets the machine-readable name of the error.
    pub fn code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    /// Sets the request field at fault.
    pub fn param(mut self, param: &'static str) -> Self {
        self.param = Some(param);
        self
    }

    /// Returns the request field at fault.
    pub fn field(&self) -> Option<&'static str> {
        self.param
    }

    /// Returns the error as JSON: `{"error": {...}}`.
    pub fn to_json(&self) -> serde_json::Value {
        let (message, code) = (&self.message, self.code);
        json!({ "error": { "message": message, "type": self.error_type(), "param": self.param, "code": code } })
    }

    /// Returns OpenAI's error type for the status.
    fn error_type(&self) -> &'static str {
        match self.status {
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            StatusCode::UNAUTHORIZED => "authentication_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        }
    }
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        match error {
            Error::Request { field, problem } => {
                // Fields of the library that requests name differently.
                let field = match field {
                    "pruning" => "prune",
                    "marks" => "omit_marks",
                    "images per prompt" => "count",
                    "top-k" => "top_k",
                    "top-p" => "top_p",
                    "system prompt" => "system_prompt",
                    field => field,
                };
                Self::bad_request(field, format!("{field}: {problem}"))
            }
            // Another request may need less.
            Error::Memory { .. } => Self::new(StatusCode::BAD_REQUEST, error.to_string()).code("memory"),
            _ => Self::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.to_json())).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            // Browsers ask for a password, which is the key.
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"hart\""));
        }
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

/// Handles paths that have no route.
pub async fn unknown_path(uri: Uri, body: Body) -> ApiError {
    body::drain(body).await;
    ApiError::not_found(format!("there is nothing at {}", uri.path()))
}

/// Handles paths that are requested with the wrong method.
pub async fn wrong_method(body: Body) -> ApiError {
    body::drain(body).await;
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "this path expects another method").code("method_not_allowed")
}
