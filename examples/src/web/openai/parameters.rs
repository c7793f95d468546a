//! The parameters that generations, edits and variations share.

use hart_core::{FromImage, ImageFormat};
use hart_examples::cli::sign::Signing;
use serde_json::{Map, Value};

use crate::App;
use crate::api_error::ApiError;
use crate::body;
use crate::fields::{Fields, parse_size};
use crate::job::{Delivery, Interface};
use crate::output::{MAX_PIXELS, MAX_SIDE, Original, Output};
use crate::settings::{CheckedSettings, Settings};

/// Maximum number of partial images of an image.
const MAX_PARTIAL_IMAGES: usize = 3;
/// Parameters that have no meaning for HART.
const IGNORED: [&str; 6] = ["model", "style", "moderation", "user", "safety_identifier", "input_fidelity"];

/// Validated parameters.
pub struct Parameters {
    /// The prompt, if there is one.
    pub prompt: Option<String>,
    /// True if the answer is a stream of events.
    pub stream: bool,
    /// True if the answer has addresses of the images instead of their files.
    pub urls: bool,
    /// The quality that the client asked for, which the answer repeats.
    pub quality: String,
    /// Parameters that were ignored, each as a sentence.
    pub warnings: Vec<String>,
    count: Option<usize>,
    seed: Option<Value>,
    guidance: Option<f64>,
    prune: Option<String>,
    omit_marks: Option<String>,
    format: ImageFormat,
    size: Option<(usize, usize)>,
    partial_images: usize,
}

impl Parameters {
    /// Validates the fields of a request.
    ///
    /// # Errors
    ///
    /// Returns an error that names the first invalid parameter.
    pub fn parse(fields: Map<String, Value>, app: &App) -> Result<Self, ApiError> {
        let mut fields = Fields::new(fields);
        let mut warnings = Vec::new();
        let prompt = match fields.take("prompt") {
            None => None,
            Some(Value::String(prompt)) => Some(prompt),
            Some(_) => return Err(body::invalid("prompt: expected a text").param("prompt")),
        };
        let background = fields.word("background", &["auto", "opaque", "transparent"])?;
        if background == Some("transparent") {
            let message = "background: HART draws opaque images; expected \"opaque\" or \"auto\"";
            return Err(ApiError::bad_request("background", message));
        }
        let compression = fields.whole("output_compression", 0, 100)?;
        let format = match fields.word("output_format", &["png", "jpeg", "jpg", "webp"])? {
            Some("jpeg" | "jpg") => {
                compression.map_or(ImageFormat::JPEG, |quality| ImageFormat::Jpeg { quality: quality.max(1) as u8 })
            }
            Some("webp") => ImageFormat::WebP,
            _ => ImageFormat::Png,
        };
        if compression.is_some_and(|compression| compression < 100) && !matches!(format, ImageFormat::Jpeg { .. }) {
            warnings.push("output_compression is ignored: PNG and WebP files are written without loss".to_string());
        }
        let parsed = Self {
            prompt,
            stream: fields.flag("stream")?.unwrap_or(false),
            urls: fields.word("response_format", &["url", "b64_json"])? == Some("url"),
            quality: fields.text("quality")?.unwrap_or_else(|| "auto".into()),
            count: fields.whole("n", 1, app.max_images)?,
            seed: fields.take("seed"),
            guidance: fields.number("guidance")?,
            prune: fields.text("prune")?,
            omit_marks: fields.text("omit_marks")?,
            format,
            size: size(fields.text("size")?, app)?,
            partial_images: fields.whole("partial_images", 0, MAX_PARTIAL_IMAGES)?.unwrap_or(0),
            warnings,
        };
        fields.skip(&IGNORED);
        let unknown = fields.rest().into_iter().map(|name| format!("{name} is ignored: the server does not know it"));
        Ok(Self { warnings: parsed.warnings.into_iter().chain(unknown).collect(), ..parsed })
    }

    /// Adds a sentence about a parameter that is ignored.
    pub fn warn(&mut self, warning: &str) {
        self.warnings.push(warning.into());
    }

    /// Validates the request that the parameters describe.
    ///
    /// # Errors
    ///
    /// Returns an error if the prompt is refused, or one that names the first invalid parameter.
    pub fn settings(&self, app: &App, prompt: String, from_image: Option<FromImage>) -> Result<CheckedSettings, ApiError> {
        let (seed, count, guidance) = (self.seed.clone(), self.count, self.guidance);
        let (prune, omit_marks) = (self.prune.clone(), self.omit_marks.clone());
        app.check(Settings { prompt, seed, count, guidance, prune, omit_marks, from_image, ..Settings::default() })
    }

    /// Returns the form of the answer. `original` is the image that is edited, to which `signing` refers.
    pub fn delivery(&self, original: Option<Original>, signing: Signing) -> Delivery {
        Delivery {
            interface: Interface::OpenAi,
            public: self.urls && !self.stream,
            output: Output { format: self.format, size: self.size, original, signing },
            partial_images: if self.stream { self.partial_images } else { 0 },
        }
    }
}

/// Parses the size of the images. `None` is the size that the model draws.
fn size(text: Option<String>, app: &App) -> Result<Option<(usize, usize)>, ApiError> {
    let Some(text) = text.filter(|text| text != "auto") else { return Ok(None) };
    let side = app.hart.config().resolution();
    let invalid = |expected: String| Err(ApiError::bad_request("size", format!("size: \"{text}\", expected {expected}")));
    let Some((width, height)) = parse_size(&text) else {
        return invalid(format!("\"WIDTHxHEIGHT\" such as \"{side}x{side}\", or \"auto\""));
    };
    if app.strict_size && (width, height) != (side, side) {
        return invalid(format!("\"{side}x{side}\", the size of this model's images, or \"auto\""));
    }
    let is_valid = (1..=MAX_SIDE).contains(&width) && (1..=MAX_SIDE).contains(&height) && width * height <= MAX_PIXELS;
    if !is_valid {
        return invalid(format!("sides from 1 to {MAX_SIDE} pixels and at most {MAX_PIXELS} pixels in all"));
    }
    Ok(Some((width, height)))
}
