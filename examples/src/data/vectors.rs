//! Vector drawings, and their pixels.

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

/// The drawings that come with the repository.
const COMMITTED: &[u8] = include_bytes!("../../data/drawings.jsonl.gz");
/// Most bytes of a file of vector drawings, unpacked.
const MOST_BYTES: u64 = 1 << 28;
/// Longest side of a view box.
const MOST_UNITS: f64 = 1e6;

/// A vector drawing: one line of a file of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Vector {
    /// What it shows, in which style.
    #[serde(flatten)]
    pub label: Label,
    /// Left edge of its view box.
    #[serde(default)]
    pub left: f64,
    /// Top edge of its view box.
    #[serde(default)]
    pub top: f64,
    /// Width of its view box.
    pub width: f64,
    /// Height of its view box.
    pub height: f64,
    /// What stands inside the svg element.
    pub body: String,
}

impl Vector {
    /// Its pixels, premultiplied RGBA of `side` x `side`; the view box is fitted in and centred. Links to other files are not followed.
    ///
    /// # Errors
    ///
    /// It is no SVG, has no size, or nothing can be seen.
    pub fn render(&self, side: usize) -> Result<Vec<u8>, String> {
        let named = |e: &dyn std::fmt::Display| format!("{} in the style {}: {e}", self.label.concept, self.label.style);
        if !SIDES.contains(&side) {
            return Err(format!("drawings have {} to {} pixels a side, not {side}", SIDES.start(), SIDES.end()));
        }
        let Self { left, top, width, height, body, .. } = self;
        let place = -MOST_UNITS..=MOST_UNITS;
        if ![left, top, width, height].iter().all(|length| place.contains(*length)) || *width <= 0.0 || *height <= 0.0 {
            return Err(named(&format!("a view box of {width} x {height} at {left}, {top} has no size")));
        }
        // Old drawings link with xlink:href without saying what xlink is.
        let svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" xmlns:xlink=\"http://www.w3.org/1999/xlink\" \
             width=\"{width}\" height=\"{height}\" viewBox=\"{left} {top} {width} {height}\">{body}</svg>"
        );
        let nothing = ImageHrefResolver { resolve_data: Box::new(|_, _, _| None), resolve_string: Box::new(|_, _| None) };
        let options = Options { image_href_resolver: nothing, ..Options::default() };
        let tree = Tree::from_str(&svg, &options).map_err(|e| named(&e))?;
        let mut pixels = Pixmap::new(side as u32, side as u32).ok_or_else(|| named(&"no memory"))?;
        let (width, height) = (tree.size().width(), tree.size().height());
        let scale = side as f32 / width.max(height);
        let margin = |length: f32| (side as f32 - length * scale) / 2.0;
        let fit = Transform::from_scale(scale, scale).post_translate(margin(width), margin(height));
        resvg::render(&tree, fit, &mut pixels.as_mut());
        let pixels = pixels.take();
        if pixels.chunks_exact(4).all(|pixel| pixel[3] == 0) {
            return Err(named(&"there is nothing to see"));
        }
        Ok(pixels)
    }
}

/// Draws them all, on all cores; `drawn` is called after each.
///
/// # Errors
///
/// As [`Vector::render`] and [`Drawings::new`].
pub fn render(vectors: &[Vector], side: usize, drawn: impl Fn() + Sync) -> Result<Drawings, String> {
    let one = |vector: &Vector| {
        let pixels = vector.render(side);
        drawn();
        pixels
    };
    let images: Vec<Vec<u8>> = vectors.par_iter().map(one).collect::<Result<_, _>>()?;
    Drawings::new(side, vectors.iter().map(|vector| vector.label.clone()).collect(), images.concat())
}

/// The drawings that come with the repository: `examples/data/LICENSES.md` says whose they are.
///
/// # Errors
///
/// None, unless the program was built with a damaged file.
pub fn committed() -> Result<Vec<Vector>, String> {
    parse(COMMITTED, Path::new("examples/data/drawings.jsonl.gz"))
}

/// Reads a gzipped file with a vector drawing a line.
///
/// # Errors
///
/// It can't be read, is no such file, or is too large.
pub fn read(path: &Path) -> Result<Vec<Vector>, String> {
    parse(&files::read(path, MOST_BYTES)?, path)
}

fn parse(packed: &[u8], path: &Path) -> Result<Vec<Vector>, String> {
    let mut text = String::new();
    let unpacked = GzDecoder::new(packed).take(MOST_BYTES + 1).read_to_string(&mut text);
    unpacked.map_err(|e| format!("{}: expected a gzipped file of JSON lines: {e}", path.display()))?;
    if text.len() as u64 > MOST_BYTES {
        return Err(format!("{}: has more than {MOST_BYTES} bytes unpacked", path.display()));
    }
    files::parse_lines(path, &text.lines().collect::<Vec<_>>())
}

/// The bytes of a gzipped file with a vector drawing a line; the same drawings give the same bytes.
///
/// # Errors
///
/// A number isn't finite.
pub fn pack(vectors: &[Vector]) -> Result<Vec<u8>, String> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
    for vector in vectors {
        let line = serde_json::to_string(vector).map_err(|e| e.to_string())? + "\n";
        gzip.write_all(line.as_bytes()).map_err(|e| e.to_string())?;
    }
    gzip.finish().map_err(|e| e.to_string())
}

/// The pack in a folder, or without one the drawings that come with the repository, drawn afresh.
///
/// # Errors
///
/// As [`Drawings::open`].
pub fn open_or_render(folder: Option<&Path>) -> Result<Drawings, String> {
    match folder {
        Some(folder) => Drawings::open(folder),
        None => render(&committed()?, super::SIDE, || ()),
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
    fn a_drawing_is_fitted_in_and_centred() {
        let pixels =
            vector(r##"<defs><path id="a" fill="#f00" d="M0 0h8v4H0z"/></defs><use xlink:href="#a"/>"##).render(16).unwrap();
        for (y, row) in pixels.chunks(16 * 4).enumerate() {
            let expected = if (4..12).contains(&y) { [255, 0, 0, 255] } else { [0; 4] };
            assert!(row.chunks(4).all(|pixel| pixel == expected), "row {y}");
        }
    }

    #[test]
    fn what_is_no_drawing_is_named() {
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
    fn packed_drawings_come_back_and_damage_is_named() {
        let drawings = vec![vector("<g/>"), vector("<path/>")];
        let packed = pack(&drawings).unwrap();
        let path = Path::new("some.jsonl.gz");
        assert_eq!(parse(&packed, path).unwrap(), drawings);
        for damaged in [&packed[..packed.len() / 2], b"no gzip".as_slice(), b""] {
            assert!(parse(damaged, path).unwrap_err().contains("some.jsonl.gz"));
        }
    }
}
