//! Packs captioned drawings or images for training, and renders previews of the training scenes.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use clap::{Parser, ValueEnum};
use hart_core::{Image, write_file};
use hart_examples::cli::progress::bar_style;
use hart_examples::cli::{grid, output};
use hart_examples::data::drawings::SIDES;
use hart_examples::data::iconify::{self, Level};
use hart_examples::data::vectors::{self, Vector};
use hart_examples::data::{Drawings, SIDE, Scene, SceneOptions, Scenes, files, images};
use indicatif::ProgressBar;
use serde_json::json;

/// Pack captioned drawings or images into a folder for training; by default the drawings of this repository
#[derive(Parser, Debug)]
#[command(name = "dataset", version, max_term_width = 110)]
struct Arguments {
    /// Folder to create; must not exist
    #[arg(short, long, value_name = "FOLDER", required_unless_present_any = ["preview", "export"])]
    out: Option<PathBuf>,
    /// Pack the drawings of the Iconify packages in this folder, such as node_modules/@iconify-json
    #[arg(long, value_name = "FOLDER")]
    icons: Option<PathBuf>,
    /// Pack the PNG, JPEG or WebP images of this folder; captions are in a .txt file per image, or in captions.jsonl with file and caption
    #[arg(long, value_name = "FOLDER", conflicts_with = "icons")]
    images: Option<PathBuf>,
    /// Styles of the drawings to pack
    #[arg(long, value_name = "STYLE,...", value_delimiter = ',', default_value = "noto,flat", conflicts_with = "images")]
    styles: Vec<String>,
    /// Concepts to pack
    #[arg(long, default_value = "core", requires = "icons")]
    level: ConceptLevel,
    /// Pack only the concepts named in this file, one per line, in this order
    #[arg(long, value_name = "FILE", requires = "icons", conflicts_with = "level")]
    names: Option<PathBuf>,
    /// Table of concepts and the names of their drawings in each package [default: the table of this repository]
    #[arg(long, value_name = "FILE", requires = "icons")]
    concepts: Option<PathBuf>,
    /// Side of the packed images
    #[arg(long, value_name = "PIXELS", default_value_t = SIDE, value_parser = side)]
    side: usize,
    /// Write scenes with their captions to this image file
    #[arg(long, value_name = "FILE")]
    preview: Option<PathBuf>,
    /// Number of scenes in the preview
    #[arg(long, value_name = "COUNT", default_value_t = 24, requires = "preview", value_parser = clap::value_parser!(u64).range(1..=400))]
    scenes: u64,
    /// Seed of the preview's scenes
    #[arg(short, long, default_value_t = 0)]
    seed: u64,
    /// Write the vector drawings to this .jsonl.gz file
    #[arg(long, value_name = "FILE", conflicts_with = "images")]
    export: Option<PathBuf>,
    /// Print one line of JSON instead of text
    #[arg(long)]
    json: bool,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
}

/// Concepts of the Iconify packages.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum ConceptLevel {
    /// Well-known objects with short names
    Core,
    /// All objects
    Things,
    /// All concepts
    All,
}

fn side(text: &str) -> Result<usize, String> {
    let expected = || format!("expected a number from {} to {}", SIDES.start(), SIDES.end());
    text.parse().ok().filter(|side| SIDES.contains(side)).ok_or_else(expected)
}

fn main() -> ExitCode {
    hart_examples::cli::exit_code::<Arguments>(run(&hart_examples::cli::parse()))
}

fn run(arguments: &Arguments) -> Result<ExitCode, Box<dyn Error>> {
    let started = Instant::now();
    if let Some(folder) = &arguments.out {
        files::check_new(folder)?;
    }
    arguments.preview.as_ref().map_or(Ok(()), |file| output::check_image("--preview", file))?;
    arguments.export.as_ref().map_or(Ok(()), |file| output::check_folder("--export", file))?;
    if let (Some(preview), Some(export)) = (&arguments.preview, &arguments.export) {
        output::check_distinct("--export", export, "--preview", preview)?;
    }
    let drawings = Arc::new(arguments.drawings()?);
    if let Some(file) = &arguments.preview {
        let scenes = Scenes::new(drawings.clone(), SceneOptions::default())?;
        preview(&scenes, arguments.seed, arguments.scenes)?.save(file)?;
    }
    if let Some(folder) = &arguments.out {
        drawings.save(folder)?;
    }
    let seconds = started.elapsed().as_secs_f64();
    let files: Vec<&Path> =
        [&arguments.out, &arguments.preview, &arguments.export].into_iter().flatten().map(AsRef::as_ref).collect();
    let (images, concepts, side) = (drawings.len(), drawings.concepts.len(), drawings.side);
    if arguments.json {
        let styles = &drawings.styles;
        let line = json!({
            "images": images, "concepts": concepts, "styles": styles, "side": side, "seconds": (seconds * 1e3).round() / 1e3,
            "files": files,
        });
        output::print_line(line)?;
    } else {
        let content = if arguments.images.is_some() {
            format!("{images} images")
        } else {
            format!("{images} drawings of {concepts} concepts in the styles {}", drawings.styles.join(", "))
        };
        let files: String = files.iter().map(|file| format!(" -> {}", file.display())).collect();
        output::print_line(format!("{content}, {side} x {side} pixels, {seconds:.2} s{files}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

impl Arguments {
    /// Renders or reads the drawings that the arguments select. Writes the file of `--export`.
    fn drawings(&self) -> Result<Drawings, Box<dyn Error>> {
        if let Some(folder) = &self.images {
            let listed = images::list(folder)?;
            let bar = self.bar("reading", listed.len());
            let packed = images::pack(listed, self.side, || bar.inc(1));
            bar.finish_and_clear();
            return Ok(packed?);
        }
        let vectors = self.vectors()?;
        let bar = self.bar("rendering", vectors.len());
        let rendered = vectors::render(&vectors, self.side, || bar.inc(1));
        bar.finish_and_clear();
        let rendered = rendered?;
        if let Some(file) = &self.export {
            write_file(file, &vectors::pack(&vectors)?)?;
        }
        Ok(rendered)
    }

    /// Reads the vector drawings that the arguments select.
    fn vectors(&self) -> Result<Vec<Vector>, Box<dyn Error>> {
        let Some(folder) = &self.icons else {
            let mut vectors = vectors::bundled()?;
            if let Some(style) = self.styles.iter().find(|style| vectors.iter().all(|v| v.label.style != **style)) {
                return Err(format!("the drawings of this repository have no style {style}; pass others with --icons").into());
            }
            vectors.retain(|vector| self.styles.contains(&vector.label.style));
            return Ok(vectors);
        };
        let mut concepts = iconify::concepts(self.concepts.as_deref())?;
        if let Some(file) = &self.names {
            let names = files::read_text(file, files::MAX_SETTINGS_SIZE).map_err(|e| format!("--names {e}"))?;
            concepts = iconify::select_by_name(concepts, &names).map_err(|e| format!("--names {}: {e}", file.display()))?;
        } else {
            let least = match self.level {
                ConceptLevel::Core => Level::Core,
                ConceptLevel::Things => Level::Thing,
                ConceptLevel::All => Level::All,
            };
            concepts.retain(|entry| entry.level >= least);
        }
        Ok(iconify::vectors(folder, &concepts, &self.styles)?)
    }

    fn bar(&self, message: &str, count: usize) -> ProgressBar {
        let bar = if self.quiet { ProgressBar::hidden() } else { ProgressBar::new(count as u64) };
        bar.set_style(bar_style("{msg:10} {bar:40} {pos}/{len} {elapsed}"));
        bar.set_message(message.to_string());
        bar
    }
}

/// Renders the first `count` scenes of a seed in one image, each above its caption.
fn preview(scenes: &Scenes, seed: u64, count: u64) -> Result<Image, hart_core::Error> {
    let side = scenes.options().side;
    let scenes: Vec<Scene> = (0..count).map(|index| scenes.scene(seed, index)).collect();
    let captions: Vec<String> = scenes.iter().map(|scene| scene.caption.clone()).collect();
    let image = |scene: Scene| Image::from_rgb(side, side, scene.pixels);
    grid::captioned(&scenes.into_iter().map(image).collect::<Result<Vec<_>, _>>()?, &captions)
}
