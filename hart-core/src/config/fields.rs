//! Fields of one JSON file. A value is checked when it is read, and errors name it.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::files::{Storage, decode_text};

/// Maximum size of a configuration file; the published ones have a few kilobytes.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// Fields of a JSON object.
pub(crate) struct Fields {
    path: PathBuf,
    /// Names of the enclosing objects, each followed by a dot.
    within: String,
    map: Map<String, Value>,
}

impl Fields {
    /// Reads a file that contains a JSON object.
    pub(crate) fn read(storage: &Storage, path: &Path) -> Result<Self> {
        Self::parse(path, &storage.read(path, MAX_FILE_BYTES, false)?)
    }

    /// Parses the contents of a file; `path` is for error messages.
    pub(crate) fn parse(path: &Path, text: &[u8]) -> Result<Self> {
        match serde_json::from_str(decode_text(path, text)?) {
            Ok(Value::Object(map)) => Ok(Self { path: path.to_path_buf(), within: String::new(), map }),
            Ok(_) => Err(Error::checkpoint(path, "expected a JSON object")),
            Err(e) => Err(Error::checkpoint(path, format!("not valid JSON: {e}"))),
        }
    }

    /// Returns the value of a field; `None` if it is missing or null.
    pub(crate) fn get(&self, name: &str) -> Option<&Value> {
        self.map.get(name).filter(|v| !v.is_null())
    }

    /// Returns whether a field is present and null.
    pub(crate) fn is_null(&self, name: &str) -> bool {
        self.map.get(name).is_some_and(Value::is_null)
    }

    /// Reads an optional field; `None` if it is missing or null.
    pub(crate) fn optional<T>(&self, name: &str, read: impl FnOnce(&str) -> Result<T>) -> Result<Option<T>> {
        self.get(name).map(|_| read(name)).transpose()
    }

    /// Returns the fields of a nested object, if there is one.
    pub(crate) fn object(&self, name: &str) -> Option<Self> {
        let map = self.get(name)?.as_object()?.clone();
        Some(Self { path: self.path.clone(), within: format!("{}{name}.", self.within), map })
    }

    /// Returns the error for a field with an invalid value.
    pub(crate) fn wrong(&self, name: &str, expected: impl Into<String>) -> Error {
        let got = match self.get(name) {
            None => "missing".to_string(),
            Some(v) => shorten(v.to_string()),
        };
        Error::Config { path: self.path.clone(), field: format!("{}{name}", self.within), got, expected: expected.into() }
    }

    /// Reads an integer within `range`.
    pub(crate) fn size(&self, name: &str, range: RangeInclusive<usize>) -> Result<usize> {
        integer(self.get(name).unwrap_or(&Value::Null))
            .filter(|n| range.contains(n))
            .ok_or_else(|| self.wrong(name, format!("a whole number from {} to {}", range.start(), range.end())))
    }

    /// Reads an integer within `range`, or returns `default` if the field is missing.
    pub(crate) fn size_or(&self, name: &str, default: usize, range: RangeInclusive<usize>) -> Result<usize> {
        if self.get(name).is_none() { Ok(default) } else { self.size(name, range) }
    }

    /// Reads a list of integers, each within `range`.
    pub(crate) fn sizes(&self, name: &str, count: RangeInclusive<usize>, range: RangeInclusive<usize>) -> Result<Vec<usize>> {
        let list = self.get(name).and_then(Value::as_array).filter(|l| count.contains(&l.len()));
        let sizes = list.and_then(|l| l.iter().map(|v| integer(v).filter(|n| range.contains(n))).collect());
        sizes.ok_or_else(|| {
            let expected =
                format!("a list of {} to {} whole numbers from {} to {}", count.start(), count.end(), range.start(), range.end());
            self.wrong(name, expected)
        })
    }

    /// Reads a finite number within `range`, or returns `default` if the field is missing.
    pub(crate) fn number_or(&self, name: &str, default: f64, range: RangeInclusive<f64>) -> Result<f64> {
        match self.get(name) {
            None => Ok(default),
            Some(v) => v
                .as_f64()
                .filter(|x| range.contains(x))
                .ok_or_else(|| self.wrong(name, format!("a number from {:e} to {:e}", range.start(), range.end()))),
        }
    }

    /// Reads a boolean, or returns `default` if the field is missing.
    pub(crate) fn flag_or(&self, name: &str, default: bool) -> Result<bool> {
        match self.get(name) {
            None => Ok(default),
            Some(v) => v.as_bool().ok_or_else(|| self.wrong(name, "true or false")),
        }
    }

    /// Reads a string, or returns `default` if the field is missing.
    pub(crate) fn text_or<'a>(&'a self, name: &str, default: &'a str) -> Result<&'a str> {
        match self.get(name) {
            None => Ok(default),
            Some(v) => v.as_str().ok_or_else(|| self.wrong(name, "a text")),
        }
    }

    /// Checks that a string, `default` if the field is missing, is one of `allowed`. The error contains `reason`.
    pub(crate) fn one_of(&self, name: &str, default: &str, allowed: &[&str], reason: &str) -> Result<()> {
        if allowed.contains(&self.text_or(name, default)?) {
            return Ok(());
        }
        let expected = allowed.iter().map(|a| format!("\"{a}\"")).collect::<Vec<_>>().join(" or ");
        Err(self.wrong(name, format!("{expected} ({reason})")))
    }
}

/// Returns the value as an unsigned integer: 3 and 3.0 are integers; -1, 2.5 and "3" are not.
fn integer(value: &Value) -> Option<usize> {
    const EXACT: f64 = 9_007_199_254_740_992.0; // 2^53, the limit of exact integers in f64
    value
        .as_u64()
        .and_then(|n| usize::try_from(n).ok())
        .or_else(|| value.as_f64().filter(|x| x.fract() == 0.0 && (0.0..EXACT).contains(x)).map(|x| x as usize))
}

/// Truncates a long text for an error message.
fn shorten(text: String) -> String {
    const MAX_CHARS: usize = 80;
    if text.chars().count() <= MAX_CHARS { text } else { text.chars().take(MAX_CHARS).chain(['…']).collect() }
}
