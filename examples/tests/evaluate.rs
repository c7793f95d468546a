//! The evaluation on renders of the prompts, and the program `evaluate` as a user runs it.

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use hart_core::Image;
use hart_examples::data::{self, Drawings};
use hart_examples::evaluate::capabilities::Capabilities;
use hart_examples::evaluate::detection::{Detection, Detector};
use hart_examples::evaluate::metrics::Metrics;
use hart_examples::evaluate::prompts::{Prompt, Prompts};
use hart_examples::evaluate::score::ARRANGEMENTS;
use hart_examples::evaluate::segment::ImageView;
use serde_json::Value;
use support::{fails, names, succeeds};

mod support;

const EVALUATE: &str = env!("CARGO_BIN_EXE_evaluate");
/// Number of prompts of each split for the ceilings.
const PROMPTS: usize = 200;
/// Side of the scored images in pixels.
const SIDE: usize = 64;

static DRAWINGS: LazyLock<Drawings> = LazyLock::new(|| data::open_or_render(None).unwrap());

/// Renders a few hundred prompts and detects the contents of the renders.
fn renders() -> Vec<(Prompt, Detection)> {
    let capabilities = Capabilities { positions: true, ..Capabilities::default() };
    let prompts = Prompts::new(&DRAWINGS, capabilities, SIDE).unwrap();
    let detector = Detector::of(&DRAWINGS);
    let detect = |prompt: Prompt| {
        let image = prompts.render(&prompt, 0).unwrap();
        let detection = detector.detect(ImageView::of(&image));
        (prompt, detection)
    };
    prompts.splits(PROMPTS).into_iter().flat_map(|(_, prompts)| prompts).map(detect).collect()
}

#[test]
fn true_renders_reach_the_ceilings_and_other_prompts_only_chance() {
    let renders = renders();
    let pairs: Vec<_> = renders.iter().map(|(prompt, detection)| (detection, &prompt.expected)).collect();
    let metrics = Metrics::of(pairs.iter().copied());
    let least =
        [("object_top1", 0.95), ("background", 1.0), ("style", 0.95), ("relation", 0.95), ("count", 0.95), ("position", 0.95)];
    for (name, accuracy) in metrics.accuracies() {
        let Some((_, least)) = least.iter().find(|(least, _)| *least == name) else { continue };
        assert!(accuracy.total >= 10 && accuracy.fraction().unwrap() >= *least, "{name}: {accuracy:?}");
    }
    let shuffled = Metrics::shuffled(&pairs);
    let chance = |top: usize| (ARRANGEMENTS * top) as f64 / DRAWINGS.concepts.len() as f64;
    assert!(shuffled.top1.fraction().unwrap() < chance(1) && shuffled.top5.fraction().unwrap() < chance(5), "{shuffled:?}");
    assert!(shuffled.relation.fraction().unwrap() < 0.02, "{shuffled:?}");
}

#[test]
fn the_shipped_model_is_scored_quickly() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["--quick", "--prompts", "2", "--json", "--sweep", "--out", "report.json", "--sheet", "sheet.png"];
    let output = succeeds(EVALUATE, folder.path(), &arguments);
    let json: Value = serde_json::from_str(output.lines().last().unwrap()).unwrap();
    let shares =
        ["object_top1", "object_top5", "background", "style", "relation_seen", "relation_unseen", "count_seen", "count_unseen"];
    for key in shares {
        assert!(json["ceilings"].get(key).is_some(), "{key}: {json}");
        assert!(json[key].as_f64().is_none_or(|share| (0.0..=1.0).contains(&share)), "{key}: {json}");
    }
    for key in ["shuffled_control", "hybrid_psnr_db", "discrete_psnr_db", "nearest_training_distance", "seconds"] {
        assert!(json[key].is_number(), "{key}: {json}");
    }
    assert_eq!((&json["seed"], &json["complete"]), (&0.into(), &true.into()));
    assert!(json["sweep"].as_array().unwrap().iter().any(|row| row["setting"] == "without residual"), "{json}");
    assert_eq!(names(folder.path()), ["report.json", "sheet.png"]);
    let written: Value = serde_json::from_str(&std::fs::read_to_string(folder.path().join("report.json")).unwrap()).unwrap();
    assert_eq!(written, json);
    assert!(Image::open_png(folder.path().join("sheet.png")).unwrap().width() > 256);
}

#[test]
fn images_and_metrics_do_not_depend_on_threads() {
    let scored = |threads: &str| {
        let folder = tempfile::tempdir().unwrap();
        let arguments = ["--quick", "--prompts", "3", "--threads", threads, "--json", "-q", "--sheet", "sheet.png", "-s", "5"];
        let output = succeeds(EVALUATE, folder.path(), &arguments);
        let mut json: Value = serde_json::from_str(output.lines().last().unwrap()).unwrap();
        json["seconds"] = Value::Null;
        (json, std::fs::read(folder.path().join("sheet.png")).unwrap())
    };
    assert!(scored("1") == scored("3"));
}

/// The model's capabilities.json restricts the prompts.
#[test]
fn unknown_concepts_are_not_tested() {
    let folder = tempfile::tempdir().unwrap();
    let shipped = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/models/hart-emoji"));
    for part in ["llm", "text", "tokenizer"] {
        fs::create_dir_all(folder.path().join("model").join(part)).unwrap();
        for entry in fs::read_dir(shipped.join(part)).unwrap().map(|entry| entry.unwrap()) {
            fs::copy(entry.path(), folder.path().join("model").join(part).join(entry.file_name())).unwrap();
        }
    }
    let capabilities = r#"{"concepts": ["parrot", "house"], "styles": [], "default_style": "noto", "relations": false, "counts": [], "held_out": false}"#;
    fs::write(folder.path().join("model/capabilities.json"), capabilities).unwrap();
    let output = succeeds(EVALUATE, folder.path(), &["model", "--quick", "--prompts", "2", "--json", "-q"]);
    let json: Value = serde_json::from_str(output.lines().last().unwrap()).unwrap();
    assert!(["style", "relation_seen", "count_unseen"].iter().all(|key| json[*key].is_null()), "{json}");
    assert!(json["object_top1"].is_number() && json["images"] == 4, "{json}");
}

#[test]
fn invalid_arguments_are_reported() {
    fails(EVALUATE, &["nowhere"], &["nowhere", "root folder"]);
    fails(EVALUATE, &["nowhere", "--model", "elsewhere"], &["cannot be used with"]);
    fails(EVALUATE, &["--data", "nowhere"], &["--data", "nowhere"]);
    fails(EVALUATE, &["--prompts", "0"], &["--prompts 0", "expected 1 to"]);
    fails(EVALUATE, &["--prompts", "many"], &["--prompts", "many"]);
    fails(EVALUATE, &["--threads", "0"], &["--threads 0"]);
    fails(EVALUATE, &["--guidance", "nan"], &["guidance"]);
    fails(EVALUATE, &["--seed", "dice"], &["--seed", "dice"]);
    fails(EVALUATE, &["--out", "missing/report.json"], &["--out", "create it first"]);
    fails(EVALUATE, &["--sheet", "."], &["--sheet", "is a folder"]);
    fails(EVALUATE, &["--out", "a.png", "--sheet", "a.png"], &["--sheet", "--out"]);
    fails(EVALUATE, &["--out", "a.png", "--sheet", "./a.png"], &["--sheet ./a.png", "the same file as --out"]);
}
