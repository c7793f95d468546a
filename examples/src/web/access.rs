//! Access to the server: its key and the origins of web pages that may use it.

use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use subtle::ConstantTimeEq;

use crate::api_error::ApiError;

/// Environment variable with the key, if the option is not given.
pub const KEY_VARIABLE: &str = "HART_API_KEY";
/// Time for which browsers may store the answer to a preflight request, in seconds.
const PREFLIGHT_SECONDS: &str = "600";

/// The rules of access.
#[derive(Default)]
pub struct Access {
    /// The key that requests must present; `None` admits all.
    pub key: Option<String>,
    /// Origins of other web pages that may use the server; `*` is every origin.
    pub origins: Vec<String>,
}

impl Access {
    /// Checks the key of a request: `Authorization: Bearer KEY`, `api-key: KEY`, or the password of `Authorization: Basic`, which
    /// browsers and clients of A1111's API send. The time of the comparison does not depend on the key.
    ///
    /// # Errors
    ///
    /// Returns an error if the key is missing or wrong (401).
    pub fn check_key(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let Some(key) = &self.key else { return Ok(()) };
        let is_key = |text: &str| bool::from(text.as_bytes().ct_eq(key.as_bytes()));
        let admitted = presented(headers).iter().any(|text| is_key(text));
        if admitted {
            return Ok(());
        }
        let message = "the API key is missing or wrong: send it as \"Authorization: Bearer KEY\"";
        Err(ApiError::new(StatusCode::UNAUTHORIZED, message).code("invalid_api_key"))
    }

    /// Checks that a request that changes something does not come from a page of another site. Browsers name the site in `Origin`.
    ///
    /// # Errors
    ///
    /// Returns an error if the origin is neither the server's own nor allowed (403).
    pub fn check_origin(&self, method: &Method, headers: &HeaderMap) -> Result<(), ApiError> {
        let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
        let host = headers.get(header::HOST).map_or(&b""[..], HeaderValue::as_bytes);
        let bytes = origin.as_bytes();
        let own = [&b"http://"[..], b"https://"].iter().any(|scheme| bytes.strip_prefix(*scheme).is_some_and(|rest| rest == host));
        // Behind a proxy, the Host header has another name than the page; scripts can't set this header.
        let same = headers.get("sec-fetch-site").is_some_and(|site| site == "same-origin");
        if own || same || method.is_safe() || self.allows(origin) {
            return Ok(());
        }
        let message = "this server does not serve pages of other sites; its option --allow-origin admits them";
        Err(ApiError::new(StatusCode::FORBIDDEN, message).code("wrong_origin"))
    }

    /// Returns whether an origin is allowed by option.
    fn allows(&self, origin: &HeaderValue) -> bool {
        self.origins.iter().any(|allowed| allowed == "*" || allowed.as_bytes() == origin.as_bytes())
    }

    /// Answers a preflight request of an allowed origin. Returns `None` for any other request.
    pub fn preflight(&self, method: &Method, headers: &HeaderMap) -> Option<Response> {
        let asked = headers.get(header::ACCESS_CONTROL_REQUEST_METHOD)?;
        if method != Method::OPTIONS || !headers.get(header::ORIGIN).is_some_and(|origin| self.allows(origin)) {
            return None;
        }
        let mut response = StatusCode::NO_CONTENT.into_response();
        let own = response.headers_mut();
        own.insert(header::ACCESS_CONTROL_ALLOW_METHODS, asked.clone());
        own.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static(PREFLIGHT_SECONDS));
        if let Some(names) = headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
            own.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, names.clone());
        }
        Some(response)
    }

    /// Lets pages of an allowed origin read a response.
    pub fn expose(&self, origin: Option<&HeaderValue>, response: &mut HeaderMap) {
        if self.origins.is_empty() {
            return;
        }
        response.append(header::VARY, HeaderValue::from_static("Origin"));
        if let Some(origin) = origin.filter(|origin| self.allows(origin)) {
            response.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
            let exposed = "retry-after, x-hart-warning";
            response.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(exposed));
            response.insert("cross-origin-resource-policy", HeaderValue::from_static("cross-origin"));
        }
    }
}

/// Returns the keys that a request presents.
fn presented(headers: &HeaderMap) -> Vec<String> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_string);
    let mut keys: Vec<String> = text("api-key").into_iter().collect();
    if let Some((scheme, rest)) = text("authorization").as_deref().and_then(|value| value.split_once(' ')) {
        if scheme.eq_ignore_ascii_case("bearer") {
            keys.push(rest.trim().to_string());
        } else if scheme.eq_ignore_ascii_case("basic") {
            let decoded = STANDARD.decode(rest.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
            keys.extend(decoded.as_deref().and_then(|pair| pair.split_once(':')).map(|(_, password)| password.to_string()));
        }
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (header::HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    #[test]
    fn every_way_to_present_the_key() {
        let access = Access { key: Some("s3cret".into()), origins: Vec::new() };
        // user:s3cret
        for pair in [("authorization", "Bearer s3cret"), ("authorization", "basic dXNlcjpzM2NyZXQ="), ("api-key", "s3cret")] {
            assert!(access.check_key(&headers(&[pair])).is_ok(), "{pair:?}");
        }
        for pair in [("authorization", "Bearer s3cre"), ("authorization", "s3cret"), ("api-key", ""), ("authorization", "Basic x")]
        {
            assert!(access.check_key(&headers(&[pair])).is_err(), "{pair:?}");
        }
        assert!(access.check_key(&headers(&[])).is_err() && Access::default().check_key(&headers(&[])).is_ok());
    }

    #[test]
    fn only_the_own_and_the_allowed_origins_may_change_something() {
        let access = Access { key: None, origins: vec!["https://a.example".into()] };
        let check = |origin: &str| access.check_origin(&Method::POST, &headers(&[("host", "localhost:1"), ("origin", origin)]));
        for origin in ["http://localhost:1", "https://a.example"] {
            assert!(check(origin).is_ok(), "{origin}");
        }
        for origin in ["null", "http://localhost:2", "https://a.example.com", "http://a.example"] {
            assert!(check(origin).is_err(), "{origin}");
        }
        assert!(access.check_origin(&Method::POST, &headers(&[("host", "localhost:1")])).is_ok());
        let proxied = [("host", "localhost"), ("origin", "https://b.example"), ("sec-fetch-site", "same-origin")];
        assert!(access.check_origin(&Method::POST, &headers(&proxied)).is_ok());
    }
}
