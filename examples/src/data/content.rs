//! What a scene shows, and how it is said.

use serde::Serialize;

use super::colours::BACKGROUNDS;
use super::drawings::{Concept, Drawings};

/// What a scene shows, all but its pixels.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Content {
    /// Index into [`BACKGROUNDS`].
    pub background: usize,
    /// Levels of the background: the named colour, a little changed.
    pub colour: [u8; 3],
    /// The first object's style: an index into [`Drawings::styles`].
    pub style: usize,
    /// The objects; that which the caption names first comes first.
    pub objects: Vec<Placed>,
    /// How they are arranged.
    pub kind: Kind,
}

/// An object of a scene.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Placed {
    /// Which drawing, or in a pack of captioned pictures which picture.
    pub drawing: usize,
    /// Its centre from the top left, in pixels.
    pub centre: (f32, f32),
    /// Pixels a side.
    pub size: f32,
}

/// How the objects of a scene are arranged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Kind {
    /// One in the middle, large.
    Single,
    /// One at one of nine places, small.
    Place(Place),
    /// Two beside or above each other.
    Relation(Relation),
    /// So many of one.
    Count(usize),
    /// A captioned picture, as it is.
    Picture,
}

/// A ninth of a scene.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs)] // Their names say it.
pub enum Place {
    TopLeft,
    Top,
    TopRight,
    Left,
    Middle,
    Right,
    BottomLeft,
    Bottom,
    BottomRight,
}

impl Place {
    /// Row by row from the top left.
    pub const ALL: [Self; 9] = [
        Self::TopLeft,
        Self::Top,
        Self::TopRight,
        Self::Left,
        Self::Middle,
        Self::Right,
        Self::BottomLeft,
        Self::Bottom,
        Self::BottomRight,
    ];

    /// "at the top".
    pub fn words(self) -> &'static str {
        match self {
            Self::TopLeft => "in the top left corner",
            Self::Top => "at the top",
            Self::TopRight => "in the top right corner",
            Self::Left => "on the left",
            Self::Middle => "in the middle",
            Self::Right => "on the right",
            Self::BottomLeft => "in the bottom left corner",
            Self::Bottom => "at the bottom",
            Self::BottomRight => "in the bottom right corner",
        }
    }

    /// Its column and row, -1 to 1 each.
    pub fn direction(self) -> (f64, f64) {
        let index = self as usize;
        ((index % 3) as f64 - 1.0, (index / 3) as f64 - 1.0)
    }
}

/// Where the first of two objects is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Relation {
    /// To the left of the second.
    Left,
    /// To the right of the second.
    Right,
    /// Above the second.
    Above,
    /// Below the second.
    Below,
    /// Not said; it is to the left.
    And,
}

impl Relation {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Left, Self::Right, Self::Above, Self::Below, Self::And];

    /// "to the left of".
    pub fn words(self) -> &'static str {
        match self {
            Self::Left => "to the left of",
            Self::Right => "to the right of",
            Self::Above => "above",
            Self::Below => "below",
            Self::And => "and",
        }
    }

    /// Whether the first object is the left or upper one.
    pub fn first_leads(self) -> bool {
        matches!(self, Self::Left | Self::Above | Self::And)
    }

    /// Which way the first object lies from the middle: right and down are positive.
    pub fn direction(self) -> (f64, f64) {
        match self {
            Self::Left | Self::And => (-1.0, 0.0),
            Self::Right => (1.0, 0.0),
            Self::Above => (0.0, -1.0),
            Self::Below => (0.0, 1.0),
        }
    }
}

/// Which parts of a scene its caption names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Naming {
    /// "on a yellow background".
    pub background: bool,
    /// "flat style".
    pub style: bool,
    /// Whether the first and the second concept go by their alias, if they have one.
    pub alias: [bool; 2],
}

impl Naming {
    /// Everything, by its usual name.
    pub const FULL: Self = Self { background: true, style: true, alias: [false; 2] };
}

/// "a" or "an", by the first letter.
fn article(word: &str) -> &'static str {
    if word.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" }
}

/// A number in words, as far as scenes count.
pub fn number(count: usize) -> &'static str {
    ["no", "one", "two", "three", "four", "five"].get(count).copied().unwrap_or("many")
}

/// The caption of a scene.
pub fn caption(content: &Content, drawings: &Drawings, naming: Naming) -> String {
    let object = |i: usize| content.objects[i].drawing;
    if content.kind == Kind::Picture {
        return drawings.captions[object(0)].clone();
    }
    let np = |i: usize| match drawings.concept(object(i)) {
        Concept { alias: Some(alias), .. } if naming.alias[i] => alias.np.as_str(),
        concept => concept.np.as_str(),
    };
    let plural = || match drawings.concept(object(0)) {
        Concept { alias: Some(alias), .. } if naming.alias[0] && !alias.plural.is_empty() => alias.plural.as_str(),
        concept => concept.plural.as_str(),
    };
    let mut text = match content.kind {
        Kind::Place(place) => format!("{} {}", np(0), place.words()),
        Kind::Relation(relation) => format!("{} {} {}", np(0), relation.words(), np(1)),
        Kind::Count(count) => format!("{} {}", number(count), plural()),
        Kind::Single | Kind::Picture => np(0).to_string(),
    };
    if naming.background {
        let (colour, _) = BACKGROUNDS[content.background];
        text += &format!(" on {} {colour} background", article(colour));
    }
    if naming.style {
        text += &format!(", {} style", drawings.styles[content.style]);
    }
    text
}
