//! Dependencies have one direction: a stage uses only the stages before it and the modules below them.

use std::fs;
use std::path::{Path, PathBuf};

/// The stages in the order of the data flow.
const STAGES: [&str; 5] = ["text", "transformer", "sampling", "residual", "visual"];
/// Modules below the stages. The error type is not listed, since it names types of other modules.
const BELOW: [&str; 15] = [
    "config",
    "filter",
    "request",
    "rng",
    "scales",
    "schedule",
    "progress",
    "image",
    "from_image",
    "files",
    "weights",
    "options",
    "threads",
    "nn",
    "kernels",
];
/// Modules above the stages.
const ABOVE: [&str; 5] = ["memory", "pipeline", "convert", "stages", "train"];

fn sources(module: &str) -> Vec<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let file = source.join(format!("{module}.rs"));
    if file.is_file() {
        return vec![file];
    }
    let files = files(&source.join(module));
    assert!(files.len() > 1, "{module}");
    files
}

/// All files of a folder, those of its folders too.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

fn assert_unused(module: &str, forbidden: &[&str]) {
    for file in sources(module) {
        let text = fs::read_to_string(&file).unwrap();
        for other in forbidden {
            assert!(!text.contains(&format!("crate::{other}::")), "{} uses {other}", file.display());
        }
    }
}

#[test]
fn a_stage_uses_only_what_stands_before_it() {
    for (place, stage) in STAGES.iter().enumerate() {
        assert_unused(stage, &[&STAGES[place + 1..], &ABOVE].concat());
    }
}

#[test]
fn what_lies_below_knows_no_stage() {
    for module in BELOW {
        assert_unused(module, &[&STAGES[..], &ABOVE].concat());
    }
}

#[test]
fn unsafe_code_stands_in_kernels_alone() {
    let modules = STAGES.iter().chain(&ABOVE).chain(&BELOW).filter(|module| **module != "kernels");
    // Mapping a file is unsafe as well.
    for file in modules.flat_map(|module| sources(module)).filter(|file| !file.ends_with("files/map.rs")) {
        assert!(!fs::read_to_string(&file).unwrap().contains("unsafe"), "{}", file.display());
    }
}
