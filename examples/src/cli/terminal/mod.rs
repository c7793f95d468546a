//! Draws images in a terminal, each in place of the one before.

use std::io::{self, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::ValueEnum;
use hart_core::Image;
use icy_sixel::EncodeOptions;
use image::RgbImage;
use image::imageops::{FilterType, resize};

use crate::cli::image_file::rgb;
use crate::cli::output;

/// Side of the images for graphics protocols, in pixels.
const GRAPHICS_SIDE: u32 = 384;
/// Maximum rows of such an image.
const GRAPHICS_ROWS: usize = 24;
/// Assumed height of a row in terminals with sixel, in pixels. Most rows are higher.
const SIXEL_ROW: usize = 12;
/// Maximum size of a kitty command's data, in bytes.
const KITTY_CHUNK: usize = 4096;

/// Methods of drawing an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Draw {
    /// Detects the terminal from environment variables; half-blocks if unknown
    Auto,
    /// Half-blocks, two pixels per character, in any terminal with colours
    Blocks,
    /// kitty's graphics protocol, also in Ghostty and Konsole
    Kitty,
    /// iTerm's inline images, also in WezTerm and mintty
    Iterm,
    /// Sixel, in terminals such as foot and mlterm
    Sixel,
    /// Lines of text, without images
    None,
}

impl Draw {
    /// Detects the method from environment variables. Queries to the terminal could wait forever for an answer.
    fn detect(variable: impl Fn(&str) -> Option<String>) -> Self {
        let get = |name| variable(name).unwrap_or_default();
        let (term, program) = (get("TERM"), get("TERM_PROGRAM"));
        // Programs inside tmux and screen inherit the variables of the outer terminal.
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

/// An area of the terminal with an image and a line of text below it.
pub struct Canvas {
    draw: Draw,
    true_colours: bool,
    columns: usize,
    /// Rows of the image.
    rows: usize,
    /// Side of the drawn image, in pixels.
    side: u32,
    /// An image has been drawn.
    drawn: bool,
}

impl Canvas {
    /// Creates an area for square images of `image_side` pixels. Returns `None` if standard output is not a terminal with colours.
    pub fn open(draw: Draw, image_side: usize) -> Option<Self> {
        let term = console::Term::stdout();
        if draw == Draw::None || !term.features().colors_supported() {
            return None;
        }
        let (rows, columns) = term.size();
        let draw = if draw == Draw::Auto { Draw::detect(|name| std::env::var(name).ok()) } else { draw };
        // Consoles of Windows that understand escape codes, which `colors_supported` turns on, have all colours.
        let true_colours = cfg!(windows) || term.features().true_colors_supported();
        Some(Self::new(draw, (rows.into(), columns.into()), true_colours, image_side))
    }

    fn new(draw: Draw, (rows, columns): (usize, usize), true_colours: bool, image_side: usize) -> Self {
        // One row each for the line of text and the shell's next prompt.
        let room = rows.saturating_sub(2).min(columns / 2).max(1);
        let (rows, side) = match draw {
            Draw::Sixel => {
                let rows = room.min(GRAPHICS_SIDE as usize / SIXEL_ROW);
                (rows, rows * SIXEL_ROW)
            }
            Draw::Kitty | Draw::Iterm => (room.min(GRAPHICS_ROWS), GRAPHICS_SIDE as usize),
            _ => {
                // A character is about twice as high as wide, so each half is a square pixel. Integer multiples keep small images sharp.
                let pixels = 2 * room;
                let side = if image_side <= pixels { pixels / image_side * image_side } else { pixels };
                (side.div_ceil(2), side)
            }
        };
        Self { draw, true_colours, columns, rows, side: side as u32, drawn: false }
    }

    /// Returns the side of the drawn image in pixels: a larger image would only be shrunk.
    pub fn side(&self) -> usize {
        self.side as usize
    }

    /// Draws an image in place of the one before, with a line of text.
    ///
    /// # Errors
    ///
    /// Returns an error if standard output can't be written.
    pub fn show(&mut self, image: &Image, text: &str) -> io::Result<()> {
        let frame = self.frame(image, text)?;
        self.drawn = true;
        write(&frame)
    }

    /// Replaces the line of text.
    ///
    /// # Errors
    ///
    /// Returns an error if standard output can't be written.
    pub fn show_text(&mut self, text: &str) -> io::Result<()> {
        write(&self.line(text))
    }

    fn line(&self, text: &str) -> String {
        format!("\r\x1b[K{}", console::truncate_str(&output::one_line(text), self.columns.saturating_sub(1), "…"))
    }

    /// Returns all output for an image as one string, so that it appears at once.
    fn frame(&self, image: &Image, text: &str) -> io::Result<String> {
        let rows = self.rows;
        // The first frame makes room, which may scroll. Then the cursor moves up to the image's first row.
        let room = if self.drawn { String::new() } else { "\r\x1b[K".to_string() + &"\n".repeat(rows) };
        let image = self.fitted(image);
        let drawn = match self.draw {
            Draw::Kitty => kitty(&image, rows)?,
            Draw::Iterm => iterm(&image, rows)?,
            Draw::Sixel => sixel(&image)?,
            _ => blocks(&image, self.true_colours),
        };
        // Methods leave the cursor in different positions: restore it, then move below the image.
        Ok(format!("{room}\r\x1b[{rows}A\x1b7{drawn}\x1b8\x1b[{rows}B{}", self.line(text)))
    }

    fn fitted(&self, image: &Image) -> RgbImage {
        let image = rgb(image);
        let sharp = self.side.is_multiple_of(image.width()) && self.side.is_multiple_of(image.height());
        resize(&image, self.side, self.side, if sharp { FilterType::Nearest } else { FilterType::Triangle })
    }
}

impl Drop for Canvas {
    /// Ends the line of text, so that further output starts on a new line.
    fn drop(&mut self) {
        let _ = write("\n");
    }
}

fn write(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Draws with upper half-blocks: the foreground colour is the upper pixel, the background colour the lower one.
fn blocks(image: &RgbImage, true_colours: bool) -> String {
    let colour = |[r, g, b]: [u8; 3]| if true_colours { format!("2;{r};{g};{b}") } else { format!("5;{}", ansi256([r, g, b])) };
    let mut text = String::new();
    for top in (0..image.height()).step_by(2) {
        for x in 0..image.width() {
            let upper = colour(image.get_pixel(x, top).0);
            match image.get_pixel_checked(x, top + 1) {
                Some(lower) => text += &format!("\x1b[38;{upper};48;{}m▀", colour(lower.0)),
                None => text += &format!("\x1b[0;38;{upper}m▀"),
            }
        }
        text += "\x1b[0m\r\n";
    }
    text
}

/// Returns the index of the nearest of the 256 colours that don't depend on a terminal's theme: a cube of 6 levels, and 24 greys.
fn ansi256(colour: [u8; 3]) -> u8 {
    const LEVELS: [u8; 6] = [0, 95, 135, 175, 215, 255];
    let distance = |other: [u8; 3]| colour.iter().zip(other).map(|(a, b)| u32::from(a.abs_diff(b)).pow(2)).sum::<u32>();
    let cube = (0..216u8).map(|i| (16 + i, [i / 36, i / 6 % 6, i % 6].map(|level| LEVELS[usize::from(level)])));
    let greys = (0..24u8).map(|i| (232 + i, [8 + 10 * i; 3]));
    cube.chain(greys).min_by_key(|(_, other)| distance(*other)).map_or(0, |(index, _)| index)
}

/// Encodes an image as PNG in base64.
fn png(image: &RgbImage) -> io::Result<String> {
    let image =
        Image::from_rgb(image.width() as usize, image.height() as usize, image.as_raw().clone()).map_err(io::Error::other)?;
    Ok(STANDARD.encode(image.to_png()?))
}

/// Draws with kitty's graphics protocol. The fixed id (`i`) replaces the image before, `q=2` suppresses responses and `C=1` keeps the
/// cursor in place.
fn kitty(image: &RgbImage, rows: usize) -> io::Result<String> {
    let data = png(image)?;
    let chunks: Vec<&str> = data.as_bytes().chunks(KITTY_CHUNK).map(|chunk| str::from_utf8(chunk).unwrap_or_default()).collect();
    let mut text = String::new();
    for (index, chunk) in chunks.iter().enumerate() {
        let first = if index == 0 { format!("a=T,f=100,i=1,p=1,q=2,C=1,c={},r={rows},", 2 * rows) } else { String::new() };
        text += &format!("\x1b_G{first}m={};{chunk}\x1b\\", u8::from(index + 1 < chunks.len()));
    }
    Ok(text)
}

/// Draws with iTerm's inline images.
fn iterm(image: &RgbImage, rows: usize) -> io::Result<String> {
    Ok(format!("\x1b]1337;File=inline=1;width={};height={rows};preserveAspectRatio=1:{}\x07", 2 * rows, png(image)?))
}

/// Draws with sixel.
fn sixel(image: &RgbImage) -> io::Result<String> {
    let rgba: Vec<u8> = image.pixels().flat_map(|p| [p[0], p[1], p[2], 255]).collect();
    let (width, height) = (image.width() as usize, image.height() as usize);
    icy_sixel::sixel_encode(&rgba, width, height, &EncodeOptions::default()).map_err(io::Error::other)
}

#[cfg(test)]
mod tests;
