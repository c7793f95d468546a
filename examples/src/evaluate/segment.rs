//! What stands out of a picture's background, and in how many pieces.

use hart_core::Image;

/// Pixels whose strongest channel is farther than this from the background belong to an object. Below lie a decoder's ripples.
const OBJECT_DISTANCE: u8 = 26;
/// Pieces with a smaller share of the largest one's area are specks: they belong to no object.
const SPECK: f64 = 0.02;
/// Pieces with a smaller share of the largest one's area are parts of an object, not one more object: the drops beside a whale.
const PART: f64 = 0.25;
/// The border that the background is read from, as a share of the side: less than what the largest drawings leave free.
const BORDER: usize = 32;

/// A square picture of 8-bit RGB.
#[derive(Clone, Copy, Debug)]
pub struct Picture<'a> {
    /// Pixels a side.
    pub side: usize,
    /// Three bytes each, row by row.
    pub pixels: &'a [u8],
}

impl<'a> Picture<'a> {
    /// The square from the top left of a picture, the whole of what a model draws.
    pub fn of(image: &'a Image) -> Self {
        debug_assert_eq!(image.width(), image.height());
        Self { side: image.width(), pixels: image.pixels() }
    }

    /// The pixel at a place.
    pub fn at(&self, x: usize, y: usize) -> [u8; 3] {
        let start = 3 * (y * self.side + x);
        [self.pixels[start], self.pixels[start + 1], self.pixels[start + 2]]
    }

    /// The median of the border, channel by channel: an object that reaches the border in places doesn't change it.
    pub fn background(&self) -> [u8; 3] {
        let width = (self.side / BORDER).max(1);
        let inner = width..self.side.saturating_sub(width);
        let places = (0..self.side).flat_map(|y| (0..self.side).map(move |x| (x, y)));
        let border: Vec<[u8; 3]> =
            places.filter(|(x, y)| !(inner.contains(x) && inner.contains(y))).map(|(x, y)| self.at(x, y)).collect();
        [0, 1, 2].map(|channel| {
            let mut levels: Vec<u8> = border.iter().map(|pixel| pixel[channel]).collect();
            let middle = levels.len() / 2;
            *levels.select_nth_unstable(middle).1
        })
    }
}

/// A connected piece.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Piece {
    /// Pixels.
    pub area: usize,
    /// Middle of mass, in pixels: x, y.
    pub centre: [f64; 2],
}

/// A picture taken apart.
#[derive(Clone, Debug)]
pub struct Segments {
    side: usize,
    /// Level of the background.
    pub background: [u8; 3],
    /// For each pixel one more than the number of its piece, or 0.
    labels: Vec<usize>,
    /// The pieces that are no specks.
    pub pieces: Vec<Piece>,
}

impl Segments {
    /// Takes a picture apart. Pieces one pixel apart are one.
    pub fn of(picture: Picture<'_>) -> Self {
        let (side, background) = (picture.side, picture.background());
        let far = |pixel: &[u8]| pixel.iter().zip(background).any(|(&v, b)| v.abs_diff(b) > OBJECT_DISTANCE);
        let object: Vec<bool> = picture.pixels.chunks_exact(3).map(far).collect();
        let areas = connect(&object, side);
        let mut segments = Self { side, background, labels: areas, pieces: vec![] };
        segments.drop_specks();
        segments
    }

    /// Numbers the pieces anew, without specks.
    fn drop_specks(&mut self) {
        let most = self.labels.iter().copied().max().unwrap_or(0);
        let mut found = vec![(0usize, [0.0f64; 2]); most];
        for (place, &label) in self.labels.iter().enumerate().filter(|(_, label)| **label > 0) {
            let (area, sum) = &mut found[label - 1];
            *area += 1;
            sum[0] += (place % self.side) as f64 + 0.5;
            sum[1] += (place / self.side) as f64 + 0.5;
        }
        let largest = found.iter().map(|(area, _)| *area).max().unwrap_or(0) as f64;
        let mut new = vec![0; most + 1];
        for (old, (area, sum)) in found.into_iter().enumerate() {
            if area as f64 >= SPECK * largest && area > 0 {
                self.pieces.push(Piece { area, centre: sum.map(|s| s / area as f64) });
                new[old + 1] = self.pieces.len();
            }
        }
        self.labels.iter_mut().for_each(|label| *label = new[*label]);
    }

    /// The number of a pixel's piece.
    pub fn piece_at(&self, x: usize, y: usize) -> Option<usize> {
        self.labels[y * self.side + x].checked_sub(1)
    }

    /// The largest piece.
    pub fn largest(&self) -> Option<usize> {
        (0..self.pieces.len()).max_by_key(|&piece| self.pieces[piece].area)
    }

    /// How many objects there are, small parts of others not counted.
    pub fn count(&self) -> usize {
        let Some(largest) = self.largest() else { return 0 };
        let least = PART * self.pieces[largest].area as f64;
        self.pieces.iter().filter(|piece| piece.area as f64 > least).count()
    }

    /// Middle of all that stands out, as shares of the side: x, y.
    pub fn centre(&self) -> Option<[f64; 2]> {
        let area: usize = self.pieces.iter().map(|piece| piece.area).sum();
        let middle = |axis: usize| self.pieces.iter().map(|p| p.area as f64 * p.centre[axis]).sum::<f64>() / area as f64;
        (area > 0).then(|| [0, 1].map(|axis| middle(axis) / self.side as f64))
    }

    /// Whether each pixel belongs to what stands in one half: along x (axis 0) or y (axis 1), before the middle or after it. A piece
    /// belongs to the half that its middle lies in, unless both halves have a good part of it: then it is cut.
    pub fn half(&self, axis: usize, after: bool) -> Vec<bool> {
        let middle = self.side as f64 / 2.0;
        let mut beyond = vec![0usize; self.pieces.len()];
        let is_after = |place: usize| [place % self.side, place / self.side][axis] as f64 + 0.5 > middle;
        for (place, label) in self.labels.iter().enumerate().filter(|(_, label)| **label > 0) {
            beyond[label - 1] += usize::from(is_after(place));
        }
        let is_cut = |piece: usize| {
            let (area, beyond) = (self.pieces[piece].area as f64, beyond[piece] as f64);
            beyond.min(area - beyond) > PART * area
        };
        let belongs = |(place, &label): (usize, &usize)| match label.checked_sub(1) {
            None => false,
            Some(piece) if is_cut(piece) => is_after(place) == after,
            Some(piece) => (self.pieces[piece].centre[axis] > middle) == after,
        };
        self.labels.iter().enumerate().map(belongs).collect()
    }

    /// Whether each pixel belongs to a piece, or to any.
    pub fn mask(&self, piece: Option<usize>) -> Vec<bool> {
        let wanted = piece.map(|piece| piece + 1);
        self.labels.iter().map(|&label| wanted.map_or(label > 0, |wanted| label == wanted)).collect()
    }
}

/// Numbers connected pieces from 1, after each pixel has grown by its eight neighbours.
fn connect(object: &[bool], side: usize) -> Vec<usize> {
    let around = |place: usize| {
        let (x, y) = (place % side, place / side);
        let (left, right) = (x.saturating_sub(1), (x + 1).min(side - 1));
        let rows = y.saturating_sub(1)..=(y + 1).min(side - 1);
        rows.flat_map(move |y| (left..=right).map(move |x| y * side + x))
    };
    let mut grown = vec![false; object.len()];
    for place in (0..object.len()).filter(|&place| object[place]) {
        around(place).for_each(|place| grown[place] = true);
    }
    let mut labels = vec![0; object.len()];
    let (mut pieces, mut waiting) = (0, vec![]);
    for start in 0..object.len() {
        if !grown[start] || labels[start] > 0 {
            continue;
        }
        pieces += 1;
        labels[start] = pieces;
        waiting.push(start);
        while let Some(place) = waiting.pop() {
            let (x, y) = (place % side, place / side);
            let beside = [(x > 0, place.wrapping_sub(1)), (x + 1 < side, place + 1)];
            let over = [(y > 0, place.wrapping_sub(side)), (y + 1 < side, place + side)];
            for (_, next) in beside.into_iter().chain(over).filter(|(inside, _)| *inside) {
                if grown[next] && labels[next] == 0 {
                    labels[next] = pieces;
                    waiting.push(next);
                }
            }
        }
    }
    labels.iter_mut().zip(object).for_each(|(label, &object)| *label *= usize::from(object));
    labels
}

#[cfg(test)]
mod tests {
    use super::*;

    /// White with black rectangles: left, top, width, height.
    fn drawn(rectangles: &[[usize; 4]]) -> Vec<u8> {
        let mut pixels = vec![255; 3 * 32 * 32];
        for &[left, top, width, height] in rectangles {
            for y in top..top + height {
                pixels[3 * (32 * y + left)..3 * (32 * y + left + width)].fill(0);
            }
        }
        pixels
    }

    fn segments(rectangles: &[[usize; 4]]) -> Segments {
        Segments::of(Picture { side: 32, pixels: &drawn(rectangles) })
    }

    #[test]
    fn pieces_are_counted_and_specks_are_not() {
        let found = segments(&[[2, 2, 8, 8], [20, 2, 8, 8], [2, 20, 8, 8], [25, 25, 1, 1], [20, 20, 3, 3]]);
        assert_eq!(found.background, [255; 3]);
        assert_eq!((found.pieces.len(), found.count()), (4, 3));
        assert_eq!(found.pieces[0], Piece { area: 64, centre: [6.0, 6.0] });
        assert_eq!(segments(&[]).count(), 0);
        // Two pixels apart are grown together, three aren't.
        assert_eq!(segments(&[[2, 2, 8, 8], [12, 2, 8, 8]]).count(), 1);
        assert_eq!(segments(&[[2, 2, 8, 8], [13, 2, 8, 8]]).count(), 2);
    }

    #[test]
    fn a_half_has_whole_pieces_unless_both_share_one() {
        let count = |found: &Segments, axis, after| found.half(axis, after).iter().filter(|&&m| m).count();
        let beside = segments(&[[2, 10, 16, 8], [22, 10, 8, 8]]);
        assert_eq!((count(&beside, 0, false), count(&beside, 0, true)), (128, 64));
        let across = segments(&[[4, 10, 20, 8]]);
        assert_eq!((count(&across, 0, false), count(&across, 0, true)), (96, 64));
        // A quarter reaches over the middle: too little to cut.
        assert_eq!((count(&across, 1, false), count(&across, 1, true)), (160, 0));
    }
}
