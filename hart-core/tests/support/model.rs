//! A copy of the fixture's checkpoint, for tests that change its files.

use std::fs;
use std::path::{Path, PathBuf};

use hart_core::{Error, Hart, OpenOptions};
use serde_json::Value;

/// A copy of the fixture with the published options.
pub struct Model(tempfile::TempDir);

impl Model {
    pub fn new() -> Self {
        Self::copy(|_| true)
    }

    /// Copies the files whose names are wanted.
    pub fn copy(wanted: impl Fn(&str) -> bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-a");
        for part in ["llm", "tokenizer", "text"] {
            fs::create_dir(folder.path().join(part)).unwrap();
            for file in fs::read_dir(fixture.join(part)).unwrap().map(Result::unwrap) {
                if wanted(file.file_name().to_str().unwrap()) {
                    fs::copy(file.path(), folder.path().join(part).join(file.file_name())).unwrap();
                }
            }
        }
        Self(folder)
    }

    pub fn folder(&self) -> &Path {
        self.0.path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Changes a value of a JSON file.
    pub fn set(&self, file: &str, key: &str, value: Value) -> &Self {
        let path = self.path(file);
        let mut json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        json[key] = value;
        fs::write(&path, json.to_string()).unwrap();
        self
    }

    pub fn open(&self) -> Result<Hart, Error> {
        self.open_with(OpenOptions::new())
    }

    pub fn open_with(&self, options: OpenOptions) -> Result<Hart, Error> {
        Hart::open(self.0.path(), options)
    }

    /// Asserts that opening fails with a message that contains all of `words`.
    pub fn refused(&self, words: &[&str]) -> Error {
        let Err(error) = self.open() else { panic!("opened, expected an error about {words:?}") };
        assert_contains(&error, words);
        error
    }

    /// Rewrites a safetensors file after `change` to its tensors.
    pub fn rewrite(&self, file: &str, change: impl Fn(&mut Vec<(String, Vec<usize>, Vec<f32>)>)) {
        let path = self.path(file);
        let bytes = fs::read(&path).unwrap();
        let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let mut tensors: Vec<_> = read
            .iter()
            .filter(|(_, t)| t.dtype() == safetensors::Dtype::F32)
            .map(|(name, t)| {
                let values = t.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
                (name.to_string(), t.shape().to_vec(), values)
            })
            .collect();
        change(&mut tensors);
        let bytes: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
            .into_iter()
            .map(|(n, s, v): (_, _, Vec<f32>)| (n, s, v.iter().flat_map(|f| f.to_le_bytes()).collect()))
            .collect();
        let views = bytes
            .iter()
            .map(|(n, s, b)| (n.as_str(), safetensors::tensor::TensorView::new(safetensors::Dtype::F32, s.clone(), b).unwrap()));
        fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
    }
}

pub fn assert_contains(error: &Error, words: &[&str]) {
    // Paths have backslashes on Windows.
    let message = error.to_string().replace('\\', "/");
    for word in words {
        assert!(message.contains(word), "no {word:?} in: {message}");
    }
}
