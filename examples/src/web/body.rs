//! Request bodies: JSON and forms with files, both of bounded size and time.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, StatusCode, header};
use futures_util::{StreamExt, stream};
use multer::Multipart;
use serde_json::{Map, Value};
use tokio::sync::Semaphore;

use crate::api_error::ApiError;

/// Maximum size of a body without images, in bytes.
pub const MAX_TEXT_SIZE: usize = 64 << 10;
/// Maximum size of a body with images, in bytes.
pub const MAX_UPLOAD_SIZE: usize = 32 << 20;
/// Number of bytes that are read of a body that is refused, so that the client receives the error instead of a broken connection.
const MAX_DRAINED_SIZE: usize = 32 << 20;
/// Time limit for a body without images.
const TEXT_TIMEOUT: Duration = Duration::from_secs(10);
/// Time limit for a body with images.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(60);
/// Bodies with images that are read at the same time; others wait. This bounds the memory for them.
static UPLOADS: Semaphore = Semaphore::const_new(4);

/// The fields of a request, and its files in their order, each with the name of its field.
#[derive(Default)]
pub struct Form {
    /// The fields.
    pub fields: Map<String, Value>,
    /// The files.
    pub files: Vec<(String, Vec<u8>)>,
}

/// Reads a JSON body without images.
///
/// # Errors
///
/// Returns an error if the body is too large, too slow, not declared as JSON, or not JSON.
pub async fn read_json(headers: &HeaderMap, body: Body) -> Result<Value, ApiError> {
    let bytes = read(body, MAX_TEXT_SIZE, TEXT_TIMEOUT).await?;
    parse_json(headers, &bytes)
}

/// Reads a JSON object with images as base64.
///
/// # Errors
///
/// Like [`read_json`].
pub async fn read_large_object(headers: &HeaderMap, body: Body) -> Result<Map<String, Value>, ApiError> {
    let _permit = UPLOADS.acquire().await;
    let bytes = read(body, MAX_UPLOAD_SIZE, UPLOAD_TIMEOUT).await?;
    object(parse_json(headers, &bytes)?)
}

/// Returns the fields of a JSON object.
///
/// # Errors
///
/// Returns an error for another JSON value.
pub fn object(value: Value) -> Result<Map<String, Value>, ApiError> {
    match value {
        Value::Object(fields) => Ok(fields),
        _ => Err(invalid("expected a JSON object")),
    }
}

/// Reads a form (`multipart/form-data`). A part with a file name is a file, every other one a field.
///
/// # Errors
///
/// Returns an error if the body is too large, too slow, or no form.
pub async fn read_form(headers: &HeaderMap, body: Body) -> Result<Form, ApiError> {
    let _permit = UPLOADS.acquire().await;
    let bytes = read(body, MAX_UPLOAD_SIZE, UPLOAD_TIMEOUT).await?;
    let boundary = content_type(headers)
        .and_then(|value| multer::parse_boundary(value).ok())
        .ok_or_else(|| unsupported("multipart/form-data with a boundary"))?;
    let mut parts = Multipart::new(stream::once(async { Ok::<_, std::convert::Infallible>(bytes) }), boundary);
    let mut form = Form::default();
    while let Some(part) = parts.next_field().await.map_err(|e| invalid(&e.to_string()))? {
        let name = part.name().unwrap_or_default().to_string();
        let is_file = part.file_name().is_some();
        let bytes = part.bytes().await.map_err(|e| invalid(&e.to_string()))?;
        if is_file {
            form.files.push((name, bytes.to_vec()));
        } else {
            let text = String::from_utf8(bytes.to_vec()).map_err(|_| invalid(&format!("{name} is not UTF-8")))?;
            form.fields.insert(name, text.into());
        }
    }
    Ok(form)
}

/// Reads and discards a body, so that a client that is still sending it receives the response.
pub async fn drain(body: Body) {
    let mut length = 0;
    let mut stream = body.into_data_stream();
    let drained = async {
        while let Some(Ok(chunk)) = stream.next().await {
            length += chunk.len();
            if length > MAX_DRAINED_SIZE {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(TEXT_TIMEOUT, drained).await;
}

/// Creates the error for a body of the wrong form.
pub fn invalid(problem: &str) -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, format!("the body is invalid: {problem}")).code("bad_body")
}

fn unsupported(expected: &str) -> ApiError {
    ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, format!("expected Content-Type: {expected}")).code("bad_content_type")
}

fn content_type(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::CONTENT_TYPE)?.to_str().ok()
}

fn parse_json(headers: &HeaderMap, bytes: &[u8]) -> Result<Value, ApiError> {
    // Browsers let any page send other content types to any host. Before they send this one, they ask the server (CORS preflight).
    let media_type = content_type(headers).unwrap_or("").split(';').next().unwrap_or("").trim();
    if !media_type.eq_ignore_ascii_case("application/json") {
        return Err(unsupported("application/json"));
    }
    serde_json::from_slice(bytes).map_err(|e| invalid(&e.to_string()))
}

async fn read(body: Body, limit: usize, timeout: Duration) -> Result<Vec<u8>, ApiError> {
    tokio::time::timeout(timeout, read_bounded(body, limit))
        .await
        .map_err(|_| ApiError::new(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time"))?
}

async fn read_bounded(body: Body, limit: usize) -> Result<Vec<u8>, ApiError> {
    let (mut stream, mut bytes, mut length) = (body.into_data_stream(), Vec::new(), 0);
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|e| ApiError::new(StatusCode::BAD_REQUEST, format!("the body is incomplete: {e}")))?;
        length += chunk.len();
        if length <= limit {
            bytes.extend_from_slice(&chunk);
        } else if length > limit.max(MAX_DRAINED_SIZE) {
            break;
        }
    }
    if length > limit {
        return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body has more than {limit} bytes")).code("too_large"));
    }
    Ok(bytes)
}
