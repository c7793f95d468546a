//! The report of an evaluation, as JSON and as a table.

use std::fmt::Write;

use serde_json::{Map, Value, json};

use super::metrics::{Accuracy, Metrics};
use super::quality::ReconstructionQuality;
use super::sweep::SweepRow;
use crate::data;

/// The metrics of one split.
#[derive(Clone, Debug)]
pub struct SplitReport {
    /// The split.
    pub split: data::Split,
    /// Metrics of the model's images.
    pub model: Metrics,
    /// Metrics of true renders of the same prompts: the upper limit of the detection.
    pub ceiling: Metrics,
    /// Metrics of these renders reconstructed by the model's tokenizer: the upper limit of the rest of the model.
    pub tokenizer: Metrics,
    /// Metrics of the model's images against other prompts: the chance level.
    pub shuffled: Metrics,
    /// Reconstruction quality of true renders.
    pub reconstruction: ReconstructionQuality,
}

impl SplitReport {
    /// Returns whether its images show one object in a style that training shows it in.
    fn is_familiar_object(&self) -> bool {
        matches!(self.split, data::Split::Single | data::Split::Colour)
    }
}

/// The report of an evaluation.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The tested splits.
    pub splits: Vec<SplitReport>,
    /// Distance from training images, computed by [`nearest_training_distance`](super::quality::nearest_training_distance).
    pub nearest_training_distance: Option<f64>,
    /// Metrics with other settings, if requested.
    pub sweep: Vec<SweepRow>,
    /// Number of concepts that can be detected.
    pub concepts: usize,
    /// Metadata: model, seed, settings, seconds.
    pub metadata: Map<String, Value>,
}

impl Report {
    /// Returns one JSON object: the headline metrics, the metrics of each split, and the metadata.
    pub fn json(&self) -> Value {
        let mut object = self.headline(|split| &split.model);
        let shuffled = self.total(|split| &split.shuffled, |_| true);
        let reconstruction = self.reconstruction();
        object.insert("shuffled_control".into(), self.total(|split| &split.shuffled, SplitReport::is_familiar_object).top1.json());
        object.insert("hybrid_psnr_db".into(), rounded(reconstruction.means().map(|[hybrid, _]| hybrid), 2));
        object.insert("discrete_psnr_db".into(), rounded(reconstruction.means().map(|[_, discrete]| discrete), 2));
        object.insert("nearest_training_distance".into(), rounded(self.nearest_training_distance, 3));
        object.insert("ceilings".into(), self.headline(|split| &split.ceiling).into());
        object.insert("tokenizer".into(), self.headline(|split| &split.tokenizer).into());
        object.insert("shuffled".into(), shuffled.json());
        object.insert("chance_top1".into(), rounded((self.concepts > 0).then(|| 1.0 / self.concepts as f64), 5));
        object.insert("n".into(), self.total(|split| &split.model, |_| true).json()["n"].clone());
        object.insert("images".into(), self.splits.iter().map(|split| split.model.images).sum::<usize>().into());
        object.insert("reconstructed_images".into(), reconstruction.images.into());
        let splits = self.splits.iter().map(|split| {
            let SplitReport { split, model, ceiling, tokenizer, shuffled, reconstruction: _ } = split;
            let mut metrics = model.json();
            metrics["ceilings"] = ceiling.json();
            metrics["tokenizer"] = tokenizer.json();
            metrics["shuffled"] = shuffled.json();
            (split.to_string(), metrics)
        });
        object.insert("splits".into(), splits.collect::<Map<_, _>>().into());
        if !self.sweep.is_empty() {
            let row = |row: &SweepRow| json!({ "setting": row.setting, "metrics": row.metrics.json() });
            object.insert("sweep".into(), self.sweep.iter().map(row).collect());
        }
        object.extend(self.metadata.clone());
        object.into()
    }

    /// Returns the headline metrics of the images that `select` selects.
    fn headline(&self, select: impl Fn(&SplitReport) -> &Metrics + Copy) -> Map<String, Value> {
        let all = self.total(select, |_| true);
        let object = self.total(select, SplitReport::is_familiar_object);
        let (seen, unseen) =
            (self.total(select, |split| !split.split.is_held_out()), self.total(select, |split| split.split.is_held_out()));
        let accuracies = [
            ("object_top1", object.top1),
            ("object_top5", object.top5),
            ("background", all.background),
            ("style", object.style),
            ("relation_seen", seen.relation),
            ("relation_unseen", unseen.relation),
            ("count_seen", seen.count),
            ("count_unseen", unseen.count),
            ("position", all.position),
            ("any_object_top1", all.top1),
            ("any_object_top5", all.top5),
            ("any_style", all.style),
            ("all_right", all.all),
        ];
        accuracies.into_iter().map(|(name, accuracy)| (name.to_string(), accuracy.json())).collect()
    }

    /// Sums the metrics of some splits.
    fn total(&self, select: impl Fn(&SplitReport) -> &Metrics, filter: impl Fn(&SplitReport) -> bool) -> Metrics {
        let splits = self.splits.iter().filter(|split| filter(split));
        splits.fold(Metrics::default(), |sum, split| sum.plus(select(split)))
    }

    /// Returns the reconstruction quality of the held-out splits, or of all splits if none is held out.
    fn reconstruction(&self) -> ReconstructionQuality {
        let any = self.splits.iter().any(|split| split.split.is_held_out());
        let splits = self.splits.iter().filter(|split| split.split.is_held_out() || !any);
        splits.fold(ReconstructionQuality::default(), |sum, split| sum.plus(&split.reconstruction))
    }

    /// Returns a human-readable table, in percent, with a line for each split and kind of images.
    pub fn table(&self) -> String {
        let mut text = String::new();
        let names = Metrics::default().accuracies().map(|(name, _)| name);
        let mut line = |name: &str, cells: &[String]| {
            let _ = writeln!(text, "{name:28}{}", cells.iter().map(|cell| format!("{cell:>12}")).collect::<String>());
        };
        line("percent right", &names.map(String::from));
        let cells = |metrics: &Metrics| metrics.accuracies().map(|(_, accuracy)| percent(accuracy));
        let shuffled = self.total(|split| &split.shuffled, |_| true);
        for split in &self.splits {
            line(&format!("{} ({} images)", split.split, split.model.images), &cells(&split.model));
            line("  reconstructed renders", &cells(&split.tokenizer));
            line("  true renders", &cells(&split.ceiling));
        }
        line("against other prompts", &cells(&shuffled));
        for row in &self.sweep {
            line(&row.setting, &cells(&row.metrics));
        }
        let reconstruction = self.reconstruction();
        if let Some([hybrid, discrete]) = reconstruction.means() {
            let images = reconstruction.images;
            let _ = writeln!(text, "tokenizer: hybrid {hybrid:.2} dB, discrete only {discrete:.2} dB ({images} images)");
        }
        if let Some(distance) = self.nearest_training_distance {
            let _ = writeln!(text, "distance from the nearest training image: {distance:.2} of a fresh render's");
        }
        text
    }
}

/// Formats an accuracy in percent.
fn percent(accuracy: Accuracy) -> String {
    accuracy.fraction().map_or_else(|| "-".into(), |fraction| format!("{:.1}", 100.0 * fraction))
}

/// Rounds a number to `digits` decimal places; `None` becomes null.
fn rounded(number: Option<f64>, digits: i32) -> Value {
    let scale = 10f64.powi(digits);
    json!(number.map(|number| (number * scale).round() / scale))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::score::ImageScore;

    fn split(split: data::Split, score: ImageScore) -> SplitReport {
        let mut model = Metrics::default();
        model.add(&score);
        let none = Metrics::default();
        SplitReport {
            split,
            model,
            ceiling: model,
            tokenizer: none,
            shuffled: none,
            reconstruction: ReconstructionQuality::default(),
        }
    }

    fn two(relation: bool) -> ImageScore {
        ImageScore { top1: 1, top5: 2, objects: 2, relation: Some(relation), ..ImageScore::default() }
    }

    #[test]
    fn seen_and_unseen_are_separate_and_untested_metrics_are_null() {
        let one = ImageScore { top1: 1, top5: 1, objects: 1, ..ImageScore::default() };
        let splits =
            vec![split(data::Split::Seen, two(true)), split(data::Split::Single, one), split(data::Split::Pairs, two(false))];
        let report = Report { splits, concepts: 200, ..Report::default() };
        let json = report.json();
        let expected = [("object_top1", 1.0), ("any_object_top1", 0.6), ("relation_seen", 1.0), ("relation_unseen", 0.0)];
        for (name, share) in expected {
            assert_eq!(json[name], share, "{name}");
            assert_eq!(json["ceilings"][name], share, "{name}");
        }
        for name in ["style", "background", "count_seen", "count_unseen", "hybrid_psnr_db", "nearest_training_distance"] {
            assert!(json[name].is_null() && json.get(name).is_some(), "{name}");
        }
        assert_eq!((&json["n"]["relation"], &json["splits"]["pairs"]["images"]), (&2.into(), &1.into()));
        let table = report.table();
        assert!(table.contains("pairs (1 images)") && table.contains("50.0"), "{table}");
    }
}
