//! Batches of captioned pictures.

use std::error::Error;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};

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

/// How many batches are made ahead: what makes pictures doesn't wait for what learns from them.
const AHEAD: usize = 2;

/// The batches of all steps from `first` on, in order, made beside what uses them.
pub struct Batches {
    made: Receiver<hart_core::Result<Vec<Captioned>>>,
}

impl Batches {
    /// Of so many pictures each, for the steps before `end`.
    pub fn new(scenes: &Arc<Scenes>, seed: u64, steps: Range<u64>, batch: usize) -> Self {
        let (send, made) = sync_channel(AHEAD);
        let scenes = scenes.clone();
        std::thread::spawn(move || {
            // Nobody waits any more where sending fails.
            steps.into_iter().all(|step| send.send(pictures(&scenes, seed, step, batch)).is_ok())
        });
        Self { made }
    }

    /// The next step's.
    ///
    /// # Errors
    ///
    /// As [`pictures`]; or there are no more steps.
    pub fn next(&self) -> Result<Vec<Captioned>, Box<dyn Error>> {
        Ok(self.made.recv().map_err(|_| "no more pictures are made")??)
    }
}

/// Captions to learn a vocabulary from.
pub fn captions(scenes: &Scenes, seed: u64, count: u64) -> Vec<String> {
    (0..count).into_par_iter().map(|index| scenes.scene(seed, index).caption).collect()
}
