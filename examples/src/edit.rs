//! A picture drawn anew in part: under a mask, around it, or in its finer scales.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use clap::Parser;
use hart_core::{CancelToken, FromImage, Image, Mask};
use hart_examples::cli::saver::{Saver, list};
use hart_examples::cli::settings::Settings;
use hart_examples::cli::{INTERRUPTED, image_file, output, stop_on_ctrl_c};

/// Draws a part of a picture anew
#[derive(Parser, Debug)]
#[command(name = "edit", version, max_term_width = 110)]
struct Arguments {
    /// The picture: PNG, JPEG, WebP, BMP or GIF; its middle square is resized to the model's size
    #[arg(value_name = "FILE")]
    picture: PathBuf,
    /// What to draw
    #[arg(value_name = "PROMPT")]
    prompt: String,
    #[command(flatten)]
    what: What,
    /// Keeps this many of the coarsest scales also where it draws anew, so that what was there shines through
    #[arg(long, value_name = "SCALES", default_value_t = 0, conflicts_with_all = ["outpaint", "vary"])]
    keep_scales: usize,
    /// PNG file; n in braces stands for the number of a picture
    #[arg(short, long, value_name = "FILE", default_value = "out.png")]
    out: PathBuf,
    /// Also writes the picture and what was made of it side by side into this PNG file
    #[arg(long, value_name = "FILE")]
    grid: Option<PathBuf>,
    /// How many pictures; their seeds count up
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 1)]
    count: usize,
    #[command(flatten)]
    settings: Settings,
    /// Shows no progress
    #[arg(short, long)]
    quiet: bool,
}

/// What is drawn anew.
#[derive(clap::Args, Debug)]
#[group(required = true, multiple = false)]
struct What {
    /// Draws anew what is white in this picture
    #[arg(long, value_name = "FILE")]
    mask: Option<PathBuf>,
    /// Draws a rectangle anew, in percent of the picture
    #[arg(long, value_name = "LEFT,TOP,WIDTH,HEIGHT")]
    rectangle: Option<Percent<4>>,
    /// Shrinks the picture to SIZE percent, places it and draws around it
    #[arg(long, value_name = "LEFT,TOP,SIZE")]
    outpaint: Option<Percent<3>>,
    /// Keeps this many of the picture's coarsest scales and draws the finer ones anew
    #[arg(long, value_name = "SCALES")]
    vary: Option<usize>,
}

/// Numbers from 0 to 100.
#[derive(Clone, Copy, Debug)]
struct Percent<const N: usize>([f64; N]);

impl<const N: usize> FromStr for Percent<N> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |part: &str| part.trim().parse().ok().filter(|n| (0.0..=100.0).contains(n));
        let numbers: Option<Vec<f64>> = text.split(',').map(number).collect();
        let numbers = numbers.and_then(|numbers| numbers.try_into().ok());
        numbers.map(Self).ok_or_else(|| format!("expected {N} numbers from 0 to 100 with commas between"))
    }
}

impl<const N: usize> Percent<N> {
    /// As parts of `side` pixels.
    fn of(self, side: usize) -> [usize; N] {
        self.0.map(|percent| (percent / 100.0 * side as f64).round() as usize)
    }
}

fn main() -> ExitCode {
    hart_examples::cli::exit_code(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<ExitCode, Box<dyn Error>> {
    let cancel = CancelToken::new();
    let settings = &arguments.settings;
    let request = settings.request(vec![arguments.prompt.clone()], settings.seed.number()?, cancel.clone())?;
    let request = request.images_per_prompt(arguments.count);
    request.validate()?;
    output::check_folder("--out", &arguments.out)?;
    if let Some(grid) = &arguments.grid {
        output::check_grid(grid, &arguments.out, arguments.count)?;
    }
    arguments.check_inputs()?;
    stop_on_ctrl_c(cancel)?;

    let hart = settings.opening.open()?;
    let side = hart.config().resolution();
    let original = image_file::open_square(&arguments.picture, side)?;
    let request = request.from_image(arguments.start(&original)?);
    let mut saver = Saver::new(&arguments.out, arguments.count, arguments.quiet);
    let made = hart.generate(&request, &mut saver);
    let files = saver.finish()?;
    match made {
        Ok(made) => {
            output::warn_truncated(&made.truncated);
            if let Some(grid) = &arguments.grid {
                let pictures: Vec<Image> = std::iter::once(original).chain(made.images).collect();
                Image::grid(&pictures, pictures.len())?.save_png(grid)?;
            }
            eprintln!("{:.2} s{}", made.timings.total.as_secs_f64(), list(&files));
            Ok(ExitCode::SUCCESS)
        }
        Err(error) if error.is_cancelled() => {
            eprintln!("cancelled; {} of {} pictures were finished{}", files.len(), arguments.count, list(&files));
            Ok(ExitCode::from(INTERRUPTED))
        }
        Err(error) => Err(error.into()),
    }
}

impl Arguments {
    /// Nothing that is written takes the place of what is read.
    fn check_inputs(&self) -> Result<(), String> {
        let mask = self.what.mask.iter().map(|mask| ("the mask", mask));
        for (owner, input) in std::iter::once(("the edited picture", &self.picture)).chain(mask) {
            for index in 0..self.count {
                output::check_apart("--out", &output::numbered(&self.out, index, self.count), owner, input)?;
            }
            if let Some(grid) = &self.grid {
                output::check_apart("--grid", grid, owner, input)?;
            }
        }
        Ok(())
    }

    /// What of the picture is kept; `original` is the picture at the model's size.
    fn start(&self, original: &Image) -> Result<FromImage, Box<dyn Error>> {
        let side = original.width();
        let inpaint = |mask| Ok(FromImage::inpaint(original.clone(), mask).keep_scales(self.keep_scales));
        match &self.what {
            What { mask: Some(mask), .. } => inpaint(Mask::from_image(&image_file::open_square(mask, side)?)),
            What { rectangle: Some(rectangle), .. } => {
                let [left, top, width, height] = rectangle.of(side);
                inpaint(Mask::rectangle((side, side), left, top, width, height))
            }
            What { outpaint: Some(outpaint), .. } => {
                let [left, top, size] = outpaint.of(side);
                if size == 0 {
                    return Err(format!(
                        "--outpaint: nothing is left of the picture at that size; the model draws {side} x {side} pixels"
                    )
                    .into());
                }
                Ok(FromImage::outpaint(image_file::open_square(&self.picture, size)?, left, top))
            }
            What { vary, .. } => Ok(FromImage::vary(original.clone(), vary.unwrap_or_default())),
        }
    }
}
