//! Progress of a batch: a bar on a terminal, a line now and then elsewhere.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hart_examples::cli::output::one_line;
use hart_examples::cli::progress::bar_style;
use indicatif::{HumanDuration, ProgressBar};

use crate::stop::Stop;
use crate::task::LineError;

/// Time between two lines where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(30);
/// Number of errors that are printed one by one.
const LISTED_ERRORS: u64 = 10;

/// Progress and counts of a run.
pub struct Progress {
    bar: ProgressBar,
    quiet: bool,
    /// Number of images to generate; `None` if it is not known.
    total: Option<u64>,
    start: Instant,
    generated: AtomicU64,
    found: AtomicU64,
    failed: AtomicU64,
    warned: AtomicU64,
}

impl Progress {
    /// Creates the progress of a run for `total` images that are not done.
    pub fn new(total: Option<u64>, quiet: bool) -> Self {
        let bar = match quiet || !std::io::stderr().is_terminal() {
            true => ProgressBar::hidden(),
            false => total.map_or_else(ProgressBar::no_length, ProgressBar::new),
        };
        bar.set_style(bar_style(match total {
            Some(_) => "{bar:32} {pos}/{len} images {elapsed:>4}, {msg}",
            None => "{spinner} {pos} images {elapsed:>4}, {msg}",
        }));
        let zero = || AtomicU64::new(0);
        let (generated, found, failed, warned) = (zero(), zero(), zero(), zero());
        Self { bar, quiet, total, start: Instant::now(), generated, found, failed, warned }
    }

    /// Counts an image.
    pub fn generated(&self, has_warnings: bool) {
        self.generated.fetch_add(1, Ordering::Relaxed);
        self.warned.fetch_add(has_warnings.into(), Ordering::Relaxed);
    }

    /// Counts an image of an earlier process that had no result.
    pub fn found(&self) {
        self.found.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts and prints the error of a line. Returns the number of errors.
    pub fn failed(&self, error: &LineError) -> u64 {
        let failed = self.failed.fetch_add(1, Ordering::Relaxed) + 1;
        if failed <= LISTED_ERRORS {
            self.print(&describe(error));
        } else if failed == LISTED_ERRORS + 1 {
            self.print("further errors are only in the file of errors");
        }
        failed
    }

    /// Prints a line above the bar.
    fn print(&self, line: &str) {
        self.bar.suspend(|| eprintln!("{}", one_line(line)));
    }

    /// Returns the numbers of generated images, images that were found, failed lines and images with warnings.
    pub fn counts(&self) -> [u64; 4] {
        [&self.generated, &self.found, &self.failed, &self.warned].map(|count| count.load(Ordering::Relaxed))
    }

    /// Shows the progress until the thread that runs this is unparked with `is_finished` set.
    pub fn show_until(&self, stop: &Stop, is_finished: impl Fn() -> bool) {
        let (mut is_told, mut last_line) = (false, Instant::now());
        while !is_finished() {
            std::thread::park_timeout(Duration::from_millis(100));
            if !is_told && stop.exit_code().is_some() {
                self.print("finishing the images in work; a second signal stops at once");
                is_told = true;
            }
            let [generated, found, failed, _] = self.counts();
            self.bar.set_position(generated + found);
            self.bar.set_message(self.rate(failed));
            if !self.quiet && self.bar.is_hidden() && last_line.elapsed() >= LINE_INTERVAL && !is_finished() {
                let total = self.total.map_or_else(String::new, |total| format!(" of {total}"));
                eprintln!("{}{total} images, {}", generated + found, self.rate(failed));
                last_line = Instant::now();
            }
        }
        self.bar.finish_and_clear();
    }

    /// Returns the rate, the remaining time and the number of errors.
    fn rate(&self, failed: u64) -> String {
        let [generated, found, ..] = self.counts();
        let elapsed = self.start.elapsed();
        let rate = format!("{:.2} images/s", generated as f64 / elapsed.as_secs_f64().max(1e-3));
        let left = self.total.and_then(|total| remaining(elapsed, generated, total.saturating_sub(generated + found)));
        let left = left.map_or_else(String::new, |left| format!(", {:#} left", HumanDuration(left)));
        let errors = if failed > 0 { format!(", {failed} failed") } else { String::new() };
        format!("{rate}{left}{errors}")
    }

    /// Returns the counts as text. `done` images were done before, if that is known.
    pub fn summary(&self, done: Option<u64>) -> String {
        let [generated, found, failed, warned] = self.counts();
        let seconds = self.start.elapsed().as_secs_f64();
        let mut summary = format!("{generated} images generated in {seconds:.1} s");
        let mut add = |count: u64, text: &str| {
            if count > 0 {
                summary += &format!(", {count} {text}");
            }
        };
        add(done.unwrap_or(0), "done before");
        add(found, "of an interrupted run kept");
        add(warned, "with warnings");
        add(failed, "lines failed");
        summary
    }
}

/// Returns the time that the other images take, or `None` before the first image.
fn remaining(elapsed: Duration, generated: u64, left: u64) -> Option<Duration> {
    (generated > 0).then(|| elapsed.mul_f64(left as f64 / generated as f64))
}

/// Returns the error of a line as text.
pub fn describe(error: &LineError) -> String {
    let id = error.id.as_ref().map_or_else(String::new, |id| format!(", id {}", id.as_str()));
    format!("line {}{id}: {}", error.line, error.problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_remaining_time_is_that_of_the_other_images() {
        assert_eq!(remaining(Duration::from_secs(10), 5, 20), Some(Duration::from_secs(40)));
        assert_eq!(remaining(Duration::from_secs(10), 0, 20), None);
    }
}
