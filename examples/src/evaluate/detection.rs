//! Detection of an image's contents: background, objects, their number and positions.

use super::colour::nearest_colour;
use super::feature::feature;
use super::references::{Match, References, Sprite};
use super::score::{Arrangement, Expected};
use super::segment::{ImageView, Segmentation};
use crate::data::colours::BACKGROUNDS;
use crate::data::{Drawing, Drawings};

/// Number of concepts that count for top-5.
pub const TOP: usize = super::references::TOP;

/// The detected contents of an image.
#[derive(Clone, Debug)]
pub struct Detection {
    /// Index of the background's colour.
    pub background: usize,
    /// Number of objects.
    pub count: usize,
    /// Centre of all objects together, as shares of the side: x, y.
    pub centre: Option<[f64; 2]>,
    /// Match of all objects together, taken as one.
    pub whole: Option<Match>,
    /// Match of the largest object.
    pub largest: Option<Match>,
    /// Matches of the halves before and after the middle, along x and along y.
    pub halves: [[Option<Match>; 2]; 2],
}

impl Detection {
    /// Returns the match of each expected object. Two objects are searched in the halves that fit best, in any of
    /// [`ARRANGEMENTS`](super::score::ARRANGEMENTS) arrangements.
    pub(super) fn objects(&self, expected: &Expected) -> Vec<Option<&Match>> {
        match expected.objects[..] {
            [first, second] => {
                let pairs = Arrangement::And.layouts().iter().map(|&layout| self.pair(layout));
                let fit = |pair: &[Option<&Match>; 2]| {
                    let hits = |top| pair.iter().zip([first, second]).filter(|(m, concept)| is_in_top(m, *concept, top)).count();
                    (hits(TOP), hits(1))
                };
                pairs.max_by_key(fit).unwrap_or_default().to_vec()
            }
            _ if expected.count.is_some_and(|count| count > 1) => vec![self.largest.as_ref()],
            _ => vec![self.whole.as_ref()],
        }
    }

    /// Returns the matches of the first and the second object in a layout: the axis, and whether the first object is after the
    /// middle.
    pub(super) fn pair(&self, (axis, after): (usize, bool)) -> [Option<&Match>; 2] {
        [self.halves[axis][usize::from(after)].as_ref(), self.halves[axis][usize::from(!after)].as_ref()]
    }
}

/// Returns whether a concept is among the `top` best of a match.
pub(super) fn is_in_top(found: &Option<&Match>, concept: usize, top: usize) -> bool {
    found.is_some_and(|found| found.concepts.iter().take(top).any(|&c| c == concept))
}

/// Detects the contents of images by comparison with known drawings and backgrounds.
#[derive(Clone, Debug)]
pub struct Detector {
    references: References,
    backgrounds: Vec<[u8; 3]>,
}

impl Detector {
    /// Creates a detector for these drawings and background colours.
    pub fn new(references: References, backgrounds: Vec<[u8; 3]>) -> Self {
        Self { references, backgrounds }
    }

    /// Creates a detector for all drawings of a pack and the named backgrounds.
    pub fn of(drawings: &Drawings) -> Self {
        let sprite = |(index, drawing): (usize, &Drawing)| Sprite {
            side: drawings.side,
            pixels: drawings.image(index),
            concept: drawing.concept,
            style: drawing.style,
        };
        let sprites: Vec<Sprite<'_>> = drawings.drawings.iter().enumerate().map(sprite).collect();
        let backgrounds = BACKGROUNDS.map(|(_, colour)| colour);
        Self::new(References::new(&sprites, &backgrounds), backgrounds.to_vec())
    }

    /// Returns the number of concepts that can be detected.
    pub fn concepts(&self) -> usize {
        self.references.concepts()
    }

    /// Detects the contents of an image.
    pub fn detect(&self, image: ImageView<'_>) -> Detection {
        let segmentation = Segmentation::of(image);
        let largest = segmentation.largest().map_or_else(Vec::new, |component| segmentation.mask(Some(component)));
        let mut masks = vec![segmentation.mask(None), largest];
        for (axis, after) in [(0, false), (0, true), (1, false), (1, true)] {
            masks.push(segmentation.half_mask(axis, after));
        }
        let features: Vec<Option<Vec<f32>>> = masks.iter().map(|mask| feature(image, mask)).collect();
        let mut matches = self.references.find(&features).into_iter();
        let mut next = || matches.next().flatten();
        Detection {
            background: nearest_colour(segmentation.background, &self.backgrounds),
            count: segmentation.count(),
            centre: segmentation.centre(),
            whole: next(),
            largest: next(),
            halves: [[next(), next()], [next(), next()]],
        }
    }
}
