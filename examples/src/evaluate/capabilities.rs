//! The capabilities of a model: the concepts and words that it was trained on. Tests are restricted to them.

use std::path::Path;

use serde::Deserialize;

use crate::data::files;

/// Name of the file in a model's folder.
pub const FILE: &str = "capabilities.json";

/// The capabilities of a model, from `capabilities.json` in its folder. A missing list means everything in the data.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Capabilities {
    /// Names of the known concepts.
    pub concepts: Option<Vec<String>>,
    /// Names of the styles that the model understands in prompts; may be empty.
    pub styles: Option<Vec<String>>,
    /// Names of the known backgrounds.
    pub backgrounds: Option<Vec<String>>,
    /// Style of the images if the prompt doesn't mention one.
    pub default_style: Option<String>,
    /// True if the model understands arrangements of two objects.
    pub relations: bool,
    /// True if the model understands the position of one object. False by default, because the default mix has no such captions.
    pub positions: bool,
    /// Numbers of equal objects that the model understands.
    pub counts: Option<Vec<usize>>,
    /// True if the held-out splits were left out of training. If not, only the seen splits are tested.
    pub held_out: bool,
}

impl Default for Capabilities {
    fn default() -> Self {
        Self {
            concepts: None,
            styles: None,
            backgrounds: None,
            default_style: None,
            relations: true,
            positions: false,
            counts: None,
            held_out: true,
        }
    }
}

impl Capabilities {
    /// Reads the file in a model's folder. Without one, returns the default: everything is known.
    ///
    /// # Errors
    ///
    /// Returns an error if the file can't be read or is invalid.
    pub fn open(model: &Path) -> Result<Self, String> {
        let path = model.join(FILE);
        // If the check itself fails, reading the file returns the error.
        if let Ok(false) = path.try_exists() {
            return Ok(Self::default());
        }
        let text = files::read_text(&path, files::MAX_SETTINGS_SIZE)?;
        serde_json::from_str(&text).map_err(|e| format!("{}: {e}", path.display()))
    }

    /// Returns whether a concept is known.
    pub fn knows_concept(&self, name: &str) -> bool {
        is_listed(self.concepts.as_deref(), name)
    }

    /// Returns whether a style is known.
    pub fn knows_style(&self, name: &str) -> bool {
        is_listed(self.styles.as_deref(), name)
    }

    /// Returns whether a background is known.
    pub fn knows_background(&self, name: &str) -> bool {
        is_listed(self.backgrounds.as_deref(), name)
    }

    /// Returns whether a number of equal objects is known; 1 always is.
    pub fn knows_count(&self, count: usize) -> bool {
        count == 1 || self.counts.as_ref().is_none_or(|counts| counts.contains(&count))
    }
}

/// Returns whether a list contains a name. A missing list contains all names.
fn is_listed(names: Option<&[String]>, name: &str) -> bool {
    names.is_none_or(|names| names.iter().any(|n| n == name))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn missing_lists_stand_for_everything() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Capabilities::open(folder.path()), Ok(Capabilities::default()));
        fs::write(folder.path().join(FILE), r#"{"concepts": ["parrot"], "styles": [], "counts": [2]}"#).unwrap();
        let capabilities = Capabilities::open(folder.path()).unwrap();
        assert!(capabilities.knows_concept("parrot") && !capabilities.knows_concept("guitar"));
        assert!(!capabilities.knows_style("flat") && capabilities.knows_background("teal"));
        assert!(
            capabilities.knows_count(1) && capabilities.knows_count(2) && !capabilities.knows_count(3) && capabilities.relations
        );
        fs::write(folder.path().join(FILE), r#"{"concept": []}"#).unwrap();
        assert!(Capabilities::open(folder.path()).unwrap_err().contains("concept"));
        fs::remove_file(folder.path().join(FILE)).unwrap();
        fs::create_dir(folder.path().join(FILE)).unwrap();
        assert!(Capabilities::open(folder.path()).unwrap_err().contains("expected a regular file"));
    }
}
