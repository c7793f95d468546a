//! Packs of labelled drawings or captioned images, and their files.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::{Deserialize, Serialize};

use super::files;

/// Name of the file of pixels in a pack's folder.
const PIXELS: &str = "drawings.safetensors";
/// Name of the file of captions in a pack's folder.
const CAPTIONS: &str = "captions.jsonl";
/// Maximum size of the file of captions, in bytes.
const MAX_CAPTIONS_SIZE: u64 = 1 << 30;
/// Maximum size of the file of pixels, in bytes.
const MAX_PIXELS_SIZE: u64 = 1 << 36;
/// Valid sides of drawings and images, in pixels.
pub const SIDES: std::ops::RangeInclusive<usize> = 8..=1024;

/// Another name of a concept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alias {
    /// Noun phrase with its article: "a cat".
    pub np: String,
    /// Plural: "cats"; empty if the concept has none.
    #[serde(default)]
    pub plural: String,
}

/// The concept that a drawing shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Concept {
    /// Unique name: "cat face".
    pub name: String,
    /// Noun phrase with its article: "a cat face".
    pub np: String,
    /// Plural: "cat faces"; empty if the concept has none.
    pub plural: String,
    /// Related words: "animal", "pet".
    pub tags: Vec<String>,
    /// A more common name: "a cat".
    pub alias: Option<Alias>,
}

/// A drawing: a concept in a style.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drawing {
    /// Index into [`Drawings::concepts`].
    pub concept: usize,
    /// Index into [`Drawings::styles`].
    pub style: usize,
}

/// Label of a drawing: a line in a pack's file of captions, and part of a line in a file of vector drawings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Label {
    /// [`Concept::name`].
    pub concept: String,
    /// [`Concept::np`].
    pub np: String,
    /// [`Concept::plural`].
    #[serde(default)]
    pub plural: String,
    /// [`Concept::tags`].
    #[serde(default)]
    pub tags: Vec<String>,
    /// [`Concept::alias`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<Alias>,
    /// Name of the style.
    pub style: String,
}

/// Line of a captioned image in a pack's file of captions.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Captioned {
    caption: String,
}

/// A pack: either labelled drawings with transparency, or captioned images.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Drawings {
    /// Side in pixels.
    pub side: usize,
    /// The concepts, in the order of their first drawing.
    pub concepts: Vec<Concept>,
    /// Names of the styles, such as "flat" and "noto".
    pub styles: Vec<String>,
    /// The drawings; empty in a pack of captioned images.
    pub drawings: Vec<Drawing>,
    /// Captions of the images; empty in a pack of drawings.
    pub captions: Vec<String>,
    /// Premultiplied RGBA, `[images, side, side, 4]`.
    images: Vec<u8>,
}

impl Drawings {
    /// Creates a pack of drawings. `images` is premultiplied RGBA, `[images, side, side, 4]`.
    ///
    /// # Errors
    ///
    /// Returns an error if the number of pixels is wrong, a label has an empty field, or two drawings show the same concept in the
    /// same style.
    pub fn new(side: usize, labels: Vec<Label>, images: Vec<u8>) -> Result<Self, String> {
        check_size(side, labels.len(), images.len())?;
        let mut pack = Self { side, images, ..Self::default() };
        let mut seen = HashSet::new();
        let mut concepts = HashMap::new();
        for (index, label) in labels.into_iter().enumerate() {
            if [&label.concept, &label.np, &label.style].iter().any(|text| text.trim().is_empty()) {
                return Err(format!("drawing {}: concept, np and style must not be empty", index + 1));
            }
            let style = pack.styles.iter().position(|name| *name == label.style).unwrap_or_else(|| {
                pack.styles.push(label.style.clone());
                pack.styles.len() - 1
            });
            let concept = *concepts.entry(label.concept.clone()).or_insert_with(|| {
                let Label { concept: name, np, plural, tags, alias, .. } = label.clone();
                pack.concepts.push(Concept { name, np, plural, tags, alias });
                pack.concepts.len() - 1
            });
            if !seen.insert((concept, style)) {
                return Err(format!("drawing {}: a second {} in the style {}", index + 1, label.concept, label.style));
            }
            pack.drawings.push(Drawing { concept, style });
        }
        pack.drop_ambiguous_aliases();
        Ok(pack)
    }

    /// Creates a pack of captioned images. `images` is RGBA, `[images, side, side, 4]`.
    ///
    /// # Errors
    ///
    /// Returns an error if the number of pixels is wrong.
    pub fn captioned(side: usize, captions: Vec<String>, images: Vec<u8>) -> Result<Self, String> {
        check_size(side, captions.len(), images.len())?;
        Ok(Self { side, captions, images, ..Self::default() })
    }

    /// Drops the aliases that could also mean another concept.
    fn drop_ambiguous_aliases(&mut self) {
        let mut uses = HashMap::new();
        for concept in &self.concepts {
            *uses.entry(concept.np.clone()).or_insert(0) += 1;
            if let Some(alias) = &concept.alias {
                *uses.entry(alias.np.clone()).or_insert(0) += 1;
            }
        }
        for concept in &mut self.concepts {
            concept.alias.take_if(|alias| uses[&alias.np] > 1);
        }
    }

    /// Returns the number of drawings or images.
    pub fn len(&self) -> usize {
        self.drawings.len() + self.captions.len()
    }

    /// Returns whether the pack is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the pixels of drawing or image `i`: premultiplied RGBA, `[side, side, 4]`.
    ///
    /// # Panics
    ///
    /// Panics if `i` is out of range.
    pub fn image(&self, i: usize) -> &[u8] {
        let size = self.side * self.side * 4;
        &self.images[i * size..(i + 1) * size]
    }

    /// Returns the index of the drawing of a concept in a style.
    pub fn find(&self, concept: usize, style: usize) -> Option<usize> {
        self.drawings.iter().position(|d| d.concept == concept && d.style == style)
    }

    /// Returns the concept of drawing `i`.
    ///
    /// # Panics
    ///
    /// Panics if `i` is out of range.
    pub fn concept(&self, i: usize) -> &Concept {
        &self.concepts[self.drawings[i].concept]
    }

    /// Returns the label of drawing `i`.
    ///
    /// # Panics
    ///
    /// Panics if `i` is out of range.
    pub fn label(&self, i: usize) -> Label {
        let Concept { name: concept, np, plural, tags, alias } = self.concept(i).clone();
        Label { concept, np, plural, tags, alias, style: self.styles[self.drawings[i].style].clone() }
    }

    /// Returns a pack with the drawings of the first `concepts` concepts, restricted to some styles unless `styles` is empty.
    ///
    /// # Errors
    ///
    /// Returns an error if a style is unknown.
    pub fn select(&self, concepts: usize, styles: &[String]) -> Result<Self, String> {
        if let Some(missing) = styles.iter().find(|style| !self.styles.contains(style)) {
            return Err(format!("no style {missing}, expected one of {}", self.styles.join(", ")));
        }
        let wanted = |d: &Drawing| d.concept < concepts && (styles.is_empty() || styles.contains(&self.styles[d.style]));
        let chosen: Vec<usize> = (0..self.drawings.len()).filter(|&i| wanted(&self.drawings[i])).collect();
        let images = chosen.iter().flat_map(|&i| self.image(i)).copied().collect();
        Self::new(self.side, chosen.iter().map(|&i| self.label(i)).collect(), images)
    }

    /// Reads a pack's folder, as [`save`](Self::save) writes it.
    ///
    /// # Errors
    ///
    /// Returns an error if a file is missing or damaged.
    pub fn open(folder: &Path) -> Result<Self, String> {
        let path = folder.join(PIXELS);
        let advice = "pass a folder written by the program dataset";
        if !path.is_file() {
            return Err(format!("no {PIXELS} in {}: {advice}", folder.display()));
        }
        let mut images = files::read(&path, MAX_PIXELS_SIZE)?;
        let named = |e: &dyn std::fmt::Display| format!("{}: {e}; {advice}", path.display());
        let (side, count, range) = layout(&images).map_err(|e| named(&e))?;
        // Cut in place: a copy of the pixels could exceed the memory.
        images.truncate(range.end);
        images.drain(..range.start);

        let path = folder.join(CAPTIONS);
        let text = files::read_text(&path, MAX_CAPTIONS_SIZE)?;
        let lines: Vec<&str> = text.lines().collect();
        let filled = || lines.iter().filter(|line| !line.trim().is_empty());
        if filled().count() != count {
            let (found, path) = (filled().count(), path.display());
            return Err(format!("{path}: has {found} lines, {PIXELS} has {count} images; {advice}"));
        }
        let captioned = filled().next().is_some_and(|line| serde_json::from_str::<Captioned>(line).is_ok());
        let pack = if captioned {
            let captions: Vec<Captioned> = files::parse_lines(&path, &lines)?;
            Self::captioned(side, captions.into_iter().map(|line| line.caption).collect(), images)
        } else {
            Self::new(side, files::parse_lines(&path, &lines)?, images)
        };
        pack.map_err(|e| format!("{}: {e}", path.display()))
    }

    /// Writes the pack to a new folder. If it fails, no folder is left.
    ///
    /// # Errors
    ///
    /// Returns an error if the folder already exists or a file can't be written.
    pub fn save(&self, folder: &Path) -> Result<(), String> {
        let shape = vec![self.len(), self.side, self.side, 4];
        let view = TensorView::new(Dtype::U8, shape, &self.images).map_err(|e| e.to_string())?;
        let mut captions = String::new();
        for i in 0..self.drawings.len() {
            captions += &(serde_json::to_string(&self.label(i)).map_err(|e| e.to_string())? + "\n");
        }
        for caption in &self.captions {
            let line = Captioned { caption: caption.clone() };
            captions += &(serde_json::to_string(&line).map_err(|e| e.to_string())? + "\n");
        }
        files::create_folder(folder, |inside| {
            let [pixels, texts] = [PIXELS, CAPTIONS].map(|name| inside.join(name));
            std::fs::write(&texts, captions).map_err(|e| e.to_string())?;
            safetensors::serialize_to_file([("images", view)], None, &pixels).map_err(|e| e.to_string())?;
            // safetensors creates private files; give them the permissions of any new file.
            let permissions = std::fs::metadata(&texts).map_err(|e| e.to_string())?.permissions();
            std::fs::set_permissions(&pixels, permissions).map_err(|e| e.to_string())
        })
    }
}

/// Checks that `bytes` is the size of this many images.
fn check_size(side: usize, images: usize, bytes: usize) -> Result<(), String> {
    if !SIDES.contains(&side) {
        return Err(format!("the side is {side} pixels, expected {} to {}", SIDES.start(), SIDES.end()));
    }
    if Some(bytes) != (side * side * 4).checked_mul(images) {
        return Err(format!("{images} images of {side} x {side} pixels can't have {bytes} bytes"));
    }
    if images == 0 { Err("there is no image".into()) } else { Ok(()) }
}

/// Parses a file of pixels and returns the side, the number of images, and the range of their bytes in the file.
fn layout(bytes: &[u8]) -> Result<(usize, usize, std::ops::Range<usize>), String> {
    let file = SafeTensors::deserialize(bytes).map_err(|e| e.to_string())?;
    let tensor = file.tensor("images").map_err(|_| "there is no tensor images")?;
    let [count, side, width, 4] = *tensor.shape() else {
        return Err(format!("images has the shape {:?}, expected [images, side, side, 4]", tensor.shape()));
    };
    if tensor.dtype() != Dtype::U8 || side != width {
        let (dtype, shape) = (tensor.dtype(), tensor.shape());
        return Err(format!("images is {dtype:?} {shape:?}, expected U8 [images, side, side, 4]"));
    }
    check_size(side, count, tensor.data().len())?;
    let start = tensor.data().as_ptr().addr() - bytes.as_ptr().addr();
    Ok((side, count, start..start + tensor.data().len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invalid_caption_is_located_among_blank_lines() {
        let folder = tempfile::tempdir().unwrap();
        let pack = folder.path().join("pack");
        let original = Drawings::captioned(8, vec!["a".into(), "b".into()], vec![0; 2 * 8 * 8 * 4]).unwrap();
        original.save(&pack).unwrap();
        let open = |second: &str| {
            std::fs::write(pack.join(CAPTIONS), format!("\n{{\"caption\": \"a\"}}\n\n \n{second}\n")).unwrap();
            Drawings::open(&pack)
        };
        assert_eq!(open("{\"caption\": \"b\"}"), Ok(original));
        assert!(open("{\"caption\": 2}").unwrap_err().contains("captions.jsonl, line 5"));
    }
}
