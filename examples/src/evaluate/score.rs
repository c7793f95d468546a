//! Scores of images: comparison of the detected contents with what the prompt describes.

use super::detection::{Detection, TOP, is_in_top};

/// Maximum distance of an object's centre from its expected position along each axis, as a share of the side: half the distance
/// between two of the nine positions.
const POSITION_TOLERANCE: f64 = 0.125;

/// Number of arrangements in which two objects are searched: left and right, above and below, each in either order. Chance finds
/// two objects up to this many times as often as one.
pub const ARRANGEMENTS: usize = 4;

/// Arrangement of two objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrangement {
    /// The first object is on the left.
    LeftOf,
    /// The first object is on the right.
    RightOf,
    /// The first object is above.
    Above,
    /// The first object is below.
    Below,
    /// The objects are next to or above each other, in any order.
    And,
}

impl Arrangement {
    /// Returns the valid layouts: the axis, and whether the first object is after the middle.
    pub(super) fn layouts(self) -> &'static [(usize, bool)] {
        match self {
            Self::LeftOf => &[(0, false)],
            Self::RightOf => &[(0, true)],
            Self::Above => &[(1, false)],
            Self::Below => &[(1, true)],
            Self::And => &[(0, false), (0, true), (1, false), (1, true)],
        }
    }
}

/// The contents that a prompt describes. Parts that are `None` are not scored.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Expected {
    /// Indices of the concepts: one, or two with an arrangement. Several equal objects count as one.
    pub objects: Vec<usize>,
    /// Index of the background's colour.
    pub background: Option<usize>,
    /// Index of the style.
    pub style: Option<usize>,
    /// Arrangement of two objects.
    pub arrangement: Option<Arrangement>,
    /// Number of equal objects.
    pub count: Option<usize>,
    /// Centre of one object, as shares of the side: x, y.
    pub position: Option<[f64; 2]>,
}

/// Score of one image: which parts of the prompt are correct. `None` for parts that the prompt doesn't mention.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImageScore {
    /// Number of objects whose best match is the expected concept.
    pub top1: usize,
    /// Number of objects with the expected concept among the five best.
    pub top5: usize,
    /// Number of expected objects.
    pub objects: usize,
    /// True if the background has the right colour.
    pub background: Option<bool>,
    /// True if all objects have the right style.
    pub style: Option<bool>,
    /// True if both objects are found (top-5), each in its half.
    pub relation: Option<bool>,
    /// True if the number of objects is right.
    pub count: Option<bool>,
    /// True if the object's centre is at the right position.
    pub position: Option<bool>,
}

impl ImageScore {
    /// Returns whether everything is right, with every object by top-1.
    pub fn all_right(&self) -> bool {
        let parts = [self.background, self.style, self.relation, self.count, self.position];
        self.top1 == self.objects && parts.into_iter().flatten().all(|right| right)
    }
}

impl Detection {
    /// Scores the image against the contents that its prompt describes.
    pub fn score(&self, expected: &Expected) -> ImageScore {
        let found = self.objects(expected);
        let hits =
            |top: usize| found.iter().zip(&expected.objects).filter(|(found, concept)| is_in_top(found, **concept, top)).count();
        let is_near = |position: [f64; 2]| {
            self.centre.is_some_and(|centre| centre.iter().zip(position).all(|(a, b)| (a - b).abs() <= POSITION_TOLERANCE))
        };
        ImageScore {
            top1: hits(1),
            top5: hits(TOP),
            objects: expected.objects.len(),
            background: expected.background.map(|background| background == self.background),
            style: expected.style.map(|style| found.iter().all(|found| found.is_some_and(|m| m.style == style))),
            relation: expected.arrangement.map(|arrangement| self.is_arranged(expected, arrangement)),
            count: expected.count.map(|count| count == self.count),
            position: expected.position.map(is_near),
        }
    }

    /// Returns whether both objects are in the halves of an arrangement.
    fn is_arranged(&self, expected: &Expected, arrangement: Arrangement) -> bool {
        let fits = |layout: &(usize, bool)| {
            self.pair(*layout).iter().zip(&expected.objects).all(|(m, concept)| is_in_top(m, *concept, TOP))
        };
        arrangement.layouts().iter().any(fits)
    }
}
