//! What scenes are made of, as a recipe says it.

use serde::{Deserialize, Serialize};

use super::drawings::SIDES;

/// Most objects in a scene.
pub const MOST_OBJECTS: usize = 5;

/// How scenes are made. Lengths are in 64ths of a scene's side: in pixels, where that is 64.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SceneOptions {
    /// Pixels a side.
    pub side: usize,
    /// Shares of the kinds.
    pub mix: Mix,
    /// Least and greatest size of the objects.
    pub sizes: Sizes,
    /// Least and greatest number of objects in a scene that counts; up to 5.
    pub counts: [usize; 2],
    /// How far an object may be from its place, each way.
    pub jitter: f64,
    /// How far a background's levels may be from the named colour's, of 255.
    pub colour_jitter: u8,
    /// How often captions name what.
    pub named: Named,
    /// Leaves out what is held out for tests.
    pub hold_out: bool,
}

/// Shares of the kinds of scenes, of their sum.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mix {
    /// One object in the middle, large.
    pub single: f64,
    /// One object at one of nine places, small.
    pub place: f64,
    /// Two objects beside or above each other.
    pub relation: f64,
    /// Several of one object.
    pub count: f64,
}

/// Least and greatest sizes of the objects, in 64ths of the side.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sizes {
    /// Of one in the middle.
    pub single: [f64; 2],
    /// Of one at a place.
    pub place: [f64; 2],
    /// Of two.
    pub relation: [f64; 2],
    /// Of several; five are a quarter smaller.
    pub count: [f64; 2],
}

/// Probabilities that a caption names something.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Named {
    /// "on a yellow background".
    pub background: f64,
    /// "flat style".
    pub style: f64,
    /// An object by its alias, if it has one.
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
            named: Named::default(),
            hold_out: true,
        }
    }
}

impl Default for Mix {
    fn default() -> Self {
        Self { single: 0.45, place: 0.0, relation: 0.4, count: 0.15 }
    }
}

impl Default for Sizes {
    fn default() -> Self {
        Self { single: [44.0, 56.0], place: [24.0, 30.0], relation: [26.0, 31.0], count: [22.0, 26.0] }
    }
}

impl Default for Named {
    fn default() -> Self {
        Self { background: 0.7, style: 0.5, alias: 0.3 }
    }
}

impl SceneOptions {
    /// The same without what captions don't say: sizes in the middle of their ranges, objects exactly in their places, colours exactly
    /// as named.
    pub fn exact(&self) -> Self {
        let middle = |[least, greatest]: [f64; 2]| [(least + greatest) / 2.0; 2];
        let Sizes { single, place, relation, count } = self.sizes;
        let sizes = Sizes { single: middle(single), place: middle(place), relation: middle(relation), count: middle(count) };
        Self { sizes, jitter: 0.0, colour_jitter: 0, ..self.clone() }
    }

    /// Everything is in its range.
    ///
    /// # Errors
    ///
    /// Names what isn't.
    pub fn check(&self) -> Result<(), String> {
        let Self { side, mix, sizes, counts, jitter, colour_jitter: _, named, hold_out: _ } = self;
        if !SIDES.contains(side) {
            return Err(format!("side: scenes have {} to {} pixels a side, not {side}", SIDES.start(), SIDES.end()));
        }
        let shares = [("single", mix.single), ("place", mix.place), ("relation", mix.relation), ("count", mix.count)];
        for (name, share) in shares {
            if !(0.0..=1e9).contains(&share) {
                return Err(format!("mix.{name}: expected a share from 0 on, not {share}"));
            }
        }
        if shares.iter().all(|(_, share)| *share == 0.0) {
            return Err("mix: all shares are 0".into());
        }
        let ranges = [("single", sizes.single), ("place", sizes.place), ("relation", sizes.relation), ("count", sizes.count)];
        for (name, [least, greatest]) in ranges {
            if !(1.0 <= least && least <= greatest && greatest <= 64.0) {
                return Err(format!("sizes.{name}: expected two sizes from 1 to 64, the smaller first, not [{least}, {greatest}]"));
            }
        }
        if !(2 <= counts[0] && counts[0] <= counts[1] && counts[1] <= MOST_OBJECTS) {
            return Err(format!("counts: expected two numbers from 2 to {MOST_OBJECTS}, the smaller first, not {counts:?}"));
        }
        if !(0.0..=32.0).contains(jitter) {
            return Err(format!("jitter: expected 0 to 32, not {jitter}"));
        }
        for (name, chance) in [("background", named.background), ("style", named.style), ("alias", named.alias)] {
            if !(0.0..=1.0).contains(&chance) {
                return Err(format!("named.{name}: expected a probability from 0 to 1, not {chance}"));
            }
        }
        Ok(())
    }
}
