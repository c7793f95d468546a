//! Backgrounds: colours with names, and what stands out against them.

use super::drawings::Drawings;

/// Names and levels of the backgrounds. No two are closer than a CIELAB distance of 16.
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

/// Least mean difference of levels between a drawing and its background, from 0 to 255: no white dove on white.
pub const LEAST_CONTRAST: u64 = 40;

/// How far a drawing is from a background: the mean difference of levels over what isn't transparent.
///
/// `image` is premultiplied RGBA; one pixel of four is looked at, which is plenty.
pub fn contrast(image: &[u8], side: usize, [r, g, b]: [u8; 3]) -> u64 {
    let (mut difference, mut weight) = (0, 0);
    for row in image.chunks_exact(side * 4).step_by(2) {
        for pixel in row.chunks_exact(4).step_by(2) {
            let alpha = u64::from(pixel[3]);
            // Both are multiplied by alpha, so edges count by how much of them there is.
            let apart = |level: u8, ground: u8| (u64::from(level) * 255).abs_diff(u64::from(ground) * alpha);
            difference += apart(pixel[0], r) + apart(pixel[1], g) + apart(pixel[2], b);
            weight += alpha;
        }
    }
    if weight == 0 { 0 } else { difference / (3 * weight) }
}

/// Which backgrounds each drawing stands out against.
pub fn visible(drawings: &Drawings) -> Vec<[bool; BACKGROUNDS.len()]> {
    use rayon::prelude::*;
    let of = |i| BACKGROUNDS.map(|(_, colour)| contrast(drawings.image(i), drawings.side, colour) >= LEAST_CONTRAST);
    (0..drawings.drawings.len()).into_par_iter().map(of).collect()
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
