//! `POST /sdapi/v1/txt2img` and `POST /sdapi/v1/img2img`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hart_core::{Hart, ImageFormat, Request};
use serde_json::{Map, Value, json};

use super::info::Info;
use crate::App;
use crate::api_error::ApiError;
use crate::body;
use crate::fields::Fields;
use crate::job::{Delivery, Interface, Job};
use crate::json::Json;
use crate::output::{MAX_PIXELS, MAX_SIDE, Output};
use crate::run::{CancelOnDisconnect, failure};
use crate::settings::Settings;
use crate::source::{Region, Source, Upload, decode_text};

/// Width and height unless the client sets them.
const DEFAULT_SIDE: usize = 512;
/// The guidance scale that A1111's clients send unless the user changes it. It stands for the model's own default.
pub const DEFAULT_CFG_SCALE: f64 = 7.0;
/// The strength that A1111 takes unless the client sets one.
const DEFAULT_STRENGTH: f64 = 0.75;

/// Generates images from a prompt.
pub async fn txt2img(State(app): State<Arc<App>>, headers: HeaderMap, body: Body) -> Result<Response, ApiError> {
    let body = body::object(body::read_json(&headers, body).await?)?;
    run(app, body, false).await
}

/// Generates images from an image and a prompt.
pub async fn img2img(State(app): State<Arc<App>>, headers: HeaderMap, body: Body) -> Result<Response, ApiError> {
    let body = body::read_large_object(&headers, body).await?;
    run(app, body, true).await
}

async fn run(app: Arc<App>, body: Map<String, Value>, has_image: bool) -> Result<Response, ApiError> {
    let mut parameters = body.clone();
    // The answer repeats the request without its images.
    for name in ["init_images", "mask"] {
        if parameters.contains_key(name) {
            parameters.insert(name.into(), Value::Null);
        }
    }
    let mut fields = Fields::new(body);
    let prompt = fields.text("prompt")?.unwrap_or_default();
    let cfg_scale = fields.number("cfg_scale")?.unwrap_or(DEFAULT_CFG_SCALE);
    let steps = fields.number("steps")?.unwrap_or(20.0);
    let (batch_size, iterations) =
        (fields.whole("batch_size", 1, app.max_images)?.unwrap_or(1), fields.whole("n_iter", 1, app.max_images)?.unwrap_or(1));
    if batch_size * iterations > app.max_images {
        let product = format!("batch_size {batch_size} x n_iter {iterations}");
        let message = format!("n_iter: {product} images, expected at most {} in all: split the request", app.max_images);
        return Err(ApiError::bad_request("n_iter", message));
    }
    let sides = [fields.whole("width", 1, MAX_SIDE)?, fields.whole("height", 1, MAX_SIDE)?];
    let [width, height] = sides.map(|side| side.unwrap_or(DEFAULT_SIDE));
    if width * height > MAX_PIXELS {
        return Err(ApiError::bad_request("width", format!("{width} x {height} pixels, expected at most {MAX_PIXELS} in all")));
    }
    let size = if has_image && sides == [None, None] { None } else { Some((width, height)) };
    let strength = fields.number("denoising_strength")?.map_or(DEFAULT_STRENGTH, |strength| strength.clamp(0.0, 1.0));
    let source = if has_image { Some(open(&app, &mut fields, strength).await?) } else { None };
    let signing = app.signing.clone().edits(source.as_ref().map(|source| source.file.clone()));
    let (from_image, original) = source.map_or((None, None), |source| (source.from, Some(source.original)));
    let default = app.hart.sampling(&Request::new("")).guidance;
    let settings = Settings {
        prompt: prompt.clone(),
        seed: fields.take("seed"),
        count: Some(batch_size * iterations),
        guidance: Some(default * cfg_scale / DEFAULT_CFG_SCALE),
        prune: fields.text("prune")?,
        omit_marks: fields.text("omit_marks")?,
        from_image,
        ..Settings::default()
    };
    let negative_prompt = fields.text("negative_prompt")?.unwrap_or_default();
    let sampler = fields.text("sampler_name")?.unwrap_or_else(|| "HART".into());
    let output = Output { format: ImageFormat::Png, size, original, signing };
    let (width, height) = output.size(app.hart.config().resolution());
    let job = Job::new(app.check(settings)?, Delivery { interface: Interface::A1111, public: false, output, partial_images: 0 });
    app.queue.push(&job)?;
    let guard = CancelOnDisconnect { app, job };
    guard.job.ended().await;
    let last = guard.job.events_since(0).pop();
    // An interrupted run answers with the images that are finished.
    let interrupted = guard.app.queue.is_open() && last.as_ref().is_some_and(|last| last.name == "cancelled");
    if let Some(error) = last.filter(|_| !interrupted).and_then(|last| failure(&last)) {
        return Err(error);
    }
    let images = guard.job.images();
    let (hart, job) = (&guard.app.hart, &guard.job);
    let text = |seed| hart.provenance(&job.request, &job.prompt, seed).parameters(width, height);
    let info = Info {
        prompt,
        negative_prompt,
        seeds: images.iter().map(|image| image.seed).collect(),
        first_seed: guard.job.seed,
        size: (width, height),
        sampler,
        cfg_scale,
        steps,
        batch_size,
        strength: has_image.then_some(strength),
        model: &guard.app.name,
        model_hash: model_hash(hart),
        texts: images.iter().map(|image| text(image.seed)).collect(),
    };
    let images: Vec<String> = images.iter().map(|image| STANDARD.encode(&image.file)).collect();
    Ok(Json(json!({ "images": images, "parameters": parameters, "info": info.to_json().to_string() })).into_response())
}

/// Returns the digits of a model's fingerprint that stand for it in A1111's API.
pub fn model_hash(hart: &Hart) -> &str {
    &hart.fingerprint()[..10]
}

/// Reads the image and the mask of img2img.
async fn open(app: &App, fields: &mut Fields, strength: f64) -> Result<Source, ApiError> {
    let image = match fields.take("init_images") {
        Some(Value::Array(images)) => images.into_iter().next(),
        _ => None,
    };
    let file = match image {
        Some(Value::String(text)) => decode_text("init_images", &text)?,
        _ => return Err(ApiError::bad_request("init_images", "init_images: expected a list with an image as base64")),
    };
    let inverted = fields.flag("inpainting_mask_invert")?.unwrap_or(false);
    let region = match fields.text("mask")? {
        None => Region::Own,
        Some(text) if inverted => Region::Black(decode_text("mask", &text)?),
        Some(text) => Region::White(decode_text("mask", &text)?),
    };
    let scales = app.hart.config().transformer.sides.len();
    // A weaker change keeps more of the coarsest scales.
    let kept = ((1.0 - strength) * scales as f64).round() as usize;
    let kept_scales = kept.min(scales.saturating_sub(1));
    let upload = Upload { file, region, kept_scales, varied_scales: kept_scales, field: "init_images" };
    upload.open(&app.hart).await
}
