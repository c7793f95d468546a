//! Where a run keeps what it makes: states to go on from, losses as CSV, contact sheets, and the model.

use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use hart_examples::cli::output;
use serde_json::{Map, Value};

/// The folder of a run.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// Makes the folder, or takes up the run that is in it.
    ///
    /// # Errors
    ///
    /// It can't be made, or holds a run of another recipe.
    pub fn open(path: &Path, recipe: &str) -> Result<Self, Box<dyn Error>> {
        let folder = Self(path.to_path_buf());
        for part in ["sheets", "model/llm", "model/text", "model/tokenizer"] {
            let path = path.join(part);
            fs::create_dir_all(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        }
        let kept = path.join("recipe.toml");
        match fs::read_to_string(&kept) {
            Ok(before) if before != recipe => {
                eprintln!("note: the recipe has changed since this run began; {} now has the new one", kept.display());
                output::write_file(&kept, recipe.as_bytes())?;
            }
            Ok(_) => {}
            Err(_) => output::write_file(&kept, recipe.as_bytes())?,
        }
        Ok(folder)
    }

    /// Whether there is a state to go on from.
    pub fn is_taken_up(&self) -> bool {
        ["tokenizer", "generator"].iter().any(|phase| self.state(phase).is_file())
    }

    /// The model's folder, in the published layout.
    pub fn model(&self) -> PathBuf {
        self.0.join("model")
    }

    /// The state that a phase goes on from.
    pub fn state(&self, phase: &str) -> PathBuf {
        self.0.join(format!("{phase}.state.safetensors"))
    }

    /// A contact sheet.
    pub fn sheet(&self, phase: &str, step: u64) -> PathBuf {
        self.0.join("sheets").join(format!("{phase}-{step:06}.png"))
    }

    /// Adds a figure to the run's report.
    ///
    /// # Errors
    ///
    /// The file can't be written.
    pub fn report(&self, name: &str, figure: Value) -> Result<(), String> {
        let path = self.0.join("report.json");
        let before = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Map<String, Value>>(&bytes).ok());
        let mut report = before.unwrap_or_default();
        report.insert(name.into(), figure);
        output::write_file(&path, format!("{:#}\n", Value::Object(report)).as_bytes())
    }

    /// A table of losses that has the steps up to `step`; later lines, of a run that was cut off, are dropped.
    ///
    /// # Errors
    ///
    /// It can't be read or written.
    pub fn table(&self, phase: &str, columns: &str, step: u64) -> Result<Table, Box<dyn Error>> {
        let path = self.0.join(format!("{phase}.csv"));
        let before = fs::read_to_string(&path).unwrap_or_default();
        let known = |line: &&str| line.split(',').next().and_then(|s| s.parse::<u64>().ok()).is_some_and(|s| s <= step);
        let mut text = format!("{columns}\n");
        before.lines().filter(known).for_each(|line| text.push_str(&format!("{line}\n")));
        Ok(Table { path, text })
    }
}

/// A CSV file that grows.
#[derive(Debug)]
pub struct Table {
    path: PathBuf,
    text: String,
}

impl Table {
    /// Adds a line.
    ///
    /// # Errors
    ///
    /// The file can't be written.
    pub fn push(&mut self, step: u64, seconds: f64, numbers: &[f32]) -> Result<(), String> {
        write!(self.text, "{step},{seconds:.1}").expect("writing to a string");
        numbers.iter().for_each(|number| write!(self.text, ",{number:.5}").expect("writing to a string"));
        self.text.push('\n');
        output::write_file(&self.path, self.text.as_bytes())
    }
}
