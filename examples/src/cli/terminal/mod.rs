//! Pictures in a terminal, drawn again and again in one place.

use std::io::{self, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::ValueEnum;
use hart_core::Image;
use icy_sixel::EncodeOptions;
use image::RgbImage;
use image::imageops::{FilterType, resize};

use crate::cli::{enlarge, output};

/// Side of the pictures that are sent to terminals which show real pixels.
const GRAPHICS_SIDE: u32 = 384;
/// Most rows of such a picture.
const GRAPHICS_ROWS: usize = 24;
/// Rows of a terminal that knows sixel are at least this high, in pixels; most are higher.
const SIXEL_ROW: usize = 12;
/// Bytes of a kitty command.
const KITTY_CHUNK: usize = 4096;

/// How a picture is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Draw {
    /// What the terminal says of itself in the environment; half-blocks if in doubt
    Auto,
    /// Two pixels a character, in any terminal with colours
    Blocks,
    /// kitty's graphics, also of Ghostty and Konsole
    Kitty,
    /// iTerm's inline pictures, also of WezTerm and mintty
    Iterm,
    /// Sixel, such as in foot and mlterm
    Sixel,
    /// Nothing: lines of text
    None,
}

impl Draw {
    /// What a terminal can do by its environment. It is not asked: one that doesn't answer would have the program wait.
    fn detect(variable: impl Fn(&str) -> Option<String>) -> Self {
        let get = |name| variable(name).unwrap_or_default();
        let (term, program) = (get("TERM"), get("TERM_PROGRAM"));
        // Inside tmux and screen the variables of the terminal outside are inherited.
        if term.starts_with("tmux") || term.starts_with("screen") || !get("TMUX").is_empty() {
            return Self::Blocks;
        }
        match program.as_str() {
            "iTerm.app" | "WezTerm" | "mintty" | "rio" | "WarpTerminal" => Self::Iterm,
            "ghostty" => Self::Kitty,
            _ if term.contains("kitty") || term.contains("ghostty") => Self::Kitty,
            _ if get("LC_TERMINAL") == "iTerm2" => Self::Iterm,
            _ if term.starts_with("foot") || term.starts_with("mlterm") || term.starts_with("contour") => Self::Sixel,
            _ => Self::Blocks,
        }
    }
}

/// A place in the terminal: a picture, and a line of text below.
pub struct Canvas {
    draw: Draw,
    true_colours: bool,
    columns: usize,
    /// Rows that the picture takes.
    rows: usize,
    /// Side of the picture that is drawn, in pixels.
    side: u32,
    drawn: bool,
}

impl Canvas {
    /// A place for square pictures of this side, or none if standard output is no terminal that can draw.
    pub fn open(draw: Draw, picture_side: usize) -> Option<Self> {
        let term = console::Term::stdout();
        if draw == Draw::None || !term.features().colors_supported() {
            return None;
        }
        let (rows, columns) = term.size();
        let draw = if draw == Draw::Auto { Draw::detect(|name| std::env::var(name).ok()) } else { draw };
        Some(Self::new(draw, (rows.into(), columns.into()), term.features().true_colors_supported(), picture_side))
    }

    fn new(draw: Draw, (rows, columns): (usize, usize), true_colours: bool, picture_side: usize) -> Self {
        // The line of text has a row, and the shell's next prompt.
        let room = rows.saturating_sub(2).min(columns / 2).max(1);
        let (rows, side) = match draw {
            Draw::Sixel => {
                let rows = room.min(GRAPHICS_SIDE as usize / SIXEL_ROW);
                (rows, rows * SIXEL_ROW)
            }
            Draw::Kitty | Draw::Iterm => (room.min(GRAPHICS_ROWS), GRAPHICS_SIDE as usize),
            _ => {
                // A character is about twice as high as wide: half of it is a square pixel. Whole multiples keep small pictures sharp.
                let pixels = 2 * room;
                let side = if picture_side <= pixels { pixels / picture_side * picture_side } else { pixels };
                (side.div_ceil(2), side)
            }
        };
        Self { draw, true_colours, columns, rows, side: side as u32, drawn: false }
    }

    /// Side of the largest picture that is of use here.
    pub fn side(&self) -> usize {
        self.side as usize
    }

    /// Draws a picture in place of the one before.
    ///
    /// # Errors
    ///
    /// Standard output can't be written.
    pub fn show(&mut self, picture: &Image, text: &str) -> io::Result<()> {
        let frame = self.frame(picture, text)?;
        self.drawn = true;
        write(&frame)
    }

    /// Changes the text only.
    ///
    /// # Errors
    ///
    /// Standard output can't be written.
    pub fn say(&mut self, text: &str) -> io::Result<()> {
        write(&self.line(text))
    }

    fn line(&self, text: &str) -> String {
        format!("\r\x1b[K{}", console::truncate_str(&output::one_line(text), self.columns.saturating_sub(1), "…"))
    }

    /// All that is written for a picture, so that it appears at once.
    fn frame(&self, picture: &Image, text: &str) -> io::Result<String> {
        let rows = self.rows;
        // The first time rows are made, which may scroll; then the cursor goes up to the picture's first one.
        let room = if self.drawn { String::new() } else { "\r\x1b[K".to_string() + &"\n".repeat(rows) };
        let picture = self.fitted(picture);
        let drawn = match self.draw {
            Draw::Kitty => kitty(&picture, rows)?,
            Draw::Iterm => iterm(&picture, rows)?,
            Draw::Sixel => sixel(&picture)?,
            _ => blocks(&picture, self.true_colours),
        };
        // Wherever the picture leaves the cursor, it goes back to where it was, and then below.
        Ok(format!("{room}\r\x1b[{rows}A\x1b7{drawn}\x1b8\x1b[{rows}B{}", self.line(text)))
    }

    fn fitted(&self, picture: &Image) -> RgbImage {
        let picture = enlarge::rgb(picture);
        let sharp = self.side.is_multiple_of(picture.width()) && self.side.is_multiple_of(picture.height());
        resize(&picture, self.side, self.side, if sharp { FilterType::Nearest } else { FilterType::Triangle })
    }
}

impl Drop for Canvas {
    /// What is printed next begins on its own line.
    fn drop(&mut self) {
        let _ = write("\n");
    }
}

fn write(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Upper half-blocks: the letter's colour is the upper pixel, the background the lower one.
fn blocks(picture: &RgbImage, true_colours: bool) -> String {
    let colour = |[r, g, b]: [u8; 3]| if true_colours { format!("2;{r};{g};{b}") } else { format!("5;{}", ansi256([r, g, b])) };
    let mut text = String::new();
    for top in (0..picture.height()).step_by(2) {
        for x in 0..picture.width() {
            let upper = colour(picture.get_pixel(x, top).0);
            match picture.get_pixel_checked(x, top + 1) {
                Some(lower) => text += &format!("\x1b[38;{upper};48;{}m▀", colour(lower.0)),
                None => text += &format!("\x1b[0;38;{upper}m▀"),
            }
        }
        text += "\x1b[0m\r\n";
    }
    text
}

/// The nearest of the 256 colours that do not depend on a terminal's settings: a cube of 6 levels, and 24 greys.
fn ansi256(colour: [u8; 3]) -> u8 {
    const LEVELS: [u8; 6] = [0, 95, 135, 175, 215, 255];
    let distance = |other: [u8; 3]| colour.iter().zip(other).map(|(a, b)| u32::from(a.abs_diff(b)).pow(2)).sum::<u32>();
    let cube = (0..216u8).map(|i| (16 + i, [i / 36, i / 6 % 6, i % 6].map(|level| LEVELS[usize::from(level)])));
    let greys = (0..24u8).map(|i| (232 + i, [8 + 10 * i; 3]));
    cube.chain(greys).min_by_key(|(_, other)| distance(*other)).map_or(0, |(index, _)| index)
}

fn png(picture: &RgbImage) -> io::Result<String> {
    let mut bytes = io::Cursor::new(Vec::new());
    picture.write_to(&mut bytes, image::ImageFormat::Png).map_err(io::Error::other)?;
    Ok(STANDARD.encode(bytes.into_inner()))
}

/// kitty's graphics protocol. A picture of the same number takes the old one's place; no answer is wanted, and the cursor stays.
fn kitty(picture: &RgbImage, rows: usize) -> io::Result<String> {
    let data = png(picture)?;
    let chunks: Vec<&str> = data.as_bytes().chunks(KITTY_CHUNK).map(|chunk| str::from_utf8(chunk).unwrap_or_default()).collect();
    let mut text = String::new();
    for (index, chunk) in chunks.iter().enumerate() {
        let first = if index == 0 { format!("a=T,f=100,i=1,p=1,q=2,C=1,c={},r={rows},", 2 * rows) } else { String::new() };
        text += &format!("\x1b_G{first}m={};{chunk}\x1b\\", u8::from(index + 1 < chunks.len()));
    }
    Ok(text)
}

/// iTerm's inline pictures.
fn iterm(picture: &RgbImage, rows: usize) -> io::Result<String> {
    Ok(format!("\x1b]1337;File=inline=1;width={};height={rows};preserveAspectRatio=1:{}\x07", 2 * rows, png(picture)?))
}

fn sixel(picture: &RgbImage) -> io::Result<String> {
    let rgba: Vec<u8> = picture.pixels().flat_map(|p| [p[0], p[1], p[2], 255]).collect();
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    icy_sixel::sixel_encode(&rgba, width, height, &EncodeOptions::default()).map_err(io::Error::other)
}

#[cfg(test)]
mod tests;
