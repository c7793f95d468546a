//! What a phase of training shows: a bar with losses, speed and the time that is left; and Ctrl-C.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hart_examples::INTERRUPTED;
use indicatif::{ProgressBar, ProgressStyle};

/// Set by Ctrl-C: the step under way is finished, and the state saved. The second Ctrl-C ends the program at once.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Listens for Ctrl-C.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn on_ctrl_c() -> Result<Self, ctrlc::Error> {
        let stop = Self::default();
        let flag = stop.0.clone();
        ctrlc::set_handler(move || {
            if flag.swap(true, Ordering::Relaxed) {
                std::process::exit(INTERRUPTED.into());
            }
            eprintln!("finishing this step and saving; once more ends at once");
        })?;
        Ok(stop)
    }

    /// Whether it was pressed.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The bar of one phase.
pub struct Bar {
    bar: ProgressBar,
    started: Instant,
    first: u64,
    batch: usize,
    quiet: bool,
}

impl Bar {
    /// A bar that begins at a step. Where standard error is no terminal, only [`Self::say`] is seen.
    pub fn new(phase: &str, step: u64, steps: u64, batch: usize, quiet: bool) -> Self {
        let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::new(steps) };
        let style = ProgressStyle::with_template("{prefix:10} {bar:24} {pos}/{len} {msg} {elapsed} ({eta} left)");
        bar.set_style(style.expect("the template is valid").progress_chars("━╸ "));
        bar.set_prefix(phase.to_string());
        bar.set_position(step);
        bar.reset_eta();
        Self { bar, started: Instant::now(), first: step, batch, quiet }
    }

    /// Pictures a second since the phase began or was taken up.
    pub fn rate(&self, step: u64) -> f64 {
        ((step - self.first) * self.batch as u64) as f64 / self.started.elapsed().max(Duration::from_millis(1)).as_secs_f64()
    }

    /// Seconds since the phase began or was taken up.
    pub fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    /// Shows a step's losses.
    pub fn step(&self, step: u64, losses: &str) {
        self.bar.set_position(step);
        self.bar.set_message(format!("{losses}  {:.1} images/s", self.rate(step)));
    }

    /// A line that stays.
    pub fn say(&self, line: &str) {
        match (self.quiet, self.bar.is_hidden()) {
            (true, _) => {}
            (false, true) => eprintln!("{line}"),
            (false, false) => self.bar.println(line),
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
