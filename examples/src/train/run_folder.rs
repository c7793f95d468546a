//! The folder of a run: saved states, tables of losses, contact sheets and the model.

use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use hart_core::write_file;
use serde_json::{Map, Value};

/// The folder of a run.
#[derive(Debug)]
pub struct RunFolder(PathBuf);

impl RunFolder {
    /// Creates the folder, or opens the folder of a run to resume. Stores a copy of the recipe.
    ///
    /// # Errors
    ///
    /// Returns an error if a folder or file can't be created.
    pub fn open(path: &Path, recipe: &str) -> Result<Self, Box<dyn Error>> {
        let folder = Self(path.to_path_buf());
        for subfolder in ["sheets", "model/llm", "model/text", "model/tokenizer"] {
            let path = path.join(subfolder);
            fs::create_dir_all(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        }
        let copy = path.join("recipe.toml");
        match fs::read_to_string(&copy) {
            Ok(before) if before != recipe => {
                eprintln!("note: the recipe has changed since this run was started; {} now contains the new one", copy.display());
                write_file(&copy, recipe.as_bytes())?;
            }
            Ok(_) => {}
            Err(_) => write_file(&copy, recipe.as_bytes())?,
        }
        Ok(folder)
    }

    /// Returns whether there is a saved state to resume from.
    pub fn has_state(&self) -> bool {
        ["tokenizer", "generator"].iter().any(|phase| self.state(phase).is_file())
    }

    /// Returns the folder of the model in the published layout.
    pub fn model(&self) -> PathBuf {
        self.0.join("model")
    }

    /// Returns the path of a phase's saved state.
    pub fn state(&self, phase: &str) -> PathBuf {
        self.0.join(format!("{phase}.state.safetensors"))
    }

    /// Returns the path of a contact sheet.
    pub fn sheet(&self, phase: &str, step: u64) -> PathBuf {
        self.0.join("sheets").join(format!("{phase}-{step:06}.png"))
    }

    /// Sets a value in the run's report, `report.json`.
    ///
    /// # Errors
    ///
    /// Returns an error if the file can't be written.
    pub fn report(&self, name: &str, value: Value) -> hart_core::Result<()> {
        let path = self.0.join("report.json");
        let before = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Map<String, Value>>(&bytes).ok());
        let mut report = before.unwrap_or_default();
        report.insert(name.into(), value);
        write_file(path, format!("{:#}\n", Value::Object(report)).as_bytes())
    }

    /// Opens the table of losses of a phase. Lines after `step`, the last saved one, are dropped.
    ///
    /// # Errors
    ///
    /// Returns an error if the table can't be written.
    pub fn table(&self, phase: &str, columns: &str, step: u64) -> Result<LossTable, Box<dyn Error>> {
        let path = self.0.join(format!("{phase}.csv"));
        let before = fs::read_to_string(&path).unwrap_or_default();
        let is_saved = |line: &&str| line.split(',').next().and_then(|s| s.parse::<u64>().ok()).is_some_and(|s| s <= step);
        let mut text = format!("{columns}\n");
        before.lines().filter(is_saved).for_each(|line| text.push_str(&format!("{line}\n")));
        Ok(LossTable { path, text })
    }
}

/// A CSV file of losses.
#[derive(Debug)]
pub struct LossTable {
    path: PathBuf,
    text: String,
}

impl LossTable {
    /// Appends a line.
    ///
    /// # Errors
    ///
    /// Returns an error if the file can't be written.
    pub fn push(&mut self, step: u64, seconds: f64, values: &[f32]) -> hart_core::Result<()> {
        write!(self.text, "{step},{seconds:.1}").expect("writing to a string");
        values.iter().for_each(|value| write!(self.text, ",{value:.5}").expect("writing to a string"));
        self.text.push('\n');
        write_file(&self.path, self.text.as_bytes())
    }
}
