//! Settings of a request and their validation, which comes before anything is queued.

use std::hash::{BuildHasher, RandomState};

use hart_core::{CancelToken, FromImage, Marks, Pruning, Request, Respacing, SystemPrompt};
use serde::Deserialize;
use serde_json::Value;

use crate::api_error::ApiError;

/// The body of `POST /api/generate`. Fields that are left out take the model's defaults.
#[derive(Deserialize, Debug, Default)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The prompt.
    pub prompt: String,
    /// Seed of the first image as a number or as text, since JavaScript's integers are exact only up to 2^53; random by default.
    pub seed: Option<Value>,
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
    /// Marks that the files lack, such as "prompt,settings".
    pub omit_marks: Option<String>,
    /// An image to start from.
    #[serde(skip)]
    pub from_image: Option<FromImage>,
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
    /// Marks that the files lack.
    pub omitted_marks: Marks,
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
        let (seed, count, cancel) = (seed(self.seed.as_ref())?, self.count.unwrap_or(1), CancelToken::new());
        if count > max_images {
            return Err(ApiError::bad_request(
                "count",
                format!("{count} images, expected at most {max_images}: split the request"),
            ));
        }
        let steps = self.steps.map(|steps| steps.parse::<Respacing>()).transpose()?;
        let pruning = self.prune.map(|ratios| ratios.parse::<Pruning>()).transpose()?;
        let omitted_marks = self.omit_marks.map_or(Ok(Marks::NONE), |marks| marks.parse())?;
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
            .from_image(self.from_image)
            .cancel_token(cancel.clone());
        request.validate()?;
        Ok(CheckedSettings { request, cancel, prompt: self.prompt, system_prompt, omitted_marks, seed, count })
    }
}

/// Parses the seed, or chooses a random one of 32 bits.
fn seed(seed: Option<&Value>) -> Result<u64, ApiError> {
    const RANDOM: &str = "-1";
    let text = match seed {
        None | Some(Value::Null) => return Ok(random() >> 32),
        Some(Value::String(text)) => text.trim().to_string(),
        Some(Value::Number(number)) => match number.as_f64() {
            // Some clients send every number with a fraction.
            Some(value) if number.is_f64() && value.fract() == 0.0 && value.abs() < 2f64.powi(53) => format!("{value:.0}"),
            _ => number.to_string(),
        },
        Some(other) => other.to_string(),
    };
    if text == RANDOM {
        return Ok(random() >> 32);
    }
    text.parse().map_err(|_| {
        let expected = format!("seed: expected a whole number from 0 to {}, the same as text, or -1 for a random one", u64::MAX);
        ApiError::bad_request("seed", format!("{expected}, not \"{text}\""))
    })
}

/// Returns a random number from the operating system.
pub fn random() -> u64 {
    getrandom::u64().unwrap_or_else(|_| RandomState::new().hash_one(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn seeds_are_numbers_or_text() {
        let parsed = |value: Value| seed(Some(&value)).ok();
        for (value, expected) in [(json!(7), 7), (json!("7"), 7), (json!(7.0), 7), (json!(u64::MAX), u64::MAX)] {
            assert_eq!(parsed(value.clone()), Some(expected), "{value}");
        }
        assert!([json!(-1), json!("-1"), json!(-1.0), json!(null)].into_iter().all(|value| parsed(value).is_some()));
        for value in [json!(-2), json!(1.5), json!(true), json!("one"), json!(""), json!([1]), json!(1e30)] {
            assert_eq!(parsed(value.clone()), None, "{value}");
        }
    }
}
