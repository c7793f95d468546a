//! Batches of captioned pictures.

use hart_core::Image;
use hart_core::train::Captioned;
use hart_examples::data::Scenes;
use rayon::prelude::*;

/// The pictures of a step: the same whenever it is asked for. The step after all others is one that training never comes to.
///
/// # Errors
///
/// A picture has no pixels.
pub fn pictures(scenes: &Scenes, seed: u64, step: u64, batch: usize) -> hart_core::Result<Vec<Captioned>> {
    let first = if step == u64::MAX { u64::MAX - batch as u64 } else { step * batch as u64 };
    let item = |index: u64| {
        let scene = scenes.scene(seed, first + index);
        let side = scenes.options().side;
        Ok(Captioned { image: Image::from_rgb(side, side, scene.pixels)?, caption: scene.caption })
    };
    (0..batch as u64).into_par_iter().map(item).collect()
}

/// Captions to learn a vocabulary from.
pub fn captions(scenes: &Scenes, seed: u64, count: u64) -> Vec<String> {
    (0..count).into_par_iter().map(|index| scenes.scene(seed, index).caption).collect()
}
