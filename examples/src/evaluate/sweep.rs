//! Sweep: the metrics of the same prompts with other settings, and without the residual.

use hart_core::{Error, Image, Request, Respacing};
use rayon::prelude::*;

use super::detection::{Detection, Detector};
use super::metrics::Metrics;
use super::runner::Runner;
use super::score::Expected;
use super::segment::ImageView;

/// Guidance scales: none, weak, and the published tools' default.
const GUIDANCE: [f64; 3] = [0.0, 2.0, 4.5];
/// Numbers of residual diffusion steps: half the published number, the published number, and twice.
const STEPS: [&str; 3] = ["4", "8", "16"];

/// Metrics with one setting.
#[derive(Clone, Debug)]
pub struct SweepRow {
    /// The setting that differs from the defaults.
    pub setting: String,
    /// The metrics.
    pub metrics: Metrics,
}

/// Generates the images of the requests once for every setting; one setting is changed at a time. After a cancellation, returns the
/// settings that were finished.
///
/// # Errors
///
/// Like [`Runner::generate`].
pub fn sweep(
    runner: &Runner<'_>,
    detector: &Detector,
    requests: &[Request],
    expected: &[Expected],
) -> Result<Vec<SweepRow>, Error> {
    let changed = |change: &dyn Fn(Request) -> Request| requests.iter().cloned().map(change).collect::<Vec<_>>();
    let mut settings = vec![("default settings".to_string(), requests.to_vec())];
    for guidance in GUIDANCE {
        settings.push((format!("guidance {guidance}"), changed(&|request| request.guidance(guidance))));
    }
    for steps in STEPS {
        let respacing: Respacing = steps.parse()?;
        settings.push((format!("{steps} steps"), changed(&|request| request.steps(respacing.clone()))));
    }
    for (name, smoothing) in [("on", true), ("off", false)] {
        settings.push((format!("smoothing {name}"), changed(&|request| request.smoothing(smoothing))));
    }
    let mut rows = Vec::new();
    for (index, (setting, requests)) in settings.into_iter().enumerate() {
        // The first setting also measures the effect of the residual.
        let generated = runner.generate("sweeping settings", &requests, index == 0)?;
        let Some(generated) = generated.into_iter().collect::<Option<Vec<_>>>() else { break };
        let images: Vec<&Image> = generated.iter().map(|generated| &generated.image).collect();
        rows.push(SweepRow { setting, metrics: metrics(detector, &images, expected) });
        let discrete: Option<Vec<&Image>> = generated.iter().map(|generated| generated.discrete.as_ref()).collect();
        if let Some(discrete) = discrete {
            rows.push(SweepRow { setting: "without residual".into(), metrics: metrics(detector, &discrete, expected) });
        }
    }
    Ok(rows)
}

/// Scores images against the contents that their prompts describe.
fn metrics(detector: &Detector, images: &[&Image], expected: &[Expected]) -> Metrics {
    let detections: Vec<Detection> = images.par_iter().map(|image| detector.detect(ImageView::of(image))).collect();
    Metrics::of(detections.iter().zip(expected))
}
