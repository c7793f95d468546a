//! Segmentation of an image into its background and connected components.

use hart_core::Image;

/// Minimum difference of an object's pixel from the background in any channel. Smaller differences are noise of the decoder.
const OBJECT_CONTRAST: u8 = 26;
/// Components smaller than this share of the largest one are specks, which are ignored.
const SPECK_SHARE: f64 = 0.02;
/// Components smaller than this share of the largest one are parts of an object, not objects, such as the drops next to a whale.
const PART_SHARE: f64 = 0.25;
/// Divisor of the side that gives the width of the border, in which the background is measured. Even the largest drawings leave a
/// wider border free.
const BORDER_DIVISOR: usize = 32;

/// A view of a square image.
#[derive(Clone, Copy, Debug)]
pub struct ImageView<'a> {
    /// Side in pixels.
    pub side: usize,
    /// RGB pixels, `[side, side, 3]`.
    pub pixels: &'a [u8],
}

impl<'a> ImageView<'a> {
    /// Creates a view of a square image.
    pub fn of(image: &'a Image) -> Self {
        debug_assert_eq!(image.width(), image.height());
        Self { side: image.width(), pixels: image.pixels() }
    }

    /// Returns the pixel at a position.
    pub fn pixel(&self, x: usize, y: usize) -> [u8; 3] {
        let start = 3 * (y * self.side + x);
        [self.pixels[start], self.pixels[start + 1], self.pixels[start + 2]]
    }

    /// Returns the background colour: the median of the border in each channel. Objects that touch the border don't change it.
    pub fn background(&self) -> [u8; 3] {
        let width = (self.side / BORDER_DIVISOR).max(1);
        let inner = width..self.side.saturating_sub(width);
        let positions = (0..self.side).flat_map(|y| (0..self.side).map(move |x| (x, y)));
        let border: Vec<[u8; 3]> =
            positions.filter(|(x, y)| !(inner.contains(x) && inner.contains(y))).map(|(x, y)| self.pixel(x, y)).collect();
        [0, 1, 2].map(|channel| {
            let mut values: Vec<u8> = border.iter().map(|pixel| pixel[channel]).collect();
            let middle = values.len() / 2;
            *values.select_nth_unstable(middle).1
        })
    }
}

/// A connected component.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Component {
    /// Number of pixels.
    pub area: usize,
    /// Centre of mass in pixels: x, y.
    pub centre: [f64; 2],
}

/// The background and connected components of an image.
#[derive(Clone, Debug)]
pub struct Segmentation {
    side: usize,
    /// Colour of the background.
    pub background: [u8; 3],
    /// For each pixel the index of its component plus 1, or 0 for the background.
    labels: Vec<usize>,
    /// The components without specks.
    pub components: Vec<Component>,
}

impl Segmentation {
    /// Segments an image. Components up to two pixels apart are merged.
    pub fn of(image: ImageView<'_>) -> Self {
        let (side, background) = (image.side, image.background());
        let is_object = |pixel: &[u8]| pixel.iter().zip(background).any(|(&v, b)| v.abs_diff(b) > OBJECT_CONTRAST);
        let object: Vec<bool> = image.pixels.chunks_exact(3).map(is_object).collect();
        let labels = connected_components(&object, side);
        let mut segmentation = Self { side, background, labels, components: vec![] };
        segmentation.drop_specks();
        segmentation
    }

    /// Removes the specks and renumbers the components.
    fn drop_specks(&mut self) {
        let count = self.labels.iter().copied().max().unwrap_or(0);
        let mut found = vec![(0usize, [0.0f64; 2]); count];
        for (index, &label) in self.labels.iter().enumerate().filter(|(_, label)| **label > 0) {
            let (area, sum) = &mut found[label - 1];
            *area += 1;
            sum[0] += (index % self.side) as f64 + 0.5;
            sum[1] += (index / self.side) as f64 + 0.5;
        }
        let largest = found.iter().map(|(area, _)| *area).max().unwrap_or(0) as f64;
        let mut new_labels = vec![0; count + 1];
        for (old, (area, sum)) in found.into_iter().enumerate() {
            if area as f64 >= SPECK_SHARE * largest && area > 0 {
                self.components.push(Component { area, centre: sum.map(|s| s / area as f64) });
                new_labels[old + 1] = self.components.len();
            }
        }
        self.labels.iter_mut().for_each(|label| *label = new_labels[*label]);
    }

    /// Returns the index of a pixel's component.
    pub fn component_at(&self, x: usize, y: usize) -> Option<usize> {
        self.labels[y * self.side + x].checked_sub(1)
    }

    /// Returns the index of the largest component.
    pub fn largest(&self) -> Option<usize> {
        (0..self.components.len()).max_by_key(|&component| self.components[component].area)
    }

    /// Returns the number of objects. Small parts of objects don't count.
    pub fn count(&self) -> usize {
        let Some(largest) = self.largest() else { return 0 };
        let min_area = PART_SHARE * self.components[largest].area as f64;
        self.components.iter().filter(|component| component.area as f64 > min_area).count()
    }

    /// Returns the centre of mass of all components, as shares of the side: x, y.
    pub fn centre(&self) -> Option<[f64; 2]> {
        let area: usize = self.components.iter().map(|component| component.area).sum();
        let centre = |axis: usize| self.components.iter().map(|c| c.area as f64 * c.centre[axis]).sum::<f64>() / area as f64;
        (area > 0).then(|| [0, 1].map(|axis| centre(axis) / self.side as f64))
    }

    /// Returns a mask of the objects in one half of the image: before or after the middle, along x (axis 0) or y (axis 1).
    ///
    /// A component belongs to the half of its centre. If both halves have a large part of it, it is cut at the middle.
    pub fn half_mask(&self, axis: usize, after: bool) -> Vec<bool> {
        let middle = self.side as f64 / 2.0;
        let mut areas_after = vec![0usize; self.components.len()];
        let is_after = |index: usize| [index % self.side, index / self.side][axis] as f64 + 0.5 > middle;
        for (index, label) in self.labels.iter().enumerate().filter(|(_, label)| **label > 0) {
            areas_after[label - 1] += usize::from(is_after(index));
        }
        let is_cut = |component: usize| {
            let (area, area_after) = (self.components[component].area as f64, areas_after[component] as f64);
            area_after.min(area - area_after) > PART_SHARE * area
        };
        let belongs = |(index, &label): (usize, &usize)| match label.checked_sub(1) {
            None => false,
            Some(component) if is_cut(component) => is_after(index) == after,
            Some(component) => (self.components[component].centre[axis] > middle) == after,
        };
        self.labels.iter().enumerate().map(belongs).collect()
    }

    /// Returns a mask of one component, or of all.
    pub fn mask(&self, component: Option<usize>) -> Vec<bool> {
        let selected = component.map(|component| component + 1);
        self.labels.iter().map(|&label| selected.map_or(label > 0, |selected| label == selected)).collect()
    }
}

/// Labels connected components from 1, after dilating the mask by one pixel in all eight directions.
fn connected_components(object: &[bool], side: usize) -> Vec<usize> {
    let neighbourhood = |index: usize| {
        let (x, y) = (index % side, index / side);
        let (left, right) = (x.saturating_sub(1), (x + 1).min(side - 1));
        let rows = y.saturating_sub(1)..=(y + 1).min(side - 1);
        rows.flat_map(move |y| (left..=right).map(move |x| y * side + x))
    };
    let mut dilated = vec![false; object.len()];
    for index in (0..object.len()).filter(|&index| object[index]) {
        neighbourhood(index).for_each(|index| dilated[index] = true);
    }
    let mut labels = vec![0; object.len()];
    let (mut components, mut stack) = (0, vec![]);
    for start in 0..object.len() {
        if !dilated[start] || labels[start] > 0 {
            continue;
        }
        components += 1;
        labels[start] = components;
        stack.push(start);
        while let Some(index) = stack.pop() {
            let (x, y) = (index % side, index / side);
            let horizontal = [(x > 0, index.wrapping_sub(1)), (x + 1 < side, index + 1)];
            let vertical = [(y > 0, index.wrapping_sub(side)), (y + 1 < side, index + side)];
            for (_, next) in horizontal.into_iter().chain(vertical).filter(|(inside, _)| *inside) {
                if dilated[next] && labels[next] == 0 {
                    labels[next] = components;
                    stack.push(next);
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

    /// Renders black rectangles on white: left, top, width, height.
    fn render(rectangles: &[[usize; 4]]) -> Vec<u8> {
        let mut pixels = vec![255; 3 * 32 * 32];
        for &[left, top, width, height] in rectangles {
            for y in top..top + height {
                pixels[3 * (32 * y + left)..3 * (32 * y + left + width)].fill(0);
            }
        }
        pixels
    }

    fn segment(rectangles: &[[usize; 4]]) -> Segmentation {
        Segmentation::of(ImageView { side: 32, pixels: &render(rectangles) })
    }

    #[test]
    fn components_are_counted_without_specks() {
        let found = segment(&[[2, 2, 8, 8], [20, 2, 8, 8], [2, 20, 8, 8], [25, 25, 1, 1], [20, 20, 3, 3]]);
        assert_eq!(found.background, [255; 3]);
        assert_eq!((found.components.len(), found.count()), (4, 3));
        assert_eq!(found.components[0], Component { area: 64, centre: [6.0, 6.0] });
        assert_eq!(segment(&[]).count(), 0);
        // Two pixels apart are merged, three aren't.
        assert_eq!(segment(&[[2, 2, 8, 8], [12, 2, 8, 8]]).count(), 1);
        assert_eq!(segment(&[[2, 2, 8, 8], [13, 2, 8, 8]]).count(), 2);
    }

    #[test]
    fn a_half_has_whole_components_unless_both_share_one() {
        let count = |found: &Segmentation, axis, after| found.half_mask(axis, after).iter().filter(|&&m| m).count();
        let apart = segment(&[[2, 10, 16, 8], [22, 10, 8, 8]]);
        assert_eq!((count(&apart, 0, false), count(&apart, 0, true)), (128, 64));
        let across = segment(&[[4, 10, 20, 8]]);
        assert_eq!((count(&across, 0, false), count(&across, 0, true)), (96, 64));
        // Only a quarter is after the middle, which is too little to cut.
        assert_eq!((count(&across, 1, false), count(&across, 1, true)), (160, 0));
    }
}
