//! Vector drawings, their files and their rendering.

use std::io::{Read, Write};
use std::path::Path;

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use rayon::prelude::*;
use resvg::tiny_skia::{Pixmap, Transform};
use resvg::usvg::{ImageHrefResolver, Options, Tree};
use serde::{Deserialize, Serialize};

use super::drawings::{Drawings, Label, SIDES};
use super::files;

/// The repository's drawings.
const BUNDLED: &[u8] = include_bytes!("../../data/drawings.jsonl.gz");
/// Maximum size of an unpacked file of vector drawings, in bytes.
const MAX_FILE_SIZE: u64 = 1 << 28;
/// Maximum absolute value of a view box's numbers.
const MAX_UNITS: f64 = 1e6;

/// A vector drawing: one line of a file of vector drawings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Vector {
    /// Concept and style.
    #[serde(flatten)]
    pub label: Label,
    /// Left edge of the view box.
    #[serde(default)]
    pub left: f64,
    /// Top edge of the view box.
    #[serde(default)]
    pub top: f64,
    /// Width of the view box.
    pub width: f64,
    /// Height of the view box.
    pub height: f64,
    /// Content of the svg element.
    pub body: String,
}

impl Vector {
    /// Renders the drawing as premultiplied RGBA, `[side, side, 4]`. The view box is scaled to fit and centred. Links to other
    /// files are ignored.
    ///
    /// # Errors
    ///
    /// Returns an error if the SVG is invalid, the view box is empty, or nothing is visible.
    pub fn render(&self, side: usize) -> Result<Vec<u8>, String> {
        let named = |e: &dyn std::fmt::Display| format!("{} in the style {}: {e}", self.label.concept, self.label.style);
        if !SIDES.contains(&side) {
            return Err(format!("the side is {side} pixels, expected {} to {}", SIDES.start(), SIDES.end()));
        }
        let Self { left, top, width, height, body, .. } = self;
        let range = -MAX_UNITS..=MAX_UNITS;
        if ![left, top, width, height].iter().all(|length| range.contains(*length)) || *width <= 0.0 || *height <= 0.0 {
            return Err(named(&format!("the view box, {width} x {height} at {left}, {top}, is empty or out of range")));
        }
        // Old drawings use xlink:href without declaring the namespace.
        let svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" xmlns:xlink=\"http://www.w3.org/1999/xlink\" \
             width=\"{width}\" height=\"{height}\" viewBox=\"{left} {top} {width} {height}\">{body}</svg>"
        );
        let ignore_links = ImageHrefResolver { resolve_data: Box::new(|_, _, _| None), resolve_string: Box::new(|_, _| None) };
        let options = Options { image_href_resolver: ignore_links, ..Options::default() };
        let tree = Tree::from_str(&svg, &options).map_err(|e| named(&e))?;
        let mut pixels = Pixmap::new(side as u32, side as u32).ok_or_else(|| named(&"out of memory"))?;
        let (width, height) = (tree.size().width(), tree.size().height());
        let scale = side as f32 / width.max(height);
        let margin = |length: f32| (side as f32 - length * scale) / 2.0;
        let fit = Transform::from_scale(scale, scale).post_translate(margin(width), margin(height));
        resvg::render(&tree, fit, &mut pixels.as_mut());
        let pixels = pixels.take();
        if pixels.chunks_exact(4).all(|pixel| pixel[3] == 0) {
            return Err(named(&"nothing is visible"));
        }
        Ok(pixels)
    }
}

/// Renders vector drawings on all cores. Calls `on_drawing` after each.
///
/// # Errors
///
/// Like [`Vector::render`] and [`Drawings::new`].
pub fn render(vectors: &[Vector], side: usize, on_drawing: impl Fn() + Sync) -> Result<Drawings, String> {
    let render = |vector: &Vector| {
        let pixels = vector.render(side);
        on_drawing();
        pixels
    };
    let images: Vec<Vec<u8>> = vectors.par_iter().map(render).collect::<Result<_, _>>()?;
    Drawings::new(side, vectors.iter().map(|vector| vector.label.clone()).collect(), images.concat())
}

/// Returns the repository's drawings. `examples/data/LICENSES.md` lists their authors and licences.
///
/// # Errors
///
/// Returns an error if the file was damaged when the program was built.
pub fn bundled() -> Result<Vec<Vector>, String> {
    parse(BUNDLED, Path::new("examples/data/drawings.jsonl.gz"))
}

/// Reads a gzipped file of vector drawings, one JSON object per line.
///
/// # Errors
///
/// Returns an error if the file can't be read, is invalid or too large.
pub fn read(path: &Path) -> Result<Vec<Vector>, String> {
    parse(&files::read(path, MAX_FILE_SIZE)?, path)
}

fn parse(packed: &[u8], path: &Path) -> Result<Vec<Vector>, String> {
    let mut text = String::new();
    let unpacked = GzDecoder::new(packed).take(MAX_FILE_SIZE + 1).read_to_string(&mut text);
    unpacked.map_err(|e| format!("{}: expected gzipped lines of JSON: {e}", path.display()))?;
    if text.len() as u64 > MAX_FILE_SIZE {
        return Err(format!("{}: larger than {MAX_FILE_SIZE} bytes unpacked", path.display()));
    }
    files::parse_lines(path, &text.lines().collect::<Vec<_>>())
}

/// Returns the content of a gzipped file of vector drawings, one JSON object per line. The same drawings give the same bytes.
///
/// # Errors
///
/// Returns an error if serialization fails.
pub fn pack(vectors: &[Vector]) -> Result<Vec<u8>, String> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
    for vector in vectors {
        let line = serde_json::to_string(vector).map_err(|e| e.to_string())? + "\n";
        gzip.write_all(line.as_bytes()).map_err(|e| e.to_string())?;
    }
    gzip.finish().map_err(|e| e.to_string())
}

/// Opens the pack in a folder; without a folder, renders the repository's drawings.
///
/// # Errors
///
/// Like [`Drawings::open`].
pub fn open_or_render(folder: Option<&Path>) -> Result<Drawings, String> {
    match folder {
        Some(folder) => Drawings::open(folder),
        None => render(&bundled()?, super::SIDE, || ()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(body: &str) -> Vector {
        let label = r#"{"concept": "square", "np": "a square", "style": "plain", "width": 8, "height": 4, "body": ""}"#;
        Vector { body: body.into(), ..serde_json::from_str(label).unwrap() }
    }

    #[test]
    fn a_drawing_is_scaled_to_fit_and_centred() {
        let pixels =
            vector(r##"<defs><path id="a" fill="#f00" d="M0 0h8v4H0z"/></defs><use xlink:href="#a"/>"##).render(16).unwrap();
        for (y, row) in pixels.chunks(16 * 4).enumerate() {
            let expected = if (4..12).contains(&y) { [255, 0, 0, 255] } else { [0; 4] };
            assert!(row.chunks(4).all(|pixel| pixel == expected), "row {y}");
        }
    }

    #[test]
    fn invalid_drawings_are_reported() {
        let embedded = r#"<image href="/etc/hostname" width="8" height="4"/>"#;
        for body in ["", "<path", "</svg>", "<g></g>", embedded] {
            let error = vector(body).render(16).unwrap_err();
            assert!(error.starts_with("square in the style plain: "), "{error}");
        }
        for (width, height) in [(0.0, 4.0), (-1.0, 4.0), (f64::NAN, 4.0), (f64::INFINITY, 4.0)] {
            let size = Vector { width, height, ..vector(r#"<path d="M0 0h8v4z"/>"#) };
            assert!(size.render(16).is_err(), "{width} x {height}");
        }
        assert!(vector("").render(5000).is_err());
    }

    #[test]
    fn packed_drawings_are_read_back_and_damage_is_reported() {
        let drawings = vec![vector("<g/>"), vector("<path/>")];
        let packed = pack(&drawings).unwrap();
        let path = Path::new("some.jsonl.gz");
        assert_eq!(parse(&packed, path).unwrap(), drawings);
        for damaged in [&packed[..packed.len() / 2], b"no gzip".as_slice(), b""] {
            assert!(parse(damaged, path).unwrap_err().contains("some.jsonl.gz"));
        }
    }
}
