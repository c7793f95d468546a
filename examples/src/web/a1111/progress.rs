//! The progress of the running request, and its interruption.

use std::sync::Arc;

use axum::extract::{RawQuery, State};
use serde_json::{Value, json};

use crate::App;
use crate::job::Interface;
use crate::json::Json;

/// Reports the progress of the running request: of the oldest one of this API or, if there is none, of another. The current image is
/// its newest preview, unless the query has `skip_current_image=true`.
pub async fn progress(State(app): State<Arc<App>>, RawQuery(query): RawQuery) -> Json {
    let (waiting, running) = app.queue.lengths();
    let without_image =
        query.is_some_and(|query| query.split('&').any(|part| part.eq_ignore_ascii_case("skip_current_image=true")));
    let jobs = app.queue.running();
    let job = jobs.iter().find(|job| job.delivery.interface == Interface::A1111).or(jobs.first());
    let newest = |name: &str| job.and_then(|job| job.poll(name)).map_or(Value::Null, |event| event.data.clone());
    let data = newest("progress");
    let fraction = data["fraction"].as_f64().unwrap_or(0.0);
    let seconds = data["seconds"].as_f64().unwrap_or(0.0);
    let left = if fraction > 0.0 { seconds * (1.0 - fraction) / fraction } else { 0.0 };
    let image = if without_image { Value::Null } else { newest("preview")["png"].clone() };
    let scale = |name: &str| data[name].as_u64().unwrap_or(0);
    Json(json!({
        "progress": fraction,
        "eta_relative": left,
        "state": {
            "skipped": false,
            "interrupted": false,
            "stopping_generation": false,
            "job": if running > 0 { "hart" } else { "" },
            "job_count": waiting + running,
            "job_timestamp": "0",
            "job_no": job.map_or(0, |job| job.finished()),
            "sampling_step": scale("scale"),
            "sampling_steps": scale("scales"),
        },
        "current_image": image,
        "textinfo": null,
    }))
}

/// Ends the running requests that came through this API. Their clients receive the images that are finished.
pub async fn interrupt(State(app): State<Arc<App>>) -> Json {
    for job in app.queue.running().iter().filter(|job| job.delivery.interface == Interface::A1111) {
        app.queue.cancel(job);
    }
    Json(json!({}))
}
