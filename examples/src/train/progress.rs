//! Progress of a phase of training, its number of steps, and Ctrl-C.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hart_examples::cli::INTERRUPTED;
use hart_examples::cli::progress::bar_style;
use indicatif::ProgressBar;

/// A flag set by Ctrl-C. The current step is then finished and the state saved. A second Ctrl-C ends the process at once.
#[derive(Clone, Debug, Default)]
pub struct StopFlag(Arc<AtomicBool>);

impl StopFlag {
    /// Installs the handler of Ctrl-C.
    ///
    /// # Errors
    ///
    /// Returns an error if the system refuses the handler.
    pub fn on_ctrl_c() -> Result<Self, ctrlc::Error> {
        let stop = Self::default();
        let flag = stop.0.clone();
        ctrlc::set_handler(move || {
            if flag.swap(true, Ordering::Relaxed) {
                std::process::exit(INTERRUPTED.into());
            }
            eprintln!("finishing this step and saving; press Ctrl-C again to stop at once");
        })?;
        Ok(stop)
    }

    /// Returns whether Ctrl-C was pressed.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Number of steps of a phase: the recipe's, or an estimate of the steps that fit a time limit.
pub struct StepBudget {
    /// The recipe's number of steps.
    steps: u64,
    limit: Option<Duration>,
    started: Instant,
    /// End of the first step and its number. The estimate excludes the time before, in which GPU kernels are compiled.
    first: Option<(Instant, u64)>,
}

impl StepBudget {
    /// Creates a budget of `steps` steps, or of `minutes` minutes if given.
    pub fn new(steps: u64, minutes: Option<f64>) -> Self {
        let limit = minutes.map(|minutes| Duration::from_secs_f64(minutes * 60.0));
        Self { steps, limit, first: None, started: Instant::now() }
    }

    /// Returns the initial number of steps of the phase. With a limit of zero minutes, trained weights are left as
    /// they are, and the result is `done`.
    pub fn initial(&self, done: u64, is_trained: bool) -> u64 {
        if is_trained && self.limit == Some(Duration::ZERO) { done } else { self.steps }
    }

    /// Returns the number of steps of the phase, estimated again after `step`.
    pub fn update(&mut self, step: u64) -> u64 {
        let Some(limit) = self.limit else { return self.steps };
        let now = Instant::now();
        let (from, first) = *self.first.get_or_insert((now, step));
        let left = (self.started + limit).saturating_duration_since(now);
        if left.is_zero() {
            return step;
        }
        let taken = now.saturating_duration_since(from).as_secs_f64();
        let done = (step - first) as f64;
        // Without a measured step, assume the recipe's number.
        if done < 1.0 || taken <= 0.0 {
            return self.steps.max(step + 1);
        }
        step + (left.as_secs_f64() * done / taken).ceil() as u64
    }
}

/// Progress bar of one phase.
pub struct PhaseProgress {
    bar: ProgressBar,
    started: Instant,
    first: u64,
    batch: usize,
    quiet: bool,
}

impl PhaseProgress {
    /// Creates a bar that starts at `step`. If standard error is not a terminal, only the lines of
    /// [`Self::print_line`] are printed.
    pub fn new(phase: &str, step: u64, steps: u64, batch: usize, quiet: bool) -> Self {
        let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::new(steps) };
        bar.set_style(bar_style("{prefix:10} {bar:24} {pos}/{len} {msg} {elapsed} ({eta} left)"));
        bar.set_prefix(phase.to_string());
        bar.set_position(step);
        bar.reset_eta();
        Self { bar, started: Instant::now(), first: step, batch, quiet }
    }

    /// Returns the images per second since the phase was started or resumed.
    pub fn images_per_second(&self, step: u64) -> f64 {
        ((step - self.first) * self.batch as u64) as f64 / self.started.elapsed().max(Duration::from_millis(1)).as_secs_f64()
    }

    /// Returns the seconds since the phase was started or resumed.
    pub fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    /// Updates the bar after a step.
    pub fn update(&self, step: u64, steps: u64, losses: &str) {
        self.bar.set_length(steps);
        self.bar.set_position(step);
        self.bar.set_message(format!("{losses}  {:.1} images/s", self.images_per_second(step)));
    }

    /// Prints a line above the bar.
    pub fn print_line(&self, line: &str) {
        match (self.quiet, self.bar.is_hidden()) {
            (true, _) => {}
            (false, true) => eprintln!("{line}"),
            (false, false) => self.bar.println(line),
        }
    }
}

impl Drop for PhaseProgress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
