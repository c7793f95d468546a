//! The files of a model, which JavaScript writes in pieces.

use hart_core::Files;
use wasm_bindgen::prelude::*;

use crate::failure::Failure;

/// Files of a checkpoint in memory. Each file is begun, written and ended before the next one.
#[wasm_bindgen]
#[derive(Default)]
pub struct ModelFiles {
    pub(crate) files: Files,
    current: Option<(String, Vec<u8>)>,
}

#[wasm_bindgen]
impl ModelFiles {
    /// Creates an empty set of files.
    #[wasm_bindgen(constructor)]
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins a file, under its name relative to the checkpoint's root, and allocates its memory.
    ///
    /// # Errors
    ///
    /// `memory` if the file is too large.
    pub fn begin(&mut self, name: String, size: f64) -> Result<(), JsValue> {
        let mut contents = Vec::new();
        contents.try_reserve_exact(size as usize).map_err(|_| no_memory(&name, size as usize))?;
        self.current = Some((name, contents));
        Ok(())
    }

    /// Appends bytes to the current file.
    ///
    /// # Errors
    ///
    /// `memory` if the file has become too large.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), JsValue> {
        if let Some((name, contents)) = &mut self.current {
            contents.try_reserve(bytes.len()).map_err(|_| no_memory(name, contents.len() + bytes.len()))?;
            contents.extend_from_slice(bytes);
        }
        Ok(())
    }

    /// Ends the current file.
    ///
    /// # Errors
    ///
    /// `request` if its name is invalid or already exists.
    pub fn end(&mut self) -> Result<(), JsValue> {
        let Some((name, contents)) = self.current.take() else { return Ok(()) };
        Ok(self.files.insert(name, contents).map_err(Failure::from)?)
    }
}

fn no_memory(name: &str, size: usize) -> Failure {
    let problem = format!(
        "{name}: no memory for {} MB: one file can have 2047 MB and all files about 3500 MB; convert the model to int8 or bf16, or \
         split the file into shards",
        size >> 20
    );
    Failure::new("memory", problem)
}
