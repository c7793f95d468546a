//! `POST /v1/images/edits` and `POST /v1/images/variations`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::Response;
use serde_json::Value;

use super::parameters::Parameters;
use super::reply;
use crate::App;
use crate::api_error::ApiError;
use crate::body::{self, Form};
use crate::source::{Region, Upload, decode_text};

/// Prompt of a variation of an image that has none.
const VARIATION_PROMPT: &str = "an image";

/// Edits an image: its transparent part, or that of a mask, is drawn again. Without such a part, all of it is varied.
pub async fn edits(State(app): State<Arc<App>>, headers: HeaderMap, body: Body) -> Result<Response, ApiError> {
    let form = read(&headers, body).await?;
    edit(app, headers, form, true).await
}

/// Varies an image.
pub async fn variations(State(app): State<Arc<App>>, headers: HeaderMap, body: Body) -> Result<Response, ApiError> {
    let form = read(&headers, body).await?;
    edit(app, headers, form, false).await
}

async fn edit(app: Arc<App>, headers: HeaderMap, form: Form, needs_prompt: bool) -> Result<Response, ApiError> {
    let (mut images, mut masks) = (Vec::new(), Vec::new());
    for (name, file) in form.files {
        match name.as_str() {
            "mask" => masks.push(file),
            // Lists are sent as `image[]` or with numbers.
            name if name == "image" || name.starts_with("image[") => images.push(file),
            name => return Err(ApiError::bad_request("image", format!("{name}: expected a file as image, image[] or mask"))),
        }
    }
    let mut parameters = Parameters::parse(form.fields, &app)?;
    let missing = || ApiError::bad_request("image", "image: expected a PNG, JPEG or WebP file as image or image[]");
    if images.len() > 1 {
        parameters.warn("only the first image is edited");
    }
    let file = images.into_iter().next().ok_or_else(missing)?;
    let prompt = parameters.prompt.clone();
    if needs_prompt && prompt.is_none() {
        return Err(ApiError::bad_request("prompt", "prompt: missing; describe the edited image"));
    }
    let region = masks.into_iter().next().filter(|_| needs_prompt).map_or(Region::Own, Region::Transparent);
    // Half of the scales keep the layout and draw the details again.
    let varied_scales = (app.hart.config().transformer.sides.len() / 2).max(1);
    let upload = Upload { file, region, kept_scales: 0, varied_scales, field: "image" };
    let source = upload.open(&app.hart).await?;
    let prompt = prompt.or(source.prompt).unwrap_or_else(|| VARIATION_PROMPT.into());
    let checked = parameters.settings(&app, prompt, source.from)?;
    let delivery = parameters.delivery(Some(source.original), app.signing.clone().edits(Some(source.file)));
    reply::run(app, &headers, checked, delivery, &parameters, "image_edit").await
}

/// Reads a form, or JSON with the images as `data:` URLs.
async fn read(headers: &HeaderMap, body: Body) -> Result<Form, ApiError> {
    let is_json = headers.get(header::CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/json"));
    if !is_json {
        return body::read_form(headers, body).await;
    }
    let mut fields = body::read_large_object(headers, body).await?;
    let mut files = Vec::new();
    let text = |field: &'static str, value: &Value| {
        let url = value.as_str().or_else(|| value["image_url"].as_str());
        url.map_or_else(
            || Err(ApiError::bad_request(field, format!("{field}: expected {{\"image_url\": \"data:image/png;base64,...\"}}"))),
            |url| decode_text(field, url),
        )
    };
    for name in ["images", "image"] {
        match fields.remove(name) {
            Some(Value::Array(values)) => {
                for value in values {
                    files.push(("image".to_string(), text("image", &value)?));
                }
            }
            Some(value) => files.push(("image".to_string(), text("image", &value)?)),
            None => {}
        }
    }
    if let Some(mask) = fields.remove("mask").filter(|mask| !mask.is_null()) {
        files.push(("mask".to_string(), text("mask", &mask)?));
    }
    Ok(Form { fields, files })
}
