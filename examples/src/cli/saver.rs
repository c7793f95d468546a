//! Saves images as soon as they are finished.

use std::path::{Path, PathBuf};

use hart_core::{Control, Event, Image, Observer};

use super::output;
use super::progress::ScaleBars;

/// An observer that shows progress and saves each finished image.
pub struct Saver<'a> {
    /// Pattern of the file names, see [`output::numbered`].
    out: &'a Path,
    count: usize,
    bars: ScaleBars,
    files: Vec<PathBuf>,
    error: Option<hart_core::Error>,
}

impl<'a> Saver<'a> {
    /// Creates a saver of `count` images, whose file names follow the pattern `out`.
    pub fn new(out: &'a Path, count: usize, quiet: bool) -> Self {
        Self { out, count, bars: ScaleBars::new(count, quiet), files: vec![], error: None }
    }

    /// Returns the saved files.
    ///
    /// # Errors
    ///
    /// Returns the first error of writing a file.
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

/// Returns the files as the end of a message: ` -> a.png -> b.png`.
pub fn file_list(files: &[PathBuf]) -> String {
    files.iter().map(|f| format!(" -> {}", f.display())).collect()
}
