//! A progress bar for each scale, on standard error.

use std::time::Duration;

use hart_core::{Control, Event, Observer, Step};
use indicatif::{ProgressBar, ProgressStyle};

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

/// Progress bars of a run. Nothing is shown if standard error is not a terminal.
pub struct ScaleBars {
    bar: ProgressBar,
    /// Number of the current image, from 1.
    image: usize,
    images: usize,
}

impl ScaleBars {
    /// Creates the bars for a run of `images` images, hidden if `quiet`.
    pub fn new(images: usize, quiet: bool) -> Self {
        let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::new(1) };
        bar.set_style(bar_style("{msg:28} {bar:32} {pos:>3}/{len} {prefix:>4} {elapsed:>4}"));
        bar.enable_steady_tick(Duration::from_millis(100));
        Self { bar, image: 1, images }
    }

    fn show(&self, step: String, done: usize, total: usize) {
        let image = if self.images > 1 { format!("[{}/{}] ", self.image, self.images) } else { String::new() };
        self.bar.set_length(total as u64);
        self.bar.set_position(done as u64);
        self.bar.set_message(format!("{image}{step}"));
    }

    /// Prints the finished bar as a line above the next one.
    fn keep(&self) {
        if !self.bar.is_hidden() {
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
        self.bar.set_prefix(format!("{:.0}%", 100.0 * event.fraction));
        match event.step {
            Step::TextLayer { layer, layers } => self.show("encoding the prompt".into(), layer, layers),
            Step::Block { scale, scales, block, blocks } => {
                self.show(format!("scale {scale} of {scales}"), block, blocks);
                if block == blocks {
                    self.keep();
                }
            }
            Step::Diffusion { step, steps } => self.show("residual diffusion".into(), step, steps),
            Step::Decoder { block, blocks } => self.show("decoding".into(), block, blocks),
            Step::Images { finished, .. } => self.image = finished + 1,
            _ => {}
        }
        Control::Continue
    }
}
