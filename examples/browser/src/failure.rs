//! Errors as JavaScript receives them: JSON with `code`, `message` and, for files, `file`.

use hart_core::Error;
use serde_json::json;
use wasm_bindgen::JsValue;

/// An error that is thrown as JSON.
pub(crate) struct Failure {
    code: &'static str,
    message: String,
    file: Option<String>,
}

impl Failure {
    pub(crate) fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), file: None }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        // The names of hart.h, in lower case.
        let (code, path) = match &error {
            Error::Io { path, .. } => ("io", Some(path)),
            Error::Checkpoint { path, .. } => ("checkpoint", Some(path)),
            Error::Image { path, .. } => ("image", Some(path)),
            Error::Config { path, .. } => ("config", Some(path)),
            Error::Weights(_) => ("weights", None),
            Error::NotFinite { path, .. } => ("not-finite", Some(path)),
            Error::Request { .. } => ("request", None),
            Error::Refused { .. } => ("refused", None),
            Error::Device { .. } => ("device", None),
            Error::Memory { .. } => ("memory", None),
            Error::Cancelled => ("cancelled", None),
            Error::Overflow { .. } => ("overflow", None),
            _ => ("other", None),
        };
        Self { code, message: error.to_string(), file: path.map(|path| path.display().to_string()) }
    }
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Self {
        Self::new("request", format!("request: {error}"))
    }
}

impl From<Failure> for JsValue {
    fn from(Failure { code, message, file }: Failure) -> Self {
        Self::from_str(&json!({ "code": code, "message": message, "file": file }).to_string())
    }
}
