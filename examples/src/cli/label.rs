//! Text in pictures.

use image::{Rgb, RgbImage};
use noto_sans_mono_bitmap::{FontWeight, RasterHeight, RasterizedChar, get_raster, get_raster_width};

/// What stands for a character that the font lacks.
const REPLACEMENT: char = '\u{fffd}';
/// What stands for the rest of a text that is cut.
const ELLIPSIS: &str = "...";

/// A size of letters.
#[derive(Clone, Copy, Debug)]
pub struct Font(RasterHeight);

impl Font {
    /// Letters in proportion to pictures of this side.
    pub fn for_side(side: u32) -> Self {
        Self(match side {
            0..300 => RasterHeight::Size16,
            300..600 => RasterHeight::Size24,
            _ => RasterHeight::Size32,
        })
    }

    /// Width of a letter in pixels.
    pub fn width(self) -> u32 {
        get_raster_width(FontWeight::Regular, self.0) as u32
    }

    /// Height of a line in pixels.
    pub fn height(self) -> u32 {
        self.0.val() as u32
    }

    fn letter(self, letter: char) -> RasterizedChar {
        let raster = |letter| get_raster(letter, FontWeight::Regular, self.0);
        raster(letter).or_else(|| raster(REPLACEMENT)).or_else(|| raster('?')).expect("the font has a question mark")
    }

    /// Writes a line in dark grey on white, from the top left.
    pub fn write(self, picture: &mut RgbImage, left: u32, top: u32, line: &str) {
        for (place, letter) in line.chars().enumerate() {
            let left = left + place as u32 * self.width();
            for (y, row) in self.letter(letter).rows().enumerate() {
                for (x, &ink) in row.iter().enumerate() {
                    if let Some(pixel) = picture.get_pixel_mut_checked(left + x as u32, top + y as u32) {
                        *pixel = Rgb([255 - (u32::from(ink) * 215 / 255) as u8; 3]);
                    }
                }
            }
        }
    }
}

/// A text in at most so many lines of so many characters, broken between words where it can be. What doesn't fit is cut, and says so.
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
    fn text_breaks_between_words_and_says_where_it_is_cut() {
        assert_eq!(wrap("a red heart on yellow", 11, 3), ["a red heart", "on yellow"]);
        assert_eq!(wrap("a red heart on yellow paper", 11, 2), ["a red heart", "on yello..."]);
        assert_eq!(wrap("extraordinarily", 6, 9), ["extrao", "rdinar", "ily"]);
        assert_eq!(wrap("ein Überraschungsei", 8, 1), ["ein..."]);
        assert_eq!(wrap("", 8, 1), [""]);
        assert_eq!(wrap("ab", 0, 1), ["ab"]);
    }

    #[test]
    fn every_character_leaves_ink_and_one_that_the_font_lacks_is_replaced() {
        let font = Font::for_side(128);
        let written = |text: &str| {
            let mut picture = RgbImage::from_pixel(font.width(), font.height(), Rgb([255; 3]));
            font.write(&mut picture, 0, 0, text);
            picture
        };
        for letter in ["A", "é", "ł", "🦜", "红", "\u{7}"] {
            assert!(written(letter).pixels().any(|p| p[0] < 128), "{letter}");
        }
        assert!(written("🦜") == written("\u{fffd}") && written("A") != written("\u{fffd}"));
        // What lies outside is left out.
        font.write(&mut RgbImage::new(3, 3), 1, 1, "ABC");
    }
}
