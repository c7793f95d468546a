//! What is never trained on, so that it can be asked for afterwards.
//!
//! Every decision is a hash of names, never a draw: training and test can't mix, whatever the seed, and adding a concept moves no other.
//! Only which style of a concept is held out, and which concepts are alone, depends on what else there is.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::colours::BACKGROUNDS;
use super::content::{Content, Kind, Relation};
use super::drawings::Drawings;
use super::random::hash;

/// Pairs of concepts in a hundred that are never seen together, and as many that are seen in one order only.
const PAIRS: u64 = 10;
/// Backgrounds in a hundred that a concept is never seen on.
const COLOURS: u64 = 10;
/// Counts in a hundred that a concept is never seen in.
const COUNTS: u64 = 10;
/// Drawings in a hundred that are never seen, while their concept is seen in another style.
const STYLES: u64 = 5;
/// Concepts in a hundred that are only ever seen alone, rounded down.
const ALONE: usize = 4;

/// A kind of scenes to test with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// As trained on.
    Seen,
    /// One object, as trained on.
    Single,
    /// Two concepts that were never together.
    Pairs,
    /// Two concepts that were together the other way round only.
    Order,
    /// A concept on a background that it was never on.
    Colour,
    /// A concept in a style that it was never in.
    Style,
    /// A concept in a number that it never was in.
    Count,
    /// Two concepts, of which one was always alone.
    Solo,
}

impl Split {
    /// All of them; what was seen comes first.
    pub const ALL: [Self; 8] =
        [Self::Seen, Self::Single, Self::Pairs, Self::Order, Self::Colour, Self::Style, Self::Count, Self::Solo];

    /// Whether its scenes are never trained on.
    pub fn is_held_out(self) -> bool {
        !matches!(self, Self::Seen | Self::Single)
    }

    /// Its name in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Seen => "seen",
            Self::Single => "single",
            Self::Pairs => "pairs",
            Self::Order => "order",
            Self::Colour => "colour",
            Self::Style => "style",
            Self::Count => "count",
            Self::Solo => "solo",
        }
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Split {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let names = || Self::ALL.map(Self::name).join(", ");
        Self::ALL.into_iter().find(|split| split.name() == name).ok_or_else(|| format!("expected one of {}", names()))
    }
}

/// The held-out scenes of some drawings.
#[derive(Clone, Debug)]
pub struct Splits {
    names: Vec<String>,
    /// By concept.
    alone: Vec<bool>,
    /// Concept of each drawing, and whether it is held out for its style.
    drawings: Vec<(usize, bool)>,
}

fn percent(hash: u64) -> u64 {
    hash % 100
}

impl Splits {
    /// Of these drawings.
    pub fn new(drawings: &Drawings) -> Self {
        let names: Vec<String> = drawings.concepts.iter().map(|concept| concept.name.clone()).collect();
        let mut order: Vec<usize> = (0..names.len()).collect();
        order.sort_by_key(|&concept| hash(&["solo", &names[concept]]));
        let mut alone = vec![false; names.len()];
        for &concept in &order[..names.len() * ALONE / 100] {
            alone[concept] = true;
        }
        // One style at most of a concept that has others, of so many concepts that it makes the share of the drawings.
        let mut styles: Vec<Vec<usize>> = vec![vec![]; names.len()];
        for (index, drawing) in drawings.drawings.iter().enumerate() {
            styles[drawing.concept].push(index);
        }
        let mut held = vec![false; drawings.drawings.len()];
        for (name, of) in names.iter().zip(&styles) {
            if of.len() > 1 && percent(hash(&["style", name])) < STYLES * of.len() as u64 {
                let style = |&&i: &&usize| hash(&["style", name, &drawings.styles[drawings.drawings[i].style]]);
                held[*of.iter().min_by_key(style).expect("there are two")] = true;
            }
        }
        let drawings = drawings.drawings.iter().zip(held).map(|(drawing, held)| (drawing.concept, held)).collect();
        Self { names, alone, drawings }
    }

    /// Whether a split holds a scene out; one that isn't held out itself holds out none.
    pub fn holds_out(&self, split: Split, content: &Content) -> bool {
        if content.kind == Kind::Picture {
            return false;
        }
        let mut drawings = content.objects.iter().map(|object| self.drawings[object.drawing]);
        let mut concepts = drawings.clone().map(|(concept, _)| concept);
        match split {
            Split::Seen | Split::Single => false,
            Split::Pairs => self.pair(content).is_some_and(|(draw, _)| percent(draw) < PAIRS),
            Split::Order => self.pair(content).is_some_and(|(draw, in_order)| {
                // Two independent choices from one hash: whether, and which of the two orders.
                let trained_in_order = (draw / 100).is_multiple_of(2);
                (PAIRS..2 * PAIRS).contains(&percent(draw)) && in_order != trained_in_order
            }),
            Split::Colour => {
                let (colour, _) = BACKGROUNDS[content.background];
                concepts.any(|concept| percent(hash(&["colour", &self.names[concept], colour])) < COLOURS)
            }
            Split::Style => drawings.any(|(_, held)| held),
            Split::Count => match content.kind {
                Kind::Count(count) => {
                    concepts.any(|concept| percent(hash(&["count", &self.names[concept], &count.to_string()])) < COUNTS)
                }
                _ => false,
            },
            Split::Solo => content.objects.len() > 1 && concepts.any(|concept| self.alone[concept]),
        }
    }

    /// The hash of a scene's two concepts, and whether the left or upper one is the first by name.
    fn pair(&self, content: &Content) -> Option<(u64, bool)> {
        let Kind::Relation(relation) = content.kind else { return None };
        let [first, second] = [0, 1].map(|i| &self.names[self.drawings[content.objects[i].drawing].0]);
        let [lesser, greater] = if first < second { [first, second] } else { [second, first] };
        Some((hash(&["pair", lesser, greater]), (first < second) == Relation::first_leads(relation)))
    }

    /// The splits that hold a scene out; none if it may be trained on.
    pub fn of(&self, content: &Content) -> Vec<Split> {
        Split::ALL.into_iter().filter(|&split| self.holds_out(split, content)).collect()
    }

    /// Whether a scene may be trained on.
    pub fn trains(&self, content: &Content) -> bool {
        !Split::ALL.into_iter().any(|split| self.holds_out(split, content))
    }
}
