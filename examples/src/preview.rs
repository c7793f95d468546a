//! Prompt to picture, seen as it is made, scale by scale: `cargo run --release --bin preview -- "a parrot"`.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use hart_core::{CancelToken, Control, Event, Image, Observer, Provenance, Step};
use hart_examples::cli::animation::Format;
use hart_examples::cli::settings::Settings;
use hart_examples::cli::terminal::{Canvas, Draw};
use hart_examples::cli::{INTERRUPTED, enlarge, output, stop_on_ctrl_c};

/// Least side of an animation's frames, so that the pictures of tiny models can be seen.
const LEAST_SIDE: u32 = 256;

/// Makes a picture and shows every scale of it in the terminal
#[derive(Parser, Debug)]
#[command(name = "preview", version, max_term_width = 110)]
struct Arguments {
    /// What to draw
    #[arg(value_name = "PROMPT")]
    prompt: String,
    /// PNG file of the finished picture
    #[arg(short, long, value_name = "FILE", default_value = "out.png")]
    out: PathBuf,
    /// Also writes the scales as an animated GIF or PNG; decodes each of them at full size
    #[arg(short, long, value_name = "FILE.gif|FILE.png")]
    animation: Option<PathBuf>,
    /// How to draw where standard output is a terminal
    #[arg(long, value_enum, default_value_t = Draw::Auto)]
    draw: Draw,
    #[command(flatten)]
    settings: Settings,
}

fn main() -> ExitCode {
    hart_examples::cli::exit_code(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<ExitCode, Box<dyn Error>> {
    let cancel = CancelToken::new();
    let settings = &arguments.settings;
    let request = settings.request(vec![arguments.prompt.clone()], settings.seed.number()?, cancel.clone())?;
    request.validate()?;
    output::check_folder("--out", &arguments.out)?;
    let animation = arguments.animation.as_deref().map(|path| check_animation(path, &arguments.out)).transpose()?;
    stop_on_ctrl_c(cancel)?;

    let hart = settings.opening.open()?;
    let mut watcher = Watcher {
        canvas: Canvas::open(arguments.draw, hart.config().resolution()),
        frames: animation.map(|_| Vec::new()),
        error: None,
    };
    let made = hart.generate(&request, &mut watcher);
    let Watcher { canvas, frames, error } = watcher;
    drop(canvas);
    if let Some(error) = error {
        return Err(error);
    }
    let made = match made {
        Ok(made) => made,
        Err(error) if error.is_cancelled() => {
            eprintln!("cancelled");
            return Ok(ExitCode::from(INTERRUPTED));
        }
        Err(error) => return Err(error.into()),
    };
    output::warn_truncated(&made.truncated);
    let picture = &made.images[0];
    picture.save_png(&arguments.out)?;
    eprintln!("{:.2} s -> {}", made.timings.total.as_secs_f64(), arguments.out.display());
    if let (Some((format, path)), Some(frames)) = (animation, frames) {
        let frames: Vec<_> = frames.iter().map(|frame| enlarge::at_least(frame, LEAST_SIDE)).collect();
        output::save(path, &format.encode(&frames, picture.provenance.as_ref())?)?;
        eprintln!("{} frames -> {}", frames.len(), path.display());
    }
    Ok(ExitCode::SUCCESS)
}

fn check_animation<'a>(path: &'a Path, out: &Path) -> Result<(Format, &'a Path), String> {
    let format = Format::of(path)?;
    output::check_folder("--animation", path)?;
    output::check_apart("--animation", path, "the picture", out)?;
    Ok((format, path))
}

/// Shows what has been made so far, and keeps it for the animation.
struct Watcher {
    canvas: Option<Canvas>,
    frames: Option<Vec<Image>>,
    error: Option<Box<dyn Error>>,
}

impl Watcher {
    fn step(&mut self, event: &Event<'_>) -> Result<(), Box<dyn Error>> {
        let percent = 100.0 * event.fraction;
        match event.step {
            Step::ScaleDone { scale, scales, side } => {
                let text = format!("scale {scale} of {scales}: {side} x {side} positions, {percent:.0} %");
                // Without a terminal and an animation nobody sees it: it is not decoded.
                let wanted = if self.frames.is_some() { Some(usize::MAX) } else { self.canvas.as_ref().map(Canvas::side) };
                match wanted.and_then(|side| event.preview(side)) {
                    Some(picture) => self.picture_at(picture?, &text),
                    None => self.text(&text),
                }
            }
            Step::TextLayer { layer, layers } if self.canvas.is_some() => {
                self.text(&format!("reading the prompt: {layer} of {layers}"))
            }
            Step::Block { scale, scales, block, blocks } if self.canvas.is_some() => {
                self.text(&format!("scale {scale} of {scales}: block {block} of {blocks}, {percent:.0} %"))
            }
            Step::Diffusion { step, steps } if self.canvas.is_some() || step == steps => {
                self.text(&format!("residual diffusion: step {step} of {steps}, {percent:.0} %"))
            }
            Step::Decoder { block, blocks } if self.canvas.is_some() || block == blocks => {
                self.text(&format!("decoding: block {block} of {blocks}, {percent:.0} %"))
            }
            _ => Ok(()),
        }
    }

    fn text(&mut self, text: &str) -> Result<(), Box<dyn Error>> {
        match &mut self.canvas {
            Some(canvas) => canvas.say(text)?,
            None => output::say(text)?,
        }
        Ok(())
    }

    fn picture_at(&mut self, picture: Image, text: &str) -> Result<(), Box<dyn Error>> {
        match &mut self.canvas {
            Some(canvas) => canvas.show(&picture, text)?,
            None => output::say(text)?,
        }
        self.frames.iter_mut().for_each(|frames| frames.push(picture.clone()));
        Ok(())
    }
}

impl Observer for Watcher {
    fn event(&mut self, event: &Event<'_>) -> Control {
        if self.error.is_none() {
            match self.step(event) {
                Ok(()) => return Control::Continue,
                // A preview that the user's Ctrl-C stopped is no error of its own.
                Err(error) if error.downcast_ref::<hart_core::Error>().is_some_and(hart_core::Error::is_cancelled) => {}
                Err(error) => self.error = Some(error),
            }
        }
        Control::Cancel
    }

    fn image(&mut self, image: &Image) {
        let text = |made: &Provenance| format!("{}, seed {}", output::shortened(&made.prompt), made.seed);
        let text = image.provenance.as_ref().map_or_else(String::new, text);
        if let Err(error) = self.picture_at(image.clone(), &text) {
            self.error = Some(error);
        }
    }
}
