//! What goes wrong, as JSON in the form of OpenAI's API.

use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use hart_core::Error;
use serde_json::json;

use crate::json::Json;

/// An error as it is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    status: StatusCode,
    message: String,
    /// The field of the request that is at fault.
    param: Option<&'static str>,
    /// A name for programs.
    code: Option<&'static str>,
    /// Seconds after which another try may do.
    retry_after: Option<u64>,
}

impl Failure {
    /// An error with a message for people.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, code: None, retry_after: None }
    }

    /// A request that can't be carried out.
    pub fn bad(param: &'static str, message: impl Into<String>) -> Self {
        Self { param: Some(param), ..Self::new(StatusCode::BAD_REQUEST, message) }
    }

    /// Nothing of that name.
    pub fn missing(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message).code("not_found")
    }

    /// Too many wait already.
    pub fn full(waiting: usize, retry_after: u64) -> Self {
        let message = format!("{waiting} requests wait already and no more may: try again in a while");
        Self { retry_after: Some(retry_after), ..Self::new(StatusCode::TOO_MANY_REQUESTS, message).code("queue_full") }
    }

    /// With a name for programs.
    pub fn code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    fn kind(&self) -> &'static str {
        match self.status {
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::Request { field, .. } => Self::bad(field, error.to_string()),
            _ => Self::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let body = json!({ "error": { "message": self.message, "type": self.kind(), "param": self.param, "code": self.code } });
        let mut response = (self.status, Json(body)).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

/// An address that is not served.
pub async fn not_found(uri: Uri) -> Failure {
    Failure::missing(format!("there is nothing at {}", uri.path()))
}

/// An address that is served by another method.
pub async fn not_allowed() -> Failure {
    Failure::new(StatusCode::METHOD_NOT_ALLOWED, "this address takes another method").code("method_not_allowed")
}
