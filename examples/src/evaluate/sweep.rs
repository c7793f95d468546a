//! The same prompts with other settings, and without the residual.

use hart_core::{Error, Image, Request, Respacing};
use rayon::prelude::*;

use super::draw::Artist;
use super::figures::Figures;
use super::score::{Answer, Reading, Scorer};
use super::segment::Picture;

/// Strengths of guidance: none, some, the published tools'.
const GUIDANCES: [f64; 3] = [0.0, 2.0, 4.5];
/// Numbers of steps of the residual diffusion, half and twice the published ones.
const STEPS: [&str; 3] = ["4", "8", "16"];

/// The figures with one setting.
#[derive(Clone, Debug)]
pub struct Row {
    /// What is other than the model's own.
    pub setting: String,
    /// What came out.
    pub figures: Figures,
}

/// Draws the prompts once for every setting, each changed alone. Stopped, it has the settings that were drawn whole.
///
/// # Errors
///
/// As [`Artist::draw`].
pub fn sweep(artist: &Artist<'_>, scorer: &Scorer, requests: &[Request], answers: &[Answer]) -> Result<Vec<Row>, Error> {
    let changed = |change: &dyn Fn(Request) -> Request| requests.iter().cloned().map(change).collect::<Vec<_>>();
    let mut settings = vec![("as asked for".to_string(), requests.to_vec())];
    for guidance in GUIDANCES {
        settings.push((format!("guidance {guidance}"), changed(&|request| request.guidance(guidance))));
    }
    for steps in STEPS {
        let respacing: Respacing = steps.parse()?;
        settings.push((format!("{steps} steps"), changed(&|request| request.steps(respacing.clone()))));
    }
    for smoothing in [true, false] {
        settings.push((format!("smoothing {smoothing}"), changed(&|request| request.smoothing(smoothing))));
    }
    let mut rows = Vec::new();
    for (index, (setting, requests)) in settings.into_iter().enumerate() {
        // The first setting also shows what the residual adds.
        let drawn = artist.draw("sweeping settings", &requests, index == 0)?;
        let Some(drawn) = drawn.into_iter().collect::<Option<Vec<_>>>() else { break };
        let images: Vec<&Image> = drawn.iter().map(|drawn| &drawn.image).collect();
        rows.push(Row { setting, figures: figures(scorer, &images, answers) });
        let discrete: Option<Vec<&Image>> = drawn.iter().map(|drawn| drawn.discrete.as_ref()).collect();
        if let Some(discrete) = discrete {
            rows.push(Row { setting: "without residual".into(), figures: figures(scorer, &discrete, answers) });
        }
    }
    Ok(rows)
}

fn figures(scorer: &Scorer, images: &[&Image], answers: &[Answer]) -> Figures {
    let readings: Vec<Reading> = images.par_iter().map(|image| scorer.read(Picture::of(image))).collect();
    Figures::of(readings.iter().zip(answers))
}
