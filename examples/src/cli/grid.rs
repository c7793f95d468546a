//! All pictures of a run in one, with what they show.

use hart_core::{Image, Provenance};
use image::imageops::replace;
use image::{Rgb, RgbImage};

use super::enlarge;
use super::label::{Font, wrap};

/// Least side of a picture in the grid.
const LEAST_SIDE: u32 = 128;
/// Most lines of a prompt under its picture.
const LINES_UNDER: usize = 3;
/// The same where nothing but a caption stands there.
const CAPTION_LINES: usize = 6;

/// Pictures of one size, prompt by prompt, with labels: prompts as rows and seeds as columns, or if there is only one of either, a
/// square in which every picture has its own text.
///
/// # Errors
///
/// There is no picture.
pub fn labelled(images: &[Image], per_prompt: usize) -> Result<Image, hart_core::Error> {
    let pictures: Vec<RgbImage> = images.iter().map(|image| enlarge::at_least(image, LEAST_SIDE)).collect();
    let Some(first) = pictures.first() else { return Image::grid(images, 1) };
    let layout = Layout::new(first.dimensions(), per_prompt);
    let made: Vec<Option<&Provenance>> = images.iter().map(|image| image.provenance.as_ref()).collect();
    let grid = if per_prompt > 1 && images.len() > per_prompt {
        layout.table(&pictures, &made)
    } else {
        layout.square(&pictures, &layout.labels(&made))
    };
    let (width, height) = grid.dimensions();
    Image::from_rgb(width as usize, height as usize, grid.into_raw())
}

/// Pictures of one size in a square, each over its caption.
///
/// # Errors
///
/// There is no picture.
pub fn captioned(images: &[Image], captions: &[String]) -> Result<Image, hart_core::Error> {
    let pictures: Vec<RgbImage> = images.iter().map(|image| enlarge::at_least(image, LEAST_SIDE)).collect();
    let Some(first) = pictures.first() else { return Image::grid(images, 1) };
    let layout = Layout::new(first.dimensions(), 1);
    let labels: Vec<_> = captions.iter().map(|caption| wrap(caption, layout.columns(layout.width), CAPTION_LINES)).collect();
    let grid = layout.square(&pictures, &labels);
    let (width, height) = grid.dimensions();
    Image::from_rgb(width as usize, height as usize, grid.into_raw())
}

struct Layout {
    font: Font,
    width: u32,
    height: u32,
    gap: u32,
    per_prompt: usize,
}

fn prompt(made: Option<&Provenance>) -> &str {
    made.map_or("", |made| made.prompt.as_str())
}

fn seed(made: Option<&Provenance>) -> String {
    made.map_or_else(String::new, |made| format!("seed {}", made.seed))
}

impl Layout {
    fn new((width, height): (u32, u32), per_prompt: usize) -> Self {
        let font = Font::for_side(width);
        Self { font, width, height, gap: font.height() / 2, per_prompt }
    }

    /// Characters that fit over `pixels`.
    fn columns(&self, pixels: u32) -> usize {
        (pixels / self.font.width()) as usize
    }

    fn blank(&self, width: u32, height: u32) -> RgbImage {
        RgbImage::from_pixel(width, height, Rgb([255; 3]))
    }

    /// Rows are prompts, which stand on the left; columns are seeds, which stand above.
    fn table(&self, pictures: &[RgbImage], made: &[Option<&Provenance>]) -> RgbImage {
        let rows = made.chunks(self.per_prompt).map(|row| row[0]).collect::<Vec<_>>();
        let most_lines = ((self.height / self.font.height()) as usize).max(1);
        let columns = self.columns(self.width + self.width / 4);
        let labels: Vec<Vec<String>> = rows.iter().map(|made| wrap(prompt(*made), columns, most_lines)).collect();
        let longest = labels.iter().flatten().map(|line| line.chars().count()).max().unwrap_or(0) as u32;
        let (left, top) = (longest * self.font.width() + 2 * self.gap, self.font.height() + 2 * self.gap);
        let (across, down) = (self.width + self.gap, self.height + self.gap);
        let mut grid = self.blank(left + self.per_prompt as u32 * across, top + rows.len() as u32 * down);
        for (column, made) in made[..self.per_prompt].iter().enumerate() {
            let x = left + column as u32 * across;
            for line in wrap(&seed(*made), self.columns(self.width), 1) {
                self.font.write(&mut grid, self.centred(x, &line), self.gap, &line);
            }
        }
        for (row, lines) in labels.iter().enumerate() {
            let height = lines.len() as u32 * self.font.height();
            let y = top + row as u32 * down + self.height.saturating_sub(height) / 2;
            for (line, text) in lines.iter().enumerate() {
                self.font.write(&mut grid, self.gap, y + line as u32 * self.font.height(), text);
            }
        }
        for (index, picture) in pictures.iter().enumerate() {
            let (row, column) = ((index / self.per_prompt) as u32, (index % self.per_prompt) as u32);
            replace(&mut grid, picture, (left + column * across).into(), (top + row * down).into());
        }
        grid
    }

    /// Each picture's prompt and seed.
    fn labels(&self, made: &[Option<&Provenance>]) -> Vec<Vec<String>> {
        let label = |made: &Option<&Provenance>| {
            let mut lines = wrap(prompt(*made), self.columns(self.width), LINES_UNDER);
            lines.extend(wrap(&seed(*made), self.columns(self.width), 1));
            lines
        };
        made.iter().map(label).collect()
    }

    /// A square of pictures, each with lines of text under it.
    fn square(&self, pictures: &[RgbImage], labels: &[Vec<String>]) -> RgbImage {
        let columns = (pictures.len() as f64).sqrt().ceil() as usize;
        let mut grid = self.blank(columns as u32 * (self.width + self.gap) + self.gap, 0);
        let mut rows = Vec::new();
        for (pictures, labels) in pictures.chunks(columns).zip(labels.chunks(columns)) {
            // A row is as high as its longest label asks for.
            let lines = labels.iter().map(Vec::len).max().unwrap_or(0) as u32;
            let mut row = self.blank(grid.width(), self.gap + self.height + self.gap / 2 + lines * self.font.height());
            for (column, (picture, lines)) in pictures.iter().zip(labels).enumerate() {
                let x = self.gap + column as u32 * (self.width + self.gap);
                replace(&mut row, picture, x.into(), self.gap.into());
                for (line, text) in lines.iter().enumerate() {
                    let y = self.gap + self.height + self.gap / 2 + line as u32 * self.font.height();
                    self.font.write(&mut row, self.centred(x, text), y, text);
                }
            }
            rows.push(row);
        }
        let height = rows.iter().map(RgbImage::height).sum::<u32>() + self.gap;
        grid = self.blank(grid.width(), height);
        let mut y = 0;
        for row in &rows {
            replace(&mut grid, row, 0, y.into());
            y += row.height();
        }
        grid
    }

    /// Where a line begins that stands in the middle of a picture at `x`.
    fn centred(&self, x: u32, line: &str) -> u32 {
        x + self.width.saturating_sub(line.chars().count() as u32 * self.font.width()) / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(prompt: &str, seed: u64, level: u8) -> Image {
        let mut image = Image::from_rgb(32, 32, vec![level; 3 * 32 * 32]).unwrap();
        image.provenance = Some(Provenance::new(prompt, seed, ""));
        image
    }

    /// How many pixels have just this grey.
    fn count(grid: &Image, level: u8) -> usize {
        grid.pixels().chunks(3).filter(|pixel| *pixel == [level; 3]).count()
    }

    #[test]
    fn every_picture_is_there_whole_with_text_beside_it() {
        for (prompts, seeds) in [(2, 3), (3, 1), (1, 3), (1, 1)] {
            let images: Vec<Image> = (0..prompts)
                .flat_map(|p| {
                    (0..seeds).map(move |s| picture("a parrot 🦜 on a very long branch of a tree", s, 201 + (3 * p + s) as u8))
                })
                .collect();
            let grid = labelled(&images, seeds as usize).unwrap();
            for image in &images {
                // Letters have few pixels of any one grey.
                let pixels = count(&grid, image.pixels()[0]);
                assert!((128 * 128..128 * 128 + 200).contains(&pixels), "{prompts} x {seeds}: {pixels}");
            }
            assert!(grid.pixels().iter().filter(|&&v| v < 100).count() > 100, "no letters");
        }
        assert!(labelled(&[], 1).is_err());
    }
}
