//! Tokenizes an image and reconstructs it, with the residual and from the discrete codes alone.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use hart_core::stages::{Latent, Progress, VisualTokenizer};
use hart_core::{DeviceKind, Image, OpenOptions};
use hart_examples::cli::args::SHIPPED_MODEL;
use hart_examples::cli::{image_file, output};
use serde_json::json;

/// Tokenize an image and reconstruct it: from hybrid tokens on the left, from discrete tokens alone on the right
#[derive(Parser, Debug)]
#[command(name = "reconstruct", version, max_term_width = 110)]
struct Arguments {
    /// Image to reconstruct: PNG, JPEG, WebP, BMP or GIF; turned upright as its EXIF data says, its central square is resized to the model's resolution
    #[arg(value_name = "IMAGE")]
    image: PathBuf,
    /// Model folder, with the subfolder tokenizer [default: the model in this repository]
    #[arg(short, long, value_name = "FOLDER", default_value = SHIPPED_MODEL, hide_default_value = true)]
    model: PathBuf,
    /// File for the two reconstructions: PNG, JPEG or WebP
    #[arg(short, long, value_name = "FILE", default_value = "out.png")]
    out: PathBuf,
    /// Also put the resized original on the left
    #[arg(long)]
    original: bool,
    /// Device to compute on
    #[arg(long, value_name = "auto|cpu|cuda[:n]|wgpu[:n]", default_value = "auto")]
    device: DeviceKind,
    /// Print a JSON object as the last line, with file, PSNR in dB and the codes of each scale
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    hart_examples::cli::exit_code::<Arguments>(run(&hart_examples::cli::parse()))
}

fn run(arguments: &Arguments) -> Result<ExitCode, Box<dyn Error>> {
    output::check_image("--out", &arguments.out)?;
    output::check_distinct("--out", &arguments.out, "the original image", &arguments.image)?;
    let original = image_file::open(&arguments.image)?;
    let options = OpenOptions::new().device(arguments.device);
    let device = arguments.device.open()?;
    let (tokenizer, _) = VisualTokenizer::open(&arguments.model.join("tokenizer"), &options, &device)?;
    let original = image_file::square(&original, tokenizer.resolution())?;
    let tokens = tokenizer.tokenize_images(std::slice::from_ref(&original))?;
    let hybrid = decode(&tokenizer, &tokens.hybrid())?;
    let discrete = decode(&tokenizer, &tokenizer.discrete(&tokens))?;
    let (hybrid_psnr, discrete_psnr) = (image_file::psnr(&original, &hybrid), image_file::psnr(&original, &discrete));
    output::print_line(format!("hybrid        {hybrid_psnr:.2} dB\ndiscrete only {discrete_psnr:.2} dB"))?;
    let mut images = vec![hybrid, discrete];
    if arguments.original {
        images.insert(0, original);
    }
    let columns = images.len();
    Image::grid(&images, columns)?.save(&arguments.out)?;
    eprintln!("-> {}", arguments.out.display());
    if arguments.json {
        let codes: Vec<_> = tokens.codes.iter().map(|scale| &scale[0]).collect();
        let psnr = json!({ "hybrid": hybrid_psnr, "discrete": discrete_psnr });
        output::print_line(json!({ "file": arguments.out.to_string_lossy(), "psnr_db": psnr, "codes": codes }))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn decode(tokenizer: &VisualTokenizer, latent: &Latent) -> Result<Image, hart_core::Error> {
    Ok(tokenizer.decode_images(latent, &mut Progress::silent())?.remove(0))
}
