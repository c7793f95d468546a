//! People's own pictures with their captions.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::Deserialize;

use super::drawings::Drawings;
use super::files;
use crate::cli::image_file;

/// File of captions in a folder of pictures; without it, each picture has a text file of its name beside it.
const CAPTIONS: &str = "captions.jsonl";
/// Most bytes of captions.
const MOST_BYTES: u64 = 1 << 30;
/// Endings of pictures.
const ENDINGS: [&str; 4] = ["png", "jpg", "jpeg", "webp"];

/// A line of the file of captions.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    file: PathBuf,
    caption: String,
}

/// The pictures of a folder and their captions, in the order of their names or of the file of captions.
///
/// # Errors
///
/// There is no picture, or one without a caption.
pub fn list(folder: &Path) -> Result<Vec<(PathBuf, String)>, String> {
    let table = folder.join(CAPTIONS);
    let found = if table.is_file() { from_table(folder, &table)? } else { from_texts(folder)? };
    if found.is_empty() {
        return Err(format!("{}: there is no picture; expected files that end in {}", folder.display(), ENDINGS.join(", ")));
    }
    if let Some((path, _)) = found.iter().find(|(_, caption)| caption.is_empty()) {
        return Err(format!("{}: its caption is empty", path.display()));
    }
    Ok(found)
}

fn from_table(folder: &Path, table: &Path) -> Result<Vec<(PathBuf, String)>, String> {
    let text = files::read_text(table, MOST_BYTES)?;
    let lines: Vec<Line> = files::parse_lines(table, &text.lines().collect::<Vec<_>>())?;
    let mut seen = HashSet::new();
    let check = |line: Line| {
        if !seen.insert(line.file.clone()) {
            return Err(format!("{}: {} is there twice", table.display(), line.file.display()));
        }
        let path = folder.join(&line.file);
        if path.is_file() { Ok((path, one_line(&line.caption))) } else { Err(format!("{}: no such file", path.display())) }
    };
    lines.into_iter().map(check).collect()
}

fn from_texts(folder: &Path) -> Result<Vec<(PathBuf, String)>, String> {
    let named = |e: std::io::Error| format!("{}: {e}", folder.display());
    let mut pictures = Vec::new();
    for entry in fs::read_dir(folder).map_err(named)? {
        let path = entry.map_err(named)?.path();
        let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_lowercase();
        if ENDINGS.contains(&ending.as_str()) && path.is_file() {
            pictures.push(path);
        }
    }
    pictures.sort();
    let with_caption = |path: PathBuf| {
        let text = path.with_extension("txt");
        if !text.is_file() {
            return Err(format!("{}: has no caption; write {} or {CAPTIONS}", path.display(), text.display()));
        }
        Ok((path, one_line(&files::read_text(&text, MOST_BYTES)?)))
    };
    pictures.into_iter().map(with_caption).collect()
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The middle squares of the pictures of a folder, `side` x `side`; `read` is called after each.
///
/// # Errors
///
/// As [`list`], or a file is no picture.
pub fn pack(listed: Vec<(PathBuf, String)>, side: usize, read: impl Fn() + Sync) -> Result<Drawings, String> {
    let one = |(path, _): &(PathBuf, String)| -> Result<Vec<u8>, String> {
        let square = image_file::open_square(path, side).map_err(|e| e.to_string())?;
        read();
        Ok(square.pixels().chunks_exact(3).flat_map(|p| [p[0], p[1], p[2], 255]).collect())
    };
    let images: Vec<Vec<u8>> = listed.par_iter().map(one).collect::<Result<_, _>>()?;
    Drawings::captioned(side, listed.into_iter().map(|(_, caption)| caption).collect(), images.concat())
}
