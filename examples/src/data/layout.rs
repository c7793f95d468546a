//! Positions and sizes of a scene's objects.

use super::content::{Kind, Relation, SceneObject};
use super::options::SceneOptions;
use super::random::Random;

/// Units per side: lengths in this file are in 64ths of the side.
const UNITS: f64 = 64.0;
const MIDDLE: f64 = 32.0;
/// Distance from the middle to each of two objects.
const OBJECT_DISTANCE: f64 = 15.75;
/// Distance from the middle to an outer position, along each axis.
const POSITION_DISTANCE: f64 = 16.0;
/// Distance from the middle to the outer four of five objects, along each axis.
const FIVE_DISTANCE: f64 = 19.0;
/// Size of five objects relative to fewer.
const FIVE_SIZE: f64 = 0.75;

/// Places the objects of a scene, each with a small random offset.
pub(super) fn place_objects(kind: Kind, drawings: &[usize], options: &SceneOptions, random: &mut Random) -> Vec<SceneObject> {
    let sizes = &options.sizes;
    let around = |(x, y): (f64, f64), distance: f64| (MIDDLE + distance * x, MIDDLE + distance * y);
    let centre = (MIDDLE, MIDDLE);
    // All objects of a scene have the same size. Small objects get half the offset.
    let (centres, size, jitter) = match kind {
        Kind::Single | Kind::Image => (vec![centre], random.between(sizes.single), options.jitter),
        Kind::Position(position) => {
            (vec![around(position.direction(), POSITION_DISTANCE)], random.between(sizes.position), options.jitter / 2.0)
        }
        Kind::Relation(relation) => {
            let (x, y) = Relation::direction(relation);
            (
                vec![around((x, y), OBJECT_DISTANCE), around((-x, -y), OBJECT_DISTANCE)],
                random.between(sizes.relation),
                options.jitter / 2.0,
            )
        }
        Kind::Count(count) => {
            let size = random.between(sizes.count) * if count > 4 { FIVE_SIZE } else { 1.0 };
            (
                arrangement(count).iter().map(|&to| around(to, if count > 4 { FIVE_DISTANCE } else { OBJECT_DISTANCE })).collect(),
                size,
                options.jitter / 2.0,
            )
        }
    };
    let pixels = options.side as f64 / UNITS;
    let mut object = |(&drawing, (x, y)): (&usize, (f64, f64))| {
        let mut offset = |position: f64| ((position + random.between([-jitter, jitter])) * pixels) as f32;
        SceneObject { drawing, centre: (offset(x), offset(y)), size: (size * pixels) as f32 }
    };
    drawings.iter().zip(centres).map(&mut object).collect()
}

/// Returns the directions from the middle to each of several objects: a pair, a triangle, a square, or a square and its centre.
fn arrangement(count: usize) -> &'static [(f64, f64)] {
    match count {
        0..=2 => &[(-1.0, 0.0), (1.0, 0.0)],
        3 => &[(0.0, -0.9), (-1.0, 0.9), (1.0, 0.9)],
        4 => &[(-1.0, -1.0), (1.0, -1.0), (-1.0, 1.0), (1.0, 1.0)],
        _ => &[(-1.0, -1.0), (1.0, -1.0), (0.0, 0.0), (-1.0, 1.0), (1.0, 1.0)],
    }
}
