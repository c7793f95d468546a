//! Batches of captioned images.

use std::error::Error;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};

use hart_core::Image;
use hart_core::train::CaptionedImage;
use hart_examples::data::Scenes;
use rayon::prelude::*;

/// Number of batches rendered ahead of the training step.
const PREFETCHED: usize = 2;

/// Renders the batch of a step. The same arguments give the same batch. Step `u64::MAX` is for evaluation: training never reaches
/// it.
///
/// # Errors
///
/// Returns an error if a scene is empty.
pub fn batch(scenes: &Scenes, seed: u64, step: u64, size: usize) -> hart_core::Result<Vec<CaptionedImage>> {
    let first = if step == u64::MAX { u64::MAX - size as u64 } else { step * size as u64 };
    let item = |index: u64| {
        let scene = scenes.scene(seed, first + index);
        let side = scenes.options().side;
        Ok(CaptionedImage { image: Image::from_rgb(side, side, scene.pixels)?, caption: scene.caption })
    };
    (0..size as u64).into_par_iter().map(item).collect()
}

/// The batches of consecutive steps, rendered ahead on another thread.
pub struct Batches {
    rendered: Receiver<hart_core::Result<Vec<CaptionedImage>>>,
}

impl Batches {
    /// Starts to render batches of `size` images for `steps`.
    pub fn new(scenes: &Arc<Scenes>, seed: u64, steps: Range<u64>, size: usize) -> Self {
        let (sender, rendered) = sync_channel(PREFETCHED);
        let scenes = scenes.clone();
        std::thread::spawn(move || {
            // Sending fails once the receiver is dropped.
            steps.into_iter().all(|step| sender.send(batch(&scenes, seed, step, size)).is_ok())
        });
        Self { rendered }
    }

    /// Returns the batch of the next step.
    ///
    /// # Errors
    ///
    /// Like [`batch`], and returns an error after the last step.
    pub fn next(&self) -> Result<Vec<CaptionedImage>, Box<dyn Error>> {
        Ok(self.rendered.recv().map_err(|_| "no more batches")??)
    }
}

/// Renders the captions of the first `count` scenes of a seed, as training data of the text tokenizer.
pub fn captions(scenes: &Scenes, seed: u64, count: u64) -> Vec<String> {
    (0..count).into_par_iter().map(|index| scenes.scene(seed, index).caption).collect()
}
