//! The drawings that an object is compared with.

use rayon::prelude::*;

use super::feature::{LENGTH, cover, feature};
use super::segment::{Picture, Segments};
use crate::data::colours::{MIN_CONTRAST, contrast};

/// Concepts of a match: a right one among them counts as found by top-5.
pub const BEST: usize = 5;
/// Side of the pictures that references are drawn into.
const SIDE: usize = 64;
/// Sizes of the references, as large, middling and small objects of scenes are; each on a background of its own, since edges mix with
/// it.
const SIZES: [usize; 3] = [52, 40, 28];
/// A drawing as pixels.
#[derive(Clone, Copy, Debug)]
pub struct Sprite<'a> {
    /// Pixels a side.
    pub side: usize,
    /// Premultiplied RGBA, row by row.
    pub pixels: &'a [u8],
    /// Number of what it shows.
    pub concept: usize,
    /// Number of the style it is drawn in.
    pub style: usize,
}

/// What an object looks like most.
#[derive(Clone, Debug, PartialEq)]
pub struct Match {
    /// The most alike concepts, best first, all different.
    pub concepts: Vec<usize>,
    /// Style of the most alike drawing.
    pub style: usize,
    /// Cosine to it.
    pub likeness: f32,
}

/// Features of all drawings.
#[derive(Clone, Debug)]
pub struct References {
    rows: Vec<f32>,
    of: Vec<(usize, usize)>,
    concepts: usize,
}

impl References {
    /// Draws each sprite in three sizes on three of these backgrounds on which it can be seen.
    pub fn new(sprites: &[Sprite<'_>], backgrounds: &[[u8; 3]]) -> Self {
        let each = |sprite: &Sprite<'_>| {
            let features: Vec<Vec<f32>> = SIZES
                .into_iter()
                .zip(visible(sprite, backgrounds))
                .filter_map(|(size, background)| {
                    let pixels = drawn(sprite, size, background);
                    let picture = Picture { side: SIDE, pixels: &pixels };
                    feature(picture, &Segments::of(picture).mask(None))
                })
                .collect();
            (vec![(sprite.concept, sprite.style); features.len()], features.concat())
        };
        let (of, rows): (Vec<_>, Vec<_>) = sprites.par_iter().map(each).unzip();
        let concepts = sprites.iter().map(|sprite| sprite.concept + 1).max().unwrap_or(0);
        Self { rows: rows.concat(), of: of.concat(), concepts }
    }

    /// How many concepts can be told.
    pub fn concepts(&self) -> usize {
        self.concepts
    }

    /// What each of some features is most alike. All go through the references together, which are read from memory once.
    pub fn find(&self, features: &[Option<Vec<f32>>]) -> Vec<Option<Match>> {
        let mut likeness = vec![vec![f32::NEG_INFINITY; self.concepts]; features.len()];
        let mut best = vec![(f32::NEG_INFINITY, 0); features.len()];
        for (row, &(concept, style)) in self.rows.chunks_exact(LENGTH).zip(&self.of) {
            for (index, feature) in features.iter().enumerate() {
                let Some(feature) = feature else { continue };
                let cosine = dot(row, feature);
                likeness[index][concept] = likeness[index][concept].max(cosine);
                if cosine > best[index].0 {
                    best[index] = (cosine, style);
                }
            }
        }
        let mut matches = Vec::with_capacity(features.len());
        for ((feature, likeness), (cosine, style)) in features.iter().zip(likeness).zip(best) {
            let mut concepts: Vec<usize> = (0..self.concepts).collect();
            concepts.sort_by(|&a, &b| likeness[b].total_cmp(&likeness[a]));
            concepts.truncate(BEST);
            matches.push(feature.as_ref().map(|_| Match { concepts, style, likeness: cosine }));
        }
        matches
    }
}

/// Sum of products, in lanes that the compiler makes vectors of.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 16;
    let mut sums = [0.0f32; LANES];
    for (a, b) in a.chunks_exact(LANES).zip(b.chunks_exact(LANES)) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    sums.iter().sum()
}

/// Backgrounds that a drawing stands out from: the first, the middle and the last of them, so that they differ.
fn visible(sprite: &Sprite<'_>, backgrounds: &[[u8; 3]]) -> Vec<[u8; 3]> {
    let stands_out = |background: &[u8; 3]| contrast(sprite.pixels, sprite.side, *background) >= MIN_CONTRAST;
    let seen: Vec<[u8; 3]> = backgrounds.iter().copied().filter(stands_out).collect();
    let seen = if seen.is_empty() { backgrounds.to_vec() } else { seen };
    (0..SIZES.len()).map(|third| seen[third * (seen.len() - 1) / (SIZES.len() - 1)]).collect()
}

/// A drawing in the middle of a picture.
fn drawn(sprite: &Sprite<'_>, size: usize, background: [u8; 3]) -> Vec<u8> {
    let cells = cover(0.0, sprite.side as f64, size, sprite.side);
    let mut pixels: Vec<u8> = background.repeat(SIDE * SIDE);
    let first = (SIDE - size) / 2;
    for (y, rows) in cells.iter().enumerate() {
        for (x, columns) in cells.iter().enumerate() {
            let mut mean = [0.0f32; 4];
            for &(row, high) in rows {
                for &(column, wide) in columns {
                    let source = &sprite.pixels[4 * (row * sprite.side + column)..][..4];
                    mean.iter_mut().zip(source).for_each(|(mean, &v)| *mean += high * wide * f32::from(v));
                }
            }
            let pixel = &mut pixels[3 * ((first + y) * SIDE + first + x)..][..3];
            for (level, over) in pixel.iter_mut().zip(mean) {
                *level = (over + f32::from(*level) * (1.0 - mean[3] / 255.0)).round().clamp(0.0, 255.0) as u8;
            }
        }
    }
    pixels
}
