//! A picture through the hybrid tokenizer and back: with the residual, and from its discrete codes alone.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use hart_core::stages::{Latent, Progress, VisualTokenizer};
use hart_core::{DeviceKind, Image, OpenOptions};
use hart_examples::cli::settings::SHIPPED_MODEL;
use hart_examples::cli::{image_file, output};
use serde_json::json;

/// Tokenizes a picture and decodes it again: the hybrid picture left, the discrete-only one right
#[derive(Parser, Debug)]
#[command(name = "reconstruct", version, max_term_width = 110)]
struct Arguments {
    /// The picture: PNG, JPEG, WebP, BMP or GIF; its middle square is resized to the model's size
    #[arg(value_name = "FILE")]
    picture: PathBuf,
    /// Folder of the model, which holds tokenizer
    #[arg(short, long, value_name = "FOLDER", default_value = SHIPPED_MODEL, hide_default_value = true)]
    model: PathBuf,
    /// PNG file for the two pictures
    #[arg(short, long, value_name = "FILE", default_value = "out.png")]
    out: PathBuf,
    /// Also puts the resized original on the left
    #[arg(long)]
    original: bool,
    /// Where to compute
    #[arg(long, value_name = "auto|cpu|cuda[:n]|wgpu[:n]", default_value = "auto")]
    device: DeviceKind,
    /// Prints one JSON object as the last line: file, decibels, codes of every scale
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    hart_examples::cli::exit_code(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<ExitCode, Box<dyn Error>> {
    output::check_folder("--out", &arguments.out)?;
    output::check_apart("--out", &arguments.out, "the picture", &arguments.picture)?;
    let options = OpenOptions::new().device(arguments.device);
    let device = arguments.device.open()?;
    let (tokenizer, _) = VisualTokenizer::open(&arguments.model.join("tokenizer"), &options, &device)?;
    let original = image_file::open_square(&arguments.picture, tokenizer.resolution())?;
    let tokens = tokenizer.tokenize_images(std::slice::from_ref(&original))?;
    let hybrid = decode(&tokenizer, &tokens.hybrid())?;
    let discrete = decode(&tokenizer, &tokenizer.discrete(&tokens))?;
    let (hybrid_psnr, discrete_psnr) = (image_file::psnr(&original, &hybrid), image_file::psnr(&original, &discrete));
    output::say(format!("hybrid        {hybrid_psnr:.2} dB\ndiscrete only {discrete_psnr:.2} dB"))?;
    let mut pictures = vec![hybrid, discrete];
    if arguments.original {
        pictures.insert(0, original);
    }
    let columns = pictures.len();
    Image::grid(&pictures, columns)?.save_png(&arguments.out)?;
    eprintln!("-> {}", arguments.out.display());
    if arguments.json {
        let codes: Vec<_> = tokens.codes.iter().map(|scale| &scale[0]).collect();
        let psnr = json!({ "hybrid": hybrid_psnr, "discrete": discrete_psnr });
        output::say(json!({ "file": arguments.out.to_string_lossy(), "psnr_db": psnr, "codes": codes }))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn decode(tokenizer: &VisualTokenizer, latent: &Latent) -> Result<Image, hart_core::Error> {
    Ok(tokenizer.decode_images(latent, &mut Progress::silent())?.remove(0))
}
