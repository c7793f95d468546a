//! Options of scenes, the section `scenes` of a recipe.

use serde::{Deserialize, Serialize};

use super::drawings::SIDES;

/// Maximum number of objects in a scene.
pub const MAX_OBJECTS: usize = 5;

/// Options of scenes. Lengths are in 64ths of the side: pixels, if the side is 64.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SceneOptions {
    /// Side in pixels.
    pub side: usize,
    /// Shares of the kinds of scenes.
    pub mix: Mix,
    /// Ranges of the objects' sizes.
    pub sizes: Sizes,
    /// Range of the number of objects in scenes of several equal objects, from 2 to 5.
    pub counts: [usize; 2],
    /// Maximum offset of an object from its position, along each axis.
    pub jitter: f64,
    /// Maximum difference of a background's channel values, 0 to 255, from the named colour.
    pub colour_jitter: u8,
    /// Probabilities that a caption mentions a part of the scene.
    pub named: NamingProbabilities,
    /// True to leave out the scenes that are held out for tests.
    pub hold_out: bool,
}

/// Shares of the kinds of scenes. They need not sum to 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mix {
    /// One large object in the middle.
    pub single: f64,
    /// One small object at one of nine positions.
    pub position: f64,
    /// Two objects next to or above each other.
    pub relation: f64,
    /// Several copies of one object.
    pub count: f64,
}

/// Ranges of the objects' sizes, in 64ths of the side.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sizes {
    /// Size of one object in the middle.
    pub single: [f64; 2],
    /// Size of one object at one of nine positions.
    pub position: [f64; 2],
    /// Size of two objects.
    pub relation: [f64; 2],
    /// Size of several objects; five objects are a quarter smaller.
    pub count: [f64; 2],
}

/// Probabilities that a caption mentions a part of the scene.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NamingProbabilities {
    /// The background: "on a yellow background".
    pub background: f64,
    /// The style: "flat style".
    pub style: f64,
    /// The alias of an object instead of its name, if it has one.
    pub alias: f64,
}

impl Default for SceneOptions {
    fn default() -> Self {
        Self {
            side: 64,
            mix: Mix::default(),
            sizes: Sizes::default(),
            counts: [2, 4],
            jitter: 2.0,
            colour_jitter: 4,
            named: NamingProbabilities::default(),
            hold_out: true,
        }
    }
}

impl Default for Mix {
    fn default() -> Self {
        Self { single: 0.45, position: 0.0, relation: 0.4, count: 0.15 }
    }
}

impl Default for Sizes {
    fn default() -> Self {
        Self { single: [44.0, 56.0], position: [24.0, 30.0], relation: [26.0, 31.0], count: [22.0, 26.0] }
    }
}

impl Default for NamingProbabilities {
    fn default() -> Self {
        Self { background: 0.7, style: 0.5, alias: 0.3 }
    }
}

impl SceneOptions {
    /// Returns the options without the variation that captions don't mention: sizes are the middle of their range, positions and
    /// colours are exact.
    pub fn exact(&self) -> Self {
        let middle = |[low, high]: [f64; 2]| [(low + high) / 2.0; 2];
        let Sizes { single, position, relation, count } = self.sizes;
        let sizes = Sizes { single: middle(single), position: middle(position), relation: middle(relation), count: middle(count) };
        Self { sizes, jitter: 0.0, colour_jitter: 0, ..self.clone() }
    }

    /// Checks that every option is in its range.
    ///
    /// # Errors
    ///
    /// Returns an error that names the first invalid option.
    pub fn check(&self) -> Result<(), String> {
        let Self { side, mix, sizes, counts, jitter, colour_jitter: _, named, hold_out: _ } = self;
        if !SIDES.contains(side) {
            return Err(format!("side is {side}, expected {} to {} pixels", SIDES.start(), SIDES.end()));
        }
        let shares = [("single", mix.single), ("position", mix.position), ("relation", mix.relation), ("count", mix.count)];
        for (name, share) in shares {
            if !(0.0..=1e9).contains(&share) {
                return Err(format!("mix.{name} is {share}, expected a share of at least 0"));
            }
        }
        if shares.iter().all(|(_, share)| *share == 0.0) {
            return Err("mix: all shares are 0".into());
        }
        let ranges = [("single", sizes.single), ("position", sizes.position), ("relation", sizes.relation), ("count", sizes.count)];
        for (name, [low, high]) in ranges {
            if !(1.0 <= low && low <= high && high <= 64.0) {
                return Err(format!("sizes.{name} is [{low}, {high}], expected two sizes from 1 to 64, the smaller first"));
            }
        }
        if !(2 <= counts[0] && counts[0] <= counts[1] && counts[1] <= MAX_OBJECTS) {
            return Err(format!("counts is {counts:?}, expected two numbers from 2 to {MAX_OBJECTS}, the smaller first"));
        }
        if !(0.0..=32.0).contains(jitter) {
            return Err(format!("jitter is {jitter}, expected 0 to 32"));
        }
        for (name, probability) in [("background", named.background), ("style", named.style), ("alias", named.alias)] {
            if !(0.0..=1.0).contains(&probability) {
                return Err(format!("named.{name} is {probability}, expected a probability from 0 to 1"));
            }
        }
        Ok(())
    }
}
