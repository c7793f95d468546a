//! Runs of any number of images, in requests of a few images each.

use std::error::Error;
use std::ops::Range;
use std::path::PathBuf;
use std::process::ExitCode;

use hart_core::{Error as HartError, Hart, Image, Request, Timings, Truncation};

use super::INTERRUPTED;
use super::out_files::OutFiles;
use super::output::{file_list, warn_truncated};
use super::saver::Saver;
use super::sign::Signing;

/// Maximum number of images of one request, which keeps them in memory until its end, for each image that is generated at once. Also the number of prompts that a request encodes
/// at a time if it has to convert the weights of the text model first.
const IMAGES_PER_REQUEST: usize = 16;
/// Maximum number of images of a run.
const MAX_IMAGES: usize = 1_000_000;

/// A run that generates the same number of images of each prompt, and saves each image as soon as it is finished.
///
/// The images are those of a single request for all prompts, to the last bit. But each request is for a few images, so the memory of a
/// run does not grow with its number of images.
#[derive(Debug)]
pub struct Run {
    prompts: Vec<String>,
    images_per_prompt: usize,
    seed: u64,
    /// The settings of all requests, which differ in prompt, seed and number of images.
    settings: Request,
    out: OutFiles,
    signing: Signing,
    parts: Vec<Part>,
}

/// The images of one request: the same ones of each of its prompts.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Part {
    /// Indices of the prompts.
    prompts: Vec<usize>,
    /// Indices among the images of a prompt.
    images: Range<usize>,
}

impl Part {
    fn len(&self) -> usize {
        self.prompts.len() * self.images.len()
    }

    /// Returns the indices of each image: that of its prompt, and its own among those of the prompt.
    fn indices(&self) -> impl Iterator<Item = (usize, usize)> {
        self.prompts.iter().flat_map(|&prompt| self.images.clone().map(move |image| (prompt, image)))
    }
}

/// The result of a run.
#[derive(Debug, Default)]
#[must_use]
pub struct Outcome {
    /// The files of the generated images.
    pub files: Vec<PathBuf>,
    /// The seeds of the generated images.
    pub seeds: Vec<u64>,
    /// The generated images; empty unless the run was to keep them.
    pub images: Vec<Image>,
    /// Time spent in each stage.
    pub timings: Timings,
    /// The prompts that were cut, in their order.
    pub truncated: Vec<Truncation>,
    /// The error that ended the run.
    pub error: Option<HartError>,
}

impl Run {
    /// Creates a run with the settings of a request, whose prompts don't matter. Image `i` of each prompt has the seed `seed + i`.
    ///
    /// # Errors
    ///
    /// [`HartError::Request`] naming the first invalid value.
    pub fn new(
        prompts: Vec<String>,
        images_per_prompt: usize,
        seed: u64,
        settings: Request,
        out: OutFiles,
    ) -> Result<Self, HartError> {
        let settings = settings.prompts(prompts.first());
        let whole = settings.clone().prompts(&prompts).images_per_prompt(images_per_prompt);
        match whole.validate() {
            // There are too many images for a single request, which is checked before other values.
            Err(HartError::Request { field: "images", .. }) => settings.validate()?,
            result => result?,
        }
        let total = whole.total_images();
        if total > MAX_IMAGES {
            let problem = format!("{total} in all, at most {MAX_IMAGES} in one run: split it");
            return Err(HartError::Request { field: "images", problem });
        }
        let all = (0..prompts.len()).flat_map(|prompt| (0..images_per_prompt).map(move |image| (prompt, image)));
        let missing = all.filter(|(prompt, image)| !out.is_kept(prompt * images_per_prompt + image));
        let parts = parts(missing, IMAGES_PER_REQUEST);
        Ok(Self { prompts, images_per_prompt, seed, settings, out, signing: Signing::default(), parts })
    }

    /// Changes the settings of all requests.
    #[must_use]
    pub fn map_settings(self, change: impl FnOnce(Request) -> Request) -> Self {
        Self { settings: change(self.settings), ..self }
    }

    /// Signs the files.
    #[must_use]
    pub fn signed(self, signing: Signing) -> Self {
        Self { signing, ..self }
    }

    /// Returns the seed of each prompt's first image.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Returns the number of images of all prompts.
    pub fn total_images(&self) -> usize {
        self.prompts.len() * self.images_per_prompt
    }

    /// Returns the number of images whose files exist, and which are kept.
    pub fn kept_images(&self) -> usize {
        self.total_images() - self.new_images()
    }

    /// Returns the number of images to generate.
    pub fn new_images(&self) -> usize {
        self.parts.iter().map(Part::len).sum()
    }

    /// Generates and saves the images. `keep_images` also returns them.
    pub fn execute(&self, hart: &Hart, keep_images: bool, quiet: bool) -> Outcome {
        let mut saver = Saver::new(&self.out, &self.signing, self.new_images(), keep_images, quiet);
        let (mut timings, mut truncated) = (Timings::default(), Vec::new());
        // At the end of a request, some threads have nothing to do.
        let size = (IMAGES_PER_REQUEST * hart.parallel()).min(hart_core::MAX_IMAGES);
        let missing = self.parts.iter().flat_map(Part::indices);
        let result = parts(missing, size).iter().try_for_each(|part| {
            saver.begin(part.indices().map(|(prompt, image)| prompt * self.images_per_prompt + image).collect());
            let generation = hart.generate_with(&self.request(part), &mut saver)?;
            timings += generation.timings;
            add_truncated(&mut truncated, generation.truncated, &part.prompts);
            Ok(())
        });
        // An error of writing a file cancels its request, unless it was its last image.
        let (outcome, write_error) = saver.finish();
        Outcome { timings, truncated, error: write_error.or(result.err()), ..outcome }
    }

    /// Returns a line with the time of a run, its files and the number of images that were kept.
    pub fn summary(&self, outcome: &Outcome) -> String {
        let kept = match self.kept_images() {
            0 => String::new(),
            1 => ", 1 image existed".into(),
            kept => format!(", {kept} images existed"),
        };
        format!("{:.2} s{kept}{}", outcome.timings.total.as_secs_f64(), file_list(&outcome.files))
    }

    fn request(&self, part: &Part) -> Request {
        let request = self.settings.clone().prompts(part.prompts.iter().map(|&prompt| &self.prompts[prompt]));
        request.seed(self.seed.wrapping_add(part.images.start as u64)).images_per_prompt(part.images.len())
    }

    /// Prints which images of a run that ended early are finished, and returns its error, or the exit code of a cancelled program.
    ///
    /// # Errors
    ///
    /// Returns `error` unless it is a cancellation.
    pub fn end_early(&self, outcome: &Outcome, error: HartError) -> Result<ExitCode, Box<dyn Error>> {
        warn_truncated(&outcome.truncated);
        let cancelled = if error.is_cancelled() { "cancelled; " } else { "" };
        if error.is_cancelled() || !outcome.files.is_empty() {
            let (finished, all) = (outcome.files.len(), self.new_images());
            eprintln!("{cancelled}{finished} of {all} images were finished{}", file_list(&outcome.files));
        }
        if !outcome.files.is_empty() && !self.out.skip_existing {
            eprintln!("to generate the others, run the same command with --seed {} --skip-existing", self.seed);
        }
        if error.is_cancelled() { Ok(ExitCode::from(INTERRUPTED)) } else { Err(error.into()) }
    }
}

/// Groups images into requests of at most `size`. Images are given by the index of their prompt, and their own among those of the prompt,
/// in ascending order.
fn parts(images: impl Iterator<Item = (usize, usize)>, size: usize) -> Vec<Part> {
    let mut ranges: Vec<Part> = Vec::new();
    for (prompt, image) in images {
        match ranges.last_mut() {
            Some(last) if last.prompts == [prompt] && last.images.end == image && last.images.len() < size => last.images.end += 1,
            _ => ranges.push(Part { prompts: vec![prompt], images: image..image + 1 }),
        }
    }
    let mut parts: Vec<Part> = Vec::new();
    for part in ranges {
        match parts.last_mut() {
            Some(last) if last.images == part.images && last.len() + part.len() <= size => last.prompts.extend(part.prompts),
            _ => parts.push(part),
        }
    }
    parts
}

/// Appends the truncations of a request for these prompts. Drops those that another request has reported: that of the system prompt, and
/// that of the same prompt.
fn add_truncated(all: &mut Vec<Truncation>, of_request: Vec<Truncation>, prompts: &[usize]) {
    for mut truncation in of_request {
        truncation.prompt = truncation.prompt.map(|index| prompts[index]);
        // The system prompt's truncation is reported first.
        if [all.first(), all.last()].into_iter().flatten().all(|other| other.prompt != truncation.prompt) {
            all.push(truncation);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_few_images_and_the_same_of_each_prompt() {
        let part = |prompts: Range<usize>, images| Part { prompts: prompts.collect(), images };
        let parts = |prompts: usize, images_per_prompt: usize, is_kept: fn(usize) -> bool| {
            let all = (0..prompts).flat_map(move |prompt| (0..images_per_prompt).map(move |image| (prompt, image)));
            parts(all.filter(|(prompt, image)| !is_kept(prompt * images_per_prompt + image)), IMAGES_PER_REQUEST)
        };
        assert_eq!(parts(3, 1, |_| false), [part(0..3, 0..1)]);
        assert_eq!(parts(20, 3, |_| false), [0..5, 5..10, 10..15, 15..20].map(|prompts| part(prompts, 0..3)));
        assert_eq!(parts(2, 20, |_| false), [part(0..1, 0..16), part(0..1, 16..20), part(1..2, 0..16), part(1..2, 16..20)]);
        // The second image of the first two prompts and the third prompt exist.
        let mixed = [part(0..1, 0..1), part(0..1, 2..3), part(1..2, 0..1), part(1..2, 2..3), part(3..5, 0..3)];
        assert_eq!(parts(5, 3, |index| [1, 4, 6, 7, 8].contains(&index)), mixed);
        assert_eq!(parts(4, 1, |index| index == 1), [Part { prompts: vec![0, 2, 3], images: 0..1 }]);
        assert_eq!(parts(6, 3, |_| true), []);
    }

    #[test]
    fn every_value_is_checked_for_any_number_of_images() {
        let out = || OutFiles { pattern: "{n}.png".into(), first: 0, skip_existing: false };
        let run = |prompts: &[&str], count, settings: Request| {
            Run::new(prompts.iter().map(|p| p.to_string()).collect(), count, 0, settings, out()).map_err(|e| e.to_string())
        };
        let many = vec!["a parrot"; 1025];
        assert_eq!(run(&many, 2, Request::new("")).unwrap().total_images(), 2050);
        assert!(run(&many, 1, Request::new("").top_k(0)).unwrap_err().contains("top-k"));
        assert!(run(&[&many[..], &[" "]].concat(), 1, Request::new("")).unwrap_err().contains("number 1026 is empty"));
        assert!(run(&many, 0, Request::new("")).unwrap_err().contains("images per prompt: 0"));
        assert!(run(&many, usize::MAX, Request::new("")).unwrap_err().contains("at most 1000000 in one run"));
        assert!(run(&[], 1, Request::new("")).unwrap_err().contains("prompt: missing"));
    }
}
