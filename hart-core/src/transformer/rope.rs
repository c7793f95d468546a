//! Positions of context and image tokens (spec section 3).

use burn::prelude::*;

use crate::config::TransformerConfig;
use crate::nn::RotaryEmbedding;
use crate::scales::Scale;

/// Base of the rotary embedding; fixed in the published code.
const BASE: f64 = 10_000.0;

/// The rotation of one scale's tokens: of the context's own positions, or of a picture that follows every row's last one.
pub(super) fn of_scale(config: &TransformerConfig, scale: &Scale, positions: &[Vec<i64>], device: &Device) -> RotaryEmbedding {
    if scale.index == 0 {
        let rows: Vec<Vec<f32>> = positions.iter().map(|row| row.iter().map(|&p| p as f32).collect()).collect();
        return RotaryEmbedding::sequence(&rows, config.head_dim(), BASE, device);
    }
    let rows: Vec<_> = positions.iter().map(|row| side(scale, row[row.len() - 1])).collect();
    RotaryEmbedding::image(&rows, config.head_dim(), BASE, device)
}

/// Coordinates of the rows, and of the columns too: stretched over the last scale's side, not rounded, and offset by the context's
/// last position.
fn side(scale: &Scale, last_position: i64) -> Vec<f32> {
    (0..scale.side).map(|i| i as f32 / scale.side as f32 * scale.last_side as f32 + last_position as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grid_is_stretched_and_offset_without_rounding() {
        let scale = Scale { index: 2, count: 4, side: 3, last_side: 8 };
        let places = side(&scale, 5);
        assert_eq!(places[0], 5.0);
        assert!((places[1] - (5.0 + 8.0 / 3.0)).abs() < 1e-6);
        assert!((places[2] - (5.0 + 16.0 / 3.0)).abs() < 1e-6);
    }
}
