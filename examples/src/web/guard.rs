//! What every request passes: whom it is for, and what browsers may do with the answer.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::App;
use crate::failure::Failure;

/// The page has no inline code and loads nothing from elsewhere.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
     connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// Refuses requests for other hosts, makes every error JSON, and sets the security headers.
pub async fn guard(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let mut response = if app.loopback && !names_this_machine(request.headers()) {
        Failure::new(StatusCode::FORBIDDEN, "this server answers to localhost only: the Host header names another")
            .code("wrong_host")
            .into_response()
    } else {
        plain_errors(next.run(request).await)
    };
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
    response
}

/// Whether the Host header is a name of this machine. A page elsewhere whose name was made to resolve to 127.0.0.1 would send its
/// own name (DNS rebinding).
fn names_this_machine(headers: &HeaderMap) -> bool {
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

/// An error that axum answered in its own words, such as for a path that isn't UTF-8, in ours.
fn plain_errors(response: Response) -> Response {
    let status = response.status();
    let is_json = response.headers().get(header::CONTENT_TYPE).is_some_and(|t| t == "application/json");
    if is_json || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    Failure::new(status, status.canonical_reason().unwrap_or("error").to_lowercase()).into_response()
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
