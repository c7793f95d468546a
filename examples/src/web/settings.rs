//! Bodies of requests to settings, checked before anything is queued.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, StatusCode, header};
use futures_util::StreamExt;
use hart_core::{CancelToken, Request, SystemPrompt};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::failure::Failure;

/// Longest body that is read.
const MAX_BODY: usize = 64 << 10;
/// A longer body is read and dropped up to here, so that its sender hears the answer instead of a broken connection.
const MAX_DRAINED: usize = 1 << 20;
/// Longest time that a body may take.
const BODY_TIME: Duration = Duration::from_secs(10);

/// A seed as a number, or as text: JavaScript's numbers end at 2^53.
#[derive(Deserialize, Debug, Clone)]
#[serde(untagged, expecting = "seed: expected a whole number from 0 to 18446744073709551615, or the same as text")]
pub enum Seed {
    /// As a number.
    Number(u64),
    /// As text.
    Text(String),
}

/// What to make: the body of `POST /api/generate`. Whatever is left out is the model's own.
#[derive(Deserialize, Debug, Default)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// What to draw.
    pub prompt: String,
    /// Seed of the first picture; a random one if left out.
    pub seed: Option<Seed>,
    /// How many pictures.
    pub count: Option<usize>,
    /// Strength of guidance.
    pub guidance: Option<f64>,
    /// Soft sampling.
    pub soft: Option<bool>,
    /// Codes kept.
    pub top_k: Option<usize>,
    /// Probability of the codes kept.
    pub top_p: Option<f64>,
    /// Steps of the residual diffusion.
    pub steps: Option<String>,
    /// System prompt; empty for none.
    pub system_prompt: Option<String>,
}

/// Settings that are checked.
pub struct Checked {
    /// The request.
    pub request: Request,
    /// Its token.
    pub cancel: CancelToken,
    /// What to draw.
    pub prompt: String,
    /// Seed of the first picture.
    pub seed: u64,
    /// How many pictures.
    pub count: usize,
}

impl Settings {
    /// The request that they make.
    ///
    /// # Errors
    ///
    /// The first value that won't do.
    pub fn check(self, max_images: usize) -> Result<Checked, Failure> {
        let (seed, count, cancel) = (seed(self.seed)?, self.count.unwrap_or(1), CancelToken::new());
        if count > max_images {
            return Err(Failure::bad("count", format!("{count} pictures, at most {max_images} in one request: split it")));
        }
        let mut request = Request::new(self.prompt.clone()).seed(seed).images_per_prompt(count).cancel_token(cancel.clone());
        if let Some(guidance) = self.guidance {
            request = request.guidance(guidance);
        }
        if let Some(soft) = self.soft {
            request = request.smoothing(soft);
        }
        if let Some(top_k) = self.top_k {
            request = request.top_k(top_k);
        }
        if let Some(top_p) = self.top_p {
            request = request.top_p(top_p);
        }
        if let Some(steps) = &self.steps {
            request = request.steps(steps.parse()?);
        }
        request = match self.system_prompt {
            None => request,
            Some(text) if text.is_empty() => request.system_prompt(SystemPrompt::Off),
            Some(text) => request.system_prompt(SystemPrompt::Text(text)),
        };
        request.validate()?;
        Ok(Checked { request, cancel, prompt: self.prompt, seed, count })
    }
}

fn seed(seed: Option<Seed>) -> Result<u64, Failure> {
    match seed {
        None => Ok(random() >> 32),
        Some(Seed::Number(seed)) => Ok(seed),
        Some(Seed::Text(text)) => text
            .trim()
            .parse()
            .map_err(|_| Failure::bad("seed", format!("\"{text}\", expected a whole number from 0 to {}", u64::MAX))),
    }
}

/// A random number from the operating system's randomness, by way of the keys of the standard library's hash maps.
pub fn random() -> u64 {
    RandomState::new().hash_one(0)
}

/// A body of JSON.
///
/// # Errors
///
/// It is too long, comes too slowly, isn't declared as JSON, or isn't what is expected.
pub async fn read_json<T: DeserializeOwned>(headers: &HeaderMap, body: Body) -> Result<T, Failure> {
    let bytes = tokio::time::timeout(BODY_TIME, read(body))
        .await
        .map_err(|_| Failure::new(StatusCode::REQUEST_TIMEOUT, "the body did not come in time"))??;
    // Browsers let any page send other types anywhere, and ask before they send this one.
    let kind = headers.get(header::CONTENT_TYPE).and_then(|t| t.to_str().ok()).unwrap_or("");
    if !kind.split(';').next().unwrap_or("").trim().eq_ignore_ascii_case("application/json") {
        return Err(Failure::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "expected Content-Type: application/json"));
    }
    serde_json::from_slice(&bytes)
        .map_err(|e| Failure::new(StatusCode::BAD_REQUEST, format!("the body won't do: {e}")).code("bad_body"))
}

async fn read(body: Body) -> Result<Vec<u8>, Failure> {
    let (mut stream, mut bytes, mut length) = (body.into_data_stream(), Vec::new(), 0);
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|e| Failure::new(StatusCode::BAD_REQUEST, format!("the body broke off: {e}")))?;
        length += chunk.len();
        if length <= MAX_BODY {
            bytes.extend_from_slice(&chunk);
        } else if length > MAX_DRAINED {
            break;
        }
    }
    if length > MAX_BODY {
        return Err(
            Failure::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body has more than {MAX_BODY} bytes")).code("too_large")
        );
    }
    Ok(bytes)
}
