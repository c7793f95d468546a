//! Reading one `config.json`: every value is checked where it is read, and a wrong one is named.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::files::Storage;

/// No configuration file of a published model has more than a few kilobytes.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// The values of one JSON object file.
pub(crate) struct Fields {
    path: PathBuf,
    /// Names of the objects around these values, each with a dot behind.
    within: String,
    map: Map<String, Value>,
}

impl Fields {
    /// Reads the file; it must hold one JSON object.
    pub(crate) fn read(storage: &Storage, path: &Path) -> Result<Self> {
        Self::parse(path, &storage.read(path, MAX_FILE_BYTES)?)
    }

    /// Parses the text of a file; `path` is for messages.
    pub(crate) fn parse(path: &Path, text: &[u8]) -> Result<Self> {
        match serde_json::from_slice(text) {
            Ok(Value::Object(map)) => Ok(Self { path: path.to_path_buf(), within: String::new(), map }),
            Ok(_) => Err(Error::checkpoint(path, "expected a JSON object")),
            Err(e) => Err(Error::checkpoint(path, format!("not valid JSON: {e}"))),
        }
    }

    /// The value, if it is there and not null.
    pub(crate) fn get(&self, name: &str) -> Option<&Value> {
        self.map.get(name).filter(|v| !v.is_null())
    }

    /// Whether `name` is there and null.
    pub(crate) fn is_null(&self, name: &str) -> bool {
        self.map.get(name).is_some_and(Value::is_null)
    }

    /// What `read` makes of the value, if there is one.
    pub(crate) fn given<T>(&self, name: &str, read: impl FnOnce(&str) -> Result<T>) -> Result<Option<T>> {
        self.get(name).map(|_| read(name)).transpose()
    }

    /// The object below `name`, if there is one.
    pub(crate) fn object(&self, name: &str) -> Option<Self> {
        let map = self.get(name)?.as_object()?.clone();
        Some(Self { path: self.path.clone(), within: format!("{}{name}.", self.within), map })
    }

    /// The error that says what `name` should have been.
    pub(crate) fn wrong(&self, name: &str, expected: impl Into<String>) -> Error {
        let got = match self.get(name) {
            None => "missing".to_string(),
            Some(v) => shorten(v.to_string()),
        };
        Error::Config { path: self.path.clone(), field: format!("{}{name}", self.within), got, expected: expected.into() }
    }

    /// A whole number within `range`.
    pub(crate) fn size(&self, name: &str, range: RangeInclusive<usize>) -> Result<usize> {
        whole(self.get(name).unwrap_or(&Value::Null))
            .filter(|n| range.contains(n))
            .ok_or_else(|| self.wrong(name, format!("a whole number from {} to {}", range.start(), range.end())))
    }

    /// A whole number within `range`, or `default` where the file has none.
    pub(crate) fn size_or(&self, name: &str, default: usize, range: RangeInclusive<usize>) -> Result<usize> {
        if self.get(name).is_none() { Ok(default) } else { self.size(name, range) }
    }

    /// A list of whole numbers, each within `range`.
    pub(crate) fn sizes(&self, name: &str, count: RangeInclusive<usize>, range: RangeInclusive<usize>) -> Result<Vec<usize>> {
        let list = self.get(name).and_then(Value::as_array).filter(|l| count.contains(&l.len()));
        let sizes = list.and_then(|l| l.iter().map(|v| whole(v).filter(|n| range.contains(n))).collect());
        sizes.ok_or_else(|| {
            let expected =
                format!("a list of {} to {} whole numbers from {} to {}", count.start(), count.end(), range.start(), range.end());
            self.wrong(name, expected)
        })
    }

    /// A finite number within `range`, or `default` where the file has none.
    pub(crate) fn number_or(&self, name: &str, default: f64, range: RangeInclusive<f64>) -> Result<f64> {
        match self.get(name) {
            None => Ok(default),
            Some(v) => v
                .as_f64()
                .filter(|x| range.contains(x))
                .ok_or_else(|| self.wrong(name, format!("a number from {:e} to {:e}", range.start(), range.end()))),
        }
    }

    /// True or false, or `default` where the file has none.
    pub(crate) fn flag_or(&self, name: &str, default: bool) -> Result<bool> {
        match self.get(name) {
            None => Ok(default),
            Some(v) => v.as_bool().ok_or_else(|| self.wrong(name, "true or false")),
        }
    }

    /// A text, or `default` where the file has none.
    pub(crate) fn text_or<'a>(&'a self, name: &str, default: &'a str) -> Result<&'a str> {
        match self.get(name) {
            None => Ok(default),
            Some(v) => v.as_str().ok_or_else(|| self.wrong(name, "a text")),
        }
    }

    /// A text that must be one of `allowed`; `why` says why no other will do.
    pub(crate) fn one_of(&self, name: &str, default: &str, allowed: &[&str], why: &str) -> Result<()> {
        if allowed.contains(&self.text_or(name, default)?) {
            return Ok(());
        }
        let expected = allowed.iter().map(|a| format!("\"{a}\"")).collect::<Vec<_>>().join(" or ");
        Err(self.wrong(name, format!("{expected} ({why})")))
    }
}

/// 3 and 3.0 are whole numbers; -1, 2.5 and "3" are not.
fn whole(value: &Value) -> Option<usize> {
    const EXACT: f64 = 9_007_199_254_740_992.0; // 2^53: beyond it f64 no longer counts in ones
    value
        .as_u64()
        .and_then(|n| usize::try_from(n).ok())
        .or_else(|| value.as_f64().filter(|x| x.fract() == 0.0 && (0.0..EXACT).contains(x)).map(|x| x as usize))
}

fn shorten(text: String) -> String {
    const MOST: usize = 80;
    if text.chars().count() <= MOST { text } else { text.chars().take(MOST).chain(['…']).collect() }
}
