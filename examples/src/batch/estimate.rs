//! What a batch will do and take, without doing it.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use hart_core::Hart;
use hart_examples::cli::output::print_line;
use indicatif::{HumanBytes, HumanDuration};

use crate::progress::describe;
use crate::selection::{Selected, Selection};
use crate::task::Task;

/// Number of errors that are printed.
const LISTED_ERRORS: u64 = 10;

/// The numbers of lines of a shard.
#[derive(Debug, Default)]
pub struct Survey {
    /// Images that are not done.
    pub new: u64,
    /// Images that are done.
    pub done: u64,
    /// Images that are done, and whose settings are compared during the run.
    pub unchecked: u64,
    /// Lines with an error.
    pub failed: u64,
    /// The first image that is not done.
    pub first: Option<Task>,
}

impl Survey {
    /// Counts the lines of a selection. `prints_errors` prints the first few errors.
    ///
    /// # Errors
    ///
    /// Returns the system's error of reading.
    pub fn count(mut selection: Selection<'_>, prints_errors: bool) -> io::Result<Self> {
        let mut survey = Self::default();
        while let Some(selected) = selection.next()? {
            match selected {
                Selected::Done => survey.done += 1,
                Selected::Unchecked(_) => (survey.done, survey.unchecked) = (survey.done + 1, survey.unchecked + 1),
                Selected::Failed(error) => {
                    survey.failed += 1;
                    if prints_errors && survey.failed <= LISTED_ERRORS {
                        eprintln!("{}", hart_examples::cli::output::one_line(&describe(&error)));
                    }
                }
                Selected::New(task) => {
                    survey.new += 1;
                    survey.first.get_or_insert(*task);
                }
            }
        }
        Ok(survey)
    }

    /// Returns whether the model has to be opened for the lines.
    pub fn needs_model(&self) -> bool {
        self.new + self.unchecked > 0
    }

    /// Prints the counts.
    ///
    /// # Errors
    ///
    /// Returns the error of standard output.
    pub fn print(&self) -> io::Result<()> {
        print_line(format!("images    {} to generate, {} done, {} lines with errors", self.new, self.done, self.failed))
    }
}

/// Measures the first image and prints the estimated time and memory of all.
///
/// The time is that of the images that are generated at once, after one image that is not counted, multiplied by the number of images and
/// divided by the number at once. Images with other settings can take another time. The memory is that of a request for the images at
/// once.
///
/// # Errors
///
/// Returns a message if the image can't be generated or nothing can be printed.
pub fn print_estimate(survey: &Survey, hart: &Hart) -> Result<(), String> {
    let Some(first) = &survey.first else { return Ok(()) };
    let (request, parallel) = (first.settings.request(), hart.parallel());
    let generate = || hart.generate(&request).map(drop).map_err(|e| e.to_string());
    generate()?;
    let start = Instant::now();
    thread::scope(|scope| {
        let threads: Vec<_> = (0..parallel).map(|_| scope.spawn(generate)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })?;
    let each = start.elapsed().as_secs_f64() / parallel as f64;
    let bytes = hart.memory(&request.clone().images_per_prompt(parallel)).peak();
    let all = Duration::from_secs_f64(each * survey.new as f64);
    let print = |line: String| print_line(line).map_err(|e| e.to_string());
    print(format!("time      {} in all: {each:.3} s an image, {parallel} at once", HumanDuration(all)))?;
    print(format!("memory    {}", HumanBytes(bytes)))
}
