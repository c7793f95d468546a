//! The lines of the input that a process has to work on.

use std::collections::HashSet;
use std::io;

use crate::id::Id;
use crate::input::{Format, Input, Line};
use crate::ledger::{Done, DoneImage};
use crate::shard::Shard;
use crate::task::{Defaults, LineError, Task};

/// The image of a line.
#[derive(Debug)]
pub enum Selected {
    /// The image is not done.
    New(Box<Task>),
    /// The image is done, by the words of a result that says nothing of its settings.
    Unchecked(Box<Task>),
    /// The image is done.
    Done,
    /// The line has an error.
    Failed(LineError),
}

/// Selects the lines of a shard.
pub struct Selection<'a> {
    input: Input,
    shard: Shard,
    defaults: &'a Defaults,
    done: &'a Done,
    /// `true` if ids can't have a dot.
    without_dots: bool,
    /// Hashes of the ids of earlier lines of the shard: 9 to 18 bytes each.
    seen: HashSet<u64>,
}

impl<'a> Selection<'a> {
    /// Creates the selection of a shard's lines. With `without_dots`, an id with a dot is an error.
    pub fn new(input: Input, shard: Shard, defaults: &'a Defaults, done: &'a Done, without_dots: bool) -> Self {
        Self { input, shard, defaults, done, without_dots, seen: HashSet::new() }
    }

    /// Returns whether the next line is not there yet.
    pub fn would_wait(&mut self) -> bool {
        self.input.would_wait()
    }

    /// Returns the next line of the shard, or `None` at the end.
    ///
    /// # Errors
    ///
    /// Returns the system's error of reading.
    pub fn next(&mut self) -> io::Result<Option<Selected>> {
        while let Some((line, format)) = self.input.next_line()? {
            if let Some(selected) = self.select(line, format) {
                return Ok(Some(selected));
            }
        }
        Ok(None)
    }

    fn select(&mut self, line: Line, format: Format) -> Option<Selected> {
        match Task::parse(line, format, self.defaults) {
            Ok(None) => None,
            Ok(Some(task)) => self.shard.contains(task.id.hash()).then(|| self.check(task)),
            // Every line belongs to one shard, also one whose id is not known.
            Err(error) => {
                let hash = error.id.as_ref().map_or(error.line, Id::hash);
                self.shard.contains(hash).then_some(Selected::Failed(error))
            }
        }
    }

    fn check(&mut self, task: Task) -> Selected {
        let failed = |task: Task, problem: String| Selected::Failed(LineError { line: task.line, id: Some(task.id), problem });
        if self.without_dots && task.id.as_str().contains('.') {
            let problem =
                "id: WebDataset takes what follows a dot for the ending of a file: choose ids without dots, or leave out --tar";
            return failed(task, problem.into());
        }
        if !self.seen.insert(task.id.file_hash()) {
            let problem = format!("id: \"{}\" is that of an earlier line: give each line an id of its own", task.id.as_str());
            return failed(task, problem);
        }
        match self.done.get(&task.id) {
            None => Selected::New(Box::new(task)),
            Some(DoneImage { digest: None }) => Selected::Unchecked(Box::new(task)),
            Some(DoneImage { digest: Some(digest) }) if digest.get() == task.digest(self.defaults) => Selected::Done,
            Some(_) => failed(task, CHANGED.into()),
        }
    }
}

/// Problem of a line whose image was generated from another request.
pub const CHANGED: &str = "its image exists, but was generated with another prompt, other settings or another model: give the line another \
                           id, choose another folder, or remove the image to generate it again";

#[cfg(test)]
mod tests {
    use clap::Parser;
    use hart_examples::cli::args::RequestArgs;

    use super::*;
    use crate::stop::Stop;

    #[derive(Parser)]
    struct Arguments {
        #[command(flatten)]
        request: RequestArgs,
    }

    fn defaults() -> Defaults {
        Defaults { seed: None, request: Arguments::parse_from(["batch"]).request, model: "m".into() }
    }

    /// Returns the ids of new images and the errors with the numbers of their lines.
    fn select(lines: &str, shard: Shard, done: &Done) -> (Vec<String>, Vec<(u64, String)>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        std::fs::write(&path, lines).unwrap();
        let defaults = defaults();
        let mut selection = Selection::new(Input::open(&path, None, &Stop::default()).unwrap(), shard, &defaults, done, false);
        let (mut new, mut failed) = (Vec::new(), Vec::new());
        while let Some(selected) = selection.next().unwrap() {
            match selected {
                Selected::New(task) => new.push(task.id.as_str().to_string()),
                Selected::Failed(error) => failed.push((error.line, error.problem)),
                Selected::Done | Selected::Unchecked(_) => {}
            }
        }
        (new, failed)
    }

    #[test]
    fn repeated_ids_are_errors_of_the_later_line() {
        let lines = "{\"id\":\"a\",\"prompt\":\"p\"}\n\n{\"id\":\"a\",\"prompt\":\"q\"}\n{\"prompt\":\"r\"}\n{\n";
        let (new, failed) = select(lines, Shard::ALL, &Done::default());
        assert_eq!(new, ["a", "line-00000004"]);
        assert_eq!(failed.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [3, 5]);
        assert!(failed[0].1.contains("\"a\" is that of an earlier line"));
    }

    #[test]
    fn every_line_is_selected_by_one_shard() {
        let lines: String =
            (0..50).map(|n| if n % 7 == 0 { "{\n".into() } else { format!("{{\"id\":\"{n}\",\"prompt\":\"p\"}}\n") }).collect();
        let shards = (0..3).map(|index| select(&lines, format!("{index}/3").parse().unwrap(), &Done::default()));
        let (mut new, mut failed) = (0, 0);
        for (of_shard, errors) in shards {
            assert!(!of_shard.is_empty() && !errors.is_empty());
            new += of_shard.len();
            failed += errors.len();
        }
        assert_eq!((new, failed), (42, 8));
    }

    #[test]
    fn changed_lines_are_noticed() {
        let lines = "{\"id\":\"a\",\"prompt\":\"p\"}\n{\"id\":\"b\",\"prompt\":\"p\"}\n";
        let mut done = Done::default();
        done.add(&Id::new("a").unwrap(), 1);
        let (new, failed) = select(lines, Shard::ALL, &done);
        assert_eq!((new, failed), (vec!["b".to_string()], vec![(1, CHANGED.to_string())]));
    }
}
