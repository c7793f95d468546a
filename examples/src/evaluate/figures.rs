//! Verdicts added up.

use serde_json::{Map, Value, json};

use super::score::{Answer, Reading, Verdict};

/// So many of so many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// How many were right.
    pub right: usize,
    /// How many were asked for.
    pub of: usize,
}

impl Share {
    fn add(&mut self, right: usize, of: usize) {
        self.right += right;
        self.of += of;
    }

    fn tell(&mut self, right: Option<bool>) {
        if let Some(right) = right {
            self.add(right.into(), 1);
        }
    }

    /// From 0 to 1; none if nothing was asked for.
    pub fn fraction(&self) -> Option<f64> {
        (self.of > 0).then(|| self.right as f64 / self.of as f64)
    }

    /// As JSON, with four digits; null if nothing was asked for.
    pub fn json(&self) -> Value {
        json!(self.fraction().map(|fraction| (fraction * 1e4).round() / 1e4))
    }
}

/// The figures of some pictures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// How many pictures.
    pub pictures: usize,
    /// Pictures in which all that was asked for is right.
    pub all: Share,
    /// Objects that are most alike what was asked for.
    pub top1: Share,
    /// Objects that are among the five most alike concepts.
    pub top5: Share,
    /// Backgrounds with the right name.
    pub background: Share,
    /// Styles.
    pub style: Share,
    /// Two objects, each in its half.
    pub relation: Share,
    /// Numbers of objects.
    pub count: Share,
    /// Places of one object.
    pub place: Share,
}

impl Figures {
    /// Adds a picture.
    pub fn add(&mut self, verdict: &Verdict) {
        self.pictures += 1;
        self.all.tell(Some(verdict.all_right()));
        self.top1.add(verdict.top1, verdict.objects);
        self.top5.add(verdict.top5, verdict.objects);
        self.background.tell(verdict.background);
        self.style.tell(verdict.style);
        self.relation.tell(verdict.relation);
        self.count.tell(verdict.count);
        self.place.tell(verdict.place);
    }

    /// Of pictures and what was asked for in each.
    pub fn of<'a>(pictures: impl IntoIterator<Item = (&'a Reading, &'a Answer)>) -> Self {
        let mut figures = Self::default();
        pictures.into_iter().for_each(|(reading, answer)| figures.add(&reading.judge(answer)));
        figures
    }

    /// Of pictures and what was asked for in another one, with other objects. The rest of the answer goes along, so that only what a
    /// picture shows by chance is right.
    pub fn shuffled(pictures: &[(&Reading, &Answer)]) -> Self {
        let other = |index: usize| {
            let mine = &pictures[index].1.objects;
            let others = (1..pictures.len()).map(|step| pictures[(index + step) % pictures.len()].1);
            others.into_iter().find(|other| other.objects.iter().all(|object| !mine.contains(object)))
        };
        Self::of(pictures.iter().enumerate().filter_map(|(index, (reading, _))| Some((*reading, other(index)?))))
    }

    /// With those of other pictures.
    pub fn plus(mut self, other: &Self) -> Self {
        self.pictures += other.pictures;
        for ((_, mine), (_, others)) in self.shares_mut().into_iter().zip(other.shares()) {
            mine.add(others.right, others.of);
        }
        self
    }

    /// Each share with its name.
    pub fn shares(&self) -> [(&'static str, Share); 8] {
        let mut copy = *self;
        copy.shares_mut().map(|(name, share)| (name, *share))
    }

    fn shares_mut(&mut self) -> [(&'static str, &mut Share); 8] {
        [
            ("all_right", &mut self.all),
            ("object_top1", &mut self.top1),
            ("object_top5", &mut self.top5),
            ("background", &mut self.background),
            ("style", &mut self.style),
            ("relation", &mut self.relation),
            ("count", &mut self.count),
            ("place", &mut self.place),
        ]
    }

    /// As a JSON object: each share, and under `n` how many of each were asked for.
    pub fn json(&self) -> Value {
        let shares = self.shares();
        let mut object: Map<String, Value> = shares.iter().map(|(name, share)| ((*name).into(), share.json())).collect();
        object.insert("pictures".into(), self.pictures.into());
        object
            .insert("n".into(), shares.iter().map(|(name, share)| ((*name).into(), share.of.into())).collect::<Map<_, _>>().into());
        Value::Object(object)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_asked_for_is_no_share() {
        let verdict = Verdict { top1: 1, top5: 2, objects: 2, relation: Some(true), ..Verdict::default() };
        let mut figures = Figures::default();
        figures.add(&verdict);
        let figures = figures.plus(&figures);
        let json = figures.json();
        assert_eq!((json["object_top1"].as_f64(), json["object_top5"].as_f64()), (Some(0.5), Some(1.0)));
        assert_eq!((&json["style"], &json["n"]["object_top1"], &json["pictures"]), (&Value::Null, &4.into(), &2.into()));
        assert_eq!(json["all_right"], 0.0);
    }
}
