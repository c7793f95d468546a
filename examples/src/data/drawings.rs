//! Pictures with what they show, and the folder that they are kept in.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::{Deserialize, Serialize};

use super::files;

/// File of the pixels in a pack's folder.
const PIXELS: &str = "drawings.safetensors";
/// File of the captions in a pack's folder.
const CAPTIONS: &str = "captions.jsonl";
/// Most bytes of captions that are read.
const MOST_CAPTIONS: u64 = 1 << 30;
/// Most bytes of pixels that are read.
const MOST_PIXELS: u64 = 1 << 36;
/// Sides that pictures can have.
pub const SIDES: std::ops::RangeInclusive<usize> = 8..=1024;

/// Another way to call a concept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alias {
    /// "a cat".
    pub np: String,
    /// "cats"; empty if it isn't counted.
    #[serde(default)]
    pub plural: String,
}

/// What a drawing shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Concept {
    /// "cat face"; no two concepts share one.
    pub name: String,
    /// With its article: "a cat face".
    pub np: String,
    /// "cat faces"; empty if it isn't counted.
    pub plural: String,
    /// Words that have to do with it: "animal", "pet".
    pub tags: Vec<String>,
    /// What people would rather call it: "a cat".
    pub alias: Option<Alias>,
}

/// One drawing: a concept in a style.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drawing {
    /// Index into [`Drawings::concepts`].
    pub concept: usize,
    /// Index into [`Drawings::styles`].
    pub style: usize,
}

/// What is kept of a drawing beside its pixels: one line of a pack's captions, and of a file of vector drawings.
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
    /// Its style's name.
    pub style: String,
}

/// The line of a captioned picture.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Captioned {
    caption: String,
}

/// Drawings on transparent ground with what they show, or people's own pictures with their captions.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Drawings {
    /// Pixels a side.
    pub side: usize,
    /// What is shown, in the order of its first drawing.
    pub concepts: Vec<Concept>,
    /// Names of the styles: "flat", "noto".
    pub styles: Vec<String>,
    /// The drawings; none in a pack of captioned pictures.
    pub drawings: Vec<Drawing>,
    /// Captions of captioned pictures, one each; none in a pack of drawings.
    pub captions: Vec<String>,
    images: Vec<u8>,
}

impl Drawings {
    /// Drawings from their labels and their pixels, premultiplied RGBA of `side` x `side`, one after the other.
    ///
    /// # Errors
    ///
    /// There are too few or too many pixels, a label is empty, or two drawings show one concept in one style.
    pub fn new(side: usize, labels: Vec<Label>, images: Vec<u8>) -> Result<Self, String> {
        check(side, labels.len(), images.len())?;
        let mut made = Self { side, images, ..Self::default() };
        let mut seen = HashSet::new();
        let mut concepts = HashMap::new();
        for (index, label) in labels.into_iter().enumerate() {
            if [&label.concept, &label.np, &label.style].iter().any(|text| text.trim().is_empty()) {
                return Err(format!("drawing {}: concept, np and style must not be empty", index + 1));
            }
            let style = made.styles.iter().position(|name| *name == label.style).unwrap_or_else(|| {
                made.styles.push(label.style.clone());
                made.styles.len() - 1
            });
            let concept = *concepts.entry(label.concept.clone()).or_insert_with(|| {
                let Label { concept: name, np, plural, tags, alias, .. } = label.clone();
                made.concepts.push(Concept { name, np, plural, tags, alias });
                made.concepts.len() - 1
            });
            if !seen.insert((concept, style)) {
                return Err(format!("drawing {}: a second {} in the style {}", index + 1, label.concept, label.style));
            }
            made.drawings.push(Drawing { concept, style });
        }
        made.drop_unclear_aliases();
        Ok(made)
    }

    /// Pictures from their captions and pixels, RGBA of `side` x `side`, one after the other.
    ///
    /// # Errors
    ///
    /// There are too few or too many pixels.
    pub fn captioned(side: usize, captions: Vec<String>, images: Vec<u8>) -> Result<Self, String> {
        check(side, captions.len(), images.len())?;
        Ok(Self { side, captions, images, ..Self::default() })
    }

    /// An alias that could mean another concept too is none.
    fn drop_unclear_aliases(&mut self) {
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

    /// How many pictures there are.
    pub fn len(&self) -> usize {
        self.drawings.len() + self.captions.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Pixels of picture `i`: premultiplied RGBA, `side` x `side`.
    ///
    /// # Panics
    ///
    /// There is no such picture.
    pub fn image(&self, i: usize) -> &[u8] {
        let size = self.side * self.side * 4;
        &self.images[i * size..(i + 1) * size]
    }

    /// The drawing of a concept in a style, both by index.
    pub fn find(&self, concept: usize, style: usize) -> Option<usize> {
        self.drawings.iter().position(|d| d.concept == concept && d.style == style)
    }

    /// The concept that drawing `i` shows.
    ///
    /// # Panics
    ///
    /// There is no such drawing.
    pub fn concept(&self, i: usize) -> &Concept {
        &self.concepts[self.drawings[i].concept]
    }

    /// The label of drawing `i`.
    ///
    /// # Panics
    ///
    /// There is no such drawing.
    pub fn label(&self, i: usize) -> Label {
        let Concept { name: concept, np, plural, tags, alias } = self.concept(i).clone();
        Label { concept, np, plural, tags, alias, style: self.styles[self.drawings[i].style].clone() }
    }

    /// The drawings of the first so many concepts, in some styles only; none named are all.
    ///
    /// # Errors
    ///
    /// There is no such style.
    pub fn select(&self, concepts: usize, styles: &[String]) -> Result<Self, String> {
        if let Some(missing) = styles.iter().find(|style| !self.styles.contains(style)) {
            return Err(format!("there is no style {missing}; there are {}", self.styles.join(", ")));
        }
        let wanted = |d: &Drawing| d.concept < concepts && (styles.is_empty() || styles.contains(&self.styles[d.style]));
        let chosen: Vec<usize> = (0..self.drawings.len()).filter(|&i| wanted(&self.drawings[i])).collect();
        let images = chosen.iter().flat_map(|&i| self.image(i)).copied().collect();
        Self::new(self.side, chosen.iter().map(|&i| self.label(i)).collect(), images)
    }

    /// Reads a folder that [`save`](Self::save) wrote.
    ///
    /// # Errors
    ///
    /// A file is missing or damaged.
    pub fn open(folder: &Path) -> Result<Self, String> {
        let path = folder.join(PIXELS);
        let advice = "pass a folder that the program dataset made";
        if !path.is_file() {
            return Err(format!("no {PIXELS} in {}: {advice}", folder.display()));
        }
        let mut images = files::read(&path, MOST_PIXELS)?;
        let named = |e: &dyn std::fmt::Display| format!("{}: {e}; {advice}", path.display());
        let (side, count, range) = layout(&images).map_err(|e| named(&e))?;
        // In place: the pixels may be most of the memory.
        images.truncate(range.end);
        images.drain(..range.start);

        let path = folder.join(CAPTIONS);
        let text = files::read_text(&path, MOST_CAPTIONS)?;
        let lines: Vec<&str> = text.lines().collect();
        let filled = || lines.iter().filter(|line| !line.trim().is_empty());
        if filled().count() != count {
            let (found, path) = (filled().count(), path.display());
            return Err(format!("{path}: has {found} lines, {PIXELS} has {count} pictures; {advice}"));
        }
        let captioned = filled().next().is_some_and(|line| serde_json::from_str::<Captioned>(line).is_ok());
        let made = if captioned {
            let captions: Vec<Captioned> = files::parse_lines(&path, &lines)?;
            Self::captioned(side, captions.into_iter().map(|line| line.caption).collect(), images)
        } else {
            Self::new(side, files::parse_lines(&path, &lines)?, images)
        };
        made.map_err(|e| format!("{}: {e}", path.display()))
    }

    /// Writes a new folder, whole or not at all.
    ///
    /// # Errors
    ///
    /// The folder is there already, or the system's.
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
        files::new_folder(folder, |inside| {
            let [pixels, texts] = [PIXELS, CAPTIONS].map(|name| inside.join(name));
            std::fs::write(&texts, captions).map_err(|e| e.to_string())?;
            safetensors::serialize_to_file([("images", view)], None, &pixels).map_err(|e| e.to_string())?;
            // What safetensors writes is private; a pack has the rights of any new file.
            let rights = std::fs::metadata(&texts).map_err(|e| e.to_string())?.permissions();
            std::fs::set_permissions(&pixels, rights).map_err(|e| e.to_string())
        })
    }
}

fn check(side: usize, pictures: usize, bytes: usize) -> Result<(), String> {
    if !SIDES.contains(&side) {
        return Err(format!("pictures have {} to {} pixels a side, not {side}", SIDES.start(), SIDES.end()));
    }
    if Some(bytes) != (side * side * 4).checked_mul(pictures) {
        return Err(format!("{pictures} pictures of {side} x {side} pixels don't have {bytes} bytes"));
    }
    if pictures == 0 { Err("there is no picture".into()) } else { Ok(()) }
}

/// Side, count, and where the pixels are in the bytes of a file.
fn layout(bytes: &[u8]) -> Result<(usize, usize, std::ops::Range<usize>), String> {
    let file = SafeTensors::deserialize(bytes).map_err(|e| e.to_string())?;
    let tensor = file.tensor("images").map_err(|_| "there is no tensor images")?;
    let [count, side, width, 4] = *tensor.shape() else {
        return Err(format!("images has the shape {:?}, expected [pictures, side, side, 4]", tensor.shape()));
    };
    if tensor.dtype() != Dtype::U8 || side != width {
        let (dtype, shape) = (tensor.dtype(), tensor.shape());
        return Err(format!("images is {dtype:?} {shape:?}, expected U8 [pictures, side, side, 4]"));
    }
    check(side, count, tensor.data().len())?;
    let start = tensor.data().as_ptr().addr() - bytes.as_ptr().addr();
    Ok((side, count, start..start + tensor.data().len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_caption_is_found_among_blank_lines() {
        let folder = tempfile::tempdir().unwrap();
        let pack = folder.path().join("pack");
        let made = Drawings::captioned(8, vec!["a".into(), "b".into()], vec![0; 2 * 8 * 8 * 4]).unwrap();
        made.save(&pack).unwrap();
        let open = |second: &str| {
            std::fs::write(pack.join(CAPTIONS), format!("\n{{\"caption\": \"a\"}}\n\n \n{second}\n")).unwrap();
            Drawings::open(&pack)
        };
        assert_eq!(open("{\"caption\": \"b\"}"), Ok(made));
        assert!(open("{\"caption\": 2}").unwrap_err().contains("captions.jsonl, line 5"));
    }
}
