//! Feature vectors of objects, invariant to position and size: a small image of the object, normalised to a unit vector.

use super::segment::ImageView;

/// Side of the small image, in cells.
const CELLS: usize = 24;
/// Number of channels: red, green, blue, and the share of the cell that the object covers.
const CHANNELS: usize = 4;
/// Length of a feature vector.
pub const LENGTH: usize = CHANNELS * CELLS * CELLS;
/// Middle of the range of channel values: the grey outside the object.
const GREY: f32 = 127.5;

/// For each cell along one axis, the source pixels that it covers, with their shares of the cell.
type Coverage = Vec<Vec<(usize, f32)>>;

/// Divides `length` pixels from `start` on into equal cells. Pixels outside `0..pixels` are left out.
pub fn coverage(start: f64, length: f64, cells: usize, pixels: usize) -> Coverage {
    let cell = length / cells as f64;
    let shares = |index: usize| {
        let (from, to) = (start + index as f64 * cell, start + (index + 1) as f64 * cell);
        let (first, last) = (from.floor().max(0.0) as usize, to.ceil().clamp(0.0, pixels as f64) as usize);
        let share = |at: usize| (to.min(at as f64 + 1.0) - from.max(at as f64)) / cell;
        (first..last).map(|at| (at, share(at) as f32)).filter(|(_, share)| *share > 0.0).collect()
    };
    (0..cells).map(shares).collect()
}

/// Computes the feature vector of the part of an image under a mask: cropped tightly, padded to a square, scaled to cells over
/// grey, and normalised to mean 0 and length 1. Returns `None` if the mask is empty.
pub fn feature(image: ImageView<'_>, mask: &[bool]) -> Option<Vec<f32>> {
    let side = image.side;
    let inside = || (0..mask.len()).filter(|&index| mask[index]);
    let (left, right) = (inside().map(|p| p % side).min()?, inside().map(|p| p % side).max()? + 1);
    let (top, bottom) = (inside().map(|p| p / side).min()?, inside().map(|p| p / side).max()? + 1);
    let square = (right - left).max(bottom - top) as f64;
    let start = |from: usize, to: usize| (from + to) as f64 / 2.0 - square / 2.0;
    let across = coverage(start(left, right), square, CELLS, side);
    let down = coverage(start(top, bottom), square, CELLS, side);
    let mut feature = vec![0.0; LENGTH];
    for (row, rows) in down.iter().enumerate() {
        for (column, columns) in across.iter().enumerate() {
            let mut cell = [0.0f32; CHANNELS];
            for &(y, high) in rows {
                for &(x, wide) in columns.iter().filter(|(x, _)| mask[y * side + x]) {
                    let share = high * wide;
                    let values = image.pixel(x, y).map(|value| (f32::from(value) - GREY) / GREY);
                    values.iter().chain(&[1.0]).zip(&mut cell).for_each(|(value, sum)| *sum += share * value);
                }
            }
            for (channel, value) in cell.into_iter().enumerate() {
                feature[(channel * CELLS + row) * CELLS + column] = value;
            }
        }
    }
    let mean = feature.iter().sum::<f32>() / LENGTH as f32;
    feature.iter_mut().for_each(|value| *value -= mean);
    let norm = feature.iter().map(|value| value * value).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
    feature.iter_mut().for_each(|value| *value /= norm);
    Some(feature)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_share_pixels_by_coverage() {
        assert_eq!(coverage(0.0, 3.0, 2, 3), [vec![(0, 1.0 / 1.5), (1, 0.5 / 1.5)], vec![(1, 0.5 / 1.5), (2, 1.0 / 1.5)]]);
        assert_eq!(coverage(-1.0, 2.0, 2, 3), [vec![], vec![(0, 1.0)]]);
        assert_eq!(coverage(2.0, 2.0, 2, 3), [vec![(2, 1.0)], vec![]]);
    }

    #[test]
    fn position_and_size_do_not_matter() {
        let drawn = |left: usize, size: usize| {
            let red = |index: usize| (left..left + size).contains(&(index % 32)) && (4..4 + size).contains(&(index / 32));
            let pixels: Vec<u8> = (0..32 * 32).flat_map(|p| if red(p) { [200, 0, 0] } else { [255; 3] }).collect();
            let mask: Vec<bool> = (0..32 * 32).map(red).collect();
            feature(ImageView { side: 32, pixels: &pixels }, &mask)
        };
        let (a, b) = (drawn(2, 12).unwrap(), drawn(9, 18).unwrap());
        let cosine: f32 = a.iter().zip(&b).map(|(a, b)| a * b).sum();
        assert!(cosine > 0.9999, "{cosine}");
        assert!(drawn(2, 0).is_none());
    }
}
