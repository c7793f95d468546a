//! What a picture shows, and whether it is what was asked for.

use super::colour;
use super::feature::feature;
use super::references::{Match, References, Sprite};
use super::segment::{Picture, Segments};
use crate::data::colours::BACKGROUNDS;
use crate::data::{Drawing, Drawings};

/// How far the middle of an object may be from where it was asked for, as a share of the side: half of the way to the next of nine
/// places.
const PLACE_DISTANCE: f64 = 0.125;

/// Ways in which two objects are looked for: left and right, above and below, in either order.
pub const LOOKS: usize = 4;

/// How two objects stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrangement {
    /// The first one left.
    LeftOf,
    /// The first one right.
    RightOf,
    /// The first one above.
    Above,
    /// The first one below.
    Below,
    /// Beside or over one another, in any order.
    And,
}

impl Arrangement {
    /// The ways in which it can be drawn: the axis, and whether the first object stands after the middle.
    fn ways(self) -> &'static [(usize, bool)] {
        match self {
            Self::LeftOf => &[(0, false)],
            Self::RightOf => &[(0, true)],
            Self::Above => &[(1, false)],
            Self::Below => &[(1, true)],
            Self::And => &[(0, false), (0, true), (1, false), (1, true)],
        }
    }
}

/// What a prompt asks for. What it doesn't say isn't scored.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// Numbers of the concepts: one, or two with an arrangement; what there are several of counts once.
    pub objects: Vec<usize>,
    /// Number of the background's name.
    pub background: Option<usize>,
    /// Number of the style.
    pub style: Option<usize>,
    /// How two objects stand.
    pub arrangement: Option<Arrangement>,
    /// How many there are of the one object.
    pub count: Option<usize>,
    /// Where the middle of the one object is, as shares of the side.
    pub place: Option<[f64; 2]>,
}

/// What a picture shows.
#[derive(Clone, Debug)]
pub struct Reading {
    /// Number of the background's name.
    pub background: usize,
    /// How many objects there are.
    pub count: usize,
    /// Middle of all that there is, as shares of the side.
    pub centre: Option<[f64; 2]>,
    /// All that there is, taken for one object.
    pub whole: Option<Match>,
    /// The largest piece.
    pub largest: Option<Match>,
    /// What stands before and after the middle, along x and along y.
    pub halves: [[Option<Match>; 2]; 2],
}

/// A verdict on one picture: of each thing how many parts are right, and how many were asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Objects that are most alike what was asked for.
    pub top1: usize,
    /// Objects that are among the five concepts that are most alike.
    pub top5: usize,
    /// Objects that were asked for.
    pub objects: usize,
    /// The background has the right name.
    pub background: Option<bool>,
    /// The style is right, of every object.
    pub style: Option<bool>,
    /// Both objects are there (top-5), each in its own half.
    pub relation: Option<bool>,
    /// There are as many objects as asked for.
    pub count: Option<bool>,
    /// The object's middle is where it was asked for.
    pub place: Option<bool>,
}

impl Verdict {
    /// Whether all that was asked for is right, each object more alike what was asked for than anything else.
    pub fn all_right(&self) -> bool {
        let asked = [self.background, self.style, self.relation, self.count, self.place];
        self.top1 == self.objects && asked.into_iter().flatten().all(|right| right)
    }
}

/// Reads pictures.
#[derive(Clone, Debug)]
pub struct Scorer {
    references: References,
    backgrounds: Vec<[u8; 3]>,
}

impl Scorer {
    /// A scorer that knows these drawings and these backgrounds' names.
    pub fn new(references: References, backgrounds: Vec<[u8; 3]>) -> Self {
        Self { references, backgrounds }
    }

    /// A scorer that knows all of these drawings, and the data's backgrounds.
    pub fn of(drawings: &Drawings) -> Self {
        let sprite = |(index, drawing): (usize, &Drawing)| Sprite {
            side: drawings.side,
            pixels: drawings.image(index),
            concept: drawing.concept,
            style: drawing.style,
        };
        let sprites: Vec<Sprite<'_>> = drawings.drawings.iter().enumerate().map(sprite).collect();
        let backgrounds = BACKGROUNDS.map(|(_, level)| level);
        Self::new(References::new(&sprites, &backgrounds), backgrounds.to_vec())
    }

    /// How many concepts it can tell.
    pub fn concepts(&self) -> usize {
        self.references.concepts()
    }

    /// What a picture shows.
    pub fn read(&self, picture: Picture<'_>) -> Reading {
        let found = Segments::of(picture);
        let mut masks = vec![found.mask(None), found.largest().map_or_else(Vec::new, |piece| found.mask(Some(piece)))];
        for (axis, after) in [(0, false), (0, true), (1, false), (1, true)] {
            masks.push(found.half(axis, after));
        }
        let features: Vec<Option<Vec<f32>>> = masks.iter().map(|mask| feature(picture, mask)).collect();
        let mut matches = self.references.find(&features).into_iter();
        let mut next = || matches.next().flatten();
        Reading {
            background: colour::nearest(found.background, &self.backgrounds),
            count: found.count(),
            centre: found.centre(),
            whole: next(),
            largest: next(),
            halves: [[next(), next()], [next(), next()]],
        }
    }
}

impl Reading {
    /// Compares it with what was asked for.
    pub fn judge(&self, answer: &Answer) -> Verdict {
        let found = self.objects(answer);
        let hits = |best: usize| found.iter().zip(&answer.objects).filter(|(found, asked)| shows(found, **asked, best)).count();
        let near = |place: [f64; 2]| {
            self.centre.is_some_and(|centre| centre.iter().zip(place).all(|(a, b)| (a - b).abs() <= PLACE_DISTANCE))
        };
        Verdict {
            top1: hits(1),
            top5: hits(TOP),
            objects: answer.objects.len(),
            background: answer.background.map(|name| name == self.background),
            style: answer.style.map(|style| found.iter().all(|found| found.is_some_and(|m| m.style == style))),
            relation: answer.arrangement.map(|arrangement| self.arranged(answer, arrangement)),
            count: answer.count.map(|count| count == self.count),
            place: answer.place.map(near),
        }
    }

    /// What is taken for each object: of two, the halves that fit best, wherever they were asked for. Four looks are taken at two
    /// objects, so chance finds them up to [`LOOKS`] times as often as one.
    fn objects(&self, answer: &Answer) -> Vec<Option<&Match>> {
        match answer.objects[..] {
            [first, second] => {
                let ways = Arrangement::And.ways().iter().map(|&way| self.pair(way));
                let fit = |pair: &[Option<&Match>; 2]| {
                    let hits = |best| pair.iter().zip([first, second]).filter(|(m, asked)| shows(m, *asked, best)).count();
                    (hits(TOP), hits(1))
                };
                ways.max_by_key(fit).unwrap_or_default().to_vec()
            }
            _ if answer.count.is_some_and(|count| count > 1) => vec![self.largest.as_ref()],
            _ => vec![self.whole.as_ref()],
        }
    }

    /// What would be the first and the second object.
    fn pair(&self, (axis, after): (usize, bool)) -> [Option<&Match>; 2] {
        [self.halves[axis][usize::from(after)].as_ref(), self.halves[axis][usize::from(!after)].as_ref()]
    }

    fn arranged(&self, answer: &Answer, arrangement: Arrangement) -> bool {
        let right = |way: &(usize, bool)| self.pair(*way).iter().zip(&answer.objects).all(|(m, asked)| shows(m, *asked, TOP));
        arrangement.ways().iter().any(right)
    }
}

/// How many concepts are looked at for top-5.
const TOP: usize = super::references::BEST;

/// Whether a concept is among the best of a match.
fn shows(found: &Option<&Match>, concept: usize, best: usize) -> bool {
    found.is_some_and(|found| found.concepts.iter().take(best).any(|&c| c == concept))
}
