//! What a model was trained to understand, so that it isn't asked for more.

use std::path::Path;

use serde::Deserialize;

use crate::data::files;

/// Name of the file in a model's folder.
pub const FILE: &str = "knows.json";

/// What a model knows: `knows.json` in its folder. What the file doesn't name, the model knows all of, as far as the data's own mix has it.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Knows {
    /// Names of concepts.
    pub concepts: Option<Vec<String>>,
    /// Styles whose words it understands; an empty list for none.
    pub styles: Option<Vec<String>>,
    /// Names of backgrounds.
    pub backgrounds: Option<Vec<String>>,
    /// The style of its drawings where no caption says one.
    pub drawn_in: Option<String>,
    /// Whether it understands how two objects stand.
    pub relations: bool,
    /// Whether it understands where one object stands; no, unless the file says so: the data's own mix has no such captions.
    pub places: bool,
    /// Numbers of objects that it understands.
    pub counts: Option<Vec<usize>>,
    /// Whether the held-out splits were kept from it; if not, only seen prompts say something.
    pub held_out: bool,
}

impl Default for Knows {
    fn default() -> Self {
        Self {
            concepts: None,
            styles: None,
            backgrounds: None,
            drawn_in: None,
            relations: true,
            places: false,
            counts: None,
            held_out: true,
        }
    }
}

impl Knows {
    /// Reads the file in a model's folder; everything if there is none.
    ///
    /// # Errors
    ///
    /// The file can't be read, or isn't what it should be.
    pub fn open(model: &Path) -> Result<Self, String> {
        let path = model.join(FILE);
        // Where that can't be told, the reading says why.
        if let Ok(false) = path.try_exists() {
            return Ok(Self::default());
        }
        let bytes = files::read(&path, files::MAX_SETTINGS_SIZE)?;
        serde_json::from_slice(&bytes).map_err(|e| format!("{}: {e}", path.display()))
    }

    /// Whether a concept is known.
    pub fn concept(&self, name: &str) -> bool {
        listed(self.concepts.as_deref(), name)
    }

    /// Whether a style's word is known.
    pub fn style(&self, name: &str) -> bool {
        listed(self.styles.as_deref(), name)
    }

    /// Whether a background is known.
    pub fn background(&self, name: &str) -> bool {
        listed(self.backgrounds.as_deref(), name)
    }

    /// Whether a number of objects is known; one always is.
    pub fn count(&self, count: usize) -> bool {
        count == 1 || self.counts.as_ref().is_none_or(|counts| counts.contains(&count))
    }
}

fn listed(names: Option<&[String]>, name: &str) -> bool {
    names.is_none_or(|names| names.iter().any(|n| n == name))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_is_not_said_is_known() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Knows::open(folder.path()), Ok(Knows::default()));
        fs::write(folder.path().join(FILE), r#"{"concepts": ["parrot"], "styles": [], "counts": [2]}"#).unwrap();
        let knows = Knows::open(folder.path()).unwrap();
        assert!(knows.concept("parrot") && !knows.concept("guitar") && !knows.style("flat") && knows.background("teal"));
        assert!(knows.count(1) && knows.count(2) && !knows.count(3) && knows.relations);
        fs::write(folder.path().join(FILE), r#"{"concept": []}"#).unwrap();
        assert!(Knows::open(folder.path()).unwrap_err().contains("concept"));
        fs::remove_file(folder.path().join(FILE)).unwrap();
        fs::create_dir(folder.path().join(FILE)).unwrap();
        assert!(Knows::open(folder.path()).unwrap_err().contains("expected a regular file"));
    }
}
