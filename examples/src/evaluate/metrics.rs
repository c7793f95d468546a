//! Metrics: the scores of many images, summed.

use serde_json::{Map, Value, json};

use super::detection::Detection;
use super::score::{Expected, ImageScore};

/// Share of right results.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Accuracy {
    /// Number of right results.
    pub right: usize,
    /// Number of results.
    pub total: usize,
}

impl Accuracy {
    fn add(&mut self, right: usize, total: usize) {
        self.right += right;
        self.total += total;
    }

    fn add_result(&mut self, right: Option<bool>) {
        if let Some(right) = right {
            self.add(right.into(), 1);
        }
    }

    /// Returns the share from 0 to 1, or `None` without a result.
    pub fn fraction(&self) -> Option<f64> {
        (self.total > 0).then(|| self.right as f64 / self.total as f64)
    }

    /// Returns the share as JSON with four digits, or null without a result.
    pub fn json(&self) -> Value {
        json!(self.fraction().map(|fraction| (fraction * 1e4).round() / 1e4))
    }
}

/// Metrics of a set of images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Metrics {
    /// Number of images.
    pub images: usize,
    /// Images in which everything is right.
    pub all: Accuracy,
    /// Objects whose best match is the expected concept.
    pub top1: Accuracy,
    /// Objects with the expected concept among the five best.
    pub top5: Accuracy,
    /// Backgrounds of the right colour.
    pub background: Accuracy,
    /// Images in the right style.
    pub style: Accuracy,
    /// Pairs of objects, each in its half.
    pub relation: Accuracy,
    /// Images with the right number of objects.
    pub count: Accuracy,
    /// Objects at the right position.
    pub position: Accuracy,
}

impl Metrics {
    /// Adds the score of an image.
    pub fn add(&mut self, score: &ImageScore) {
        self.images += 1;
        self.all.add_result(Some(score.all_right()));
        self.top1.add(score.top1, score.objects);
        self.top5.add(score.top5, score.objects);
        self.background.add_result(score.background);
        self.style.add_result(score.style);
        self.relation.add_result(score.relation);
        self.count.add_result(score.count);
        self.position.add_result(score.position);
    }

    /// Scores images, each against its own prompt.
    pub fn of<'a>(images: impl IntoIterator<Item = (&'a Detection, &'a Expected)>) -> Self {
        let mut metrics = Self::default();
        images.into_iter().for_each(|(detection, expected)| metrics.add(&detection.score(expected)));
        metrics
    }

    /// Scores images, each against another prompt with other objects. Only matches by chance are right.
    pub fn shuffled(images: &[(&Detection, &Expected)]) -> Self {
        let other = |index: usize| {
            let own = &images[index].1.objects;
            let others = (1..images.len()).map(|step| images[(index + step) % images.len()].1);
            others.into_iter().find(|other| other.objects.iter().all(|object| !own.contains(object)))
        };
        Self::of(images.iter().enumerate().filter_map(|(index, (detection, _))| Some((*detection, other(index)?))))
    }

    /// Adds the metrics of other images.
    pub fn plus(mut self, other: &Self) -> Self {
        self.images += other.images;
        for ((_, own), (_, other)) in self.accuracies_mut().into_iter().zip(other.accuracies()) {
            own.add(other.right, other.total);
        }
        self
    }

    /// Returns each accuracy with its name.
    pub fn accuracies(&self) -> [(&'static str, Accuracy); 8] {
        let mut copy = *self;
        copy.accuracies_mut().map(|(name, accuracy)| (name, *accuracy))
    }

    fn accuracies_mut(&mut self) -> [(&'static str, &mut Accuracy); 8] {
        [
            ("all_right", &mut self.all),
            ("object_top1", &mut self.top1),
            ("object_top5", &mut self.top5),
            ("background", &mut self.background),
            ("style", &mut self.style),
            ("relation", &mut self.relation),
            ("count", &mut self.count),
            ("position", &mut self.position),
        ]
    }

    /// Returns a JSON object with each accuracy, and under `n` the number of results of each.
    pub fn json(&self) -> Value {
        let accuracies = self.accuracies();
        let mut object: Map<String, Value> = accuracies.iter().map(|(name, accuracy)| ((*name).into(), accuracy.json())).collect();
        object.insert("images".into(), self.images.into());
        object.insert(
            "n".into(),
            accuracies.iter().map(|(name, accuracy)| ((*name).into(), accuracy.total.into())).collect::<Map<_, _>>().into(),
        );
        Value::Object(object)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_that_prompts_do_not_mention_are_null() {
        let score = ImageScore { top1: 1, top5: 2, objects: 2, relation: Some(true), ..ImageScore::default() };
        let mut metrics = Metrics::default();
        metrics.add(&score);
        let metrics = metrics.plus(&metrics);
        let json = metrics.json();
        assert_eq!((json["object_top1"].as_f64(), json["object_top5"].as_f64()), (Some(0.5), Some(1.0)));
        assert_eq!((&json["style"], &json["n"]["object_top1"], &json["images"]), (&Value::Null, &4.into(), &2.into()));
        assert_eq!(json["all_right"], 0.0);
    }
}
