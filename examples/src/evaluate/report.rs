//! What came out, as JSON and as a table for people.

use std::fmt::Write;

use serde_json::{Map, Value, json};

use super::figures::{Figures, Share};
use super::quality::Reconstruction;
use super::sweep::Row;

/// The split whose prompts are of the kinds trained on; all others are held out.
const SEEN: &str = "seen";

/// The figures of one split.
#[derive(Clone, Debug)]
pub struct Split {
    /// Its name.
    pub name: &'static str,
    /// Of the model's pictures.
    pub model: Figures,
    /// Of true renders of the same contents: what the scorer can see at best.
    pub ceiling: Figures,
    /// Of the model's pictures by other prompts' answers: what chance gives.
    pub shuffled: Figures,
}

/// All figures of a model.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Each split that the model could be asked.
    pub splits: Vec<Split>,
    /// How well the tokenizer keeps held-out pictures.
    pub reconstruction: Option<Reconstruction>,
    /// How new the pictures are, as `quality` has it.
    pub nearest_training_distance: Option<f64>,
    /// The figures with other settings, if they were asked for.
    pub sweep: Vec<Row>,
    /// How many concepts there are to choose from.
    pub concepts: usize,
    /// What stands beside the figures: model, seed, settings, seconds.
    pub about: Map<String, Value>,
}

impl Report {
    /// One JSON object: headline figures, those of each split, and what they stand beside.
    pub fn json(&self) -> Value {
        let mut object = self.headline(|split| &split.model);
        let shuffled = self.total(|split| &split.shuffled, |_| true);
        object.insert("shuffled_control".into(), shuffled.top1.json());
        object.insert("hybrid_psnr_db".into(), rounded(self.reconstruction.map(|r| r.hybrid), 2));
        object.insert("discrete_psnr_db".into(), rounded(self.reconstruction.map(|r| r.discrete), 2));
        object.insert("nearest_training_distance".into(), rounded(self.nearest_training_distance, 3));
        object.insert("ceilings".into(), self.headline(|split| &split.ceiling).into());
        object.insert("shuffled".into(), shuffled.json());
        object.insert("chance_top1".into(), rounded((self.concepts > 0).then(|| 1.0 / self.concepts as f64), 5));
        object.insert("n".into(), self.total(|split| &split.model, |_| true).json()["n"].clone());
        object.insert("pictures".into(), self.splits.iter().map(|split| split.model.pictures).sum::<usize>().into());
        object.insert("reconstructed_pictures".into(), self.reconstruction.map_or(0, |r| r.pictures).into());
        let splits = self.splits.iter().map(|split| {
            let Split { name, model, ceiling, shuffled } = split;
            let mut figures = model.json();
            figures["ceilings"] = ceiling.json();
            figures["shuffled"] = shuffled.json();
            ((*name).to_string(), figures)
        });
        object.insert("splits".into(), splits.collect::<Map<_, _>>().into());
        if !self.sweep.is_empty() {
            let row = |row: &Row| json!({ "setting": row.setting, "figures": row.figures.json() });
            object.insert("sweep".into(), self.sweep.iter().map(row).collect());
        }
        object.extend(self.about.clone());
        object.into()
    }

    /// The figures that a run is known by, of the model's pictures or of true renders.
    fn headline(&self, which: impl Fn(&Split) -> &Figures + Copy) -> Map<String, Value> {
        let all = self.total(which, |_| true);
        let (seen, unseen) = (self.total(which, |name| name == SEEN), self.total(which, |name| name != SEEN));
        let shares = [
            ("object_top1", all.top1),
            ("object_top5", all.top5),
            ("background", all.background),
            ("style", all.style),
            ("relation_seen", seen.relation),
            ("relation_unseen", unseen.relation),
            ("count_seen", seen.count),
            ("count_unseen", unseen.count),
            ("place", all.place),
            ("all_right", all.all),
        ];
        shares.into_iter().map(|(name, share)| (name.to_string(), share.json())).collect()
    }

    fn total(&self, which: impl Fn(&Split) -> &Figures, of: impl Fn(&str) -> bool) -> Figures {
        let splits = self.splits.iter().filter(|split| of(split.name));
        splits.fold(Figures::default(), |sum, split| sum.plus(which(split)))
    }

    /// The same for people: a line for each split and kind of figure, in percent.
    pub fn table(&self) -> String {
        let mut text = String::new();
        let names = Figures::default().shares().map(|(name, _)| name);
        let mut line = |name: &str, cells: &[String]| {
            let _ = writeln!(text, "{name:28}{}", cells.iter().map(|cell| format!("{cell:>12}")).collect::<String>());
        };
        line("percent right", &names.map(String::from));
        let cells = |figures: &Figures| figures.shares().map(|(_, share)| percent(share));
        let shuffled = self.total(|split| &split.shuffled, |_| true);
        for split in &self.splits {
            line(&format!("{} ({} pictures)", split.name, split.model.pictures), &cells(&split.model));
            line("  true renders", &cells(&split.ceiling));
        }
        line("by other prompts' answers", &cells(&shuffled));
        for row in &self.sweep {
            line(&row.setting, &cells(&row.figures));
        }
        if let Some(Reconstruction { hybrid, discrete, pictures }) = self.reconstruction {
            let _ = writeln!(text, "tokenizer: hybrid {hybrid:.2} dB, discrete only {discrete:.2} dB ({pictures} pictures)");
        }
        if let Some(distance) = self.nearest_training_distance {
            let _ = writeln!(text, "distance from the nearest training picture: {distance:.2} of a fresh drawing's");
        }
        text
    }
}

fn percent(share: Share) -> String {
    share.fraction().map_or_else(|| "-".into(), |fraction| format!("{:.1}", 100.0 * fraction))
}

/// With so many digits after the point.
fn rounded(number: Option<f64>, digits: i32) -> Value {
    let scale = 10f64.powi(digits);
    json!(number.map(|number| (number * scale).round() / scale))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::score::Verdict;

    fn split(name: &'static str, relation: bool) -> Split {
        let mut model = Figures::default();
        model.add(&Verdict { top1: 1, top5: 2, objects: 2, relation: Some(relation), ..Verdict::default() });
        Split { name, model, ceiling: model, shuffled: Figures::default() }
    }

    #[test]
    fn seen_and_unseen_are_told_apart_and_what_was_not_asked_is_null() {
        let report = Report { splits: vec![split("seen", true), split("pairs", false)], concepts: 200, ..Report::default() };
        let json = report.json();
        let expected = [("object_top1", 0.5), ("object_top5", 1.0), ("relation_seen", 1.0), ("relation_unseen", 0.0)];
        for (name, share) in expected {
            assert_eq!(json[name], share, "{name}");
            assert_eq!(json["ceilings"][name], share, "{name}");
        }
        for name in ["style", "background", "count_seen", "count_unseen", "hybrid_psnr_db", "nearest_training_distance"] {
            assert!(json[name].is_null() && json.get(name).is_some(), "{name}");
        }
        assert_eq!((&json["n"]["relation"], &json["splits"]["pairs"]["pictures"]), (&2.into(), &1.into()));
        let table = report.table();
        assert!(table.contains("pairs (1 pictures)") && table.contains("50.0"), "{table}");
    }
}
