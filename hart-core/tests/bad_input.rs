//! Damaged files and invalid requests give an error that names the object, never a panic, a hang or a wrong result.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use hart_core::stages::TextTokenizer;
use hart_core::{
    CancelToken, Control, Error, Event, FromImage, Hart, Image, Observer, OpenOptions, Request, Respacing, Stage, Step,
    SystemPrompt, WeightSet,
};
use model::{Model, assert_contains};
use serde_json::{Value, json};

#[allow(dead_code, reason = "shared with the tests of checkpoints")]
#[path = "support/model.rs"]
mod model;

#[test]
fn the_fixture_itself_opens() {
    let hart = Model::new().open().unwrap();
    assert!(hart.reports().iter().all(|r| r.is_clean() && r.loaded > 0));
}

#[test]
fn errors_about_missing_folders_say_what_to_pass() {
    let error = |path: &Path| match Hart::open(path, OpenOptions::new()) {
        Ok(_) => panic!("opened"),
        Err(error) => error,
    };
    assert_contains(&error(Path::new("/no/such/model")), &["/no/such/model", "root folder"]);
    let model = Model::new();
    assert_contains(&error(&model.path("llm")), &["llm", "root folder"]);
    fs::remove_dir_all(model.path("text")).unwrap();
    model.refused(&["no text model", "option `text_model`"]);
    let model = Model::new();
    fs::remove_dir_all(model.path("tokenizer")).unwrap();
    model.refused(&["tokenizer", "next to llm"]);
    let model = Model::new();
    fs::remove_file(model.path("text/tokenizer.json")).unwrap();
    model.refused(&["tokenizer.json"]);
    let model = Model::new();
    fs::remove_file(model.path("text/model.safetensors")).unwrap();
    model.refused(&["holds no weights", "model.safetensors"]);
}

/// A text model next to a link to the model's folder is found, and so is one next to the folder itself.
#[cfg(unix)]
#[test]
fn a_linked_model_finds_the_text_model_next_to_either() {
    let model = Model::new();
    let disk = model.path("disk/snapshot");
    fs::create_dir_all(&disk).unwrap();
    for part in ["llm", "tokenizer"] {
        fs::rename(model.path(part), disk.join(part)).unwrap();
    }
    fs::create_dir(model.path("models")).unwrap();
    let link = model.path("models/hart");
    std::os::unix::fs::symlink("../disk/snapshot", &link).unwrap();
    let text = || hart_core::config::Folders::find(&link, None).map(|folders| folders.text).map_err(|e| e.to_string());
    assert!(text().unwrap_err().contains("no text model"));
    for place in ["disk/text", "models/Qwen2-VL-1.5B-Instruct", "disk/snapshot/text"] {
        fs::rename(model.path("text"), model.path(place)).unwrap();
        Hart::open(&link, OpenOptions::new()).unwrap();
        assert_eq!(text().unwrap().canonicalize().unwrap(), model.path(place).canonicalize().unwrap());
        fs::rename(model.path(place), model.path("text")).unwrap();
    }
}

#[cfg(unix)]
#[test]
fn a_path_that_is_not_utf8_is_a_path_like_any_other() {
    use std::os::unix::ffi::OsStrExt;
    let name = std::ffi::OsStr::from_bytes(b"mod\xffel");
    assert_contains(&Hart::open(Path::new(name), OpenOptions::new()).err().unwrap(), &["no such folder"]);
    let model = Model::new();
    let there = model.path("").join(name);
    fs::create_dir(&there).unwrap();
    for part in ["llm", "tokenizer", "text"] {
        fs::rename(model.path(part), there.join(part)).unwrap();
    }
    let hart = Hart::open(&there, OpenOptions::new()).unwrap();
    let image = &hart.generate(&Request::new("a parrot")).unwrap().images[0];
    image.save_png(there.join(name)).unwrap();
}

#[test]
fn truncated_and_inconsistent_safetensors_are_refused() {
    let model = Model::new();
    let path = model.path("tokenizer/model.safetensors");
    let whole = fs::read(&path).unwrap();
    for length in [0, 1, 7, 8, 9, 100, 5000, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..length]).unwrap();
        model.refused(&["model.safetensors"]);
    }
    let with_header = |header: &str, length: u64| {
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend([0; 64]);
        bytes
    };
    let invalid_headers = [
        with_header("{}", u64::MAX),
        with_header("{}", 1 << 40),
        with_header(r#"{"a":{"dtype":"F32","shape":[1000000000000,1000000000000],"data_offsets":[0,64]}}"#, 81),
        with_header(r#"{"a":{"dtype":"F32","shape":[16],"data_offsets":[0,1000]}}"#, 58),
        with_header(r#"{"a":{"dtype":"F32","shape":[16],"data_offsets":[64,0]}}"#, 56),
        with_header(r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,64]}}"#, 55),
    ];
    for (case, bytes) in invalid_headers.iter().enumerate() {
        fs::write(&path, bytes).unwrap();
        println!("case {case}");
        model.refused(&["model.safetensors"]);
    }
}

#[test]
fn truncated_torch_files_are_refused() {
    let model = Model::new();
    let path = model.path("llm/ema_model.bin");
    let whole = fs::read(&path).unwrap();
    for length in [0, 1, 4, 100, whole.len() / 2, whole.len() - 100] {
        fs::write(&path, &whole[..length]).unwrap();
        model.refused(&["ema_model.bin"]);
    }
    fs::write(&path, b"import os; os.system('touch /tmp/owned')").unwrap();
    model.refused(&["ema_model.bin"]);
    let plain = Hart::open(model.path(""), OpenOptions::new().weight_set(WeightSet::Plain));
    assert!(plain.is_ok(), "the plain weights are intact");
}

/// A Git LFS pointer, a web page or nothing in place of each file, on disk, mapped or not, and in memory.
#[test]
fn failed_downloads_are_named() {
    let pointer =
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daa\nsize 9\n";
    let cases = [(pointer, "git lfs pull"), ("\n<!DOCTYPE html><title>Log in</title>", "web page"), ("", "is empty")];
    let names = [
        "llm/config.json",
        "llm/ema_model.bin",
        "tokenizer/config.json",
        "tokenizer/model.safetensors",
        "text/config.json",
        "text/model.safetensors",
        "text/tokenizer.json",
        "text/tokenizer_config.json",
    ];
    for name in names {
        let model = Model::new();
        for (contents, words) in cases {
            fs::write(model.path(name), contents).unwrap();
            model.refused(&[name, words]);
            let unmapped = Hart::open(model.path(""), OpenOptions::new().memory_map(false));
            assert_contains(&unmapped.err().unwrap(), &[name, words]);
        }
    }
    for (contents, words) in cases {
        for name in names.into_iter().filter(|name| !name.contains("ema")) {
            let mut files = hart_core::Files::new();
            for file in names.into_iter().chain(["llm/model.safetensors"]).filter(|file| !file.contains("ema")) {
                let whole = || fs::read(Model::new().path(file)).unwrap();
                files.insert(file, if file == name { contents.as_bytes().to_vec() } else { whole() }).unwrap();
            }
            assert_contains(&Hart::from_files(files, OpenOptions::new()).err().unwrap(), &[name, words]);
        }
    }
    for (name, contents) in [("llm/generation_config.json", pointer), ("llm/system_prompt.txt", pointer)] {
        let model = Model::new();
        fs::write(model.path(name), contents).unwrap();
        model.refused(&[name, "git lfs pull"]);
    }
    let model = Model::new();
    model.set("text/tokenizer_config.json", "pad_token", Value::Null);
    fs::write(model.path("text/special_tokens_map.json"), pointer).unwrap();
    model.refused(&["special_tokens_map.json", "git lfs pull"]);
    let model = Model::new();
    fs::remove_file(model.path("text/model.safetensors")).unwrap();
    fs::write(model.path("text/model.safetensors.index.json"), r#"{"weight_map": {"a": "a.safetensors"}}"#).unwrap();
    fs::write(model.path("text/a.safetensors"), pointer).unwrap();
    model.refused(&["text/a.safetensors", "git lfs pull"]);
    fs::write(model.path("text/model.safetensors.index.json"), pointer).unwrap();
    model.refused(&["model.safetensors.index.json", "git lfs pull"]);
}

/// Editors add byte order marks.
#[test]
fn byte_order_marks_are_skipped() {
    let image = |mark: &str| {
        let model = Model::new();
        fs::write(model.path("llm/generation_config.json"), r#"{"guidance_scale": 2}"#).unwrap();
        fs::write(model.path("llm/system_prompt.txt"), "Draw well.").unwrap();
        fs::rename(model.path("text/model.safetensors"), model.path("text/a.safetensors")).unwrap();
        fs::write(model.path("text/model.safetensors.index.json"), r#"{"weight_map": {"a": "a.safetensors"}}"#).unwrap();
        for name in [
            "llm/config.json",
            "llm/generation_config.json",
            "llm/system_prompt.txt",
            "tokenizer/config.json",
            "text/config.json",
            "text/tokenizer.json",
            "text/tokenizer_config.json",
            "text/model.safetensors.index.json",
        ] {
            let text = fs::read_to_string(model.path(name)).unwrap();
            fs::write(model.path(name), format!("{mark}{text}")).unwrap();
        }
        model.open().unwrap().generate(&Request::new("a parrot")).unwrap().images.remove(0)
    };
    assert!(image("").pixels() == image("\u{feff}").pixels());
    let model = Model::new();
    fs::write(model.path("llm/config.json"), b"\xff\xfe{\0}\0").unwrap();
    model.refused(&["llm/config.json", "UTF-16", "save it as UTF-8"]);
}

/// The system prompt is the exact text of the file, with its final line break. Windows' line breaks are LF.
#[test]
fn a_final_line_break_belongs_to_the_system_prompt() {
    let model = Model::new();
    let image = |file: Option<&str>, request: Request| {
        let path = model.path("llm/system_prompt.txt");
        if let Some(text) = file {
            fs::write(path, text).unwrap();
        }
        model.open().unwrap().generate(&request).unwrap().images.remove(0).pixels().to_vec()
    };
    let of_text = |text: &str| image(None, Request::new("a parrot").system_prompt(SystemPrompt::Text(text.into())));
    let of_file = |text| image(Some(text), Request::new("a parrot"));
    let (ended, open) = (of_text("Draw.\nWell:\n"), of_text("Draw.\nWell:"));
    assert!(ended != open);
    assert!(of_file("Draw.\nWell:\n") == ended && of_file("Draw.\r\nWell:\r\n") == ended && of_file("Draw.\nWell:") == open);
}

/// A pickle that calls os.system. It is read as data only, and refused.
#[test]
fn pickle_code_is_never_run() {
    let model = Model::new();
    let proof = model.path("owned");
    let command = format!("touch {}", proof.display());
    let mut pickle = b"\x80\x02cposix\nsystem\nX".to_vec();
    pickle.extend((command.len() as u32).to_le_bytes());
    pickle.extend(command.as_bytes());
    pickle.extend(b"\x85R.");
    fs::write(model.path("llm/ema_model.bin"), pickle).unwrap();
    model.refused(&["ema_model.bin"]);
    assert!(!proof.exists());
}

#[test]
fn missing_misshapen_and_unused_tensors_are_listed_with_file_and_shapes() {
    let model = Model::new();
    fs::remove_file(model.path("llm/ema_model.bin")).unwrap();
    model.rewrite("llm/model.safetensors", |tensors| {
        tensors.retain(|(name, ..)| name != "word_embed.weight");
        tensors.push(("blocks.9.attn.q_bias".into(), vec![2, 3], vec![0.0; 6]));
        let (_, shape, values) = tensors.iter_mut().find(|(name, ..)| name == "head.bias").unwrap();
        shape[0] -= 1;
        values.pop();
    });
    let error = model.refused(&["1 missing, 1 unused, 1 misshapen", "`word_embed.weight` [64, 8]", "expected [640], found [639]"]);
    assert_contains(&error, &["unused `blocks.9.attn.q_bias` [2, 3] in model.safetensors"]);
    let Error::Weights(report) = error else { panic!("{error}") };
    assert!(report.missing[0].file.ends_with("llm/model.safetensors"), "{report:?}");
    assert!(report.misshapen[0].file.ends_with("llm/model.safetensors"));
}

#[test]
fn unused_tensors_may_be_allowed() {
    let model = Model::new();
    model.rewrite("text/model.safetensors", |tensors| tensors.push(("extra".into(), vec![1], vec![0.0])));
    model.refused(&["1 unused", "`extra`", "option `strict`"]);
    let hart = Hart::open(model.path(""), OpenOptions::new().strict(false)).unwrap();
    assert_eq!(hart.reports()[0].unused[0].name, "extra");
}

/// Accepts a phi without effect, with or without its weights in the file; all diffusion steps; and paths that do not exist.
#[test]
fn unusual_values_are_accepted() {
    let model = Model::new();
    model.set("tokenizer/config.json", "quant_resi", json!(0.0)).set("llm/config.json", "num_sampling_steps", Value::Null);
    for path in ["", ".", "./"] {
        model.set("llm/config.json", "vae_path", json!(path));
        let hart = model.open().unwrap();
        assert_eq!(hart.config().residual.steps.to_string(), "1000");
    }
    model.rewrite("tokenizer/model.safetensors", |tensors| tensors.retain(|(name, ..)| !name.contains("quant_resi")));
    model.open().unwrap();
    model.set("tokenizer/config.json", "quant_resi", json!(0.5)).refused(&["missing", "quant_resi"]);
}

#[test]
fn damaged_weights_are_found_before_pixels() {
    for (value, word) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf")] {
        for file in ["tokenizer/model.safetensors", "text/model.safetensors"] {
            let model = Model::new();
            model.rewrite(file, |tensors| {
                let last = tensors.last_mut().unwrap();
                let middle = last.2.len() / 2;
                last.2[middle] = value;
            });
            let error = model.refused(&["model.safetensors", word, "tensor `"]);
            assert!(matches!(error, Error::NotFinite { .. }));
        }
    }
}

#[test]
fn logits_that_overflow_are_an_error() {
    let model = Model::new();
    fs::remove_file(model.path("llm/ema_model.bin")).unwrap();
    model.rewrite("llm/model.safetensors", |tensors| {
        tensors.iter_mut().filter(|(name, ..)| name.starts_with("head")).for_each(|t| t.2.iter_mut().for_each(|v| *v *= 1e37));
    });
    let error = model.open().unwrap().generate(&Request::new("a parrot")).unwrap_err();
    assert_contains(&error, &["logits of scale 1", "not finite"]);
}

#[test]
fn configurations_are_checked_before_anything_is_allocated() {
    let huge = json!(1u64 << 60);
    let cases: Vec<(&str, &str, Value, &str)> = vec![
        ("llm/config.json", "depth", huge.clone(), "whole number"),
        ("llm/config.json", "depth", json!(-1), "whole number"),
        ("llm/config.json", "depth", json!("24"), "whole number"),
        ("llm/config.json", "depth", Value::Null, "missing"),
        ("llm/config.json", "embed_dim", huge.clone(), "whole number"),
        ("llm/config.json", "embed_dim", json!(0), "whole number"),
        ("llm/config.json", "num_heads", json!(5), "divisor"),
        ("llm/config.json", "num_heads", json!(32), "multiple of 4"),
        ("llm/config.json", "mlp_ratio", json!(1e30), "number from"),
        ("llm/config.json", "patch_nums", json!(vec![1; 1].into_iter().chain(vec![256; 40]).collect::<Vec<_>>()), "at most 65536"),
        ("llm/config.json", "context_token", huge.clone(), "whole number"),
        ("llm/config.json", "patch_nums", json!([1, 100_000]), "whole numbers"),
        ("llm/config.json", "patch_nums", json!([1]), "list"),
        ("llm/config.json", "patch_nums", json!([2, 4]), "start at 1"),
        ("llm/config.json", "patch_nums", json!([1, 4, 2]), "none larger than the last"),
        ("llm/config.json", "norm_eps", json!("small"), "number from"),
        ("llm/config.json", "attn_type", json!("gpt2"), "\"llama\""),
        ("llm/config.json", "attn_type", json!("mamba"), "\"llama\""),
        ("llm/config.json", "mlp_type", json!("gpt2"), "\"llama\""),
        ("llm/config.json", "use_cross_attn", json!(true), "false"),
        ("llm/config.json", "sampler", json!("dpm"), "iddpm"),
        (
            "llm/config.json",
            "num_sampling_steps",
            json!("ddim999"),
            "stride through 1000 gives, such as \"ddim500\" or \"ddim1000\"",
        ),
        ("llm/config.json", "mlp_ratio", json!(0.01), "at least 0.0235"),
        ("llm/config.json", "num_sampling_steps", json!(0), "expected 1 to 1000 steps"),
        ("llm/config.json", "sep_aln_pooling_mode", json!("min"), "\"avg\""),
        ("llm/config.json", "model_type", json!("llama"), "hart_transformer_t2i"),
        ("llm/config.json", "context_dim", json!(128), "hidden_size"),
        ("llm/config.json", "use_context_norm", json!(3), "true or false"),
        ("tokenizer/config.json", "ch", json!(33), "multiple of 32"),
        ("tokenizer/config.json", "ch_mult", json!([]), "list"),
        ("tokenizer/config.json", "ch_mult", json!([1, huge]), "whole numbers"),
        ("tokenizer/config.json", "vocab_size", json!(1u64 << 40), "whole number"),
        ("tokenizer/config.json", "quant_conv_ks", json!(2), "odd"),
        ("tokenizer/config.json", "quant_resi", json!(1e9), "number from"),
        ("tokenizer/config.json", "model_type", json!("vqgan"), "hart_autoencoder"),
        ("text/config.json", "hidden_act", json!("gelu"), "silu"),
        ("text/config.json", "num_key_value_heads", json!(3), "divisor"),
        ("text/config.json", "rope_scaling", json!({"type": "yarn", "factor": 4.0}), "mrope"),
        ("text/config.json", "use_sliding_window", json!(true), "false"),
        ("text/config.json", "vocab_size", json!(600), "misshapen"),
        ("text/config.json", "vocab_size", json!(500), "token id"),
        ("text/tokenizer_config.json", "pad_token", json!("<none>"), "tokenizer.json"),
        ("text/tokenizer_config.json", "padding_side", json!("top"), "\"left\""),
        ("text/tokenizer_config.json", "truncation_side", json!("top"), "\"left\""),
    ];
    for (file, key, value, word) in cases {
        let model = Model::new();
        model.set(file, key, value.clone());
        let error = model.open().err().unwrap_or_else(|| panic!("{file} {key} {value} was accepted"));
        assert_contains(&error, &[word]);
        assert!(error.to_string().contains(key) || word == "misshapen" || word == "token id", "{error}");
    }
}

#[test]
fn configuration_files_that_are_not_json_are_named() {
    for text in ["", "{", "[]", "3", "{\"depth\": }", "\u{0}"] {
        let model = Model::new();
        fs::write(model.path("llm/config.json"), text).unwrap();
        model.refused(&["llm/config.json"]);
    }
    let model = Model::new();
    fs::write(model.path("text/tokenizer.json"), "{\"model\": 3}").unwrap();
    model.refused(&["tokenizer.json"]);
}

/// Parts of a tokenizer on which the tokenizers library would panic, on opening or on encoding.
#[test]
fn parts_of_a_tokenizer_that_cannot_be_applied_are_refused() {
    let template = |piece: Value| json!({"type": "TemplateProcessing", "single": [piece], "pair": [], "special_tokens": {}});
    let token = |content: &str, left: bool| json!({"id": 528, "content": content, "single_word": false, "lstrip": left, "rstrip": !left, "normalized": false, "special": true});
    let cases = [
        ("post_processor", template(json!({"Sequence": {"id": "B", "type_id": 0}}))),
        ("post_processor", template(json!({"SpecialToken": {"id": "[CLS]", "type_id": 0}}))),
        ("pre_tokenizer", json!({"type": "Sequence", "pretokenizers": [{"type": "FixedLength", "length": 0}]})),
        ("normalizer", json!({"type": "Replace", "pattern": {"String": ""}, "content": "a"})),
        ("added_tokens", json!([token("<|endoftext|>", false), token("  ", true)])),
    ];
    for (part, value) in cases {
        let model = Model::new();
        model.set("text/tokenizer.json", part, value);
        model.refused(&["tokenizer.json", part]);
    }
}

/// Replaces every value of a tokenizer.json by others. hart catches panics of the tokenizers library, but in wasm nothing can be caught.
#[test]
fn no_value_in_a_tokenizer_makes_the_library_panic() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-a/text/tokenizer.json");
    let mut plain: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    plain["model"]["merges"].as_array_mut().unwrap().truncate(3);
    plain["model"]["vocab"].as_object_mut().unwrap().retain(|_, id| id.as_u64() < Some(256 + 3));
    let mut other = plain.clone();
    let token = |id: u64, content: &str, strip: bool| json!({"id": id, "content": content, "single_word": false, "lstrip": strip, "rstrip": strip, "normalized": !strip, "special": strip});
    other["added_tokens"] = json!([token(528, "<|endoftext|>", true), token(529, "  ", false), token(530, "Heart", false)]);
    other["normalizer"] = json!({"type": "Sequence", "normalizers": [{"type": "NFKD"}, {"type": "Lowercase"}]});
    let split = json!({"type": "Split", "pattern": {"String": "t"}, "behavior": "MergedWithNext", "invert": true});
    let digits = json!({"type": "Digits", "individual_digits": true});
    let punctuation = json!({"type": "Punctuation", "behavior": "Contiguous"});
    let spaces = [json!({"type": "WhitespaceSplit"}), json!({"type": "Whitespace"})];
    other["pre_tokenizer"]["pretokenizers"] = json!([split, digits, punctuation, spaces[0], spaces[1]]);
    let end = json!({"SpecialToken": {"id": "END", "type_id": 0}});
    let start = json!({"Sequence": {"id": "A", "type_id": 0}});
    let special = json!({"END": {"id": "END", "ids": [528], "tokens": ["<|endoftext|>"]}});
    let template = json!({"type": "TemplateProcessing", "single": [start, end], "pair": [start, end], "special_tokens": special});
    other["post_processor"] = json!({"type": "Sequence", "processors": [template, {"type": "ByteLevel", "trim_offsets": true}]});
    for original in [plain, other] {
        check_tokenizer(&original);
        for path in paths_in(&original, &mut vec![]) {
            for replacement in replacements() {
                let mut changed = original.clone();
                let place = path.iter().fold(&mut changed, |value, step| match value {
                    Value::Array(_) => &mut value[step.parse::<usize>().unwrap()],
                    _ => &mut value[step],
                });
                *place = replacement;
                check_tokenizer(&changed);
            }
        }
    }
}

/// Returns the paths of all values, of large ones only the first three.
fn paths_in(value: &Value, path: &mut Vec<String>) -> Vec<Vec<String>> {
    let mut paths = vec![path.clone()];
    let members: Vec<(String, &Value)> = match value {
        Value::Object(members) if members.len() > 20 => members.iter().take(3).map(|(name, value)| (name.clone(), value)).collect(),
        Value::Object(members) => members.iter().map(|(name, value)| (name.clone(), value)).collect(),
        Value::Array(values) => values.iter().take(3).enumerate().map(|(i, value)| (i.to_string(), value)).collect(),
        _ => vec![],
    };
    for (step, value) in members {
        path.push(step);
        paths.extend(paths_in(value, path));
        path.pop();
    }
    paths
}

fn replacements() -> [Value; 13] {
    [
        Value::Null,
        json!(true),
        json!(-1),
        json!(530),
        json!(u64::MAX),
        json!(0.5),
        json!(""),
        json!("\0"),
        json!("<|endoftext|>"),
        json!("\u{301}"),
        json!("(?=("),
        json!([]),
        json!({}),
    ]
}

/// Opens a tokenizer and tokenizes texts; any error will do, except one that stands for a panic.
fn check_tokenizer(json: &Value) {
    const SETTINGS: &[u8] = br#"{"pad_token": "<|endoftext|>", "padding_side": "left"}"#;
    const TEXTS: [&str; 6] = [
        "",
        "a red Heart 12",
        " a\u{301}\u{1F99C}<|endoftext|>  \0 <|endoftext|>",
        "<|endoftext|>   \n\t",
        "t't t..",
        "\u{1E9E}\u{FB03}\u{130}  ",
    ];
    let no_panic = |error: Error| {
        let text = error.to_string();
        assert!(!text.contains("is damaged"), "{text}: {}", json.to_string().chars().take(2000).collect::<String>());
    };
    match TextTokenizer::parse(Path::new("text"), json.to_string().as_bytes(), SETTINGS, 700) {
        Ok(tokenizer) => TEXTS.iter().for_each(|text| {
            tokenizer.tokenize(&[text], Some("a"), 16).map_err(no_panic).ok();
        }),
        Err(error) => no_panic(error),
    }
}

/// A tokenizer whose size differs from the transformer's can decode, but cannot encode an image to start from.
#[test]
fn an_image_to_start_from_needs_the_transformers_scales() {
    let model = Model::new();
    model.set("tokenizer/config.json", "v_patch_nums", json!([1, 2]));
    let hart = model.open().unwrap();
    let side = hart.visual().resolution();
    let image = Image::from_rgb(side, side, vec![0; 3 * side * side]).unwrap();
    let request = Request::new("a parrot").from_image(FromImage::vary(image, 1));
    assert_contains(&hart.generate(&request).unwrap_err(), &["v_patch_nums", "patch_nums"]);
    assert_eq!(hart.generate(&Request::new("a parrot")).unwrap().images.len(), 1);
}

/// Feed-forward layers and images that satisfy each limit alone, but not together.
#[test]
fn sizes_are_checked_together() {
    let model = Model::new();
    model.set("llm/config.json", "embed_dim", json!(4)).set("llm/config.json", "num_heads", json!(1));
    model.set("llm/config.json", "mlp_ratio", json!(0.01));
    model.refused(&["mlp_ratio"]);
    let model = Model::new();
    model.set("llm/config.json", "patch_nums", json!([1, 200])).set(
        "tokenizer/config.json",
        "ch_mult",
        json!([1, 1, 1, 1, 1, 1, 1]),
    );
    model.refused(&["pixels along a side", "at most 8192"]);
    let model = Model::new();
    model.set("tokenizer/config.json", "ch_mult", json!([1, 1, 1, 1, 1, 1, 1, 1]));
    model.set("tokenizer/config.json", "v_patch_nums", json!([1, 128]));
    model.refused(&["v_patch_nums", "8192 pixels"]);
}

/// A pipe in place of a file is refused without waiting for it.
#[cfg(unix)]
#[test]
fn pipes_are_not_files() {
    for name in ["llm/config.json", "text/tokenizer.json", "text/tokenizer_config.json", "llm/system_prompt.txt"] {
        let model = Model::new();
        let _ = fs::remove_file(model.path(name));
        let created = std::process::Command::new("mkfifo").arg(model.path(name)).status().unwrap();
        assert!(created.success());
        model.refused(&[name]);
    }
    let model = Model::new();
    fs::remove_file(model.path("text/model.safetensors")).unwrap();
    for shard in ["a.safetensors", "a.bin"] {
        fs::write(model.path("text/model.safetensors.index.json"), json!({"weight_map": {"a": shard}}).to_string()).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(model.path("text").join(shard)).status().unwrap().success());
        model.refused(&[shard, "regular file"]);
    }
}

#[test]
fn long_prompts_may_be_cut_on_the_left() {
    let model = Model::new();
    model.set("text/tokenizer_config.json", "truncation_side", json!("left"));
    let prompt = (0..100).map(|i| format!("word{i}")).collect::<Vec<_>>().join(" ");
    let generation = model.open().unwrap().generate(&Request::new(prompt)).unwrap();
    assert!(generation.truncated[0].cut.starts_with("word0 word1"), "{:?}", generation.truncated);
}

/// Without its discriminator the published autoencoder's names have no prefix.
#[test]
fn a_visual_tokenizer_may_have_plain_names() {
    let model = Model::new();
    model.set("tokenizer/config.json", "model_type", json!("hart_autoencoder"));
    model.rewrite("tokenizer/model.safetensors", |tensors| {
        tensors.iter_mut().for_each(|(name, ..)| *name = name.strip_prefix("vae.").unwrap().to_string());
    });
    assert!(model.open().is_ok());
}

#[test]
fn pixels_that_overflow_are_an_error() {
    let model = Model::new();
    model.rewrite("tokenizer/model.safetensors", |tensors| {
        let last = tensors.iter_mut().filter(|(name, ..)| name.starts_with("vae.decoder.conv_out"));
        last.for_each(|t| t.2.fill(1e38));
    });
    let error = model.open().unwrap().generate(&Request::new("a parrot")).unwrap_err();
    assert_contains(&error, &["pixels are not finite"]);
}

#[test]
fn shards_stay_in_their_folder() {
    let model = Model::new();
    fs::remove_file(model.path("text/model.safetensors")).unwrap();
    for names in [json!({"a": "../../secret.safetensors"}), json!({"a": 3}), json!({}), json!([]), json!({"a": "/etc/passwd"})] {
        fs::write(model.path("text/model.safetensors.index.json"), json!({ "weight_map": names }).to_string()).unwrap();
        model.refused(&["weight_map"]);
    }
    fs::write(model.path("text/model.safetensors.index.json"), r#"{"weight_map": {"a": "gone.safetensors"}}"#).unwrap();
    model.refused(&["gone.safetensors"]);
}

#[test]
fn a_weight_set_selects_its_file() {
    let model = Model::new();
    let open = |set| Hart::open(model.path(""), OpenOptions::new().weight_set(set));
    let file = |hart: &Hart| hart.reports()[1].files.iter().next().unwrap().file_name().unwrap().to_owned();
    assert_eq!(file(&open(WeightSet::PreferEma).unwrap()), "ema_model.bin");
    assert_eq!(file(&open(WeightSet::Plain).unwrap()), "model.safetensors");
    fs::remove_file(model.path("llm/ema_model.bin")).unwrap();
    assert_contains(&open(WeightSet::Ema).err().unwrap(), &["no EMA weights"]);
    assert_eq!(file(&open(WeightSet::PreferEma).unwrap()), "model.safetensors");
}

#[test]
fn files_may_be_read_instead_of_mapped() {
    let model = Model::new();
    let image = |options| {
        let hart = Hart::open(model.path(""), options).unwrap();
        hart.generate(&Request::new("a parrot")).unwrap().images.remove(0)
    };
    assert!(image(OpenOptions::new()).pixels() == image(OpenOptions::new().memory_map(false)).pixels());
}

#[test]
fn a_truncated_prompt_reports_the_rest() {
    let hart = Model::new().open().unwrap();
    let prompt = (0..5000).map(|i| format!("word{i}")).collect::<Vec<_>>().join(" ");
    let generation = hart.generate(&Request::batch(["a parrot".to_string(), prompt])).unwrap();
    let [truncation] = generation.truncated.as_slice() else { panic!("{:?}", generation.truncated) };
    assert_eq!((truncation.prompt, truncation.kept), (Some(1), hart.config().transformer.context_tokens));
    assert!(truncation.tokens > 5000 && truncation.cut.ends_with("word4999"), "{}", truncation.tokens);
}

#[test]
fn extreme_requests_give_an_image_or_an_error() {
    let hart = Model::new().open().unwrap();
    let requests = [
        Request::new("a").seed(u64::MAX).guidance(100.0),
        Request::new("a").guidance(-100.0).top_k(usize::MAX),
        Request::new("a").top_p(1.0).top_k(1),
        Request::new("a").top_p(f64::MIN_POSITIVE),
        Request::new("\u{0}\u{202e}🦜\u{301}\u{301}").steps("1".parse::<Respacing>().unwrap()),
        Request::new("a").steps("1000".parse::<Respacing>().unwrap()),
        Request::new("a").system_prompt(SystemPrompt::Text(" ".into())),
    ];
    for request in requests {
        match hart.generate(&request) {
            Ok(generation) => assert_eq!(generation.images.len(), 1),
            Err(error) => assert!(matches!(error, Error::Overflow { .. }), "{error}"),
        }
    }
    let invalid = [Request::new(""), Request::new("a").guidance(f64::NAN), Request::new("a").images_per_prompt(0)];
    for request in invalid {
        let mut work = 0;
        let mut observer = |_: &Event<'_>| {
            work += 1;
            Control::Continue
        };
        assert!(matches!(hart.generate_with(&request, &mut observer), Err(Error::Request { .. })));
        assert_eq!(work, 0, "an invalid request is refused before any work");
    }
}

/// Cancels after a number of events, and collects the finished images.
struct CancelAfter {
    events: usize,
    received: usize,
    completed: Vec<Image>,
}

impl Observer for CancelAfter {
    fn event(&mut self, _: &Event<'_>) -> Control {
        self.received += 1;
        if self.received > self.events { Control::Cancel } else { Control::Continue }
    }

    fn image(&mut self, image: &Image) {
        self.completed.push(image.clone());
    }
}

#[test]
fn an_observer_can_cancel_at_any_event_and_the_model_stays_usable() {
    // The order of the events of images that are generated at once is not always the same.
    let hart = Model::new().open_with(OpenOptions::new().parallel(1)).unwrap();
    let request = Request::new("a parrot").images_per_prompt(2).system_prompt(SystemPrompt::Text("Draw:".into()));
    let mut events: Vec<(Stage, Step, f32)> = vec![];
    let mut listen = |e: &Event<'_>| {
        events.push((e.stage, e.step, e.fraction));
        Control::Continue
    };
    let whole = hart.generate_with(&request, &mut listen).unwrap();
    assert!(events.windows(2).all(|w| w[0].2 <= w[1].2) && (events.last().unwrap().2 - 1.0).abs() < 1e-3);
    let first_done = events.iter().position(|e| matches!(e.1, Step::Images { finished: 1, .. })).unwrap();
    for stop in (0..events.len()).step_by(7) {
        let mut observer = CancelAfter { events: stop, received: 0, completed: vec![] };
        match hart.generate_with(&request, &mut observer) {
            Err(Error::Cancelled) => {
                let completed = observer.completed;
                assert_eq!(completed.len(), usize::from(stop >= first_done), "stopped at {stop}");
                assert!(completed.iter().zip(&whole.images).all(|(a, b)| a == b));
            }
            other => assert!(stop + 1 >= events.len(), "{:?}", other.map(|_| ())),
        }
    }
    assert!(hart.generate(&request).unwrap().images == whole.images);
}

#[test]
fn every_step_emits_its_events() {
    let hart = Model::new().open().unwrap();
    let mut steps = vec![];
    let mut listen = |e: &Event<'_>| {
        steps.push(e.step);
        Control::Continue
    };
    let request = Request::new("a parrot").system_prompt(SystemPrompt::Text("Draw:".into()));
    assert_eq!(hart.generate_with(&request, &mut listen).unwrap().images.len(), 1);
    let config = hart.config();
    let count = |f: fn(&Step) -> bool| steps.iter().filter(|s| f(s)).count();
    let scales = config.transformer.sides.len();
    assert_eq!(count(|s| matches!(s, Step::ScaleDone { .. })), scales);
    assert_eq!(count(|s| matches!(s, Step::TextLayer { .. })), config.text.num_layers);
    assert_eq!(count(|s| matches!(s, Step::Scale { .. })), scales);
    assert_eq!(count(|s| matches!(s, Step::Block { .. })), scales * config.transformer.depth);
    assert_eq!(count(|s| matches!(s, Step::Diffusion { .. })), config.residual.steps.timesteps().len());
    assert_eq!(count(|s| matches!(s, Step::Images { .. })), 1);
}

#[test]
fn a_token_stops_a_run_from_another_thread() {
    let hart = Model::new().open().unwrap();
    let token = CancelToken::new();
    let request = Request::new("a parrot").images_per_prompt(1000).cancel_token(token.clone());
    let started = Instant::now();
    let error = std::thread::scope(|scope| {
        let run = scope.spawn(|| hart.generate(&request).unwrap_err());
        std::thread::sleep(Duration::from_millis(200));
        token.cancel();
        run.join().unwrap()
    });
    assert!(error.is_cancelled(), "{error}");
    assert!(started.elapsed() < Duration::from_secs(20), "the run continued");
    token.reset();
    assert!(hart.generate(&Request::new("a parrot").cancel_token(token)).is_ok());
}

#[test]
fn a_system_prompt_file_is_used_and_can_be_turned_off() {
    let model = Model::new();
    let image = |system: SystemPrompt| {
        let request = Request::new("a parrot").system_prompt(system);
        model.open().unwrap().generate(&request).unwrap().images.remove(0)
    };
    let without = image(SystemPrompt::Checkpoint);
    fs::write(model.path("llm/system_prompt.txt"), "Describe the picture.\n").unwrap();
    let with = image(SystemPrompt::Checkpoint);
    assert!(with.pixels() != without.pixels());
    assert!(with.provenance.as_ref().unwrap().settings.ends_with("system prompt checkpoint"));
    assert!(image(SystemPrompt::Off).pixels() == without.pixels());
    assert!(image(SystemPrompt::Text("Describe the picture.\n".into())).pixels() == with.pixels());
    fs::write(model.path("llm/system_prompt.txt"), [0xff, 0xfe]).unwrap();
    model.refused(&["system_prompt.txt", "UTF-8"]);
}
