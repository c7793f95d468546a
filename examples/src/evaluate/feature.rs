//! What an object looks like, wherever and however large it stands: a small picture of it as a direction in space.

use super::segment::Picture;

/// Cells a side of the small picture.
const CELLS: usize = 24;
/// Red, green, blue, and how much of a cell the object covers.
const PLANES: usize = 4;
/// Numbers of a feature.
pub const LENGTH: usize = PLANES * CELLS * CELLS;
/// Half of the range of levels: grey, which stands where the object isn't.
const GREY: f32 = 127.5;

/// Which source positions a cell covers along one axis, with their shares of it.
type Cover = Vec<Vec<(usize, f32)>>;

/// Cuts `length` positions from `start` on into equal cells. What lies outside of `0..positions` covers nothing.
pub fn cover(start: f64, length: f64, cells: usize, positions: usize) -> Cover {
    let cell = length / cells as f64;
    let shares = |index: usize| {
        let (from, to) = (start + index as f64 * cell, start + (index + 1) as f64 * cell);
        let (first, last) = (from.floor().max(0.0) as usize, to.ceil().clamp(0.0, positions as f64) as usize);
        let share = |at: usize| (to.min(at as f64 + 1.0) - from.max(at as f64)) / cell;
        (first..last).map(|at| (at, share(at) as f32)).filter(|(_, share)| *share > 0.0).collect()
    };
    (0..cells).map(shares).collect()
}

/// The part of a picture under a mask, cropped tightly, padded to a square, shrunk to cells over grey, less its mean and with length
/// 1. None if the mask is empty.
pub fn feature(picture: Picture<'_>, mask: &[bool]) -> Option<Vec<f32>> {
    let side = picture.side;
    let inside = || (0..mask.len()).filter(|&place| mask[place]);
    let (left, right) = (inside().map(|p| p % side).min()?, inside().map(|p| p % side).max()? + 1);
    let (top, bottom) = (inside().map(|p| p / side).min()?, inside().map(|p| p / side).max()? + 1);
    let square = (right - left).max(bottom - top) as f64;
    let start = |from: usize, to: usize| (from + to) as f64 / 2.0 - square / 2.0;
    let across = cover(start(left, right), square, CELLS, side);
    let down = cover(start(top, bottom), square, CELLS, side);
    let mut feature = vec![0.0; LENGTH];
    for (row, rows) in down.iter().enumerate() {
        for (column, columns) in across.iter().enumerate() {
            let mut cell = [0.0f32; PLANES];
            for &(y, high) in rows {
                for &(x, wide) in columns.iter().filter(|(x, _)| mask[y * side + x]) {
                    let share = high * wide;
                    let levels = picture.at(x, y).map(|level| (f32::from(level) - GREY) / GREY);
                    levels.iter().chain(&[1.0]).zip(&mut cell).for_each(|(value, sum)| *sum += share * value);
                }
            }
            for (plane, value) in cell.into_iter().enumerate() {
                feature[(plane * CELLS + row) * CELLS + column] = value;
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
    fn cells_share_positions_by_what_they_cover() {
        assert_eq!(cover(0.0, 3.0, 2, 3), [vec![(0, 1.0 / 1.5), (1, 0.5 / 1.5)], vec![(1, 0.5 / 1.5), (2, 1.0 / 1.5)]]);
        assert_eq!(cover(-1.0, 2.0, 2, 3), [vec![], vec![(0, 1.0)]]);
        assert_eq!(cover(2.0, 2.0, 2, 3), [vec![(2, 1.0)], vec![]]);
    }

    #[test]
    fn place_and_size_do_not_matter() {
        let drawn = |left: usize, size: usize| {
            let red = |place: usize| (left..left + size).contains(&(place % 32)) && (4..4 + size).contains(&(place / 32));
            let pixels: Vec<u8> = (0..32 * 32).flat_map(|p| if red(p) { [200, 0, 0] } else { [255; 3] }).collect();
            let mask: Vec<bool> = (0..32 * 32).map(red).collect();
            feature(Picture { side: 32, pixels: &pixels }, &mask)
        };
        let (a, b) = (drawn(2, 12).unwrap(), drawn(9, 18).unwrap());
        let cosine: f32 = a.iter().zip(&b).map(|(a, b)| a * b).sum();
        assert!(cosine > 0.9999, "{cosine}");
        assert!(drawn(2, 0).is_none());
    }
}
