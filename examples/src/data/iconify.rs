//! Emoji drawings as Iconify's packages hold them, joined with a table of what they show.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::drawings::{Alias, Label};
use super::files;
use super::vectors::Vector;

/// Style words and the packages that have their drawings.
pub const STYLES: [(&str, &str); 5] =
    [("noto", "noto"), ("flat", "fluent-emoji-flat"), ("blob", "noto-v1"), ("glossy", "fluent-emoji"), ("twemoji", "twemoji")];

/// The table of concepts that comes with the repository.
const COMMITTED: &str = include_str!("../../data/concepts.jsonl");
/// Most bytes of a package or table; the largest package has a hundred million.
const MOST_BYTES: u64 = 1 << 29;

/// How well a concept suits a small model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Faces, people, signs.
    #[default]
    All,
    /// Things, animals, food, places, vehicles.
    Thing,
    /// Those of them with short names that are drawn in most styles and can't be taken for another.
    Core,
}

/// A concept, and which drawings show it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// "cat face".
    pub name: String,
    /// "a cat face".
    pub np: String,
    /// "cat faces"; empty if it isn't counted.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub plural: String,
    /// "animal", "pet".
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// What people would rather call it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<Alias>,
    /// How well it suits a small model.
    #[serde(default)]
    pub level: Level,
    /// Names of drawings by package, where they aren't the concept's with hyphens; null where the package has none of it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub icons: BTreeMap<String, Option<String>>,
}

impl Entry {
    /// The name of its drawing in a package, whether that is there or not.
    fn icon(&self, package: &str) -> Option<Cow<'_, str>> {
        if let Some(icon) = self.icons.get(package) {
            return icon.as_deref().map(Cow::from);
        }
        let letters = self.name.to_lowercase().replace(['\'', '’'], "");
        let words = letters.split(|letter: char| !letter.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
        Some(words.collect::<Vec<_>>().join("-").into())
    }
}

/// The table of concepts that comes with the repository, or another of its kind: one JSON object a line.
///
/// # Errors
///
/// It can't be read, or a line is no concept.
pub fn concepts(path: Option<&Path>) -> Result<Vec<Entry>, String> {
    let (text, path) = match path {
        Some(path) => (Cow::from(files::read_text(path, MOST_BYTES)?), path),
        None => (Cow::from(COMMITTED), Path::new("examples/data/concepts.jsonl")),
    };
    files::parse_lines(path, &text.lines().collect::<Vec<_>>())
}

/// The concepts of a list of names, one a line, in its order. Empty lines and those that begin with # are passed over.
///
/// # Errors
///
/// There is no such concept, or a name is there twice.
pub fn named(concepts: Vec<Entry>, names: &str) -> Result<Vec<Entry>, String> {
    let mut by_name: HashMap<String, Entry> = concepts.into_iter().map(|entry| (entry.name.clone(), entry)).collect();
    let names = names.lines().map(str::trim).filter(|name| !name.is_empty() && !name.starts_with('#'));
    let take = |name: &str| by_name.remove(name).ok_or_else(|| format!("{name}: there is no such concept, or it is named twice"));
    names.map(take).collect()
}

/// A package's file of drawings.
#[derive(Deserialize)]
struct Package<'a> {
    #[serde(borrow)]
    icons: HashMap<Cow<'a, str>, Icon<'a>>,
    #[serde(borrow, default)]
    aliases: HashMap<Cow<'a, str>, Parent<'a>>,
    width: Option<f64>,
    height: Option<f64>,
}

/// A drawing; what it leaves out is the package's.
#[derive(Deserialize)]
struct Icon<'a> {
    #[serde(borrow)]
    body: Cow<'a, str>,
    left: Option<f64>,
    top: Option<f64>,
    width: Option<f64>,
    height: Option<f64>,
}

/// Another name of a drawing.
#[derive(Deserialize)]
struct Parent<'a> {
    #[serde(borrow)]
    parent: Cow<'a, str>,
}

/// Side of drawings whose package names none.
const USUAL_SIDE: f64 = 16.0;

/// The drawings of these concepts in these styles, concept by concept, from a folder of packages (`node_modules/@iconify-json`).
/// Concepts that a style lacks are left out of it.
///
/// # Errors
///
/// A style has no package, a package can't be read, or there is no drawing.
pub fn vectors(folder: &Path, concepts: &[Entry], styles: &[String]) -> Result<Vec<Vector>, String> {
    let mut found: Vec<Vec<Vector>> = vec![vec![]; concepts.len()];
    let mut seen = HashSet::new();
    for style in styles.iter().filter(|style| seen.insert(*style)) {
        let Some((_, package)) = STYLES.iter().find(|(name, _)| name == style) else {
            return Err(format!("there is no style {style}; there are {}", STYLES.map(|(name, _)| name).join(", ")));
        };
        let path = folder.join(package).join("icons.json");
        if !path.is_file() {
            let folder = folder.display();
            return Err(format!("no {package}/icons.json in {folder}: install the package @iconify-json/{package} first"));
        }
        let text = files::read_text(&path, MOST_BYTES)?;
        let package_file: Package<'_> = serde_json::from_str(&text).map_err(|e| format!("{}: {e}", path.display()))?;
        for (entry, found) in concepts.iter().zip(&mut found) {
            found.extend(entry.icon(package).and_then(|icon| package_file.vector(entry, style, &icon)));
        }
    }
    let found = found.concat();
    if found.is_empty() {
        return Err(format!("{}: has no drawing of the concepts and styles that were asked for", folder.display()));
    }
    Ok(found)
}

impl Package<'_> {
    fn vector(&self, entry: &Entry, style: &str, icon: &str) -> Option<Vector> {
        let named = |name: &str| self.icons.get(name);
        let icon = named(icon).or_else(|| named(&self.aliases.get(icon)?.parent))?;
        let side = |own: Option<f64>, package: Option<f64>| own.or(package).unwrap_or(USUAL_SIDE);
        let Entry { name: concept, np, plural, tags, alias, .. } = entry.clone();
        Some(Vector {
            label: Label { concept, np, plural, tags, alias, style: style.into() },
            left: icon.left.unwrap_or(0.0),
            top: icon.top.unwrap_or(0.0),
            width: side(icon.width, self.width),
            height: side(icon.height, self.height),
            body: icon.body.clone().into_owned(),
        })
    }
}
