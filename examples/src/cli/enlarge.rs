//! Enlarges small images for display.

use hart_core::Image;

/// Enlarges an image by the smallest integer factor that makes its longer side at least `least` pixels. Each pixel becomes a square.
pub fn at_least(image: &Image, least: usize) -> Image {
    let factor = least.div_ceil(image.width().max(image.height())).max(1);
    if factor == 1 {
        return image.clone();
    }
    let rows = image.pixels().chunks_exact(3 * image.width());
    let pixels = rows.flat_map(|row| row.chunks_exact(3).flat_map(|pixel| pixel.repeat(factor)).collect::<Vec<_>>().repeat(factor));
    let enlarged = Image::from_rgb(image.width() * factor, image.height() * factor, pixels.collect());
    enlarged.expect("the number of pixels matches the size")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_pixel_becomes_a_square() {
        let image = Image::from_rgb(2, 1, vec![1, 2, 3, 4, 5, 6]).unwrap();
        let enlarged = at_least(&image, 3);
        assert_eq!((enlarged.width(), enlarged.height()), (4, 2));
        assert_eq!(enlarged.pixels(), [1, 2, 3, 1, 2, 3, 4, 5, 6, 4, 5, 6].repeat(2));
        assert_eq!(at_least(&image, 2), image);
    }
}
