//! A progress bar for each scale, on standard error.

use std::time::Duration;

use hart_core::{Control, Event, Observer, Step};
use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

/// Characters of a bar: the finished part, its end, and the rest.
const LINES: [&str; 3] = ["━", "╸", " "];
/// Characters of a bar for terminals without Unicode, and for the old console of Windows, whose fonts lack these lines.
const ASCII: [&str; 3] = ["=", ">", " "];

/// Returns the style of a progress bar on standard error.
///
/// # Panics
///
/// If the template is invalid.
pub fn bar_style(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template).expect("the template is valid");
    style.progress_chars(&bar_characters().concat())
}

fn bar_characters() -> [&'static str; 3] {
    // "Emoji" stands for a locale in UTF-8 and, on Windows, for Windows Terminal.
    if console::Term::stderr().features().wants_emoji() { LINES } else { ASCII }
}

/// Maximum number of images whose finished bars stay in the terminal.
const MAX_LISTED_IMAGES: usize = 16;
/// Fraction of a run from which the remaining time is estimated.
const MIN_FRACTION: f64 = 0.02;

/// Progress bars of a run, which consists of one or more requests. Of several images that are generated at once, they show the first
/// one. Nothing is shown if standard error is not a terminal.
pub struct ScaleBars {
    bar: ProgressBar,
    position: Position,
    /// Number of finished images of the current request, and index of the image that is shown.
    finished: usize,
}

/// The position of a run: which request it is at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Position {
    /// Number of images of the requests that are finished.
    finished: usize,
    /// Number of images of the current request.
    current: usize,
    /// Number of images of all requests.
    total: usize,
}

impl Position {
    /// Begins a request for `count` images.
    fn begin(&mut self, count: usize) {
        self.finished += std::mem::replace(&mut self.current, count);
    }

    /// Returns the finished fraction of the run, given that of the current request.
    fn fraction(self, of_request: f32) -> f64 {
        (self.finished as f64 + self.current as f64 * f64::from(of_request)) / self.total.max(1) as f64
    }
}

/// Returns the estimated remaining time of a run, unless it has only just begun.
fn remaining(elapsed: Duration, fraction: f64) -> Option<Duration> {
    (fraction >= MIN_FRACTION).then(|| elapsed.mul_f64((1.0 / fraction - 1.0).max(0.0)))
}

impl ScaleBars {
    /// Creates the bars for a run of `images` images, hidden if `quiet`.
    pub fn new(images: usize, quiet: bool) -> Self {
        let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::new(1) };
        bar.set_style(bar_style("{msg:28} {bar:32} {pos:>3}/{len} {elapsed:>4}, {prefix}"));
        bar.enable_steady_tick(Duration::from_millis(100));
        Self { bar, position: Position { total: images, ..Position::default() }, finished: 0 }
    }

    /// Begins a request for `count` images.
    pub fn begin(&mut self, count: usize) {
        self.position.begin(count);
        self.finished = 0;
    }

    fn show(&self, step: String, done: usize, total: usize) {
        let images = self.position.total;
        let image = if images > 1 { format!("[{}/{images}] ", self.position.finished + self.finished + 1) } else { String::new() };
        self.bar.set_length(total as u64);
        self.bar.set_position(done as u64);
        self.bar.set_message(format!("{image}{step}"));
    }

    /// Prints the finished bar as a line above the next one.
    fn keep(&self) {
        if !self.bar.is_hidden() && self.position.total <= MAX_LISTED_IMAGES {
            let line = format!("{:28} {}", self.bar.message(), bar_characters()[0].repeat(32));
            self.bar.println(line);
        }
    }
}

impl Drop for ScaleBars {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

impl Observer for ScaleBars {
    fn event(&mut self, event: &Event<'_>) -> Control {
        let fraction = self.position.fraction(event.fraction);
        let left =
            remaining(self.bar.elapsed(), fraction).map_or_else(String::new, |left| format!(", {:#} left", HumanDuration(left)));
        self.bar.set_prefix(format!("{:.0}%{left}", 100.0 * fraction));
        match event.step {
            Step::Images { finished, .. } => self.finished = finished,
            _ if event.image_index != self.finished => {}
            Step::TextLayer { layer, layers } => self.show("encoding the prompt".into(), layer, layers),
            Step::Block { scale, scales, block, blocks } => {
                self.show(format!("scale {scale} of {scales}"), block, blocks);
                if block == blocks {
                    self.keep();
                }
            }
            Step::Diffusion { step, steps } => self.show("residual diffusion".into(), step, steps),
            Step::Decoder { block, blocks } => self.show("decoding".into(), block, blocks),
            _ => {}
        }
        Control::Continue
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fraction_is_that_of_all_requests() {
        let mut position = Position { total: 40, ..Position::default() };
        position.begin(16);
        assert_eq!(position.fraction(0.5), 0.2);
        position.begin(16);
        assert_eq!((position.finished, position.fraction(0.0)), (16, 0.4));
        position.begin(8);
        assert_eq!(position.fraction(1.0), 1.0);
    }

    #[test]
    fn the_remaining_time_is_estimated_from_the_time_so_far() {
        let seconds = Duration::from_secs;
        assert_eq!(remaining(seconds(10), 0.25), Some(seconds(30)));
        assert_eq!(remaining(seconds(10), 1.0), Some(seconds(0)));
        assert_eq!(remaining(seconds(10), 0.001), None);
    }
}
