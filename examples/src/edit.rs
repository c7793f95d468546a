//! Edits an image: inpainting, outpainting and variations.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use clap::Parser;
use hart_core::{CancelToken, FromImage, Image, Keep, Mask};
use hart_examples::cli::args::{GenerationArgs, count};
use hart_examples::cli::out_files::OutFiles;
use hart_examples::cli::run::{Outcome, Run};
use hart_examples::cli::sign::SignArgs;
use hart_examples::cli::{image_file, output, stop_on_ctrl_c};

/// Regenerate a part of an image, its surroundings or its finer scales
#[derive(Parser, Debug)]
#[command(name = "edit", version, max_term_width = 110)]
struct Arguments {
    /// Image to edit: PNG, JPEG, WebP, BMP or GIF; turned upright as its EXIF data says, its central square is resized to the model's resolution
    #[arg(value_name = "IMAGE")]
    image: PathBuf,
    /// Description of the edited image
    #[arg(value_name = "PROMPT")]
    prompt: String,
    #[command(flatten)]
    edit: Edit,
    /// Keep this many of the coarsest scales in the edited region as well, so that it resembles the original
    #[arg(long, value_name = "SCALES", default_value_t = 0, conflicts_with_all = ["outpaint", "vary"])]
    keep_scales: usize,
    /// Part to keep exactly outside the edited region: the pixels, with a soft edge inside the region, or only the latent
    #[arg(long, value_name = "pixels|latent", default_value = "pixels", value_parser = parse_keep, conflicts_with = "vary")]
    keep: Keep,
    #[command(flatten)]
    out: OutFiles,
    /// Also write the original and the results side by side to this file
    #[arg(long, value_name = "FILE")]
    grid: Option<PathBuf>,
    /// Number of images, with consecutive seeds
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 1, value_parser = count::<usize>)]
    count: usize,
    #[command(flatten)]
    settings: GenerationArgs,
    #[command(flatten)]
    sign: SignArgs,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
}

/// Kind of edit; exactly one must be given.
#[derive(clap::Args, Debug)]
#[group(required = true, multiple = false)]
struct Edit {
    /// Inpaint the white region of this image file, which has the proportions of IMAGE; transparent pixels are not white
    #[arg(long, value_name = "FILE")]
    mask: Option<PathBuf>,
    /// Inpaint the transparent region of this image file, which has the proportions of IMAGE
    #[arg(long, value_name = "FILE")]
    hole: Option<PathBuf>,
    /// Inpaint a rectangle, given in percent of the image
    #[arg(long, value_name = "LEFT,TOP,WIDTH,HEIGHT")]
    rectangle: Option<Percent<4>>,
    /// Shrink the image to SIZE percent, place it at LEFT,TOP percent and outpaint around it
    #[arg(long, value_name = "LEFT,TOP,SIZE")]
    outpaint: Option<Percent<3>>,
    /// Keep this many of the image's coarsest scales and regenerate the finer ones
    #[arg(long, value_name = "SCALES")]
    vary: Option<usize>,
}

fn parse_keep(text: &str) -> Result<Keep, String> {
    match text {
        "pixels" => Ok(Keep::Pixels),
        "latent" => Ok(Keep::Latent),
        _ => Err("expected pixels or latent".into()),
    }
}

/// `N` percentages from 0 to 100, separated by commas.
#[derive(Clone, Copy, Debug)]
struct Percent<const N: usize>([f64; N]);

impl<const N: usize> FromStr for Percent<N> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |part: &str| part.trim().parse().ok().filter(|n| (0.0..=100.0).contains(n));
        let numbers: Option<Vec<f64>> = text.split(',').map(number).collect();
        let numbers = numbers.and_then(|numbers| numbers.try_into().ok());
        numbers.map(Self).ok_or_else(|| format!("expected {N} numbers from 0 to 100, separated by commas"))
    }
}

impl<const N: usize> Percent<N> {
    /// Converts the percentages to pixels of an image of `side` x `side` pixels.
    fn pixels(self, side: usize) -> [usize; N] {
        self.0.map(|percent| (percent / 100.0 * side as f64).round() as usize)
    }
}

fn main() -> ExitCode {
    hart_examples::cli::exit_code::<Arguments>(run(&hart_examples::cli::parse()))
}

fn run(arguments: &Arguments) -> Result<ExitCode, Box<dyn Error>> {
    let cancel = CancelToken::new();
    let settings = &arguments.settings;
    let run = settings.prepare_run(vec![arguments.prompt.clone()], arguments.count, &arguments.out, cancel.clone())?;
    if let Some(grid) = &arguments.grid {
        output::check_grid(grid, &arguments.out, arguments.count)?;
    }
    arguments.check_inputs()?;
    if run.new_images() == 0 {
        arguments.show_summary(&run, &Outcome::default());
        return Ok(ExitCode::SUCCESS);
    }
    let mut signing = arguments.sign.open()?;
    if signing.is_on() {
        let read = std::fs::read(&arguments.image).map_err(|error| format!("{}: {error}", arguments.image.display()));
        signing = signing.edits(Some(read?.into()));
    }
    let image = image_file::open(&arguments.image)?;
    let mask = arguments.open_mask(&image)?;
    stop_on_ctrl_c(cancel)?;

    let hart = settings.model.open()?;
    let original = image_file::square(&image, hart.config().resolution())?;
    let edit = arguments.build_edit(&image, mask, &original)?;
    let run = run.map_settings(|settings| settings.from_image(edit)).signed(signing.clone());
    let mut outcome = run.execute(&hart, arguments.grid.is_some(), arguments.quiet);
    if let Some(error) = outcome.error.take() {
        return run.end_early(&outcome, error);
    }
    output::warn_truncated(&outcome.truncated);
    if let Some(grid) = &arguments.grid {
        let images: Vec<Image> = std::iter::once(original).chain(outcome.images.iter().cloned()).collect();
        signing.save(&Image::grid(&images, images.len())?, grid)?;
    }
    arguments.show_summary(&run, &outcome);
    Ok(ExitCode::SUCCESS)
}

impl Arguments {
    fn show_summary(&self, run: &Run, outcome: &Outcome) {
        if !self.quiet {
            eprintln!("{}", run.summary(outcome));
        }
    }

    /// Checks that no output file overwrites an input file.
    fn check_inputs(&self) -> Result<(), String> {
        let mask = self.edit.mask.iter().chain(&self.edit.hole).map(|mask| ("the mask", mask));
        for (owner, input) in std::iter::once(("the original image", &self.image)).chain(mask) {
            for index in 0..self.count {
                output::check_distinct("--out", &self.out.path(index), owner, input)?;
            }
            if let Some(grid) = &self.grid {
                output::check_distinct("--grid", grid, owner, input)?;
            }
        }
        Ok(())
    }

    /// Reads the mask of an image from the file of `--mask` or `--hole`, if there is one.
    fn open_mask(&self, image: &Image) -> Result<Option<Mask>, Box<dyn Error>> {
        match &self.edit {
            Edit { mask: Some(file), .. } => {
                let mask = image_file::open_mask(file, image)?;
                if image_file::has_hole(&mask) {
                    let file = file.display();
                    eprintln!(
                        "hint: {file} is opaque around a transparent part: --mask regenerates what is white, --hole what is transparent"
                    );
                }
                Ok(Some(Mask::from_image(&mask)))
            }
            Edit { hole: Some(file), .. } => {
                let hole = image_file::open_mask(file, image)?.transparency();
                if hole.pixels().iter().all(|&transparency| transparency < 128) {
                    return Err(format!("--hole: {}: no pixel is transparent; --mask takes a white region", file.display()).into());
                }
                Ok(Some(Mask::from_image(&hole)))
            }
            _ => Ok(None),
        }
    }

    /// Builds the edit of an image, whose mask has been read. `original` is the image at the model's resolution.
    fn build_edit(&self, image: &Image, mask: Option<Mask>, original: &Image) -> Result<FromImage, Box<dyn Error>> {
        let side = original.width();
        let inpaint = |mask| FromImage::inpaint(original.clone(), mask).keep_scales(self.keep_scales).keep(self.keep);
        match &self.edit {
            Edit { rectangle: Some(rectangle), .. } => {
                let [left, top, width, height] = rectangle.pixels(side);
                Ok(inpaint(Mask::rectangle((side, side), left, top, width, height)))
            }
            Edit { outpaint: Some(outpaint), .. } => {
                let [left, top, size] = outpaint.pixels(side);
                if size == 0 {
                    return Err(format!(
                        "--outpaint: the image would have no pixels at that size; the model's resolution is {side} x {side}"
                    )
                    .into());
                }
                Ok(FromImage::outpaint(image_file::square(image, size)?, left, top).keep(self.keep))
            }
            Edit { vary: Some(kept), .. } => Ok(FromImage::vary(original.clone(), *kept)),
            _ => mask.map(inpaint).ok_or_else(|| "expected a kind of edit".into()),
        }
    }
}
