//! What a phase of training shows: a bar with losses, speed and the time that is left; and Ctrl-C.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hart_examples::cli::INTERRUPTED;
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

/// How long a phase goes on: the recipe's number of steps, or so long by the clock.
pub struct Length {
    steps: u64,
    limit: Option<Duration>,
    /// When the first step was done: what comes before it, such as compiling a GPU's kernels, says nothing about the others.
    first: Option<(Instant, u64)>,
    started: Instant,
}

impl Length {
    /// Of so many steps, or so many minutes instead.
    pub fn new(steps: u64, minutes: Option<f64>) -> Self {
        let limit = minutes.map(|minutes| Duration::from_secs_f64(minutes * 60.0));
        Self { steps, limit, first: None, started: Instant::now() }
    }

    /// Steps of the whole phase before the first one: no more than are done where there is no time, if something was learned before.
    pub fn before(&self, done: u64, is_learned: bool) -> u64 {
        if is_learned && self.limit == Some(Duration::ZERO) { done } else { self.steps }
    }

    /// Steps of the whole phase, as far as can be said after `step`.
    pub fn steps(&mut self, step: u64) -> u64 {
        let Some(limit) = self.limit else { return self.steps };
        let now = Instant::now();
        let (from, first) = *self.first.get_or_insert((now, step));
        let left = (self.started + limit).saturating_duration_since(now);
        if left.is_zero() {
            return step;
        }
        let taken = now.saturating_duration_since(from).as_secs_f64();
        let done = (step - first) as f64;
        // Before there is anything to go by, the recipe's number.
        if done < 1.0 || taken <= 0.0 {
            return self.steps.max(step + 1);
        }
        step + (left.as_secs_f64() * done / taken).ceil() as u64
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
    pub fn step(&self, step: u64, steps: u64, losses: &str) {
        self.bar.set_length(steps);
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
