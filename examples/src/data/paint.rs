//! Compositing of drawings over a background, at any size and position.

use super::drawings::Drawings;

/// A drawing is scaled from the smallest level of its pyramid that has at least this many times the target size, to avoid aliasing.
const OVERSAMPLING: f64 = 2.0;
/// Minimum side of a level, in pixels.
const MIN_SIDE: usize = 16;

/// An image pyramid: a drawing at half its size, a quarter and so on.
#[derive(Clone, Debug)]
pub struct Pyramid {
    /// Side and premultiplied RGBA pixels of each level, largest first.
    levels: Vec<(usize, Vec<u8>)>,
}

impl Pyramid {
    /// Builds the pyramid of premultiplied RGBA pixels, `[side, side, 4]`.
    pub fn new(image: &[u8], side: usize) -> Self {
        let mut levels: Vec<(usize, Vec<u8>)> = Vec::new();
        loop {
            let (side, image) = levels.last().map_or((side, image), |(side, image)| (*side, image));
            if side % 2 == 1 || side / 2 < MIN_SIDE {
                return Self { levels };
            }
            levels.push((side / 2, halve(image, side)));
        }
    }

    /// Returns the level to scale to `size` from: side and pixels. `whole` is the drawing itself.
    fn level<'a>(&'a self, whole: (usize, &'a [u8]), size: f64) -> (usize, &'a [u8]) {
        let fine = |(side, _): &&(usize, Vec<u8>)| *side as f64 >= OVERSAMPLING * size;
        self.levels.iter().rev().find(fine).map_or(whole, |(side, image)| (*side, image))
    }
}

/// Halves the side of an image. Each pixel is the mean of four.
fn halve(image: &[u8], side: usize) -> Vec<u8> {
    let mut half = Vec::with_capacity(image.len() / 4);
    for y in 0..side / 2 {
        for x in 0..side / 2 {
            let first = (2 * y * side + 2 * x) * 4;
            let sum = |c| [0, 4, side * 4, side * 4 + 4].iter().map(|offset| u16::from(image[first + c + offset])).sum::<u16>();
            half.extend([0, 1, 2, 3].map(|c| ((sum(c) + 2) / 4) as u8));
        }
    }
    half
}

/// The filter of one target pixel along one axis.
struct Filter {
    /// First source pixel.
    first: usize,
    /// Weights of the source pixels from the first on.
    weights: Vec<f32>,
}

/// Returns the triangle filters that scale a drawing of `from` pixels to `size` pixels around `centre`, along one axis of a canvas
/// of `to` pixels: the first target pixel that the drawing touches, and the filters from there on. At the drawing's edge the
/// weights sum to less than 1; the rest is transparent.
fn filters(from: usize, size: f64, centre: f64, to: usize) -> (usize, Vec<Filter>) {
    let ratio = from as f64 / size;
    let reach = ratio.max(1.0);
    let start = centre - size / 2.0;
    let begin = (start.floor().max(0.0) as usize).min(to);
    let end = ((start + size).ceil().max(0.0) as usize).min(to);
    let filter = |x: usize| {
        let middle = (x as f64 + 0.5 - start) * ratio;
        let low = (middle - reach).floor() as i64;
        let high = (middle + reach).ceil() as i64;
        let weight = |i: i64| (1.0 - (i as f64 + 0.5 - middle).abs() / reach).max(0.0);
        let sum: f64 = (low..high).map(weight).sum();
        let inside = low.clamp(0, from as i64)..high.clamp(0, from as i64);
        Filter { first: inside.start as usize, weights: inside.map(|i| (weight(i) / sum) as f32).collect() }
    };
    (begin, (begin..end).map(filter).collect())
}

/// Composites drawing `i` over a canvas of RGB pixels, `[side, side, 3]`: scaled to `size` pixels, around `centre`. The parts
/// outside the canvas are cropped.
pub fn composite(canvas: &mut [u8], side: usize, drawings: &Drawings, pyramid: &Pyramid, i: usize, centre: (f32, f32), size: f32) {
    let (from, image) = pyramid.level((drawings.side, drawings.image(i)), size.into());
    let (left, across) = filters(from, size.into(), centre.0.into(), side);
    let (top, down) = filters(from, size.into(), centre.1.into(), side);
    // Scale horizontally, then vertically row by row.
    let mut scaled = vec![[0f32; 4]; from * across.len()];
    for (source, target) in image.chunks_exact(from * 4).zip(scaled.chunks_exact_mut(across.len().max(1))) {
        for (filter, target) in across.iter().zip(target) {
            let mut sum = [0f32; 4];
            for (pixel, &weight) in source[filter.first * 4..].chunks_exact(4).zip(&filter.weights) {
                for (sum, &level) in sum.iter_mut().zip(pixel) {
                    *sum += weight * f32::from(level);
                }
            }
            *target = sum;
        }
    }
    let mut row = vec![[0f32; 4]; across.len()];
    for (filter, y) in down.iter().zip(top..) {
        row.fill([0.0; 4]);
        for (&weight, source) in filter.weights.iter().zip(filter.first..) {
            for (sum, pixel) in row.iter_mut().zip(&scaled[source * across.len()..]) {
                for (sum, level) in sum.iter_mut().zip(pixel) {
                    *sum += weight * level;
                }
            }
        }
        let start = (y * side + left) * 3;
        for (target, source) in canvas[start..start + row.len() * 3].chunks_exact_mut(3).zip(&row) {
            let transparency = 1.0 - source[3] / 255.0;
            for (level, colour) in target.iter_mut().zip(source) {
                *level = (f32::from(*level) * transparency + colour + 0.5) as u8;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn square(side: usize, pixel: [u8; 4]) -> Drawings {
        Drawings::captioned(side, vec!["a square".into()], pixel.repeat(side * side)).unwrap()
    }

    fn painted(drawings: &Drawings, side: usize, centre: (f32, f32), size: f32) -> Vec<u8> {
        let mut canvas = vec![100; side * side * 3];
        composite(&mut canvas, side, drawings, &Pyramid::new(drawings.image(0), drawings.side), 0, centre, size);
        canvas
    }

    #[test]
    fn a_drawing_covers_its_target_at_any_size() {
        for from in [16, 50, 128] {
            let drawing = square(from, [10, 200, 30, 255]);
            let canvas = painted(&drawing, 64, (32.0, 16.0), 20.0);
            for (i, pixel) in canvas.chunks(3).enumerate() {
                let (x, y) = (i % 64, i / 64);
                if (23..41).contains(&x) && (7..25).contains(&y) {
                    assert_eq!(pixel, [10, 200, 30], "{from}: {x}, {y}");
                } else if !(22..42).contains(&x) || !(6..26).contains(&y) {
                    assert_eq!(pixel, [100; 3], "{from}: {x}, {y}");
                }
            }
        }
    }

    #[test]
    fn parts_outside_the_canvas_are_cropped() {
        let drawing = square(32, [0, 0, 0, 255]);
        for centre in [(0.0, 0.0), (70.0, 3.0), (-200.0, 500.0), (32.0, 1e9)] {
            assert_eq!(painted(&drawing, 64, centre, 30.0).len(), 64 * 64 * 3);
        }
        assert_eq!(painted(&drawing, 64, (0.0, 0.0), 30.0)[0], 0);
    }

    #[test]
    fn a_transparent_drawing_changes_nothing() {
        assert!(painted(&square(64, [0; 4]), 32, (16.0, 16.0), 20.0).iter().all(|&level| level == 100));
    }
}
