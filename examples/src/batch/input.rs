//! The lines of the input, one by one.

use std::fs::File;
use std::io::{self, BufReader};
use std::path::Path;
use std::str::FromStr;

use crate::pipe::{Pipe, Source};
use crate::stop::Stop;

/// Maximum length of a line in bytes: enough for the longest prompt, in which every character is an escape.
const MAX_LINE_BYTES: usize = 8 << 20;

/// The format of an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A JSON object in each line.
    JsonLines,
    /// A prompt in each line. Blank lines and lines that start with `#` are skipped.
    Text,
}

impl Format {
    /// Returns the format that the name of a file stands for, if it stands for one.
    ///
    /// # Errors
    ///
    /// Returns what to do with a file of a format that is not read.
    fn of_name(path: &Path) -> Result<Option<Self>, &'static str> {
        let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_ascii_lowercase();
        match ending.as_str() {
            "jsonl" | "ndjson" | "json" => Ok(Some(Self::JsonLines)),
            "txt" => Ok(Some(Self::Text)),
            "csv" | "tsv" | "parquet" => {
                Err("is a table, expected JSON lines or text: use examples/python/batch.py, which reads tables")
            }
            "gz" | "bz2" | "xz" | "zst" => Err("is compressed: decompress it, or write its lines to standard input (-)"),
            _ => Ok(None),
        }
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "jsonl" => Ok(Self::JsonLines),
            "text" => Ok(Self::Text),
            _ => Err("expected jsonl or text".into()),
        }
    }
}

/// A line of the input.
#[derive(Debug, PartialEq, Eq)]
pub struct Line {
    /// Number of the line, from 1.
    pub number: u64,
    /// The line without its end, or a problem.
    pub bytes: Result<Vec<u8>, String>,
}

/// An input, which is read line by line.
pub struct Input {
    reader: Box<dyn Source>,
    format: Option<Format>,
    lines: u64,
}

impl Input {
    /// Opens a file, or standard input if `path` is `-`. Without `format`, the ending of the file's name chooses it, or else its first
    /// line: a `{` begins JSON. Standard input ends early if the batch is to stop.
    ///
    /// # Errors
    ///
    /// Returns a message if the file can't be opened.
    pub fn open(path: &Path, format: Option<Format>, stop: &Stop) -> Result<Self, String> {
        let reader: Box<dyn Source> = if path == "-" {
            Box::new(Pipe::new(stop.clone()))
        } else {
            let file = File::open(path).map_err(|e| format!("{}: {e}", path.display()))?;
            if path.is_dir() {
                return Err(format!("{}: is a folder, expected a file of JSON lines or text", path.display()));
            }
            Box::new(BufReader::with_capacity(1 << 16, file))
        };
        let format = match format {
            None => Format::of_name(path).map_err(|problem| format!("{}: {problem}", path.display()))?,
            some => some,
        };
        Ok(Self { reader, format, lines: 0 })
    }

    /// Returns whether a path can be read more than once: pipes can't.
    pub fn is_repeatable(path: &Path) -> bool {
        path != "-" && path.is_file()
    }

    /// Returns whether the next line is not there yet.
    pub fn would_wait(&mut self) -> bool {
        self.reader.would_wait()
    }

    /// Returns the next line that isn't blank, and the format of the input. `None` at the end.
    ///
    /// # Errors
    ///
    /// Returns the system's error.
    pub fn next_line(&mut self) -> io::Result<Option<(Line, Format)>> {
        loop {
            let Some(mut bytes) = self.read()? else { return Ok(None) };
            self.lines += 1;
            let mut problem = None;
            if self.lines == 1 {
                // Some editors write a byte order mark.
                if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "is in UTF-16, expected UTF-8: save it as UTF-8"));
                }
                if bytes.starts_with("\u{feff}".as_bytes()) {
                    bytes.drain(..3);
                }
            }
            if bytes.len() > MAX_LINE_BYTES {
                problem = Some(format!("the line has more than {} MB", MAX_LINE_BYTES >> 20));
            }
            let start = bytes.trim_ascii_start();
            if start.is_empty() {
                continue;
            }
            let format = *self.format.get_or_insert(if start[0] == b'{' { Format::JsonLines } else { Format::Text });
            return Ok(Some((Line { number: self.lines, bytes: problem.map_or(Ok(bytes), Err) }, format)));
        }
    }

    /// Reads a line. Of a line that is too long, only as many bytes are kept as tell so.
    fn read(&mut self) -> io::Result<Option<Vec<u8>>> {
        let (mut line, mut is_end) = (Vec::new(), true);
        loop {
            let available = match self.reader.fill_buf() {
                Ok(available) => available,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if available.is_empty() {
                return Ok(if is_end { None } else { Some(line) });
            }
            is_end = false;
            let end = available.iter().position(|&byte| byte == b'\n');
            let part = &available[..end.unwrap_or(available.len())];
            line.extend_from_slice(&part[..part.len().min((MAX_LINE_BYTES + 1).saturating_sub(line.len()))]);
            let used = end.map_or(available.len(), |end| end + 1);
            self.reader.consume(used);
            if end.is_some() {
                return Ok(Some(line));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8], format: Option<Format>) -> Vec<(u64, Format, Result<String, String>)> {
        let mut input = Input { reader: Box::new(BufReader::with_capacity(3, io::Cursor::new(bytes.to_vec()))), format, lines: 0 };
        let next = || input.next_line().unwrap();
        std::iter::from_fn(next)
            .map(|(line, format)| (line.number, format, line.bytes.map(|bytes| String::from_utf8(bytes).unwrap())))
            .collect()
    }

    #[test]
    fn lines_keep_their_numbers() {
        let ok = |number, text: &str| (number, Format::Text, Ok(text.to_string()));
        assert_eq!(read("\u{feff}a parrot\r\n\n \t\nlast".as_bytes(), None), [ok(1, "a parrot\r"), ok(4, "last")]);
        assert_eq!(read(b"", None), []);
        assert_eq!(read(b"\n{}", None), [(2, Format::JsonLines, Ok("{}".into()))]);
        assert_eq!(read(b"\n{}", Some(Format::Text)), [ok(2, "{}")]);
    }

    #[test]
    fn a_line_that_is_too_long_is_skipped() {
        let long = [vec![b'x'; 2 * MAX_LINE_BYTES], b"\nnext".to_vec()].concat();
        let mut input = Input { reader: Box::new(BufReader::new(io::Cursor::new(long))), format: None, lines: 0 };
        let (first, _) = input.next_line().unwrap().unwrap();
        assert!(first.bytes.unwrap_err().contains("more than 8 MB"));
        assert_eq!(input.next_line().unwrap().unwrap().0, Line { number: 2, bytes: Ok(b"next".to_vec()) });
    }

    #[test]
    fn the_ending_stands_for_the_format() {
        let of_name = |name: &str| Format::of_name(Path::new(name));
        assert_eq!(of_name("a.JSONL"), Ok(Some(Format::JsonLines)));
        assert_eq!(of_name("a.txt"), Ok(Some(Format::Text)));
        assert_eq!((of_name("a"), of_name("-"), of_name("a.list")), (Ok(None), Ok(None), Ok(None)));
        assert!(of_name("a.csv").unwrap_err().contains("batch.py") && of_name("a.jsonl.gz").unwrap_err().contains("compressed"));
    }
}
