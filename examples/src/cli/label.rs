//! Draws text into images.

use noto_sans_mono_bitmap::{FontWeight, RasterHeight, RasterizedChar, get_raster, get_raster_width};

use super::raster::Raster;

/// Character that replaces one that the font lacks.
const REPLACEMENT: char = '\u{fffd}';
/// End of a text that was cut.
const ELLIPSIS: &str = "...";

/// Noto Sans Mono at one size.
#[derive(Clone, Copy, Debug)]
pub struct Font(RasterHeight);

impl Font {
    /// Returns the font size for images of `side` x `side` pixels.
    pub fn for_side(side: usize) -> Self {
        Self(match side {
            0..300 => RasterHeight::Size16,
            300..600 => RasterHeight::Size24,
            _ => RasterHeight::Size32,
        })
    }

    /// Returns the width of a character in pixels.
    pub fn width(self) -> usize {
        get_raster_width(FontWeight::Regular, self.0)
    }

    /// Returns the height of a line in pixels.
    pub fn height(self) -> usize {
        self.0.val()
    }

    fn glyph(self, character: char) -> RasterizedChar {
        let raster = |character| get_raster(character, FontWeight::Regular, self.0);
        raster(character).or_else(|| raster(REPLACEMENT)).or_else(|| raster('?')).expect("the font has a question mark")
    }

    /// Draws a line of dark grey text on white. `left` and `top` are its corner in pixels; parts outside the image are cropped.
    pub fn write(self, image: &mut Raster, left: usize, top: usize, line: &str) {
        for (index, character) in line.chars().enumerate() {
            let left = left + index * self.width();
            for (y, row) in self.glyph(character).rows().enumerate() {
                for (x, &coverage) in row.iter().enumerate() {
                    image.set(left + x, top + y, [255 - (u32::from(coverage) * 215 / 255) as u8; 3]);
                }
            }
        }
    }
}

/// Wraps a text into at most `rows` lines of at most `columns` characters, if possible between words. A text that doesn't fit is cut and
/// ends in an ellipsis.
pub fn wrap(text: &str, columns: usize, rows: usize) -> Vec<String> {
    let columns = columns.max(ELLIPSIS.len() + 1);
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let mut rest: Vec<char> = word.chars().collect();
        let line = lines.last_mut().expect("there is a line");
        let used = line.chars().count();
        if used > 0 && used + 1 + rest.len() <= columns {
            line.push(' ');
            line.extend(rest);
            continue;
        }
        while !rest.is_empty() {
            let later = rest.split_off(rest.len().min(columns));
            match lines.last_mut() {
                Some(line) if line.is_empty() => line.extend(rest),
                _ => lines.push(rest.into_iter().collect()),
            }
            rest = later;
        }
    }
    if lines.len() > rows {
        lines.truncate(rows);
        if let Some(last) = lines.last_mut() {
            let kept: String = last.chars().take(columns - ELLIPSIS.len()).collect();
            *last = format!("{}{ELLIPSIS}", kept.trim_end());
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_wraps_between_words_and_a_cut_ends_in_an_ellipsis() {
        assert_eq!(wrap("a red heart on yellow", 11, 3), ["a red heart", "on yellow"]);
        assert_eq!(wrap("a red heart on yellow paper", 11, 2), ["a red heart", "on yello..."]);
        assert_eq!(wrap("extraordinarily", 6, 9), ["extrao", "rdinar", "ily"]);
        assert_eq!(wrap("ein Überraschungsei", 8, 1), ["ein..."]);
        assert_eq!(wrap("", 8, 1), [""]);
        assert_eq!(wrap("ab", 0, 1), ["ab"]);
    }

    #[test]
    fn every_character_is_drawn_and_a_missing_one_is_replaced() {
        let font = Font::for_side(128);
        let written = |text: &str| {
            let mut image = Raster::white(font.width(), font.height());
            font.write(&mut image, 0, 0, text);
            image.into_image().unwrap()
        };
        for character in ["A", "é", "ł", "🦜", "红", "\u{7}"] {
            assert!(written(character).pixels().iter().any(|&level| level < 128), "{character}");
        }
        assert!(written("🦜") == written("\u{fffd}") && written("A") != written("\u{fffd}"));
        // Pixels outside the image are ignored.
        font.write(&mut Raster::white(3, 3), 1, 1, "ABC");
    }
}
