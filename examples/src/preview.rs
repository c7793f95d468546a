//! Generates an image and shows it scale by scale: `cargo run --release --features images --bin preview -- "a parrot"`.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use hart_core::{CancelToken, Control, Event, Image, Observer, Provenance, Step, write_file};
use hart_examples::cli::animation::Format;
use hart_examples::cli::args::GenerationArgs;
use hart_examples::cli::out_files::OutFiles;
use hart_examples::cli::sign::Signing;
use hart_examples::cli::terminal::{Canvas, Draw};
use hart_examples::cli::{INTERRUPTED, enlarge, output, prompt_syntax, stop_on_ctrl_c};

/// Minimum side of an animation's frames in pixels, for models of small images.
const MIN_FRAME_SIDE: usize = 256;

/// Generate an image and show each of its scales in the terminal
#[derive(Parser, Debug)]
#[command(name = "preview", version, max_term_width = 110)]
struct Arguments {
    /// Description of the image to generate
    #[arg(value_name = "PROMPT")]
    prompt: String,
    /// PNG, JPEG or WebP file of the finished image; n in braces stands for 0, as in `generate`
    #[arg(short, long, value_name = "FILE", default_value = "out.png")]
    out: PathBuf,
    /// Also write the scales as an animated GIF or PNG file; decodes each scale at full size
    #[arg(short, long, value_name = "FILE.gif|FILE.png")]
    animation: Option<PathBuf>,
    /// Graphics protocol to draw images with if standard output is a terminal
    #[arg(long, value_enum, default_value_t = Draw::Auto)]
    draw: Draw,
    #[command(flatten)]
    settings: GenerationArgs,
}

fn main() -> ExitCode {
    hart_examples::cli::exit_code::<Arguments>(run(&hart_examples::cli::parse()))
}

fn run(arguments: &Arguments) -> Result<ExitCode, Box<dyn Error>> {
    let cancel = CancelToken::new();
    let settings = &arguments.settings;
    prompt_syntax::warn(&[&arguments.prompt]);
    let request = settings.request(vec![arguments.prompt.clone()], settings.seed()?, cancel.clone())?;
    request.validate()?;
    let out = OutFiles { pattern: arguments.out.clone(), first: 0, skip_existing: false };
    out.check(1)?;
    let animation = arguments.animation.as_deref().map(|path| check_animation(path, &out.path(0))).transpose()?;
    stop_on_ctrl_c(cancel)?;

    let hart = settings.model.open()?;
    let mut viewer = Viewer {
        canvas: Canvas::open(arguments.draw, hart.config().resolution()),
        frames: animation.map(|_| Vec::new()),
        error: None,
    };
    let result = hart.generate_with(&request, &mut viewer);
    let Viewer { canvas, frames, error } = viewer;
    drop(canvas);
    if let Some(error) = error {
        return Err(error);
    }
    let generation = match result {
        Ok(generation) => generation,
        Err(error) if error.is_cancelled() => {
            eprintln!("cancelled");
            return Ok(ExitCode::from(INTERRUPTED));
        }
        Err(error) => return Err(error.into()),
    };
    output::warn_truncated(&generation.truncated);
    let image = &generation.images[0];
    let file = out.save(0, image, &Signing::default())?;
    eprintln!("{:.2} s -> {}", generation.timings.total.as_secs_f64(), file.display());
    if let (Some((format, path)), Some(frames)) = (animation, frames) {
        let frames: Vec<_> = frames.iter().map(|frame| enlarge::at_least(frame, MIN_FRAME_SIDE)).collect();
        write_file(path, &format.encode(&frames, image)?)?;
        eprintln!("{} frames -> {}", frames.len(), path.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// Checks the file of `--animation` and returns its format.
fn check_animation<'a>(path: &'a Path, out: &Path) -> Result<(Format, &'a Path), String> {
    let format = Format::of(path)?;
    output::check_folder("--animation", path)?;
    output::check_distinct("--animation", path, "the image", out)?;
    Ok((format, path))
}

/// An observer that shows the image after each scale and collects the frames of an animation.
struct Viewer {
    /// `None` if standard output can't show images.
    canvas: Option<Canvas>,
    /// `None` without `--animation`.
    frames: Option<Vec<Image>>,
    /// First error, which stops the run.
    error: Option<Box<dyn Error>>,
}

impl Viewer {
    /// Shows a step of the run, and decodes the image after each scale.
    fn show_step(&mut self, event: &Event<'_>) -> Result<(), Box<dyn Error>> {
        let percent = 100.0 * event.fraction;
        match event.step {
            Step::ScaleDone { scale, scales, side } => {
                let text = format!("scale {scale} of {scales}: {side} x {side} positions, {percent:.0} %");
                // Without a terminal and an animation the scale isn't decoded.
                let side = if self.frames.is_some() { Some(usize::MAX) } else { self.canvas.as_ref().map(Canvas::side) };
                match side.and_then(|side| event.preview(side)) {
                    Some(preview) => self.show_image(preview?, &text),
                    None => self.show_text(&text),
                }
            }
            Step::TextLayer { layer, layers } if self.canvas.is_some() => {
                self.show_text(&format!("encoding the prompt: layer {layer} of {layers}"))
            }
            Step::Block { scale, scales, block, blocks } if self.canvas.is_some() => {
                self.show_text(&format!("scale {scale} of {scales}: block {block} of {blocks}, {percent:.0} %"))
            }
            Step::Diffusion { step, steps } if self.canvas.is_some() || step == steps => {
                self.show_text(&format!("residual diffusion: step {step} of {steps}, {percent:.0} %"))
            }
            Step::Decoder { block, blocks } if self.canvas.is_some() || block == blocks => {
                self.show_text(&format!("decoding: block {block} of {blocks}, {percent:.0} %"))
            }
            _ => Ok(()),
        }
    }

    /// Shows a line of text in the terminal, or prints it.
    fn show_text(&mut self, text: &str) -> Result<(), Box<dyn Error>> {
        match &mut self.canvas {
            Some(canvas) => canvas.show_text(text)?,
            None => output::print_line(text)?,
        }
        Ok(())
    }

    /// Shows an image with a line of text, and keeps it for the animation.
    fn show_image(&mut self, image: Image, text: &str) -> Result<(), Box<dyn Error>> {
        match &mut self.canvas {
            Some(canvas) => canvas.show(&image, text)?,
            None => output::print_line(text)?,
        }
        if let Some(frames) = &mut self.frames {
            frames.push(image);
        }
        Ok(())
    }
}

impl Observer for Viewer {
    fn event(&mut self, event: &Event<'_>) -> Control {
        if self.error.is_none() {
            match self.show_step(event) {
                Ok(()) => return Control::Continue,
                // Ctrl-C also stops a preview. The run reports the cancellation.
                Err(error) if error.downcast_ref::<hart_core::Error>().is_some_and(hart_core::Error::is_cancelled) => {}
                Err(error) => self.error = Some(error),
            }
        }
        Control::Cancel
    }

    fn image(&mut self, image: &Image) {
        let text = |provenance: &Provenance| format!("{}, seed {}", output::shortened(&provenance.prompt), provenance.seed);
        let text = image.provenance.as_ref().map_or_else(String::new, text);
        if let Err(error) = self.show_image(image.clone(), &text) {
            self.error = Some(error);
        }
    }
}
