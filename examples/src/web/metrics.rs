//! `/health`, and `/metrics` in Prometheus' text format.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::json;

use crate::App;
use crate::json::Json;

/// Upper bounds of the histograms' buckets, in seconds.
const BOUNDS: [f64; 12] = [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0];

/// Counts since the start of the server.
#[derive(Default)]
pub struct Metrics(Mutex<Counts>);

#[derive(Default)]
struct Counts {
    /// Responses by route and status.
    responses: BTreeMap<(String, u16), u64>,
    /// Time to a response's header by route.
    response_seconds: BTreeMap<String, Histogram>,
    /// Time that a run took.
    run_seconds: Histogram,
    images: u64,
}

#[derive(Default)]
struct Histogram {
    /// Number of values up to each bound, without those of smaller bounds.
    buckets: [u64; BOUNDS.len()],
    count: u64,
    sum: f64,
}

impl Histogram {
    fn add(&mut self, seconds: f64) {
        if let Some(bucket) = BOUNDS.iter().position(|&bound| seconds <= bound) {
            self.buckets[bucket] += 1;
        }
        self.count += 1;
        self.sum += seconds;
    }

    /// Writes the samples. `labels` is empty or ends in a comma.
    fn write(&self, text: &mut String, name: &str, labels: &str) {
        let mut total = 0;
        for (bound, count) in BOUNDS.iter().zip(self.buckets) {
            total += count;
            let _ = writeln!(text, "{name}_bucket{{{labels}le=\"{bound}\"}} {total}");
        }
        let _ = writeln!(text, "{name}_bucket{{{labels}le=\"+Inf\"}} {}", self.count);
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.trim_end_matches(',')) };
        let _ = writeln!(text, "{name}_sum{labels} {}\n{name}_count{labels} {}", self.sum, self.count);
    }
}

impl Metrics {
    fn with<R>(&self, work: impl FnOnce(&mut Counts) -> R) -> R {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Counts a response.
    pub fn response(&self, endpoint: &str, status: u16, took: Duration) {
        self.with(|counts| {
            *counts.responses.entry((endpoint.to_string(), status)).or_default() += 1;
            counts.response_seconds.entry(endpoint.to_string()).or_default().add(took.as_secs_f64());
        });
    }

    /// Counts a run.
    pub fn run(&self, took: Duration) {
        self.with(|counts| counts.run_seconds.add(took.as_secs_f64()));
    }

    /// Counts a finished image.
    pub fn image(&self) {
        self.with(|counts| counts.images += 1);
    }

    /// Returns the text of `/metrics`. `gauges` are names, descriptions and values.
    fn text(&self, gauges: &[(&str, &str, f64)]) -> String {
        let mut text = String::new();
        let head = |text: &mut String, name: &str, help: &str, kind: &str| {
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        };
        self.with(|counts| {
            head(&mut text, "hart_http_responses_total", "Responses by route and status.", "counter");
            for ((endpoint, status), count) in &counts.responses {
                let labels = format!("endpoint=\"{endpoint}\",status=\"{status}\"");
                let _ = writeln!(text, "hart_http_responses_total{{{labels}}} {count}");
            }
            head(&mut text, "hart_http_response_seconds", "Time to the header of a response by route.", "histogram");
            for (endpoint, histogram) in &counts.response_seconds {
                histogram.write(&mut text, "hart_http_response_seconds", &format!("endpoint=\"{endpoint}\","));
            }
            head(&mut text, "hart_run_seconds", "Duration of a run, without the time in the queue.", "histogram");
            counts.run_seconds.write(&mut text, "hart_run_seconds", "");
            head(&mut text, "hart_images_total", "Finished images.", "counter");
            let _ = writeln!(text, "hart_images_total {}", counts.images);
        });
        for (name, help, value) in gauges {
            head(&mut text, name, help, "gauge");
            let _ = writeln!(text, "{name} {value}");
        }
        text
    }
}

/// Returns the routes.
pub fn routes() -> Router<Arc<App>> {
    Router::new().route("/health", get(health)).route("/metrics", get(metrics))
}

/// Reports whether the server accepts requests: 200, or 503 once it stops.
async fn health(State(app): State<Arc<App>>) -> Response {
    let (status, word) = if app.queue.is_open() { (StatusCode::OK, "ok") } else { (StatusCode::SERVICE_UNAVAILABLE, "stopping") };
    (status, Json(json!({ "status": word }))).into_response()
}

async fn metrics(State(app): State<Arc<App>>) -> Response {
    let (waiting, running) = app.queue.lengths();
    let mut gauges = vec![
        ("hart_queue_length", "Requests that wait.", waiting as f64),
        ("hart_running", "Requests that are processed.", running as f64),
        ("hart_stored_images_bytes", "Size of the images that clients can still fetch.", app.queue.stored_bytes() as f64),
    ];
    if let Some(bytes) = resident_bytes() {
        gauges.push(("process_resident_memory_bytes", "Memory of the process.", bytes as f64));
    }
    let content_type = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (content_type, app.metrics.text(&gauges)).into_response()
}

/// Returns the resident memory of the process, on systems with `/proc`.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative() {
        let metrics = Metrics::default();
        for seconds in [0.01, 0.2, 0.2, 400.0] {
            metrics.run(Duration::from_secs_f64(seconds));
        }
        metrics.response("/v1/models", 200, Duration::from_millis(1));
        let text = metrics.text(&[("hart_running", "x.", 1.0)]);
        for line in [
            "hart_run_seconds_bucket{le=\"0.05\"} 1",
            "hart_run_seconds_bucket{le=\"0.25\"} 3",
            "hart_run_seconds_bucket{le=\"300\"} 3",
            "hart_run_seconds_bucket{le=\"+Inf\"} 4",
            "hart_run_seconds_count 4",
            "hart_http_responses_total{endpoint=\"/v1/models\",status=\"200\"} 1",
            "hart_http_response_seconds_count{endpoint=\"/v1/models\"} 1",
            "hart_running 1",
        ] {
            assert!(text.lines().any(|own| own == line), "{line} in {text}");
        }
    }
}
