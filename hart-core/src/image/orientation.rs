//! Orientations of EXIF, in which cameras store how they were held.

use std::sync::Arc;

use super::Image;

impl Image {
    /// Turns a stored image upright. `orientation` is the value in EXIF, from 1 to 8; others change nothing.
    pub(super) fn upright(self, orientation: u8) -> Self {
        if !(2..=8).contains(&orientation) {
            return self;
        }
        let (width, height) = (self.width, self.height);
        let (turned_width, turned_height) = if orientation < 5 { (width, height) } else { (height, width) };
        // The stored pixel at a position of the upright image.
        let stored = |x: usize, y: usize| match orientation {
            2 => (width - 1 - x, y),
            3 => (width - 1 - x, height - 1 - y),
            4 => (x, height - 1 - y),
            5 => (y, x),
            6 => (y, height - 1 - x),
            7 => (width - 1 - y, height - 1 - x),
            _ => (width - 1 - y, x),
        };
        let turn = |values: &[u8], channels: usize| {
            let mut turned = Vec::with_capacity(values.len());
            for (x, y) in (0..turned_height).flat_map(|y| (0..turned_width).map(move |x| (x, y))) {
                let (x, y) = stored(x, y);
                turned.extend_from_slice(&values[channels * (y * width + x)..][..channels]);
            }
            Arc::new(turned)
        };
        Self {
            width: turned_width,
            height: turned_height,
            pixels: turn(&self.pixels, 3),
            alpha: self.alpha.as_ref().map(|alpha| turn(alpha, 1)),
            provenance: self.provenance,
            marks: self.marks,
            source: self.source,
        }
    }
}
