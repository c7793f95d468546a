//! Where the objects of a scene go.

use super::content::{Kind, Placed, Relation};
use super::options::SceneOptions;
use super::random::Random;

/// Lengths here are in 64ths of the side.
const UNITS: f64 = 64.0;
const MIDDLE: f64 = 32.0;
/// From the middle to each of two objects.
const APART: f64 = 15.75;
/// From the middle to a place at the side.
const ASIDE: f64 = 16.0;
/// From the middle to the outer ones of five objects, which are smaller than fewer would be.
const OUTER: f64 = 19.0;
const SMALLER: f64 = 0.75;

/// Objects at their places, a little moved.
pub(super) fn place(kind: Kind, drawings: &[usize], options: &SceneOptions, random: &mut Random) -> Vec<Placed> {
    let sizes = &options.sizes;
    let around = |(x, y): (f64, f64), distance: f64| (MIDDLE + distance * x, MIDDLE + distance * y);
    let centre = (MIDDLE, MIDDLE);
    // Objects of one kind are of one size; small ones are moved less than a large one.
    let (centres, size, jitter) = match kind {
        Kind::Single | Kind::Picture => (vec![centre], random.between(sizes.single), options.jitter),
        Kind::Place(place) => (vec![around(place.direction(), ASIDE)], random.between(sizes.place), options.jitter / 2.0),
        Kind::Relation(relation) => {
            let (x, y) = Relation::direction(relation);
            (vec![around((x, y), APART), around((-x, -y), APART)], random.between(sizes.relation), options.jitter / 2.0)
        }
        Kind::Count(count) => {
            let size = random.between(sizes.count) * if count > 4 { SMALLER } else { 1.0 };
            (
                together(count).iter().map(|&to| around(to, if count > 4 { OUTER } else { APART })).collect(),
                size,
                options.jitter / 2.0,
            )
        }
    };
    let pixels = options.side as f64 / UNITS;
    let mut one = |(&drawing, (x, y)): (&usize, (f64, f64))| {
        let mut near = |place: f64| ((place + random.between([-jitter, jitter])) * pixels) as f32;
        Placed { drawing, centre: (near(x), near(y)), size: (size * pixels) as f32 }
    };
    drawings.iter().zip(centres).map(&mut one).collect()
}

/// The layout of each number of objects: beside each other, a triangle, a square, the five of a die.
fn together(count: usize) -> &'static [(f64, f64)] {
    match count {
        0..=2 => &[(-1.0, 0.0), (1.0, 0.0)],
        3 => &[(0.0, -0.9), (-1.0, 0.9), (1.0, 0.9)],
        4 => &[(-1.0, -1.0), (1.0, -1.0), (-1.0, 1.0), (1.0, 1.0)],
        _ => &[(-1.0, -1.0), (1.0, -1.0), (0.0, 0.0), (-1.0, 1.0), (1.0, 1.0)],
    }
}
