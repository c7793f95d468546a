//! Splits of scenes that are held out of training, to test the model with.
//!
//! Every decision is a hash of names and doesn't depend on a seed. Therefore training and test scenes never overlap, and adding a
//! concept doesn't change the others. Only the held-out styles and the solo concepts depend on the other drawings.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::colours::BACKGROUNDS;
use super::content::{Content, Kind, Relation};
use super::drawings::Drawings;
use super::random::hash;

/// Percentage of the pairs of concepts that training never shows together. It shows the same percentage in one order only.
const PAIRS_PERCENT: u64 = 10;
/// Percentage of the backgrounds that training never shows a concept on.
const COLOURS_PERCENT: u64 = 10;
/// Percentage of the counts that training never shows of a concept.
const COUNTS_PERCENT: u64 = 10;
/// Percentage of the drawings that training never shows. It shows the concept in another style.
const STYLES_PERCENT: u64 = 5;
/// Percentage of the concepts that training only shows alone, rounded down.
const SOLO_PERCENT: usize = 4;

/// A split of the test scenes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// Scenes as in training.
    Seen,
    /// One object, as in training.
    Single,
    /// Two concepts that training never shows together.
    Pairs,
    /// Two concepts that training shows only in the other order.
    Order,
    /// A concept on a background that training never shows it on.
    Colour,
    /// A concept in a style that training never shows it in.
    Style,
    /// A concept in a number that training never shows.
    Count,
    /// Two concepts, at least one of which training only shows alone.
    Solo,
}

impl Split {
    /// All splits. Those that training shows come first.
    pub const ALL: [Self; 8] =
        [Self::Seen, Self::Single, Self::Pairs, Self::Order, Self::Colour, Self::Style, Self::Count, Self::Solo];

    /// Returns whether training never shows its scenes.
    pub fn is_held_out(self) -> bool {
        !matches!(self, Self::Seen | Self::Single)
    }

    /// Returns the name in lower case.
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

/// The splits of a pack of drawings.
#[derive(Clone, Debug)]
pub struct Splits {
    /// Names of the concepts.
    names: Vec<String>,
    /// True if training only shows a concept alone, by concept.
    solo: Vec<bool>,
    /// Concept of each drawing, and whether the drawing is held out because of its style.
    drawings: Vec<(usize, bool)>,
}

fn percent(hash: u64) -> u64 {
    hash % 100
}

impl Splits {
    /// Creates the splits of a pack.
    pub fn new(drawings: &Drawings) -> Self {
        let names: Vec<String> = drawings.concepts.iter().map(|concept| concept.name.clone()).collect();
        let mut order: Vec<usize> = (0..names.len()).collect();
        order.sort_by_key(|&concept| hash(&["solo", &names[concept]]));
        let mut solo = vec![false; names.len()];
        for &concept in &order[..names.len() * SOLO_PERCENT / 100] {
            solo[concept] = true;
        }
        // Hold out at most one style of a concept that has several. Enough concepts are chosen to reach the percentage of drawings.
        let mut by_concept: Vec<Vec<usize>> = vec![vec![]; names.len()];
        for (index, drawing) in drawings.drawings.iter().enumerate() {
            by_concept[drawing.concept].push(index);
        }
        let mut held_out = vec![false; drawings.drawings.len()];
        for (name, indices) in names.iter().zip(&by_concept) {
            if indices.len() > 1 && percent(hash(&["style", name])) < STYLES_PERCENT * indices.len() as u64 {
                let by_hash = |&&i: &&usize| hash(&["style", name, &drawings.styles[drawings.drawings[i].style]]);
                held_out[*indices.iter().min_by_key(by_hash).expect("the concept has several styles")] = true;
            }
        }
        let drawings = drawings.drawings.iter().zip(held_out).map(|(drawing, held_out)| (drawing.concept, held_out)).collect();
        Self { names, solo, drawings }
    }

    /// Returns whether a split holds a scene out of training. [`Split::Seen`] and [`Split::Single`] hold out none.
    pub fn holds_out(&self, split: Split, content: &Content) -> bool {
        if content.kind == Kind::Image {
            return false;
        }
        let mut drawings = content.objects.iter().map(|object| self.drawings[object.drawing]);
        let mut concepts = drawings.clone().map(|(concept, _)| concept);
        match split {
            Split::Seen | Split::Single => false,
            Split::Pairs => self.pair(content).is_some_and(|(hash, _)| percent(hash) < PAIRS_PERCENT),
            Split::Order => self.pair(content).is_some_and(|(hash, in_order)| {
                // Two independent decisions from one hash: whether the pair is held out in one order, and in which.
                let trained_in_order = (hash / 100).is_multiple_of(2);
                (PAIRS_PERCENT..2 * PAIRS_PERCENT).contains(&percent(hash)) && in_order != trained_in_order
            }),
            Split::Colour => {
                let (colour, _) = BACKGROUNDS[content.background];
                concepts.any(|concept| percent(hash(&["colour", &self.names[concept], colour])) < COLOURS_PERCENT)
            }
            Split::Style => drawings.any(|(_, held_out)| held_out),
            Split::Count => match content.kind {
                Kind::Count(count) => {
                    concepts.any(|concept| percent(hash(&["count", &self.names[concept], &count.to_string()])) < COUNTS_PERCENT)
                }
                _ => false,
            },
            Split::Solo => content.objects.len() > 1 && concepts.any(|concept| self.solo[concept]),
        }
    }

    /// Returns the hash of a scene's two concepts, and whether the left or upper one is the first by name.
    fn pair(&self, content: &Content) -> Option<(u64, bool)> {
        let Kind::Relation(relation) = content.kind else { return None };
        let [first, second] = [0, 1].map(|i| &self.names[self.drawings[content.objects[i].drawing].0]);
        let [lesser, greater] = if first < second { [first, second] } else { [second, first] };
        Some((hash(&["pair", lesser, greater]), (first < second) == Relation::first_leads(relation)))
    }

    /// Returns the splits that hold a scene out; empty if training may show it.
    pub fn of(&self, content: &Content) -> Vec<Split> {
        Split::ALL.into_iter().filter(|&split| self.holds_out(split, content)).collect()
    }

    /// Returns whether training may show a scene.
    pub fn allows_training(&self, content: &Content) -> bool {
        !Split::ALL.into_iter().any(|split| self.holds_out(split, content))
    }
}
