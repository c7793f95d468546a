//! Pictures into files, as soon as they are finished.

use std::path::{Path, PathBuf};

use hart_core::{Control, Event, Image, Observer};

use super::bars::Bars;
use super::output;

/// Shows progress, and saves every picture as soon as it is finished.
pub struct Saver<'a> {
    out: &'a Path,
    count: usize,
    bars: Bars,
    files: Vec<PathBuf>,
    error: Option<hart_core::Error>,
}

impl<'a> Saver<'a> {
    /// Saves `count` pictures under names made of `out`.
    pub fn new(out: &'a Path, count: usize, quiet: bool) -> Self {
        Self { out, count, bars: Bars::new(count, quiet), files: vec![], error: None }
    }

    /// The files.
    ///
    /// # Errors
    ///
    /// What kept one from being written.
    pub fn finish(self) -> Result<Vec<PathBuf>, hart_core::Error> {
        self.error.map_or(Ok(self.files), Err)
    }
}

impl Observer for Saver<'_> {
    fn event(&mut self, event: &Event<'_>) -> Control {
        if self.error.is_some() { Control::Cancel } else { self.bars.event(event) }
    }

    fn image(&mut self, image: &Image) {
        let path = output::numbered(self.out, self.files.len(), self.count);
        match image.save_png(&path) {
            Ok(()) => self.files.push(path),
            Err(error) => self.error = Some(error),
        }
    }
}

/// The files' names, for a line about them.
pub fn list(files: &[PathBuf]) -> String {
    files.iter().map(|f| format!(" -> {}", f.display())).collect()
}
