//! The staircase has one direction: a stage knows the stages before it, and nothing of what is built on them.

use std::fs;
use std::path::{Path, PathBuf};

/// The stages in the order in which a prompt flows.
const STAGES: [&str; 5] = ["text", "transformer", "sampling", "residual", "visual"];
/// What is built on the stages.
const ABOVE: [&str; 4] = ["weights", "open", "pipeline", "stages"];

fn sources(module: &str) -> Vec<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let file = source.join(format!("{module}.rs"));
    if file.is_file() {
        return vec![file];
    }
    let files = fs::read_dir(source.join(module)).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    assert!(files.len() > 1, "{module}");
    files
}

#[test]
fn a_stage_uses_only_what_stands_before_it() {
    for (place, stage) in STAGES.iter().enumerate() {
        for file in sources(stage) {
            let text = fs::read_to_string(&file).unwrap();
            for later in STAGES[place + 1..].iter().chain(&ABOVE) {
                assert!(!text.contains(&format!("use crate::{later}")), "{} uses {later}", file.display());
            }
        }
    }
}

#[test]
fn unsafe_code_stands_in_kernels_alone() {
    let modules =
        STAGES.iter().chain(&ABOVE).chain(&["config", "error", "image", "progress", "request", "rng", "scales", "embedding"]);
    for file in modules.flat_map(|module| sources(module)) {
        assert!(!fs::read_to_string(&file).unwrap().contains("unsafe"), "{}", file.display());
    }
}
