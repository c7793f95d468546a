//! Middleware for every request: checks host, origin and key, counts the response, and sets the security headers.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::App;
use crate::api_error::ApiError;
use crate::body;

/// Content security policy: the page has no inline code and loads nothing from other hosts.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
     connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// Rejects requests without access, converts every error to JSON, counts the response, and sets the security headers.
pub async fn guard(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let start = std::time::Instant::now();
    let origin = request.headers().get(header::ORIGIN).cloned();
    let endpoint = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_string());
    let mut response = match check(&app, &request) {
        Ok(()) => match app.access.preflight(request.method(), request.headers()) {
            Some(response) => response,
            None => errors_as_json(next.run(request).await),
        },
        Err(error) => {
            body::drain(request.into_body()).await;
            error.into_response()
        }
    };
    app.metrics.response(endpoint.as_deref().unwrap_or("other"), response.status().as_u16(), start.elapsed());
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (header::HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    app.access.expose(origin.as_ref(), response.headers_mut());
    response
}

/// Checks whether a request may be served.
fn check(app: &App, request: &Request) -> Result<(), ApiError> {
    let (method, headers, path) = (request.method(), request.headers(), request.uri().path());
    if app.loopback && !has_loopback_host(headers) {
        let message = "the Host header names another host: this server accepts requests for localhost only";
        return Err(ApiError::new(StatusCode::FORBIDDEN, message).code("wrong_host"));
    }
    // The identifier in the address of an image can't be guessed, and clients fetch these addresses without a key. Browsers send no
    // key with a preflight request.
    let is_open = path == "/health" || path.starts_with("/api/images/") || method == Method::OPTIONS;
    if !is_open {
        app.access.check_key(headers)?;
    }
    app.access.check_origin(method, headers)
}

/// Returns whether there is exactly one Host header and it names this machine.
///
/// This stops DNS rebinding: a page of another site whose domain resolves to 127.0.0.1 sends its own domain.
fn has_loopback_host(headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return false };
    host.to_str().is_ok_and(is_loopback)
}

fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map_or("", |(name, _)| name),
        None => host.split_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Replaces axum's own error responses, such as for a path that isn't UTF-8, with JSON.
fn errors_as_json(response: Response) -> Response {
    let status = response.status();
    let is_json = response.headers().get(header::CONTENT_TYPE).is_some_and(|t| t == "application/json");
    if is_json || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    ApiError::new(status, status.canonical_reason().unwrap_or("error").to_lowercase()).into_response()
}

#[cfg(test)]
mod tests {
    use super::is_loopback;

    #[test]
    fn only_names_of_this_machine() {
        for host in ["localhost", "LOCALHOST:7860", "127.0.0.1", "127.0.0.1:80", "127.1.2.3", "[::1]:7860", "[::1]"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["", "example.com", "localhost.example.com:7860", "127.0.0.1.example.com", "10.0.0.1", "[::2]", "[", "::1"] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
