//! A progress bar a scale, on standard error.

use std::time::Duration;

use hart_core::{Control, Event, Observer, Step};
use indicatif::{ProgressBar, ProgressStyle};

/// Shows a run's progress. Where standard error is no terminal, nothing is shown.
pub struct Bars {
    bar: ProgressBar,
    picture: usize,
    pictures: usize,
}

impl Bars {
    /// Bars for a run of so many pictures; hidden if `quiet`.
    pub fn new(pictures: usize, quiet: bool) -> Self {
        let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::new(1) };
        let style = ProgressStyle::with_template("{msg:28} {bar:32} {pos:>3}/{len} {prefix:>4} {elapsed:>4}");
        bar.set_style(style.expect("the template is valid").progress_chars("━╸ "));
        bar.enable_steady_tick(Duration::from_millis(100));
        Self { bar, picture: 1, pictures }
    }

    fn show(&self, what: String, done: usize, of: usize) {
        let which = if self.pictures > 1 { format!("[{}/{}] ", self.picture, self.pictures) } else { String::new() };
        self.bar.set_length(of as u64);
        self.bar.set_position(done as u64);
        self.bar.set_message(format!("{which}{what}"));
    }

    /// Keeps the line of what is finished and goes on to the next.
    fn keep(&self) {
        if !self.bar.is_hidden() {
            let line = format!("{:28} {}", self.bar.message(), "━".repeat(32));
            self.bar.println(line);
        }
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

impl Observer for Bars {
    fn event(&mut self, event: &Event<'_>) -> Control {
        self.bar.set_prefix(format!("{:.0}%", 100.0 * event.fraction));
        match event.step {
            Step::TextLayer { layer, layers } => self.show("reading the prompt".into(), layer, layers),
            Step::Block { scale, scales, block, blocks } => {
                self.show(format!("scale {scale} of {scales}"), block, blocks);
                if block == blocks {
                    self.keep();
                }
            }
            Step::Diffusion { step, steps } => self.show("residual diffusion".into(), step, steps),
            Step::Decoder { block, blocks } => self.show("decoding".into(), block, blocks),
            Step::Images { finished, .. } => self.picture = finished + 1,
            _ => {}
        }
        Control::Continue
    }
}
