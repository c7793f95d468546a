//! Saves images as soon as they are finished.

use std::collections::VecDeque;

use hart_core::{Control, Error, Event, Image, Observer};

use super::out_files::OutFiles;
use super::progress::ScaleBars;
use super::run::Outcome;
use super::sign::Signing;

/// An observer that shows progress and saves each finished image.
pub struct Saver<'a> {
    out: &'a OutFiles,
    signing: &'a Signing,
    bars: ScaleBars,
    /// Indices of the next images in the run.
    next: VecDeque<usize>,
    keep_images: bool,
    saved: Outcome,
    error: Option<Error>,
}

impl<'a> Saver<'a> {
    /// Creates a saver for a run that generates `count` images. `keep_images` also keeps them in memory.
    pub fn new(out: &'a OutFiles, signing: &'a Signing, count: usize, keep_images: bool, quiet: bool) -> Self {
        let (bars, saved) = (ScaleBars::new(count, quiet), Outcome::default());
        Self { out, signing, bars, next: VecDeque::new(), keep_images, saved, error: None }
    }

    /// Begins a request for the images with these indices in the run.
    pub fn begin(&mut self, indices: VecDeque<usize>) {
        self.bars.begin(indices.len());
        self.next = indices;
    }

    /// Returns the saved images, and the first error of writing a file.
    pub fn finish(self) -> (Outcome, Option<Error>) {
        (self.saved, self.error)
    }
}

impl Observer for Saver<'_> {
    fn event(&mut self, event: &Event<'_>) -> Control {
        if self.error.is_some() { Control::Cancel } else { self.bars.event(event) }
    }

    fn image(&mut self, image: &Image) {
        let index = self.next.pop_front().expect("a request generates as many images as it asks for");
        match self.out.save(index, image, self.signing) {
            Ok(path) => self.saved.files.push(path),
            Err(error) => {
                self.error = Some(error);
                return;
            }
        }
        self.saved.seeds.extend(image.provenance.as_ref().map(|provenance| provenance.seed));
        if self.keep_images {
            self.saved.images.push(image.clone());
        }
    }
}
