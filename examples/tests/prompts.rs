//! Prompts from files, random seeds, prompt filters, and the labelled grid.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use hart_core::Image;
use serde_json::Value;
use support::{fails, names, run, succeeds};

mod support;

const GENERATE: &str = env!("CARGO_BIN_EXE_generate");
const PREVIEW: &str = env!("CARGO_BIN_EXE_preview");

fn prompt(folder: &Path, name: &str) -> String {
    Image::open_png(folder.join(name)).unwrap().provenance.unwrap().prompt
}

/// Writes a file to the folder and returns its path.
fn file(folder: &tempfile::TempDir, name: &str, contents: &[u8]) -> String {
    let path = folder.path().join(name);
    fs::write(&path, contents).unwrap();
    path.to_str().unwrap().into()
}

#[test]
fn prompts_come_from_the_command_line_and_then_from_a_file() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("p.txt"), "# what to draw\n\n  a café \r\na guitar").unwrap();
    succeeds(GENERATE, folder.path(), &["a parrot", "--prompts", "p.txt", "-q", "-o", "{n}.png"]);
    assert_eq!(["0.png", "1.png", "2.png"].map(|name| prompt(folder.path(), name)), ["a parrot", "a café", "a guitar"]);
}

#[test]
fn prompts_come_from_standard_input() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(GENERATE);
    let mut child = command.args(["--prompts", "-", "-q"]).current_dir(folder.path()).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all("a house\na key\n".as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(names(folder.path()), ["out-1.png", "out.png"]);
    assert_eq!(prompt(folder.path(), "out-1.png"), "a key");
}

#[test]
fn errors_in_a_prompts_file_name_the_line() {
    let folder = tempfile::tempdir().unwrap();
    let prompts = |file: &str, words: &[&str]| fails(GENERATE, &["--prompts", file, "-q"], &[&["--prompts", file], words].concat());
    prompts("nowhere.txt", &["(os error 2)"]);
    prompts(folder.path().to_str().unwrap(), &["is a folder"]);
    prompts(&file(&folder, "latin1.txt", b"a parrot\na caf\xe9\n"), &["line 2", "not UTF-8"]);
    prompts(&file(&folder, "empty.txt", b"\n# nothing\n"), &["contains no line of text"]);
    prompts(&file(&folder, "long.txt", &[&b"a parrot\n"[..], &vec![b'x'; (1 << 20) + 1]].concat()), &["line 2", "1048577 bytes"]);
    prompts(&file(&folder, "large.txt", &vec![b'\n'; (64 << 20) + 1]), &["more than 64 MB"]);
}

#[test]
fn a_random_seed_is_printed_and_reproduces_the_image() {
    let folder = tempfile::tempdir().unwrap();
    let output = run(GENERATE, folder.path(), &["a parrot", "-q", "-n", "2", "--seed", "random", "--json"]);
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    let seed = json["seed"].as_u64().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains(&format!("seed {seed}\n")), "{output:?}");
    assert_eq!(json["seeds"], serde_json::json!([seed, seed + 1]));
    succeeds(GENERATE, folder.path(), &["a parrot", "-q", "--seed", &seed.to_string(), "-o", "again.png"]);
    let bytes = |name: &str| fs::read(folder.path().join(name)).unwrap();
    assert!(bytes("out.png") == bytes("again.png"));
    let other = run(GENERATE, folder.path(), &["a parrot", "-q", "--seed", "random", "--json"]);
    assert_ne!(serde_json::from_slice::<Value>(&other.stdout).unwrap()["seed"], seed);
}

#[test]
fn a_filtered_word_is_refused_and_quoted() {
    let folder = tempfile::tempdir().unwrap();
    let list = file(&folder, "words.txt", "# not these\nParrot\nred heart\n".as_bytes());
    for program in [GENERATE, PREVIEW] {
        fails(program, &["A PARROT!", "--filter", &list], &["\"A PARROT!\" is refused", "\"Parrot\"", "words.txt"]);
        fails(program, &["a Red  heart", "--filter", &list], &["\"red heart\""]);
        fails(program, &["a parrot", "--filter", "nowhere.txt"], &["--filter nowhere.txt", "(os error 2)"]);
    }
    let signs = file(&folder, "signs.txt", b"a word\n!!!\n");
    fails(GENERATE, &["x", "--filter", &signs], &["signs.txt", "\"!!!\" contains no word"]);
    let out = tempfile::tempdir().unwrap();
    assert_eq!(run(GENERATE, out.path(), &["a parrot", "--filter", &list]).status.code(), Some(1));
    succeeds(GENERATE, out.path(), &["parrots", "a red house", "--filter", &list, "-q"]);
}

/// The prompts are used as they are, and hints go to standard error.
#[test]
fn syntax_of_other_programs_gets_a_hint() {
    let folder = tempfile::tempdir().unwrap();
    let prompt_of = |program: &str, text: &str| {
        let output = run(program, folder.path(), &[text]);
        assert!(output.status.success(), "{output:?}");
        (String::from_utf8(output.stderr).unwrap(), prompt(folder.path(), "out.png"))
    };
    for program in [GENERATE, PREVIEW] {
        let text = "a (red:1.3) heart --no yellow\nNegative prompt: blurry";
        let (errors, recorded) = prompt_of(program, text);
        let hints: Vec<&str> = errors.lines().filter(|line| line.starts_with("hint: ")).collect();
        assert!(hints.len() == 3 && hints[0].contains("\"(red:1.3)\"") && hints[1].contains("blurry"), "{errors}");
        assert_eq!(recorded, text);
        assert!(!prompt_of(program, "a heart (red)").0.contains("hint"));
    }
}

#[test]
fn a_grid_has_labels_and_enlarged_images() {
    let folder = tempfile::tempdir().unwrap();
    let grid = |arguments: &[&str]| {
        succeeds(GENERATE, folder.path(), &[arguments, &["--grid", "grid.png", "-q"]].concat());
        Image::open_png(folder.path().join("grid.png")).unwrap()
    };
    let open = |name: &str| Image::open_png(folder.path().join(name)).unwrap();
    let one = grid(&["a red heart"]);
    assert!(one.width() > 128 && one.height() > 128 + 2 * 16, "{one:?}");
    // The image is in the grid, each pixel as 2 x 2 pixels.
    let heart = open("out.png");
    let at = |image: &Image, x: usize, y: usize| image.pixels()[3 * (y * image.width() + x)..][..3].to_vec();
    assert!((0..128 * 128).all(|i| at(&one, 8 + i % 128, 8 + i / 128) == at(&heart, i % 128 / 2, i / 128 / 2)));
    let table = grid(&["a parrot 🦜", "a house", "-n", "3"]);
    assert!(table.width() > 3 * 128 + 50 && table.height() > 2 * 128 + 16 && table.height() < 2 * 128 + 64, "{table:?}");
    let bare = grid(&["a parrot", "a house", "-n", "3", "--no-labels"]);
    assert_eq!((bare.width(), bare.height()), (192, 128));
}
