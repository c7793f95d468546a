//! Request bodies and their validation, which comes before anything is queued.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, StatusCode, header};
use futures_util::StreamExt;
use hart_core::{CancelToken, Pruning, Request, Respacing, SystemPrompt};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::api_error::ApiError;

/// Maximum size of a body, in bytes.
const MAX_BODY_SIZE: usize = 64 << 10;
/// Number of bytes of an oversized body that are still read, so that the client receives the error instead of a broken connection.
const MAX_DRAINED_SIZE: usize = 1 << 20;
/// Time limit for a body.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// A seed as a number or as text; JavaScript's integers are exact only up to 2^53.
#[derive(Deserialize, Debug, Clone)]
#[serde(untagged, expecting = "seed: expected a whole number from 0 to 18446744073709551615, or the same as text")]
pub enum Seed {
    /// A JSON number.
    Number(u64),
    /// A decimal number as text.
    Text(String),
}

/// The body of `POST /api/generate`. Fields that are left out take the model's defaults.
#[derive(Deserialize, Debug, Default)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The prompt.
    pub prompt: String,
    /// Seed of the first image; random by default.
    pub seed: Option<Seed>,
    /// Number of images.
    pub count: Option<usize>,
    /// Guidance scale.
    pub guidance: Option<f64>,
    /// True if tokens are sampled with Gumbel-softmax smoothing.
    pub smoothing: Option<bool>,
    /// Number of most likely codes to sample from.
    pub top_k: Option<usize>,
    /// Cumulative probability of the codes to sample from.
    pub top_p: Option<f64>,
    /// Number of residual diffusion steps, or a respacing.
    pub steps: Option<String>,
    /// Shares of tokens that the last scales leave out, such as "0.5,0.75".
    pub prune: Option<String>,
    /// The system prompt; an empty one turns it off.
    pub system_prompt: Option<String>,
}

/// Validated settings.
pub struct CheckedSettings {
    /// The request to run.
    pub request: Request,
    /// The request's cancel token.
    pub cancel: CancelToken,
    /// The prompt.
    pub prompt: String,
    /// The system prompt.
    pub system_prompt: SystemPrompt,
    /// Seed of the first image.
    pub seed: u64,
    /// Number of images.
    pub count: usize,
}

impl Settings {
    /// Validates the settings and builds the request.
    ///
    /// # Errors
    ///
    /// Returns an error that names the first invalid field.
    pub fn check(self, max_images: usize) -> Result<CheckedSettings, ApiError> {
        let (seed, count, cancel) = (seed(self.seed)?, self.count.unwrap_or(1), CancelToken::new());
        if count > max_images {
            return Err(ApiError::bad_request(
                "count",
                format!("{count} images, expected at most {max_images}: split the request"),
            ));
        }
        let steps = self.steps.map(|steps| steps.parse::<Respacing>()).transpose()?;
        let pruning = self.prune.map(|ratios| ratios.parse::<Pruning>()).transpose()?;
        let system_prompt = match self.system_prompt {
            None => SystemPrompt::Checkpoint,
            Some(text) if text.is_empty() => SystemPrompt::Off,
            Some(text) => SystemPrompt::Text(text),
        };
        let request = Request::new(self.prompt.clone())
            .seed(seed)
            .images_per_prompt(count)
            .guidance(self.guidance)
            .smoothing(self.smoothing)
            .top_k(self.top_k)
            .top_p(self.top_p)
            .steps(steps)
            .prune(pruning)
            .system_prompt(system_prompt.clone())
            .cancel_token(cancel.clone());
        request.validate()?;
        Ok(CheckedSettings { request, cancel, prompt: self.prompt, system_prompt, seed, count })
    }
}

/// Parses the seed, or chooses a random one of 32 bits.
fn seed(seed: Option<Seed>) -> Result<u64, ApiError> {
    match seed {
        None => Ok(random() >> 32),
        Some(Seed::Number(seed)) => Ok(seed),
        Some(Seed::Text(text)) => text
            .trim()
            .parse()
            .map_err(|_| ApiError::bad_request("seed", format!("\"{text}\", expected a whole number from 0 to {}", u64::MAX))),
    }
}

/// Returns a random number. The keys of the standard library's hash maps come from the operating system's randomness.
pub fn random() -> u64 {
    RandomState::new().hash_one(0)
}

/// Reads and parses a JSON body.
///
/// # Errors
///
/// Returns an error if the body is too large, too slow, not declared as JSON, or not of the expected form.
pub async fn read_json<T: DeserializeOwned>(headers: &HeaderMap, body: Body) -> Result<T, ApiError> {
    let bytes = tokio::time::timeout(BODY_TIMEOUT, read_body(body))
        .await
        .map_err(|_| ApiError::new(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time"))??;
    // Browsers let any page send other content types to any host. Before they send this one, they ask the server (CORS preflight).
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|t| t.to_str().ok()).unwrap_or("");
    if !content_type.split(';').next().unwrap_or("").trim().eq_ignore_ascii_case("application/json") {
        return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "expected Content-Type: application/json"));
    }
    serde_json::from_slice(&bytes)
        .map_err(|e| ApiError::new(StatusCode::BAD_REQUEST, format!("the body is invalid: {e}")).code("bad_body"))
}

async fn read_body(body: Body) -> Result<Vec<u8>, ApiError> {
    let (mut stream, mut bytes, mut length) = (body.into_data_stream(), Vec::new(), 0);
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|e| ApiError::new(StatusCode::BAD_REQUEST, format!("the body is incomplete: {e}")))?;
        length += chunk.len();
        if length <= MAX_BODY_SIZE {
            bytes.extend_from_slice(&chunk);
        } else if length > MAX_DRAINED_SIZE {
            break;
        }
    }
    if length > MAX_BODY_SIZE {
        return Err(
            ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body has more than {MAX_BODY_SIZE} bytes")).code("too_large")
        );
    }
    Ok(bytes)
}
