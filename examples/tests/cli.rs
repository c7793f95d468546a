//! The programs as a user runs them, with valid and invalid arguments.

use std::fs;
use std::path::Path;
#[cfg(unix)]
use std::process::Command;

use hart_core::{DeviceKind, Error, Hart, Image, OpenOptions, Request};
use hart_examples::cli::args::SHIPPED_MODEL;
use serde_json::Value;
use support::{fails, names, run, succeeds};

mod support;

const GENERATE: &str = env!("CARGO_BIN_EXE_generate");
const PREVIEW: &str = env!("CARGO_BIN_EXE_preview");
const RECONSTRUCT: &str = env!("CARGO_BIN_EXE_reconstruct");
const CONVERT: &str = env!("CARGO_BIN_EXE_convert");
const MAKE_CHECKPOINT: &str = env!("CARGO_BIN_EXE_make_checkpoint");

fn last_line(output: &str) -> Value {
    serde_json::from_str(output.lines().last().unwrap()).unwrap()
}

#[test]
fn a_prompt_becomes_an_image() {
    let folder = tempfile::tempdir().unwrap();
    succeeds(GENERATE, folder.path(), &["a red heart on a yellow background"]);
    assert_eq!(names(folder.path()), ["out.png"]);
    let image = Image::open_png(folder.path().join("out.png")).unwrap();
    assert_eq!((image.width(), image.height()), (64, 64));
    // The centre is red, the corner yellow.
    let pixel = |x: usize, y: usize| &image.pixels()[3 * (y * 64 + x)..][..3];
    assert!(pixel(32, 29)[0] > 150 && pixel(32, 29)[1] < 120 && pixel(32, 29)[2] < 120, "{:?}", pixel(32, 29));
    assert!(pixel(2, 2)[0] > 200 && pixel(2, 2)[1] > 180, "{:?}", pixel(2, 2));
}

#[test]
fn several_images_a_grid_and_a_line_of_json() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = [
        "a parrot",
        "a sunflower",
        "-n",
        "2",
        "-s",
        "5",
        "-o",
        "p{n}.png",
        "--grid",
        "all.png",
        "--no-labels",
        "--json",
        "--timings",
        "-q",
    ];
    let output = succeeds(GENERATE, folder.path(), &arguments);
    assert_eq!(names(folder.path()), ["all.png", "p0.png", "p1.png", "p2.png", "p3.png"]);
    let json = last_line(&output);
    assert_eq!(json["seeds"], serde_json::json!([5, 6, 5, 6]));
    assert_eq!(json["files"][3], "p3.png");
    for stage in ["text", "transformer", "sampling", "residual", "decode", "total"] {
        assert!(json["milliseconds"][stage].as_f64().unwrap() > 0.0, "{json}");
        assert!(output.lines().any(|l| l.starts_with(stage) && l.ends_with("ms")), "{output}");
    }
    let grid = Image::open_png(folder.path().join("all.png")).unwrap();
    assert_eq!((grid.width(), grid.height()), (128, 128));
}

#[test]
fn the_file_records_its_prompt_seed_and_settings() {
    let folder = tempfile::tempdir().unwrap();
    succeeds(GENERATE, folder.path(), &["a parrot 🦜", "--seed", "12345", "--guidance", "3", "--steps", "4,2", "--top-k", "50"]);
    let bytes = fs::read(folder.path().join("out.png")).unwrap();
    for text in ["a parrot 🦜", "12345", "guidance 3, smoothing false, top-k 50, top-p 0.4, steps 4,2"] {
        assert!(bytes.windows(text.len()).any(|w| w == text.as_bytes()), "{text}");
    }
}

#[test]
fn scales_are_pruned_by_the_given_or_the_published_plan() {
    let folder = tempfile::tempdir().unwrap();
    let image = |name: &str, arguments: &[&str]| {
        succeeds(GENERATE, folder.path(), &[&["a parrot", "-q", "-o", name], arguments].concat());
        Image::open_png(folder.path().join(name)).unwrap()
    };
    let given = image("given.png", &["--prune", "0.5,0.75"]);
    let published = image("published.png", &["--prune"]);
    assert!(given.pixels() == published.pixels() && given.pixels() != image("whole.png", &[]).pixels());
    let settings = given.provenance.unwrap().settings;
    assert!(settings.contains("prune 0.5,0.75") && published.provenance.unwrap().settings == settings, "{settings}");
}

#[test]
fn an_image_is_generated_again_from_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let image = |name: &str, arguments: &[&str]| {
        succeeds(GENERATE, folder.path(), &[&["-q", "-o", name], arguments].concat());
        Image::open(folder.path().join(name)).unwrap()
    };
    let settings = ["-s", "5", "-g", "2.5", "--top-k", "50", "--top-p", "0.9", "--steps", "10,5", "--precision", "f32"];
    let more = ["--system-prompt", "draw ", "--smoothing", "false", "--prune", "0.25"];
    for name in ["a.png", "a.jpg", "a.webp"] {
        let first = image(name, &[&["a parrot"], &settings[..], &more].concat());
        let again = image(&format!("again-{name}"), &["--again", name]);
        assert!(again == first && again.provenance == first.provenance, "{name}");
        let other = image(&format!("other-{name}"), &["--again", name, "-s", "6", "a house"]).provenance.unwrap();
        assert_eq!((other.prompt.as_str(), other.seed), ("a house", 6));
        assert_eq!(other.generation, first.provenance.unwrap().generation);
    }
    // Another model in a folder of the same name.
    let model = folder.path().join("hart-emoji");
    for part in ["llm", "tokenizer", "text"] {
        fs::create_dir_all(model.join(part)).unwrap();
        for file in names(&Path::new(SHIPPED_MODEL).join(part)) {
            fs::copy(Path::new(SHIPPED_MODEL).join(part).join(&file), model.join(part).join(&file)).unwrap();
        }
    }
    let arguments = ["--again", "a.png", "-m", "hart-emoji", "-o", "other.png"];
    let warnings = || String::from_utf8(run(GENERATE, folder.path(), &arguments).stderr).unwrap();
    assert!(!warnings().contains("warning: "), "{}", warnings());
    let config = fs::read_to_string(model.join("llm/config.json")).unwrap();
    fs::write(model.join("llm/config.json"), config + "\n").unwrap();
    let warning = warnings();
    let words = "warning: a.png was generated with the model hart-emoji (fingerprint ";
    assert!(warning.contains(words) && warning.contains(", not hart-emoji (fingerprint "), "{warning}");
    let mark = |marks: &str| image("b.png", &["a parrot", "--omit-marks", marks]);
    assert!(mark("settings").provenance.is_none() && mark("settings,source").digital_source().is_none());
    fails(GENERATE, &["x", "--omit-marks", "promt"], &["--omit-marks", "expected all, none, or names of prompt"]);
    image("b.png", &["a parrot", "--omit-marks", "prompt"]);
    let file = folder.path().join("b.png");
    fails(GENERATE, &["--again", file.to_str().unwrap()], &["b.png", "the prompt was left out of the file"]);
    fails(GENERATE, &["--again", "missing.png"], &["missing.png"]);
}

#[test]
fn the_ending_chooses_the_format() {
    let folder = tempfile::tempdir().unwrap();
    let image = |program: &str, name: &str| {
        succeeds(program, folder.path(), &["a parrot", "-s", "3", "-o", name]);
        Image::open(folder.path().join(name)).unwrap()
    };
    let png = image(GENERATE, "a.png");
    assert!(image(GENERATE, "b.WEBP") == png);
    let jpeg = image(PREVIEW, "c.jpg");
    assert!(jpeg.pixels() != png.pixels() && jpeg.provenance == png.provenance);
    assert!(fs::read(folder.path().join("c.jpg")).unwrap().starts_with(b"\xff\xd8"));
    // A number in the name of the only image, as in `generate`.
    succeeds(PREVIEW, folder.path(), &["a parrot", "-o", "d{n}/x.png"]);
    assert!(folder.path().join("d0/x.png").is_file());
}

#[test]
fn the_shipped_model_opens_under_any_path() {
    let folder = tempfile::tempdir().unwrap();
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/src/../models/hart-emoji");
    succeeds(GENERATE, folder.path(), &["a parrot", "-q", "-o", "a.png"]);
    succeeds(GENERATE, folder.path(), &["a parrot", "-q", "-o", "b.png", "-m", shipped]);
    assert!(fs::read(folder.path().join("a.png")).unwrap() == fs::read(folder.path().join("b.png")).unwrap());
}

/// A closed standard output is no error: all files are still written.
#[cfg(unix)]
#[test]
fn a_closed_pipe_is_no_panic() {
    let folder = tempfile::tempdir().unwrap();
    let piped = |program: &str, arguments: &str| {
        let script = format!("set -o pipefail; '{program}' {arguments} | true");
        let output = run("bash", folder.path(), &["-c", &script]);
        assert!(output.status.success() && !String::from_utf8_lossy(&output.stderr).contains("error"), "{output:?}");
    };
    piped(PREVIEW, "'a parrot' -o a.png");
    piped(RECONSTRUCT, "a.png -o b.png");
    let changes: String = SMALL.iter().chain(&SIDES).map(|change| format!(" --set '{change}'")).collect();
    piped(MAKE_CHECKPOINT, &format!("model --preset 256{changes}"));
    assert_eq!(names(folder.path()), ["a.png", "b.png", "model"]);
    let folder = tempfile::tempdir().unwrap();
    let output = run("sh", folder.path(), &["-c", &format!("'{GENERATE}' x --json -q | true")]);
    assert!(!String::from_utf8_lossy(&output.stderr).contains("panicked"));
    assert_eq!(names(folder.path()), ["out.png"]);
}

#[cfg(target_os = "linux")]
#[test]
fn progress_bars_fit_the_locale() {
    let folder = tempfile::tempdir().unwrap();
    let bars = |lang: &str| {
        let script = format!("script -qec \"env LANG={lang} TERM=xterm '{GENERATE}' 'a parrot'\" /dev/null </dev/null");
        String::from_utf8(run("sh", folder.path(), &["-c", &script]).stdout).unwrap()
    };
    assert!(bars("C.UTF-8").contains("━━━━"));
    let text = bars("C");
    assert!(text.contains("====") && text.is_ascii(), "{text:?}");
}

#[test]
fn ignored_text_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    let long = "a parrot and ".repeat(20);
    let output = run(GENERATE, folder.path(), &[&long, "--system-prompt", &format!("{long} finally"), "-q"]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("the system prompt has") && errors.contains("warning: prompt 1 has"), "{errors}");
    // The warning quotes the ignored words, and not those that were read.
    assert!(errors.contains("finally\""), "{errors}");
    let output =
        run(GENERATE, folder.path(), &["a parrot on a branch and a house by the sea and a guitar made of old cheese", "-q"]);
    let errors = String::from_utf8_lossy(&output.stderr);
    let cut = errors.split_once("ignored: \"").unwrap().1;
    assert!(errors.contains("the model reads 20") && cut.contains("old cheese\"") && !cut.contains("parrot"), "{errors}");
}

/// Prompts can be untrusted: they must not move the cursor, forge a line or flood the terminal.
#[test]
fn a_prompt_can_not_control_the_terminal() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("words.txt"), "forged").unwrap();
    let long = format!("a parrot{}\x1b]0;title\x07\x1b[2J\nerror: forged", " and a house".repeat(500));
    let errors = |arguments: &[&str]| String::from_utf8(run(GENERATE, folder.path(), arguments).stderr).unwrap();
    let warning = errors(&[long.as_str(), "-q"]);
    assert!(warning.contains("ignored: \"") && warning.len() < 300, "{warning:?}");
    let refused = errors(&["\x1b[31ma forged line", "--filter", "words.txt"]);
    assert!(refused.starts_with("error: prompt \" [31ma forged line\" is refused"), "{refused:?}");
    for text in [warning, refused] {
        assert!(!text.trim_end().contains(char::is_control), "{text:?}");
    }
}

#[test]
fn invalid_arguments_are_reported() {
    fails(GENERATE, &[], &["PROMPT"]);
    fails(GENERATE, &[""], &["error: prompt: number 1 is empty"]);
    fails(GENERATE, &["x", "--guidance", "nan"], &["error: --guidance: NaN"]);
    fails(GENERATE, &["x", "--guidance", "1e9"], &["guidance", "-100 to 100"]);
    fails(GENERATE, &["x", "--top-p", "2"], &["top-p"]);
    fails(GENERATE, &["x", "--steps", "0"], &["--steps", "'0'", "expected 1 to 1000 steps"]);
    fails(GENERATE, &["x", "--prune", "1"], &["--prune", "ratio 1 is 1, expected a number from 0"]);
    fails(GENERATE, &["x", "--prune", "half"], &["--prune", "such as \"0.5,0.75\""]);
    fails(GENERATE, &["x", "--prune", "0,0,0,0,0,0,0,0,0"], &["error: --prune: has 9 ratios, expected at most"]);
    for flag in ["--count", "--top-k", "--threads", "--first"] {
        fails(GENERATE, &["x", flag, "-1"], &["'-1'", flag, "expected a whole number that is not negative"]);
    }
    fails(GENERATE, &["x", "--out", "out.tif"], &["--out out.tif ends in .tif", ".png, .jpg, .jpeg or .webp"]);
    fails(GENERATE, &["x", "--out", "out"], &["--out out has no ending", ".png, .jpg"]);
    fails(GENERATE, &["x", "--grid", "all.gif"], &["--grid all.gif ends in .gif"]);
    fails(RECONSTRUCT, &["x.png", "--out", "y.bmp"], &["--out y.bmp ends in .bmp"]);
    fails(GENERATE, &["x", "--out", "missing/"], &["--out missing/: no such folder", "add the name of a file"]);
    fails(GENERATE, &["x", "--count", "0"], &["error: --count: 0, expected at least one"]);
    fails(GENERATE, &["x", "--count", "1000001"], &["1000001 in all, at most 1000000 in one run"]);
    for flag in ["--neg", "--no", "--negative_prompt"] {
        fails(GENERATE, &["x", flag, "blurry"], &[flag, "hint: there are no negative prompts"]);
    }
    fails(GENERATE, &["x", "--width", "512"], &["hint: the model sets the size"]);
    for seed in ["-1", "18446744073709551616", "1.5", "dice"] {
        fails(GENERATE, &["x", "--seed", seed], &["--seed", seed, "18446744073709551615, or random"]);
    }
    fails(GENERATE, &["x", "--no-labels"], &["--grid"]);
    fails(GENERATE, &["x", "--device", "tpu"], &["tpu", "auto", "cpu"]);
    fails(GENERATE, &["x", "--weights", "best"], &["auto, ema or plain"]);
    fails(GENERATE, &["x", "--weights", "ema"], &["no EMA weights", "use `--weights plain`"]);
    fails(GENERATE, &["x", "--model", "nowhere"], &["nowhere", "root folder"]);
    fails(GENERATE, &["x", "--text-model", "nowhere"], &["nowhere", "name the text model's folder with `--text-model`"]);
    fails(GENERATE, &["x", "--out", "missing/out.png"], &["missing", "create it first"]);
    fails(GENERATE, &["x", "--out", "."], &["is a folder"]);
    fails(GENERATE, &["x", "--grid", "missing/out.png"], &["--grid", "missing"]);
    fails(GENERATE, &["x", "--grid", "out.png"], &["--grid out.png", "the same file as an image"]);
    fails(GENERATE, &["x", "--grid", "./out.png"], &["--grid ./out.png", "the same file as an image"]);
    for limit in ["nan", "-1", "0", "much"] {
        fails(GENERATE, &["x", "--max-memory", limit], &["--max-memory", limit, "a number above 0"]);
    }
    #[cfg(unix)]
    fails(GENERATE, &["x", "--out", "/dev/null"], &["not a regular file"]);
    #[cfg(unix)]
    fails(GENERATE, &["x", "--out", &format!("{}.png", "a".repeat(300))], &["--out aaa", "choose another name"]);
    #[cfg(unix)]
    fails(RECONSTRUCT, &["/dev/zero"], &["/dev/zero: not a regular file"]);
    fails(RECONSTRUCT, &["nothing.png"], &["nothing.png"]);
    fails(RECONSTRUCT, &["out.png"], &["--out out.png", "the same file as the original image"]);
    fails(RECONSTRUCT, &[concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")], &["Cargo.toml"]);
    fails(MAKE_CHECKPOINT, &["x", "--set", "llm=3"], &["FILE.KEY=JSON"]);
    fails(MAKE_CHECKPOINT, &["x", "--set", "llm.depth=-3"], &["depth"]);
    fails(MAKE_CHECKPOINT, &["missing/x"], &["missing"]);
    fails(MAKE_CHECKPOINT, &["."], &["already exists"]);
}

/// Messages of the library about options name the program's flags.
#[test]
fn flags_are_named_in_place_of_options() {
    use hart_core::weights::{Checkpoint, NamedTensor, StorageDtype, save_tensors};
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    for part in ["llm", "tokenizer", "text"] {
        let (from, to) = (Path::new(SHIPPED_MODEL).join(part), model.join(part));
        fs::create_dir_all(&to).unwrap();
        for file in names(&from) {
            fs::copy(from.join(&file), to.join(file)).unwrap();
        }
    }
    let file = model.join("llm/model.safetensors");
    let checkpoint = Checkpoint::open_file(&file, false).unwrap();
    let tensor = |name: &str| NamedTensor {
        name: name.into(),
        shape: checkpoint.info(name).unwrap().shape.clone(),
        values: checkpoint.values(name).unwrap(),
    };
    let mut tensors: Vec<NamedTensor> = checkpoint.names().map(tensor).collect();
    tensors.push(NamedTensor { name: "extra".into(), shape: vec![1], values: vec![0.0] });
    save_tensors(&file, &tensors, StorageDtype::F32).unwrap();
    let path = model.to_str().unwrap();
    fails(GENERATE, &["x", "--model", path], &["unused `extra`", "or ignore unused tensors with `--allow-unused`"]);
    succeeds(GENERATE, folder.path(), &["x", "-q", "--model", path, "--allow-unused"]);
    fs::rename(model.join("text"), model.join("other")).unwrap();
    fails(GENERATE, &["x", "--model", path], &["no text model", "or name its folder with `--text-model`"]);
    fails(GENERATE, &["x", "--max-memory", "0.001"], &["raise `--max-memory` or use a smaller model"]);
}

/// A folder without write permission, and a full disk.
#[cfg(target_os = "linux")]
#[test]
fn a_failed_write_leaves_the_old_file() {
    fails(GENERATE, &["x", "--out", "/proc/out.png"], &["/proc", "can't write"]);
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("out.png"), "the old image").unwrap();
    // A file size limit of 0 blocks, with its signal ignored, makes writes fail like a full disk.
    let script = format!("trap '' XFSZ; ulimit -f 0; '{GENERATE}' 'a parrot' -q");
    let output = run("sh", folder.path(), &["-c", &script]);
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("out.png"), "{output:?}");
    assert_eq!(names(folder.path()), ["out.png"]);
    assert_eq!(fs::read_to_string(folder.path().join("out.png")).unwrap(), "the old image");
}

#[test]
fn an_image_is_tokenized_and_reconstructed() {
    let folder = tempfile::tempdir().unwrap();
    succeeds(GENERATE, folder.path(), &["a sunflower", "-q", "-o", "sunflower.png"]);
    let output = succeeds(RECONSTRUCT, folder.path(), &["sunflower.png", "--original", "--json", "-o", "again.png"]);
    let json = last_line(&output);
    let (hybrid, discrete) = (json["psnr_db"]["hybrid"].as_f64().unwrap(), json["psnr_db"]["discrete"].as_f64().unwrap());
    assert!(hybrid > 20.0 && discrete > 15.0, "{json}");
    let codes: Vec<usize> = json["codes"].as_array().unwrap().iter().map(|c| c.as_array().unwrap().len()).collect();
    assert_eq!(codes, [1, 4, 9, 16, 36, 64]);
    let image = Image::open_png(folder.path().join("again.png")).unwrap();
    assert_eq!((image.width(), image.height()), (192, 64));
}

/// Changes that make a random checkpoint tiny.
const SMALL: [&str; 10] = [
    "llm.depth=2",
    "llm.embed_dim=32",
    "llm.num_heads=2",
    "llm.context_token=8",
    "llm.diff_width=32",
    "llm.diff_depth=1",
    "tokenizer.ch=32",
    "tokenizer.ch_mult=[1,2]",
    "tokenizer.z_channels=4",
    "tokenizer.vocab_size=64",
];
const SIDES: [&str; 2] = ["llm.patch_nums=[1,2,3,5]", "tokenizer.v_patch_nums=[1,2,3,5]"];

/// Covers every option of the configuration files at a tiny size: no tensor is missing or unused, and the model generates an image.
#[test]
fn checkpoints_of_every_configuration_generate() {
    let configurations: [&[&str]; 9] = [
        &[],
        &["llm.attn_l2_norm=true", "llm.use_timestep_embed=false"],
        &["llm.disable_aln=false", "tokenizer.share_quant_resi=0"],
        &["llm.disable_aln=false", "llm.sep_aln_pooling_mode=avg", "tokenizer.share_quant_resi=1"],
        &["llm.shared_aln=true", "llm.use_context_norm=false", "tokenizer.share_quant_resi=2"],
        &["tokenizer.quant_resi=0", "llm.num_sampling_steps=ddim5"],
        &[
            "tokenizer.quant_resi=-0.7",
            "tokenizer.default_qresi_counts=3",
            "tokenizer.share_quant_resi=0",
            "llm.num_sampling_steps=3,1",
        ],
        &["tokenizer.using_znorm=true", "tokenizer.quant_conv_ks=1", "llm.mlp_ratio=3"],
        &["text.num_hidden_layers=2", "text.num_key_value_heads=12", "llm.num_sampling_steps=1"],
    ];
    let dtypes = ["f32", "f16", "bf16"];
    for (index, configuration) in configurations.iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        let mut arguments = vec!["model", "--preset", "256", "--dtype", dtypes[index % dtypes.len()]];
        for change in SMALL.iter().chain(&SIDES).chain(*configuration) {
            arguments.extend(["--set", change]);
        }
        succeeds(MAKE_CHECKPOINT, folder.path(), &arguments);
        succeeds(GENERATE, folder.path(), &["anything", "-m", "model", "-q"]);
        let image = Image::open_png(folder.path().join("out.png")).unwrap();
        assert_eq!(image.width(), 10, "{configuration:?}");
        succeeds(RECONSTRUCT, folder.path(), &["out.png", "-m", "model", "-o", "again.png"]);
    }
}

/// The maps have to be larger than the bands in which they are computed, so the image has 640 pixels a side.
#[test]
fn a_limit_of_memory_changes_how_an_image_is_decoded_but_not_the_image() {
    let folder = tempfile::tempdir().unwrap();
    let mut arguments = vec!["model", "--preset", "256"];
    for change in SMALL.iter().chain(&SIDES).chain(&["tokenizer.ch_mult=[1,1,1,1,1,1,1,1]"]) {
        arguments.extend(["--set", change]);
    }
    succeeds(MAKE_CHECKPOINT, folder.path(), &arguments);
    let open = |options: OpenOptions| Hart::open(folder.path().join("model"), options.device(DeviceKind::Cpu)).unwrap();
    let request = Request::new("anything");
    let (exact, options) = (open(OpenOptions::new()), OpenOptions::new());
    let full = open(options.clone().max_memory(exact.memory(&request).peak())).memory(&request).peak();
    let limited = open(options.clone().max_memory(full - 1));
    let least = limited.memory(&request).peak();
    assert!(least < full, "{least} and {full} bytes");
    let image = |hart: &Hart| hart.generate(&request).unwrap().images.remove(0);
    assert!(image(&limited).pixels() == image(&exact).pixels());
    let error = Hart::open(folder.path().join("model"), options.device(DeviceKind::Cpu).max_memory(least - 1)).unwrap_err();
    assert!(matches!(error, Error::Memory { needed, .. } if needed == least), "{error}");
    // On a machine with no more than this memory, and some for the program and its threads, the run succeeds.
    #[cfg(target_os = "linux")]
    {
        let (kibibytes, gigabytes) = ((least + (128 << 20)) >> 10, least as f64 / 1e9 + 1e-6);
        let script = format!("ulimit -d {kibibytes}; '{GENERATE}' anything -m model --max-memory {gigabytes} -q");
        let output = run("sh", folder.path(), &["-c", &script]);
        assert!(output.status.success(), "{output:?}");
    }
}

/// A converted model generates the same image as the original model at that precision, which differs from the f32 image.
#[test]
fn a_converted_model_generates_what_the_original_does_in_that_precision() {
    let folder = tempfile::tempdir().unwrap();
    let prompt = "a red heart on a yellow background";
    succeeds(GENERATE, folder.path(), &[prompt, "--out", "f32.png"]);
    succeeds(GENERATE, folder.path(), &[prompt, "--precision", "int8", "--out", "int8.png"]);
    succeeds(CONVERT, folder.path(), &[hart_examples::cli::args::SHIPPED_MODEL, "small"]);
    succeeds(GENERATE, folder.path(), &[prompt, "--model", "small", "--out", "small.png"]);
    let open = |name: &str| Image::open_png(folder.path().join(name)).unwrap();
    assert!(open("int8.png").pixels() == open("small.png").pixels() && open("int8.png").pixels() != open("f32.png").pixels());
    fails(GENERATE, &[prompt, "--precision", "int4"], &["int4", "f32, f16, bf16 or int8"]);
    fails(
        CONVERT,
        &[hart_examples::cli::args::SHIPPED_MODEL, "x", "--precision", "f32"],
        &["--precision: f32", "expected int8 or bf16"],
    );
    fails(CONVERT, &["missing", "x"], &["missing", "no such folder"]);
    fails(CONVERT, &[hart_examples::cli::args::SHIPPED_MODEL, "."], &["already exists"]);
}

/// The temporary folder is removed as well.
#[cfg(unix)]
#[test]
fn an_interrupted_checkpoint_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["checkpoint", "--preset", "256", "--set", "llm.depth=6"];
    let mut program = Command::new(MAKE_CHECKPOINT).current_dir(folder.path()).args(arguments).spawn().unwrap();
    let started = || fs::read_dir(folder.path()).unwrap().count() > 0;
    while !started() {
        assert!(program.try_wait().unwrap().is_none(), "the program ended too early");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    assert!(Command::new("kill").args(["-s", "INT", &program.id().to_string()]).status().unwrap().success());
    assert_eq!(program.wait().unwrap().code(), Some(130));
    assert!(!started());
}
