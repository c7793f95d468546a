//! Positions of context and image tokens (spec section 3).

use burn::prelude::*;

use crate::config::TransformerConfig;
use crate::nn::RotaryEmbedding;
use crate::scales::Scale;

/// Base of the rotary embedding; fixed in the published code.
const BASE: f64 = 10_000.0;

/// Returns the rotary embedding of one scale's tokens. Context tokens have the given positions `[R][T]`. The positions of image tokens
/// follow the last one of their row.
pub(super) fn scale_rotation(
    config: &TransformerConfig,
    scale: &Scale,
    positions: &[Vec<i64>],
    device: &Device,
) -> RotaryEmbedding {
    if scale.index == 0 {
        let rows: Vec<Vec<f32>> = positions.iter().map(|row| row.iter().map(|&p| p as f32).collect()).collect();
        return RotaryEmbedding::sequence(&rows, config.head_dim(), BASE, device);
    }
    let rows: Vec<_> = positions.iter().map(|row| coordinates(scale, row[row.len() - 1])).collect();
    RotaryEmbedding::image(&rows, config.head_dim(), BASE, device)
}

/// Returns the coordinates of a scale's rows, which are also those of its columns. They are stretched to the last scale's side
/// without rounding, and offset by the context's last position.
fn coordinates(scale: &Scale, last_position: i64) -> Vec<f32> {
    (0..scale.side).map(|i| i as f32 / scale.side as f32 * scale.last_side as f32 + last_position as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grid_is_stretched_and_offset_without_rounding() {
        let scale = Scale { index: 2, count: 4, side: 3, last_side: 8 };
        let coordinates = coordinates(&scale, 5);
        assert_eq!(coordinates[0], 5.0);
        assert!((coordinates[1] - (5.0 + 8.0 / 3.0)).abs() < 1e-6);
        assert!((coordinates[2] - (5.0 + 16.0 / 3.0)).abs() < 1e-6);
    }
}
