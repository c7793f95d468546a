//! Emoji drawings from Iconify's packages, joined with a table of concepts.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::drawings::{Alias, Label};
use super::files;
use super::vectors::Vector;

/// Names of the styles and the packages with their drawings.
pub const STYLES: [(&str, &str); 5] =
    [("noto", "noto"), ("flat", "fluent-emoji-flat"), ("blob", "noto-v1"), ("glossy", "fluent-emoji"), ("twemoji", "twemoji")];

/// The repository's table of concepts.
const BUNDLED: &str = include_str!("../../data/concepts.jsonl");
/// Maximum size of a package or table, in bytes. The largest package has a hundred million.
const MAX_FILE_SIZE: u64 = 1 << 29;

/// Suitability of a concept for a small model, from the least to the most suitable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Any concept, including faces, people and signs.
    #[default]
    All,
    /// An object, animal, food, place or vehicle.
    Thing,
    /// A thing with a short name, drawings in most styles, and an unmistakable look.
    Core,
}

/// A row of the table of concepts: a concept and its drawings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Name: "cat face".
    pub name: String,
    /// Noun phrase with its article: "a cat face".
    pub np: String,
    /// Plural: "cat faces"; empty if the concept has none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub plural: String,
    /// Related words: "animal", "pet".
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// A more common name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<Alias>,
    /// Suitability for a small model.
    #[serde(default)]
    pub level: Level,
    /// Names of the drawings by package, where they differ from the concept's name with hyphens; null where the package has none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub icons: BTreeMap<String, Option<String>>,
}

impl Entry {
    /// Returns the name that the concept's drawing has in a package, if the package contains it. `None` if the table excludes it.
    fn icon(&self, package: &str) -> Option<Cow<'_, str>> {
        if let Some(icon) = self.icons.get(package) {
            return icon.as_deref().map(Cow::from);
        }
        let letters = self.name.to_lowercase().replace(['\'', '’'], "");
        let words = letters.split(|letter: char| !letter.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
        Some(words.collect::<Vec<_>>().join("-").into())
    }
}

/// Reads a table of concepts, one JSON object per line; without a path, the repository's own.
///
/// # Errors
///
/// Returns an error if the file can't be read or a line is invalid.
pub fn concepts(path: Option<&Path>) -> Result<Vec<Entry>, String> {
    let (text, path) = match path {
        Some(path) => (Cow::from(files::read_text(path, MAX_FILE_SIZE)?), path),
        None => (Cow::from(BUNDLED), Path::new("examples/data/concepts.jsonl")),
    };
    files::parse_lines(path, &text.lines().collect::<Vec<_>>())
}

/// Selects concepts by a list of names, one per line, in this order. Empty lines and lines that start with # are skipped.
///
/// # Errors
///
/// Returns an error if a name is unknown or appears twice.
pub fn select_by_name(concepts: Vec<Entry>, names: &str) -> Result<Vec<Entry>, String> {
    let mut by_name: HashMap<String, Entry> = concepts.into_iter().map(|entry| (entry.name.clone(), entry)).collect();
    let names = names.lines().map(str::trim).filter(|name| !name.is_empty() && !name.starts_with('#'));
    let take = |name: &str| by_name.remove(name).ok_or_else(|| format!("{name}: unknown concept, or listed twice"));
    names.map(take).collect()
}

/// The file of a package.
#[derive(Deserialize)]
struct Package<'a> {
    #[serde(borrow)]
    icons: HashMap<Cow<'a, str>, Icon<'a>>,
    #[serde(borrow, default)]
    aliases: HashMap<Cow<'a, str>, IconAlias<'a>>,
    width: Option<f64>,
    height: Option<f64>,
}

/// A drawing. Missing fields take the package's values.
#[derive(Deserialize)]
struct Icon<'a> {
    #[serde(borrow)]
    body: Cow<'a, str>,
    left: Option<f64>,
    top: Option<f64>,
    width: Option<f64>,
    height: Option<f64>,
}

/// An alias of a drawing.
#[derive(Deserialize)]
struct IconAlias<'a> {
    #[serde(borrow)]
    parent: Cow<'a, str>,
}

/// Side of drawings whose package has none, as in Iconify's format.
const DEFAULT_SIDE: f64 = 16.0;

/// Reads the drawings of these concepts in these styles from a folder of packages (`node_modules/@iconify-json`). The drawings are
/// ordered by concept. Drawings that a package lacks are left out.
///
/// # Errors
///
/// Returns an error if a style is unknown, a package can't be read, or there is no drawing.
pub fn vectors(folder: &Path, concepts: &[Entry], styles: &[String]) -> Result<Vec<Vector>, String> {
    let mut found: Vec<Vec<Vector>> = vec![vec![]; concepts.len()];
    let mut seen = HashSet::new();
    for style in styles.iter().filter(|style| seen.insert(*style)) {
        let Some((_, package)) = STYLES.iter().find(|(name, _)| name == style) else {
            return Err(format!("no style {style}, expected one of {}", STYLES.map(|(name, _)| name).join(", ")));
        };
        let path = folder.join(package).join("icons.json");
        if !path.is_file() {
            let folder = folder.display();
            return Err(format!("no {package}/icons.json in {folder}: install the package @iconify-json/{package} first"));
        }
        let text = files::read_text(&path, MAX_FILE_SIZE)?;
        let package_file: Package<'_> = serde_json::from_str(&text).map_err(|e| format!("{}: {e}", path.display()))?;
        for (entry, found) in concepts.iter().zip(&mut found) {
            found.extend(entry.icon(package).and_then(|icon| package_file.vector(entry, style, &icon)));
        }
    }
    let found = found.concat();
    if found.is_empty() {
        return Err(format!("{}: has no drawing of these concepts and styles", folder.display()));
    }
    Ok(found)
}

impl Package<'_> {
    /// Returns a drawing by its name or alias.
    fn vector(&self, entry: &Entry, style: &str, icon: &str) -> Option<Vector> {
        let named = |name: &str| self.icons.get(name);
        let icon = named(icon).or_else(|| named(&self.aliases.get(icon)?.parent))?;
        let side = |own: Option<f64>, package: Option<f64>| own.or(package).unwrap_or(DEFAULT_SIDE);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn packages() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let square = r#""body": "<path fill=\"red\" d=\"M0 0h8v8z\"/>""#;
        let package = format!(
            r#"{{"prefix": "noto", "width": 8, "icons": {{"cat-face": {{{square}}}, "tall": {{{square}, "height": 16, "top": 2}}}},
                "aliases": {{"womans-hat": {{"parent": "tall"}}, "loop": {{"parent": "loop"}}}}}}"#
        );
        std::fs::create_dir(folder.path().join("noto")).unwrap();
        std::fs::write(folder.path().join("noto/icons.json"), package).unwrap();
        folder
    }

    #[test]
    fn drawings_are_found_by_name_alias_or_table() {
        let folder = packages();
        let entry = |name: &str, icons: &str| -> Entry {
            serde_json::from_str(&format!(r#"{{"name": "{name}", "np": "a {name}", "icons": {icons}}}"#)).unwrap()
        };
        let concepts = [
            entry("cat face", "{}"),
            entry("woman's hat", "{}"),
            entry("tower", r#"{"noto": "tall"}"#),
            entry("tall", r#"{"noto": null}"#),
            entry("loop", "{}"),
        ];
        let found = vectors(folder.path(), &concepts, &["noto".into(), "noto".into()]).unwrap();
        let names: Vec<&str> = found.iter().map(|vector| vector.label.concept.as_str()).collect();
        assert_eq!(names, ["cat face", "woman's hat", "tower"]);
        assert_eq!((found[0].top, found[0].width, found[0].height), (0.0, 8.0, 16.0));
        assert_eq!((found[1].top, found[1].width, found[1].height), (2.0, 8.0, 16.0));
        let error = vectors(folder.path(), &concepts[3..], &["noto".into()]).unwrap_err();
        assert!(error.contains("has no drawing"), "{error}");
        std::fs::write(folder.path().join("noto/icons.json"), "{").unwrap();
        assert!(vectors(folder.path(), &concepts, &["noto".into()]).unwrap_err().contains("icons.json"));
    }

    #[test]
    fn the_bundled_table_is_complete_and_its_names_differ() {
        let concepts = concepts(None).unwrap();
        let names: HashSet<&str> = concepts.iter().map(|entry| entry.name.as_str()).collect();
        assert_eq!(names.len(), concepts.len());
        let chosen = select_by_name(concepts.clone(), include_str!("../../data/names.txt")).unwrap();
        assert_eq!((chosen.len(), chosen[0].name.as_str()), (80, "red heart"));
        assert!(select_by_name(concepts.clone(), "parrot\nparrot").unwrap_err().contains("parrot"));
        assert!(concepts.iter().filter(|entry| entry.level == Level::Core).count() > 600);
    }
}
