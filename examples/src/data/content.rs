//! Descriptions of scenes, and their captions.

use serde::Serialize;

use super::colours::BACKGROUNDS;
use super::drawings::{Concept, Drawings};

/// Description of a scene: everything that determines its pixels.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Content {
    /// Index into [`BACKGROUNDS`].
    pub background: usize,
    /// sRGB values of the background: the named colour with a small random change.
    pub colour: [u8; 3],
    /// Style of the first object, an index into [`Drawings::styles`].
    pub style: usize,
    /// The objects, in the order of the caption.
    pub objects: Vec<SceneObject>,
    /// Arrangement of the objects.
    pub kind: Kind,
}

/// An object of a scene.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct SceneObject {
    /// Index of the drawing, or of the image in a pack of captioned images.
    pub drawing: usize,
    /// Centre in pixels from the top left: x, y.
    pub centre: (f32, f32),
    /// Side in pixels.
    pub size: f32,
}

/// Arrangement of a scene's objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Kind {
    /// One large object in the middle.
    Single,
    /// One small object at one of nine positions.
    Position(Position),
    /// Two objects next to or above each other.
    Relation(Relation),
    /// This many copies of one object.
    Count(usize),
    /// An image of a pack of captioned images, unchanged.
    Image,
}

/// Position in a grid of 3 x 3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs)] // The names are clear.
pub enum Position {
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

impl Position {
    /// All positions, row by row from the top left.
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

    /// Returns the words of a caption, such as "at the top".
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

    /// Returns the direction from the middle, x and y from -1 to 1. Right and down are positive.
    pub fn direction(self) -> (f64, f64) {
        let index = self as usize;
        ((index % 3) as f64 - 1.0, (index / 3) as f64 - 1.0)
    }
}

/// Position of the first of two objects relative to the second.
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
    /// Not mentioned in the caption; the first object is on the left.
    And,
}

impl Relation {
    /// All relations.
    pub const ALL: [Self; 5] = [Self::Left, Self::Right, Self::Above, Self::Below, Self::And];

    /// Returns the words of a caption, such as "to the left of".
    pub fn words(self) -> &'static str {
        match self {
            Self::Left => "to the left of",
            Self::Right => "to the right of",
            Self::Above => "above",
            Self::Below => "below",
            Self::And => "and",
        }
    }

    /// Returns whether the first object is the left or upper one.
    pub fn first_leads(self) -> bool {
        matches!(self, Self::Left | Self::Above | Self::And)
    }

    /// Returns the direction from the middle to the first object. Right and down are positive.
    pub fn direction(self) -> (f64, f64) {
        match self {
            Self::Left | Self::And => (-1.0, 0.0),
            Self::Right => (1.0, 0.0),
            Self::Above => (0.0, -1.0),
            Self::Below => (0.0, 1.0),
        }
    }
}

/// The parts of a scene that a caption mentions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Naming {
    /// The background: "on a yellow background".
    pub background: bool,
    /// The style: "flat style".
    pub style: bool,
    /// True for each of the two concepts that is called by its alias, if it has one.
    pub alias: [bool; 2],
}

impl Naming {
    /// Mentions everything, by its usual name.
    pub const FULL: Self = Self { background: true, style: true, alias: [false; 2] };
}

/// Returns "a" or "an", by the first letter of the word.
fn article(word: &str) -> &'static str {
    if word.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" }
}

/// Returns a count in words.
pub fn count_word(count: usize) -> &'static str {
    ["no", "one", "two", "three", "four", "five"].get(count).copied().unwrap_or("many")
}

/// Returns the caption of a scene.
pub fn caption(content: &Content, drawings: &Drawings, naming: Naming) -> String {
    let object = |i: usize| content.objects[i].drawing;
    if content.kind == Kind::Image {
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
        Kind::Position(position) => format!("{} {}", np(0), position.words()),
        Kind::Relation(relation) => format!("{} {} {}", np(0), relation.words(), np(1)),
        Kind::Count(count) => format!("{} {}", count_word(count), plural()),
        Kind::Single | Kind::Image => np(0).to_string(),
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
