//! Fields of requests whose values arrive as JSON or, in forms, as text.

use serde_json::{Map, Value};

use crate::api_error::ApiError;

/// The fields of a request. Those that are read are removed; `null` counts as absent.
pub struct Fields(Map<String, Value>);

impl Fields {
    /// Creates the fields. `null` and, as browsers send unused fields of a form, empty text other than the prompt are left out.
    pub fn new(mut fields: Map<String, Value>) -> Self {
        fields.retain(|name, value| !value.is_null() && (name == "prompt" || value.as_str() != Some("")));
        Self(fields)
    }

    /// Removes and returns a value.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name)
    }

    /// Removes and returns a text.
    ///
    /// # Errors
    ///
    /// Returns an error that names the field if it has another type.
    pub fn text(&mut self, name: &'static str) -> Result<Option<String>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(wrong(name, "a text")),
        }
    }

    /// Removes and returns a number.
    ///
    /// # Errors
    ///
    /// Like [`Self::text`].
    pub fn number(&mut self, name: &'static str) -> Result<Option<f64>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let number = value.as_f64().or_else(|| value.as_str()?.trim().parse().ok());
        number.filter(|number: &f64| number.is_finite()).map(Some).ok_or_else(|| wrong(name, "a number"))
    }

    /// Removes and returns a whole number from `least` to `most`.
    ///
    /// # Errors
    ///
    /// Like [`Self::text`], and if the number is out of range.
    pub fn whole(&mut self, name: &'static str, least: usize, most: usize) -> Result<Option<usize>, ApiError> {
        let Some(number) = self.number(name)? else { return Ok(None) };
        if number.fract() == 0.0 && (least as f64..=most as f64).contains(&number) {
            return Ok(Some(number as usize));
        }
        Err(wrong(name, &format!("a whole number, at least {least} and at most {most}, not {number}")))
    }

    /// Removes and returns a truth value. 0 and 1 count as such.
    ///
    /// # Errors
    ///
    /// Like [`Self::text`].
    pub fn flag(&mut self, name: &'static str) -> Result<Option<bool>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let text = value.as_str().map_or_else(|| value.to_string(), |text| text.trim().to_lowercase());
        match text.as_str() {
            "true" | "1" => Ok(Some(true)),
            "false" | "0" => Ok(Some(false)),
            _ => Err(wrong(name, "true or false")),
        }
    }

    /// Removes and returns one of several words.
    ///
    /// # Errors
    ///
    /// Like [`Self::text`], and if the text is none of the words.
    pub fn word(&mut self, name: &'static str, words: &[&'static str]) -> Result<Option<&'static str>, ApiError> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        match words.iter().find(|word| **word == text) {
            Some(word) => Ok(Some(word)),
            None => Err(wrong(name, &format!("one of {}, not \"{text}\"", words.join(", ")))),
        }
    }

    /// Removes fields.
    pub fn skip(&mut self, names: &[&str]) {
        for name in names {
            self.0.remove(*name);
        }
    }

    /// Returns the names of the fields that nothing has read.
    pub fn rest(self) -> Vec<String> {
        self.0.into_iter().map(|(name, _)| name).collect()
    }
}

fn wrong(name: &'static str, expected: &str) -> ApiError {
    ApiError::bad_request(name, format!("{name}: expected {expected}"))
}

/// Parses a size such as `512x512`.
pub fn parse_size(text: &str) -> Option<(usize, usize)> {
    let (width, height) = text.split_once(['x', 'X', '×'])?;
    Some((width.trim().parse().ok()?, height.trim().parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn json_and_forms_have_the_same_values() {
        let fields = |value: Value| Fields::new(value.as_object().unwrap().clone());
        for n in [json!(2), json!("2"), json!(2.0)] {
            assert_eq!(fields(json!({"n": n})).whole("n", 1, 4).ok(), Some(Some(2)));
        }
        for n in [json!(0), json!(5), json!("x"), json!(1.5), json!([])] {
            let error = fields(json!({"n": n})).whole("n", 1, 4).unwrap_err();
            assert_eq!(error.field(), Some("n"));
        }
        for flag in [json!(true), json!("true"), json!(1)] {
            assert_eq!(fields(json!({"stream": flag})).flag("stream").ok(), Some(Some(true)));
        }
        let mut own = fields(json!({"a": null, "b": "", "prompt": "", "c": 1}));
        assert_eq!(own.text("prompt").ok(), Some(Some(String::new())));
        assert_eq!(own.rest(), ["c"]);
    }

    #[test]
    fn sizes_are_parsed() {
        assert_eq!(parse_size("1024x768"), Some((1024, 768)));
        for text in ["", "x", "10", "10x", "-1x5", "1x2x3", "1.5x2"] {
            assert_eq!(parse_size(text), None, "{text}");
        }
    }
}
