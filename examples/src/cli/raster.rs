//! An image to draw into.

use hart_core::{Error, Image};

/// Value of each channel of white.
const WHITE: u8 = 255;

/// An RGB image to draw into, initially white.
#[derive(Clone, Debug)]
pub struct Raster {
    width: usize,
    height: usize,
    pixels: Vec<u8>,
}

impl Raster {
    /// Creates a white image of this size in pixels.
    pub fn white(width: usize, height: usize) -> Self {
        Self { width, height, pixels: vec![WHITE; 3 * width * height] }
    }

    /// Sets a pixel. Pixels outside the image are ignored.
    pub fn set(&mut self, x: usize, y: usize, colour: [u8; 3]) {
        if x < self.width && y < self.height {
            self.pixels[3 * (y * self.width + x)..][..3].copy_from_slice(&colour);
        }
    }

    /// Copies an image to this position. Pixels outside the raster are cropped.
    pub fn draw(&mut self, image: &Image, left: usize, top: usize) {
        let left = left.min(self.width);
        let bytes = 3 * image.width().min(self.width - left);
        let rows = self.pixels.chunks_exact_mut((3 * self.width).max(1)).skip(top);
        for (row, pixels) in rows.zip(image.pixels().chunks_exact(3 * image.width())) {
            row[3 * left..][..bytes].copy_from_slice(&pixels[..bytes]);
        }
    }

    /// Returns the finished image.
    ///
    /// # Errors
    ///
    /// Returns an error if it has no pixels.
    pub fn into_image(self) -> Result<Image, Error> {
        Image::from_rgb(self.width, self.height, self.pixels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_outside_are_cropped() {
        let image = Image::from_rgb(2, 2, (0..12).collect()).unwrap();
        let mut raster = Raster::white(3, 3);
        raster.draw(&image, 2, 2);
        raster.draw(&image, 3, 0);
        raster.draw(&image, 0, 9);
        raster.set(3, 0, [7; 3]);
        raster.set(0, 1, [7; 3]);
        let mut expected = [[WHITE; 3]; 9];
        (expected[3], expected[8]) = ([7; 3], [0, 1, 2]);
        assert_eq!(raster.into_image().unwrap().pixels(), expected.as_flattened());
        assert!(Raster::white(0, 3).into_image().is_err());
    }
}
