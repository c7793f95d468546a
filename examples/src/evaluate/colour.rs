//! Nearest named colour, by the distance in CIE L\*a\*b\*.

/// Returns the index of the most similar colour in a palette.
pub fn nearest_colour(colour: [u8; 3], palette: &[[u8; 3]]) -> usize {
    let distance = |other: &[u8; 3]| lab(*other).iter().zip(lab(colour)).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
    (0..palette.len()).min_by(|&a, &b| distance(&palette[a]).total_cmp(&distance(&palette[b]))).unwrap_or(0)
}

/// Converts sRGB to L\*a\*b\* under daylight (D65), following IEC 61966-2-1 and CIE 15.
fn lab(colour: [u8; 3]) -> [f64; 3] {
    let [r, g, b] = colour.map(|value| {
        let v = f64::from(value) / 255.0;
        if v <= 0.04045 { v / 12.92 } else { ((v + 0.055) / 1.055).powf(2.4) }
    });
    let x = (0.4124 * r + 0.3576 * g + 0.1805 * b) / 0.95047;
    let y = 0.2126 * r + 0.7152 * g + 0.0722 * b;
    let z = (0.0193 * r + 0.1192 * g + 0.9505 * b) / 1.08883;
    let root = |t: f64| if t > (6.0f64 / 29.0).powi(3) { t.cbrt() } else { t / (3.0 * (6.0f64 / 29.0).powi(2)) + 4.0 / 29.0 };
    let [x, y, z] = [x, y, z].map(root);
    [116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_have_their_known_coordinates() {
        let near = |colour, expected: [f64; 3]| {
            assert!(lab(colour).iter().zip(expected).all(|(a, b)| (a - b).abs() < 0.1), "{:?}", lab(colour));
        };
        near([255, 255, 255], [100.0, 0.0, 0.0]);
        near([255, 0, 0], [53.2, 80.1, 67.2]);
        near([0, 0, 255], [32.3, 79.2, -107.9]);
    }

    #[test]
    fn the_most_similar_colour_is_nearest() {
        assert_eq!(nearest_colour([250, 240, 230], &[[0, 0, 0], [255, 255, 255], [255, 0, 0]]), 1);
    }
}
