//! What came out, as JSON and as a table for people.

use std::fmt::Write;

use serde_json::{Map, Value, json};

use super::figures::{Figures, Share};
use super::quality::Reconstruction;
use super::sweep::Row;
use crate::data;

/// The figures of one split.
#[derive(Clone, Debug)]
pub struct Split {
    /// Of which prompts.
    pub of: data::Split,
    /// Of the model's pictures.
    pub model: Figures,
    /// Of true renders of the same contents: what the scorer can see at best.
    pub ceiling: Figures,
    /// Of those renders through the model's tokenizer and back: what the rest of the model could reach at best.
    pub tokenizer: Figures,
    /// Of the model's pictures by other prompts' answers: what chance gives.
    pub shuffled: Figures,
    /// How well the tokenizer keeps true renders.
    pub reconstruction: Reconstruction,
}

impl Split {
    /// Pictures of one object in a style that training showed it in.
    fn is_familiar_object(&self) -> bool {
        matches!(self.of, data::Split::Single | data::Split::Colour)
    }
}

/// All figures of a model.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Each split that the model could be asked.
    pub splits: Vec<Split>,
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
        let reconstruction = self.reconstruction();
        object.insert("shuffled_control".into(), self.total(|split| &split.shuffled, Split::is_familiar_object).top1.json());
        object.insert("hybrid_psnr_db".into(), rounded(reconstruction.means().map(|[hybrid, _]| hybrid), 2));
        object.insert("discrete_psnr_db".into(), rounded(reconstruction.means().map(|[_, discrete]| discrete), 2));
        object.insert("nearest_training_distance".into(), rounded(self.nearest_training_distance, 3));
        object.insert("ceilings".into(), self.headline(|split| &split.ceiling).into());
        object.insert("tokenizer".into(), self.headline(|split| &split.tokenizer).into());
        object.insert("shuffled".into(), shuffled.json());
        object.insert("chance_top1".into(), rounded((self.concepts > 0).then(|| 1.0 / self.concepts as f64), 5));
        object.insert("n".into(), self.total(|split| &split.model, |_| true).json()["n"].clone());
        object.insert("pictures".into(), self.splits.iter().map(|split| split.model.pictures).sum::<usize>().into());
        object.insert("reconstructed_pictures".into(), reconstruction.pictures.into());
        let splits = self.splits.iter().map(|split| {
            let Split { of, model, ceiling, tokenizer, shuffled, reconstruction: _ } = split;
            let mut figures = model.json();
            figures["ceilings"] = ceiling.json();
            figures["tokenizer"] = tokenizer.json();
            figures["shuffled"] = shuffled.json();
            (of.to_string(), figures)
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
        let object = self.total(which, Split::is_familiar_object);
        let (seen, unseen) =
            (self.total(which, |split| !split.of.is_held_out()), self.total(which, |split| split.of.is_held_out()));
        let shares = [
            ("object_top1", object.top1),
            ("object_top5", object.top5),
            ("background", all.background),
            ("style", object.style),
            ("relation_seen", seen.relation),
            ("relation_unseen", unseen.relation),
            ("count_seen", seen.count),
            ("count_unseen", unseen.count),
            ("place", all.place),
            ("any_object_top1", all.top1),
            ("any_object_top5", all.top5),
            ("any_style", all.style),
            ("all_right", all.all),
        ];
        shares.into_iter().map(|(name, share)| (name.to_string(), share.json())).collect()
    }

    fn total(&self, which: impl Fn(&Split) -> &Figures, of: impl Fn(&Split) -> bool) -> Figures {
        let splits = self.splits.iter().filter(|split| of(split));
        splits.fold(Figures::default(), |sum, split| sum.plus(which(split)))
    }

    /// Of held-out pictures, if there are any.
    fn reconstruction(&self) -> Reconstruction {
        let any = self.splits.iter().any(|split| split.of.is_held_out());
        let splits = self.splits.iter().filter(|split| split.of.is_held_out() || !any);
        splits.fold(Reconstruction::default(), |sum, split| sum.plus(&split.reconstruction))
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
            line(&format!("{} ({} pictures)", split.of, split.model.pictures), &cells(&split.model));
            line("  through the tokenizer", &cells(&split.tokenizer));
            line("  true renders", &cells(&split.ceiling));
        }
        line("by other prompts' answers", &cells(&shuffled));
        for row in &self.sweep {
            line(&row.setting, &cells(&row.figures));
        }
        let reconstruction = self.reconstruction();
        if let Some([hybrid, discrete]) = reconstruction.means() {
            let pictures = reconstruction.pictures;
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

    fn split(of: data::Split, verdict: Verdict) -> Split {
        let mut model = Figures::default();
        model.add(&verdict);
        let none = Figures::default();
        Split { of, model, ceiling: model, tokenizer: none, shuffled: none, reconstruction: Reconstruction::default() }
    }

    fn two(relation: bool) -> Verdict {
        Verdict { top1: 1, top5: 2, objects: 2, relation: Some(relation), ..Verdict::default() }
    }

    #[test]
    fn seen_and_unseen_are_told_apart_and_what_was_not_asked_is_null() {
        let one = Verdict { top1: 1, top5: 1, objects: 1, ..Verdict::default() };
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
        assert_eq!((&json["n"]["relation"], &json["splits"]["pairs"]["pictures"]), (&2.into(), &1.into()));
        let table = report.table();
        assert!(table.contains("pairs (1 pictures)") && table.contains("50.0"), "{table}");
    }
}
