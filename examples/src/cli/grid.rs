//! Grids of images with labels.

use hart_core::{Image, Provenance};

use super::enlarge;
use super::label::{Font, wrap};
use super::raster::Raster;

/// Minimum side of an image in the grid, in pixels.
const MIN_SIDE: usize = 128;
/// Maximum lines of a prompt below its image.
const PROMPT_LINES: usize = 3;
/// Maximum lines of a caption below its image.
const CAPTION_LINES: usize = 6;

/// Arranges images of the same size, ordered by prompt, in a labelled grid.
///
/// Several prompts with several seeds become a table with prompts as rows and seeds as columns. Otherwise the images form a square, each
/// above its prompt and seed.
///
/// # Errors
///
/// Returns an error if there are no images.
pub fn labelled(images: &[Image], per_prompt: usize) -> Result<Image, hart_core::Error> {
    let enlarged: Vec<Image> = images.iter().map(|image| enlarge::at_least(image, MIN_SIDE)).collect();
    let Some(first) = enlarged.first() else { return Image::grid(images, 1) };
    let layout = Layout::new((first.width(), first.height()), per_prompt);
    let provenances: Vec<Option<&Provenance>> = images.iter().map(|image| image.provenance.as_ref()).collect();
    let grid = if per_prompt > 1 && images.len() > per_prompt {
        layout.table(&enlarged, &provenances)
    } else {
        layout.square(&enlarged, &layout.labels(&provenances))
    };
    grid.into_image().map(|grid| grid.with_marks_of(images))
}

/// Arranges images of the same size in a square, each above its caption.
///
/// # Errors
///
/// Returns an error if there are no images.
pub fn captioned(images: &[Image], captions: &[String]) -> Result<Image, hart_core::Error> {
    let enlarged: Vec<Image> = images.iter().map(|image| enlarge::at_least(image, MIN_SIDE)).collect();
    let Some(first) = enlarged.first() else { return Image::grid(images, 1) };
    let layout = Layout::new((first.width(), first.height()), 1);
    let labels: Vec<_> = captions.iter().map(|caption| wrap(caption, layout.columns(layout.width), CAPTION_LINES)).collect();
    let grid = layout.square(&enlarged, &labels);
    grid.into_image().map(|grid| grid.with_marks_of(images))
}

/// Layout of a grid, in pixels.
struct Layout {
    font: Font,
    /// Width of an image.
    width: usize,
    /// Height of an image.
    height: usize,
    /// Space between images.
    gap: usize,
    /// Number of images per prompt.
    per_prompt: usize,
}

fn prompt(provenance: Option<&Provenance>) -> &str {
    provenance.map_or("", |provenance| provenance.prompt.as_str())
}

fn seed(provenance: Option<&Provenance>) -> String {
    provenance.map_or_else(String::new, |provenance| format!("seed {}", provenance.seed))
}

impl Layout {
    fn new((width, height): (usize, usize), per_prompt: usize) -> Self {
        let font = Font::for_side(width);
        Self { font, width, height, gap: font.height() / 2, per_prompt }
    }

    /// Returns the number of characters that fit into `pixels`.
    fn columns(&self, pixels: usize) -> usize {
        pixels / self.font.width()
    }

    /// Draws a table with the prompts on the left and the seeds on top.
    fn table(&self, images: &[Image], provenances: &[Option<&Provenance>]) -> Raster {
        let rows = provenances.chunks(self.per_prompt).map(|row| row[0]).collect::<Vec<_>>();
        let max_lines = (self.height / self.font.height()).max(1);
        let columns = self.columns(self.width + self.width / 4);
        let labels: Vec<Vec<String>> = rows.iter().map(|first| wrap(prompt(*first), columns, max_lines)).collect();
        let longest = labels.iter().flatten().map(|line| line.chars().count()).max().unwrap_or(0);
        let (left, top) = (longest * self.font.width() + 2 * self.gap, self.font.height() + 2 * self.gap);
        let (across, down) = (self.width + self.gap, self.height + self.gap);
        let mut grid = Raster::white(left + self.per_prompt * across, top + rows.len() * down);
        for (column, provenance) in provenances[..self.per_prompt].iter().enumerate() {
            let x = left + column * across;
            for line in wrap(&seed(*provenance), self.columns(self.width), 1) {
                self.font.write(&mut grid, self.centred(x, &line), self.gap, &line);
            }
        }
        for (row, lines) in labels.iter().enumerate() {
            let height = lines.len() * self.font.height();
            let y = top + row * down + self.height.saturating_sub(height) / 2;
            for (line, text) in lines.iter().enumerate() {
                self.font.write(&mut grid, self.gap, y + line * self.font.height(), text);
            }
        }
        for (index, image) in images.iter().enumerate() {
            let (row, column) = (index / self.per_prompt, index % self.per_prompt);
            grid.draw(image, left + column * across, top + row * down);
        }
        grid
    }

    /// Returns the lines of each image's prompt and seed.
    fn labels(&self, provenances: &[Option<&Provenance>]) -> Vec<Vec<String>> {
        let label = |provenance: &Option<&Provenance>| {
            let mut lines = wrap(prompt(*provenance), self.columns(self.width), PROMPT_LINES);
            lines.extend(wrap(&seed(*provenance), self.columns(self.width), 1));
            lines
        };
        provenances.iter().map(label).collect()
    }

    /// Draws a square of images, each above its lines of text.
    fn square(&self, images: &[Image], labels: &[Vec<String>]) -> Raster {
        let columns = (images.len() as f64).sqrt().ceil() as usize;
        // The longest label determines the height of a row.
        let lines = labels.chunks(columns).map(|labels| labels.iter().map(Vec::len).max().unwrap_or(0));
        let heights: Vec<_> = lines.map(|lines| self.gap + self.height + self.gap / 2 + lines * self.font.height()).collect();
        let mut grid = Raster::white(columns * (self.width + self.gap) + self.gap, heights.iter().sum::<usize>() + self.gap);
        let mut top = 0;
        for ((images, labels), height) in images.chunks(columns).zip(labels.chunks(columns)).zip(heights) {
            for (column, (image, lines)) in images.iter().zip(labels).enumerate() {
                let x = self.gap + column * (self.width + self.gap);
                grid.draw(image, x, top + self.gap);
                for (line, text) in lines.iter().enumerate() {
                    let y = top + self.gap + self.height + self.gap / 2 + line * self.font.height();
                    self.font.write(&mut grid, self.centred(x, text), y, text);
                }
            }
            top += height;
        }
        grid
    }

    /// Returns the left edge of a line that is centred below an image whose left edge is `x`.
    fn centred(&self, x: usize, line: &str) -> usize {
        x + self.width.saturating_sub(line.chars().count() * self.font.width()) / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(prompt: &str, seed: u64, level: u8) -> Image {
        let mut image = Image::from_rgb(32, 32, vec![level; 3 * 32 * 32]).unwrap();
        image.provenance = Some(Provenance::new(prompt, seed, ""));
        image
    }

    /// Counts the pixels of exactly this grey.
    fn count(grid: &Image, level: u8) -> usize {
        grid.pixels().chunks(3).filter(|pixel| *pixel == [level; 3]).count()
    }

    #[test]
    fn every_image_is_whole_and_labelled() {
        for (prompts, seeds) in [(2, 3), (3, 1), (1, 3), (1, 1)] {
            let images: Vec<Image> = (0..prompts)
                .flat_map(|p| {
                    (0..seeds).map(move |s| image("a parrot 🦜 on a very long branch of a tree", s, 201 + (3 * p + s) as u8))
                })
                .collect();
            let grid = labelled(&images, seeds as usize).unwrap();
            for image in &images {
                // Antialiased letters add only a few pixels of the same grey.
                let pixels = count(&grid, image.pixels()[0]);
                assert!((128 * 128..128 * 128 + 200).contains(&pixels), "{prompts} x {seeds}: {pixels}");
            }
            assert!(grid.pixels().iter().filter(|&&v| v < 100).count() > 100, "no letters");
        }
        assert!(labelled(&[], 1).is_err());
    }
}
