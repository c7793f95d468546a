//! Reference drawings that objects are compared with.

use rayon::prelude::*;

use super::feature::{LENGTH, coverage, feature};
use super::segment::{ImageView, Segmentation};
use crate::data::colours::{MIN_CONTRAST, contrast};

/// Number of concepts in a match, for top-5.
pub const TOP: usize = 5;
/// Side of the images that references are rendered in, in pixels.
const SIDE: usize = 64;
/// Sizes of the references in pixels, for large, medium and small objects. Each is rendered on another background, because the
/// edges blend with it.
const SIZES: [usize; 3] = [52, 40, 28];

/// Pixels and labels of a drawing.
#[derive(Clone, Copy, Debug)]
pub struct Sprite<'a> {
    /// Side in pixels.
    pub side: usize,
    /// Premultiplied RGBA, `[side, side, 4]`.
    pub pixels: &'a [u8],
    /// Index of the concept.
    pub concept: usize,
    /// Index of the style.
    pub style: usize,
}

/// The reference drawings most similar to an object.
#[derive(Clone, Debug, PartialEq)]
pub struct Match {
    /// Indices of the most similar concepts, best first, all different.
    pub concepts: Vec<usize>,
    /// Index of the most similar drawing's style.
    pub style: usize,
    /// Cosine similarity to the most similar drawing.
    pub similarity: f32,
}

/// Feature vectors of all reference drawings.
#[derive(Clone, Debug)]
pub struct References {
    /// Feature vectors, `[references, LENGTH]`.
    features: Vec<f32>,
    /// Concept and style of each reference.
    labels: Vec<(usize, usize)>,
    /// Number of concepts.
    concepts: usize,
}

impl References {
    /// Renders each sprite in three sizes, on three of these backgrounds that it has enough contrast with.
    pub fn new(sprites: &[Sprite<'_>], backgrounds: &[[u8; 3]]) -> Self {
        let references = |sprite: &Sprite<'_>| {
            let features: Vec<Vec<f32>> = SIZES
                .into_iter()
                .zip(visible_backgrounds(sprite, backgrounds))
                .filter_map(|(size, background)| {
                    let pixels = render(sprite, size, background);
                    let image = ImageView { side: SIDE, pixels: &pixels };
                    feature(image, &Segmentation::of(image).mask(None))
                })
                .collect();
            (vec![(sprite.concept, sprite.style); features.len()], features.concat())
        };
        let (labels, features): (Vec<_>, Vec<_>) = sprites.par_iter().map(references).unzip();
        let concepts = sprites.iter().map(|sprite| sprite.concept + 1).max().unwrap_or(0);
        Self { features: features.concat(), labels: labels.concat(), concepts }
    }

    /// Returns the number of concepts.
    pub fn concepts(&self) -> usize {
        self.concepts
    }

    /// Returns the match of each feature vector. All are compared in one pass over the references, which are read from memory once.
    pub fn find(&self, features: &[Option<Vec<f32>>]) -> Vec<Option<Match>> {
        let mut similarity = vec![vec![f32::NEG_INFINITY; self.concepts]; features.len()];
        let mut best = vec![(f32::NEG_INFINITY, 0); features.len()];
        for (reference, &(concept, style)) in self.features.chunks_exact(LENGTH).zip(&self.labels) {
            for (index, feature) in features.iter().enumerate() {
                let Some(feature) = feature else { continue };
                let cosine = dot(reference, feature);
                similarity[index][concept] = similarity[index][concept].max(cosine);
                if cosine > best[index].0 {
                    best[index] = (cosine, style);
                }
            }
        }
        let mut matches = Vec::with_capacity(features.len());
        for ((feature, similarity), (cosine, style)) in features.iter().zip(similarity).zip(best) {
            let mut concepts: Vec<usize> = (0..self.concepts).collect();
            concepts.sort_by(|&a, &b| similarity[b].total_cmp(&similarity[a]));
            concepts.truncate(TOP);
            matches.push(feature.as_ref().map(|_| Match { concepts, style, similarity: cosine }));
        }
        matches
    }
}

/// Computes the dot product. The separate partial sums let the compiler use SIMD.
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

/// Returns three different backgrounds that a drawing has enough contrast with: the first, the middle and the last of them.
fn visible_backgrounds(sprite: &Sprite<'_>, backgrounds: &[[u8; 3]]) -> Vec<[u8; 3]> {
    let has_contrast = |background: &[u8; 3]| contrast(sprite.pixels, sprite.side, *background) >= MIN_CONTRAST;
    let visible: Vec<[u8; 3]> = backgrounds.iter().copied().filter(has_contrast).collect();
    let visible = if visible.is_empty() { backgrounds.to_vec() } else { visible };
    (0..SIZES.len()).map(|third| visible[third * (visible.len() - 1) / (SIZES.len() - 1)]).collect()
}

/// Renders a drawing in the middle of an image.
fn render(sprite: &Sprite<'_>, size: usize, background: [u8; 3]) -> Vec<u8> {
    let cells = coverage(0.0, sprite.side as f64, size, sprite.side);
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
            for (value, colour) in pixel.iter_mut().zip(mean) {
                *value = (colour + f32::from(*value) * (1.0 - mean[3] / 255.0)).round().clamp(0.0, 255.0) as u8;
            }
        }
    }
    pixels
}
