//! Packs of captioned images from a folder.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::Deserialize;

use super::drawings::Drawings;
use super::files;
use crate::cli::image_file;

/// Name of the file of captions in a folder of images. Without it, each image needs a text file of the same name.
const CAPTIONS: &str = "captions.jsonl";
/// Maximum size of a file of captions, in bytes.
const MAX_CAPTIONS_SIZE: u64 = 1 << 30;
/// Extensions of image files.
const EXTENSIONS: [&str; 4] = ["png", "jpg", "jpeg", "webp"];

/// A line of the file of captions.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CaptionLine {
    file: PathBuf,
    caption: String,
}

/// Lists the images of a folder with their captions, sorted by file name or in the order of the file of captions.
///
/// # Errors
///
/// Returns an error if there is no image, or one has no caption.
pub fn list(folder: &Path) -> Result<Vec<(PathBuf, String)>, String> {
    let table = folder.join(CAPTIONS);
    let found = if table.is_file() { list_by_table(folder, &table)? } else { list_by_text_files(folder)? };
    if found.is_empty() {
        return Err(format!(
            "{}: there is no image; expected files with the extension {}",
            folder.display(),
            EXTENSIONS.join(", ")
        ));
    }
    if let Some((path, _)) = found.iter().find(|(_, caption)| caption.is_empty()) {
        return Err(format!("{}: the caption is empty", path.display()));
    }
    Ok(found)
}

/// Lists the images that the file of captions names.
fn list_by_table(folder: &Path, table: &Path) -> Result<Vec<(PathBuf, String)>, String> {
    let text = files::read_text(table, MAX_CAPTIONS_SIZE)?;
    let lines: Vec<CaptionLine> = files::parse_lines(table, &text.lines().collect::<Vec<_>>())?;
    let mut seen = HashSet::new();
    let check = |line: CaptionLine| {
        if !seen.insert(line.file.clone()) {
            return Err(format!("{}: {} appears twice", table.display(), line.file.display()));
        }
        let path = folder.join(&line.file);
        if path.is_file() { Ok((path, one_line(&line.caption))) } else { Err(format!("{}: no such file", path.display())) }
    };
    lines.into_iter().map(check).collect()
}

/// Lists the images with a text file of the same name.
fn list_by_text_files(folder: &Path) -> Result<Vec<(PathBuf, String)>, String> {
    let named = |e: std::io::Error| format!("{}: {e}", folder.display());
    let mut images = Vec::new();
    for entry in fs::read_dir(folder).map_err(named)? {
        let path = entry.map_err(named)?.path();
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default().to_lowercase();
        if EXTENSIONS.contains(&extension.as_str()) && path.is_file() {
            images.push(path);
        }
    }
    images.sort();
    let with_caption = |path: PathBuf| {
        let text = path.with_extension("txt");
        if !text.is_file() {
            return Err(format!("{}: has no caption; create {} or {CAPTIONS}", path.display(), text.display()));
        }
        Ok((path, one_line(&files::read_text(&text, MAX_CAPTIONS_SIZE)?)))
    };
    images.into_iter().map(with_caption).collect()
}

/// Replaces every run of white space by one space.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Packs listed images, cropped to the central square and scaled to `side` x `side` pixels. Calls `on_image` after each.
///
/// # Errors
///
/// Returns an error if a file is not an image.
pub fn pack(listed: Vec<(PathBuf, String)>, side: usize, on_image: impl Fn() + Sync) -> Result<Drawings, String> {
    let read = |(path, _): &(PathBuf, String)| -> Result<Vec<u8>, String> {
        let square = image_file::open_square(path, side).map_err(|e| e.to_string())?;
        on_image();
        Ok(square.pixels().chunks_exact(3).flat_map(|p| [p[0], p[1], p[2], 255]).collect())
    };
    let images: Vec<Vec<u8>> = listed.par_iter().map(read).collect::<Result<_, _>>()?;
    Drawings::captioned(side, listed.into_iter().map(|(_, caption)| caption).collect(), images.concat())
}
