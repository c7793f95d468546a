//! The program `train` as a user runs it: training from a recipe, resuming, and errors in recipes.

use std::fs;
use std::path::Path;
#[cfg(unix)]
use std::{
    process::{Command, Stdio},
    time::Duration,
};

use hart_core::{Hart, OpenOptions, Request};
use support::{fails, names, succeeds};

mod support;

const TRAIN: &str = env!("CARGO_BIN_EXE_train");

/// Returns the repository's recipe with images and layers small enough for a test.
fn recipe(tokenizer_steps: u64, generator_steps: u64) -> String {
    let mut text = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/recipes/emoji.toml")).unwrap();
    let (sides, steps) = ("[1, 2, 3, 4]", [tokenizer_steps.to_string(), generator_steps.to_string()]);
    set(&mut text, "", "prompts", "[\"a parrot\", \"two pizzas\"]");
    for (section, key, value) in [
        ("scenes", "side", "16"),
        ("model.llm", "patch_nums", sides),
        ("model.llm", "depth", "1"),
        ("model.llm", "embed_dim", "32"),
        ("model.llm", "num_heads", "2"),
        ("model.llm", "diff_width", "32"),
        ("model.tokenizer", "v_patch_nums", sides),
        ("model.tokenizer", "ch", "32"),
        ("model.tokenizer", "ch_mult", "[1, 1, 1]"),
        ("model.tokenizer", "vocab_size", "32"),
        ("generator.learning", "scale_weights", "[0.25, 0.25, 0.25, 0.25]"),
        ("tokenizer.learning.optimizer", "steps", &steps[0]),
        ("generator.learning.optimizer", "steps", &steps[1]),
    ] {
        set(&mut text, section, key, value);
    }
    for phase in ["tokenizer", "generator"] {
        set(&mut text, phase, "batch", "4");
        set(&mut text, phase, "every", "2");
        set(&mut text, &format!("{phase}.learning.optimizer"), "warmup", "2");
    }
    text
}

/// Sets a key of a section. A list over several lines becomes one line.
fn set(text: &mut String, section: &str, key: &str, value: &str) {
    let start = if section.is_empty() { 0 } else { text.find(&format!("\n[{section}]\n")).unwrap() + 1 };
    let from = start + text[start..].find(&format!("\n{key} = ")).unwrap() + 1;
    let is_list = text[from..].starts_with(&format!("{key} = ["));
    let end = if is_list { text[from..].find(']').unwrap() + 1 } else { text[from..].find('\n').unwrap() };
    text.replace_range(from..from + end, &format!("{key} = {value}"));
}

fn decoder_only(recipe: &str) -> String {
    recipe.replace("[tokenizer.learning]\n", "[tokenizer.learning]\ndecoder_only = true\nhybrid_share = 0.75\n")
}

fn train(folder: &Path, recipe: &str, run: &str) -> String {
    fs::write(folder.join("recipe.toml"), recipe).unwrap();
    succeeds(TRAIN, folder, &["recipe.toml", "--out", run])
}

/// Returns the contents of a run's model files.
fn model(folder: &Path) -> Vec<Vec<u8>> {
    let files = ["llm/model.safetensors", "text/model.safetensors", "tokenizer/model.safetensors", "text/tokenizer.json"];
    files.iter().map(|file| fs::read(folder.join("model").join(file)).unwrap()).collect()
}

#[test]
fn a_recipe_becomes_a_model() {
    let folder = tempfile::tempdir().unwrap();
    let whole = recipe(5, 5);
    assert!(train(folder.path(), &whole, "run").trim_end().ends_with("model"));
    let run = folder.path().join("run");
    let hart = Hart::open(run.join("model"), OpenOptions::new()).unwrap();
    assert_eq!(hart.config().resolution(), 16);
    for (table, columns) in [("tokenizer.csv", 8), ("generator.csv", 10)] {
        let text = fs::read_to_string(run.join(table)).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 1 + 3, "{text}");
        assert!(lines.iter().all(|line| line.split(',').count() == columns), "{text}");
    }
    assert_eq!(names(&run.join("sheets")).len(), 6);
    let report: serde_json::Value = serde_json::from_str(&fs::read_to_string(run.join("report.json")).unwrap()).unwrap();
    assert!(
        report["residual_size"].as_f64().unwrap() > 0.0 && report["losses"]["shuffled"]["scales"].as_array().unwrap().len() == 4
    );

    // Running a finished recipe again changes nothing.
    let before = model(&run);
    train(folder.path(), &whole, "run");
    assert!(model(&run) == before && names(&run.join("sheets")).len() == 6);

    // Start from the trained weights. A learning rate of 0 keeps them; the recipe's changes the generator.
    let generated = |run: &str| {
        let hart = Hart::open(folder.path().join(run).join("model"), OpenOptions::new()).unwrap();
        hart.generate(&Request::new("a parrot")).unwrap().images[0].pixels().to_vec()
    };
    let mut still = whole.clone();
    set(&mut still, "generator.learning.optimizer", "learning_rate", "0.0");
    for (name, recipe) in [("still", &still), ("more", &whole)] {
        fs::write(folder.path().join("recipe.toml"), recipe).unwrap();
        succeeds(TRAIN, folder.path(), &["recipe.toml", "--out", name, "--from", "run/model", "--tokenizer", "run/model"]);
        let (after, run) = (model(&folder.path().join(name)), folder.path().join(name));
        assert!(after[2..] == before[2..] && !run.join("tokenizer.csv").exists(), "{name}");
        assert!((generated(name) == generated("run")) == (name == "still"), "{name}");
    }
    // Train another transformer with the finished tokenizer.
    let mut deeper = whole.clone();
    set(&mut deeper, "model.llm", "depth", "2");
    fs::write(folder.path().join("recipe.toml"), deeper).unwrap();
    succeeds(TRAIN, folder.path(), &["recipe.toml", "--out", "deeper", "--tokenizer", "run/model"]);
    assert!(model(&folder.path().join("deeper"))[2] == before[2] && generated("deeper") != generated("run"));
    fs::write(folder.path().join("recipe.toml"), &whole).unwrap();

    succeeds(TRAIN, folder.path(), &["recipe.toml", "--out", "both", "--from", "run/model"]);
    let first = |run: &str| {
        let table = fs::read_to_string(folder.path().join(run).join("tokenizer.csv")).unwrap();
        table.lines().nth(1).unwrap().split(',').nth(3).unwrap().parse::<f32>().unwrap()
    };
    assert!(first("both") < first("run"), "training continues from the given weights");

    // Train only the decoder: latents and the generator stay unchanged.
    fs::write(folder.path().join("recipe.toml"), decoder_only(&whole)).unwrap();
    succeeds(TRAIN, folder.path(), &["recipe.toml", "--out", "alone", "--from", "run/model", "--minutes", "0.02,0"]);
    let (run, after) = (folder.path().join("alone"), model(&folder.path().join("alone")));
    assert!(after[..2] == before[..2] && after[2] != before[2] && after[3] == before[3]);
    assert!(!fs::read_to_string(run.join("report.json")).unwrap().contains("latents_scaled_by"));
    // Zero minutes change nothing: neither a resumed run nor another model.
    for (name, model_before) in [("alone", &after), ("same", &before)] {
        succeeds(TRAIN, folder.path(), &["recipe.toml", "--out", name, "--from", "run/model", "--minutes", "0,0"]);
        assert!(model(&folder.path().join(name)) == *model_before, "{name}");
    }
}

/// A model whose text model lies next to it, nested as newer exports of the vision-language model, and whose folder is a link.
#[cfg(unix)]
#[test]
fn training_continues_from_any_layout() {
    let folder = tempfile::tempdir().unwrap();
    train(folder.path(), &recipe(1, 1), "run");
    let at = |name: &str| folder.path().join(name);
    let start =
        |out: &str| [at("recipe.toml"), "--out".into(), at(out), "--from".into(), at("hart"), "--minutes".into(), "0,0".into()];
    let before = model(&at("run"));
    let text = |run: &str| format!("{:?}", hart_core::config::Config::open(&at(run).join("model")).unwrap().text);
    let text_before = text("run");
    std::os::unix::fs::symlink("run/model", at("hart")).unwrap();
    fs::rename(at("run/model/text"), at("text")).unwrap();
    let mut decoder: serde_json::Value = serde_json::from_slice(&fs::read(at("text/config.json")).unwrap()).unwrap();
    let rope_theta = decoder["rope_theta"].as_f64().unwrap_or(1e4);
    decoder.as_object_mut().unwrap().retain(|name, _| name != "rope_theta" && name != "rope_scaling");
    decoder["model_type"] = "qwen2_vl_text".into();
    decoder["rope_parameters"] = serde_json::json!({ "rope_type": "default", "rope_theta": rope_theta });
    let nested = serde_json::json!({ "model_type": "qwen2_vl", "vision_config": { "depth": 32 }, "text_config": decoder });
    fs::write(at("text/config.json"), nested.to_string()).unwrap();
    let arguments = start("nested");
    succeeds(TRAIN, folder.path(), &arguments.iter().map(|a| a.to_str().unwrap()).collect::<Vec<_>>());
    assert!(model(&at("nested")) == before);
    assert_eq!(text("nested"), text_before);
    // Errors name the file in which the value is.
    let llm = at("run/model/llm/generation_config.json");
    fs::write(&llm, "{\"top_k\": ").unwrap();
    let arguments = start("bad");
    let arguments: Vec<&str> = arguments.iter().map(|a| a.to_str().unwrap()).collect();
    fails(TRAIN, &arguments, &["hart/llm/generation_config.json: not valid JSON"]);
    fs::remove_file(llm).unwrap();
    fs::write(at("text/config.json"), nested.to_string().replace("\"vocab_size\"", "\"vocabulary\"")).unwrap();
    fails(TRAIN, &arguments, &["text/config.json: `text_config.vocab_size` is missing"]);
}

/// A run stopped by Ctrl-C resumes and ends with the same model.
#[cfg(unix)]
#[test]
fn an_interrupted_run_ends_with_the_same_model() {
    let folder = tempfile::tempdir().unwrap();
    let whole = recipe(24, 24);
    train(folder.path(), &whole, "whole");
    for phase in ["tokenizer.csv", "generator.csv"] {
        let seen = folder.path().join("stopped").join(phase);
        let mut command = Command::new(TRAIN);
        command.args(["recipe.toml", "--out", "stopped"]).current_dir(folder.path()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        while !seen.exists() {
            assert!(child.try_wait().unwrap().is_none(), "it ended before it could be stopped");
            std::thread::sleep(Duration::from_millis(2));
        }
        assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
        assert_eq!(child.wait().unwrap().code(), Some(130));
    }
    train(folder.path(), &whole, "stopped");
    assert!(model(&folder.path().join("whole")) == model(&folder.path().join("stopped")));
}

/// No steps are lost if a contact sheet can't be written.
#[test]
fn the_state_is_saved_before_the_sheet() {
    let folder = tempfile::tempdir().unwrap();
    let (file, run) = (folder.path().join("recipe.toml"), folder.path().join("run"));
    fs::write(&file, recipe(2, 2)).unwrap();
    let arguments = [file.to_str().unwrap(), "--out", run.to_str().unwrap()];
    for phase in ["tokenizer", "generator"] {
        let name = format!("{phase}-000002.png");
        let in_the_way = run.join("sheets").join(&name);
        fs::create_dir_all(&in_the_way).unwrap();
        fails(TRAIN, &arguments, &[name.as_str()]);
        assert!(run.join(format!("{phase}.state.safetensors")).is_file(), "{phase}");
        fs::remove_dir(in_the_way).unwrap();
    }
    succeeds(TRAIN, folder.path(), &arguments);
}

#[test]
fn invalid_recipes_are_reported() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("recipe.toml");
    let path = file.to_str().unwrap();
    let out = folder.path().join("run");
    let refused = |text: &str, names: &[&str]| {
        fs::write(&file, text).unwrap();
        fails(TRAIN, &[path, "--out", out.to_str().unwrap()], names);
        assert!(!out.join("tokenizer.csv").exists());
    };
    refused("seed = ", &["recipe.toml"]);
    let right = recipe(1, 1);
    refused(&right.replace("shards = 2", "shards = 3"), &["tokenizer.batch is 4", "multiple of shards, 3"]);
    refused(&right.replace("every = 2", "every = 0"), &["every is 0"]);
    refused(&right.replace("side = 16", "side = 24"), &["scenes.side is 24", "expected 16"]);
    refused(&right.replace("seed = 1", "sed = 1"), &["sed"]);
    refused(&right.replace("num_heads = 2", "num_heads = 5"), &["recipe.toml: model.llm.num_heads is 5, expected a divisor"]);
    refused(&decoder_only(&right), &["tokenizer.learning.decoder_only is true", "--from"]);
    refused(
        &decoder_only(&right).replace("0.75", "1.5"),
        &["tokenizer.learning.hybrid_share is 1.5, expected a number from 0 to 1"],
    );
    for (section, key, value, words) in [
        ("", "shards", "129", "shards is 129, expected a number from 1 to 128"),
        ("", "prompts", "[\"a parrot\", \"\"]", "number 2 is empty"),
        ("tokenizer", "batch", "1000000000000", "tokenizer.batch is 1000000000000, expected"),
        ("tokenizer.learning.optimizer", "clip", "-1.0", "tokenizer.learning.optimizer.clip is -1, expected"),
        ("generator.learning.optimizer", "learning_rate", "nan", "generator.learning.optimizer.learning_rate is NaN, expected"),
        ("generator.learning", "diffusion_repeats", "0", "generator.learning.diffusion_repeats is 0, expected"),
        ("generator.learning", "scale_weights", "[1.0]", "generator.learning.scale_weights has 1 values, expected 4"),
        ("model.tokenizer", "v_patch_nums", "[1, 2, 4]", "model.tokenizer.v_patch_nums is [1, 2, 4], expected [1, 2, 3, 4]"),
    ] {
        let mut text = right.clone();
        set(&mut text, section, key, value);
        refused(&text, &[words]);
    }
    fails(TRAIN, &["nowhere.toml", "--out", out.to_str().unwrap()], &["nowhere.toml"]);
    #[cfg(unix)]
    fails(TRAIN, &["/dev/zero", "--out", out.to_str().unwrap()], &["/dev/zero", "expected a regular file"]);
    fails(TRAIN, &[path], &["--out"]);
    fs::write(&file, right).unwrap();
    fails(TRAIN, &[path, "--out", out.to_str().unwrap(), "--data", "nowhere"], &["nowhere"]);
    fails(TRAIN, &[path, "--out", out.to_str().unwrap(), "--from", "no/model"], &["no/model"]);
    fails(TRAIN, &[path, "--out", out.to_str().unwrap(), "--tokenizer", "no/model"], &["no/model"]);
}
