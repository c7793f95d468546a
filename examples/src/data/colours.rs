//! Named background colours and their contrast with drawings.

use super::drawings::Drawings;

/// Names and sRGB values of the backgrounds. No two are closer than a CIELAB distance of 16.
pub const BACKGROUNDS: [(&str, [u8; 3]); 16] = [
    ("white", [255, 255, 255]),
    ("black", [0, 0, 0]),
    ("gray", [150, 150, 150]),
    ("red", [214, 48, 49]),
    ("orange", [255, 146, 48]),
    ("yellow", [255, 224, 77]),
    ("green", [50, 150, 70]),
    ("light green", [163, 228, 150]),
    ("teal", [38, 150, 150]),
    ("light blue", [173, 216, 230]),
    ("blue", [60, 110, 220]),
    ("dark blue", [20, 30, 90]),
    ("purple", [150, 90, 190]),
    ("pink", [255, 180, 200]),
    ("brown", [130, 90, 50]),
    ("cream", [250, 240, 210]),
];

/// Minimum contrast between a drawing and its background, computed by [`contrast`]. It excludes a white dove on white.
pub const MIN_CONTRAST: u64 = 40;

/// Returns the contrast of a drawing with a background: the mean absolute difference of their channel values, 0 to 255, weighted by
/// the drawing's alpha.
///
/// `image` is premultiplied RGBA of `side` x `side` pixels. Every fourth pixel is measured, which is exact enough.
pub fn contrast(image: &[u8], side: usize, [r, g, b]: [u8; 3]) -> u64 {
    let (mut difference, mut weight) = (0, 0);
    for row in image.chunks_exact(side * 4).step_by(2) {
        for pixel in row.chunks_exact(4).step_by(2) {
            let alpha = u64::from(pixel[3]);
            // Both are multiplied by alpha, so edge pixels count by their coverage.
            let distance = |value: u8, background: u8| (u64::from(value) * 255).abs_diff(u64::from(background) * alpha);
            difference += distance(pixel[0], r) + distance(pixel[1], g) + distance(pixel[2], b);
            weight += alpha;
        }
    }
    if weight == 0 { 0 } else { difference / (3 * weight) }
}

/// Returns, for each drawing, whether it has enough contrast with each background.
pub fn visible_backgrounds(drawings: &Drawings) -> Vec<[bool; BACKGROUNDS.len()]> {
    use rayon::prelude::*;
    let visible = |i| BACKGROUNDS.map(|(_, colour)| contrast(drawings.image(i), drawings.side, colour) >= MIN_CONTRAST);
    (0..drawings.drawings.len()).into_par_iter().map(visible).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contrast_is_measured_over_the_drawing_only() {
        // A white dot at the top left of four transparent pixels.
        let mut image = vec![0; 4 * 4 * 4];
        image[..4].fill(255);
        assert_eq!(contrast(&image, 4, [255; 3]), 0);
        assert_eq!(contrast(&image, 4, [0; 3]), 255);
        assert_eq!(contrast(&image, 4, [255, 255, 0]), 85);
        assert_eq!(contrast(&[0; 64], 4, [9; 3]), 0);
    }

    #[test]
    fn names_of_backgrounds_differ() {
        for (i, (name, _)) in BACKGROUNDS.iter().enumerate() {
            assert!(BACKGROUNDS[..i].iter().all(|(other, _)| other != name));
        }
    }
}
