//! The program `batch`: images of a file's lines, interrupted and continued.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use hart_core::Image;
use serde_json::{Value, json};
use support::{names, run, succeeds};

#[allow(dead_code, reason = "shared with other tests")]
mod support;

const BATCH: &str = env!("CARGO_BIN_EXE_batch");
const GENERATE: &str = env!("CARGO_BIN_EXE_generate");
/// A model of random weights that generates 3 x 3 pixels.
const SMALL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../hart-core/tests/fixtures/slim-a");

/// Writes lines with the ids `0`, `1` and so on.
fn write_lines(folder: &Path, count: usize) {
    let lines: String = (0..count).map(|n| format!("{{\"id\": \"{n}\", \"prompt\": \"a parrot number {n}\"}}\n")).collect();
    fs::write(folder.join("lines.jsonl"), lines).unwrap();
}

/// Runs the program with the small model and the folder `out`.
fn batch(folder: &Path, arguments: &[&str]) -> Output {
    run(BATCH, folder, &[&["lines.jsonl", "-o", "out", "-m", SMALL], arguments].concat())
}

/// Runs the program, which must have an exit code, and returns its messages.
fn ends(folder: &Path, arguments: &[&str], code: i32) -> String {
    let output = batch(folder, arguments);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(code) && !errors.contains("panicked"), "{arguments:?}: {:?}: {errors}", output.status);
    errors
}

fn objects(folder: &Path, name: &str) -> Vec<Value> {
    let text = fs::read_to_string(folder.join("out").join(name)).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'), "{text}");
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn results(folder: &Path) -> Vec<Value> {
    objects(folder, "results-0-of-1.jsonl")
}

fn errors(folder: &Path) -> Vec<Value> {
    objects(folder, "errors-0-of-1.jsonl")
}

fn image(folder: &Path, id: &str) -> Vec<u8> {
    fs::read(folder.join("out").join(format!("{id}.png"))).unwrap()
}

/// Returns the images by name.
fn images(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let names = names(folder).into_iter().filter(|name| name.ends_with(".png"));
    names.map(|name| (name.clone(), fs::read(folder.join(name)).unwrap())).collect()
}

fn number(folder: &Path, ids: &[&str]) -> Vec<std::time::SystemTime> {
    ids.iter().map(|id| fs::metadata(folder.join(format!("out/{id}.png"))).unwrap().modified().unwrap()).collect()
}

#[test]
fn every_line_becomes_an_image_and_a_result() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let lines = [
        r#"{"id": "a", "prompt": "a parrot"}"#,
        "",
        r#"{"id": "b", "prompt": "a house", "seed": "18446744073709551615", "guidance": 2, "steps": 4, "top_k": 9, "note": 1}"#,
        r#"{"custom_id": "c", "method": "POST", "url": "/v1/images/generations", "body": {"model": "m", "prompt": "a tree"}}"#,
        r#"{"prompt": "a crown"}"#,
    ];
    fs::write(folder.join("lines.jsonl"), lines.join("\n")).unwrap();
    let messages = ends(folder, &["--guidance", "3"], 0);
    assert!(messages.contains("4 images generated") && messages.contains("1 with warnings"), "{messages}");
    // The file that Windows locks instead of the errors is no part of the result.
    let written: Vec<String> = names(&folder.join("out")).into_iter().filter(|name| !name.ends_with(".lock")).collect();
    assert_eq!(written, ["a.png", "b.png", "c.png", "errors-0-of-1.jsonl", "line-00000005.png", "results-0-of-1.jsonl"]);
    let mut results = results(folder);
    // Images at once end in any order.
    results.sort_by_key(|line| line["id"].to_string());
    assert_eq!(results[0]["seed"], "14598278634844962250");
    assert_eq!(results[1]["seed"], "18446744073709551615");
    assert_eq!(results[1]["warnings"], json!(["`note` is unknown and was ignored"]));
    for (result, id) in results.iter().zip(["a", "b", "c", "line-00000005"]) {
        assert_eq!((&result["id"], &result["file"]), (&json!(id), &json!(format!("{id}.png"))));
        assert!(result["milliseconds"].is_u64() && result["warnings"].is_array());
    }
    assert_eq!(errors(folder), [] as [Value; 0]);
    // An image does not depend on the rest of the batch.
    succeeds(GENERATE, folder, &["a parrot", "-s", "14598278634844962250", "-g", "3", "-m", SMALL]);
    assert!(fs::read(folder.join("out.png")).unwrap() == image(folder, "a"));
    let b = ["a house", "-s", "18446744073709551615", "-g", "2", "--steps", "4", "--top-k", "9", "-m", SMALL];
    succeeds(GENERATE, folder, &b);
    assert!(fs::read(folder.join("out.png")).unwrap() == image(folder, "b"));
}

#[test]
fn prompts_come_from_text_and_standard_input() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::write(folder.join("prompts.txt"), "\u{feff}a parrot\n# no bird\n\na house\n").unwrap();
    succeeds(BATCH, folder, &["prompts.txt", "-o", "text", "-m", SMALL]);
    assert_eq!(images(&folder.join("text")).into_keys().collect::<Vec<_>>(), ["line-00000001.png", "line-00000004.png"]);
    let mut child = Command::new(BATCH)
        .args(["-", "-o", "piped", "-m", SMALL, "--seed", "5"])
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"{\"id\": \"x\", \"prompt\": \"a parrot\"}\n").unwrap();
    assert!(child.wait().unwrap().success());
    let provenance = Image::open_png(folder.join("piped/x.png")).unwrap().provenance.unwrap();
    assert_eq!((provenance.prompt.as_str(), provenance.seed), ("a parrot", 5));
}

#[test]
fn what_is_done_is_not_generated_again() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_lines(folder, 5);
    ends(folder, &[], 0);
    let ids = ["0", "1", "2", "3", "4"];
    let (before, written) = (images(&folder.join("out")), number(folder, &ids));
    // The model is not even opened.
    let messages = ends(folder, &["--threads", "1"], 0);
    assert!(messages.contains("0 images generated") && messages.contains("5 done before"), "{messages}");
    fs::remove_file(folder.join("out/3.png")).unwrap();
    assert!(ends(folder, &[], 0).contains("1 images generated"));
    let again = number(folder, &ids);
    assert!(again[3] > written[3] && again[..3] == written[..3] && again[4] == written[4]);
    assert!(images(&folder.join("out")) == before && results(folder).len() == 5);
    // More lines than before.
    write_lines(folder, 7);
    assert!(ends(folder, &[], 0).contains("2 images generated"));
    assert_eq!(results(folder).len(), 7);
}

#[test]
fn invalid_lines_are_reported_and_the_others_are_generated() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let lines = "{\"id\": \"a\", \"prompt\": \"a parrot\"}\nnot json\n{\"id\": \"a\", \"prompt\": \"again\"}\n{\"id\": \"../x\", \"prompt\": \
                 \"p\"}\n{\"id\": \"b\", \"prompt\": \" \"}\n{\"id\": \"c\", \"prompt\": \"a forbidden bird\"}\n{\"id\": \"d\", \"prompt\": \
                 \"a house\"}\n";
    fs::write(folder.join("lines.jsonl"), lines).unwrap();
    fs::write(folder.join("words.txt"), "forbidden\n").unwrap();
    let arguments = ["--filter", "words.txt"];
    let messages = ends(folder, &arguments, 1);
    assert!(messages.contains("line 2: not a JSON object") && messages.contains("5 lines failed"), "{messages}");
    let expected = [
        (2, None, "JSON"),
        (3, Some("a"), "earlier line"),
        (4, None, "\"../x\""),
        (5, Some("b"), "empty"),
        (6, Some("c"), "refused"),
    ];
    for (error, (line, id, words)) in errors(folder).iter().zip(expected) {
        assert_eq!((&error["line"], &error["id"]), (&json!(line), &json!(id)), "{error}");
        assert!(error["error"].as_str().unwrap().contains(words), "{error}");
    }
    assert_eq!(images(&folder.join("out")).into_keys().collect::<Vec<_>>(), ["a.png", "d.png"]);
    // The same errors again, once each.
    ends(folder, &arguments, 1);
    assert_eq!(errors(folder).len(), 5);
    ends(folder, &["--filter", "words.txt", "--max-failures", "5"], 0);
    let messages = ends(folder, &["--filter", "words.txt", "--max-failures", "1"], 1);
    assert!(messages.contains("2 lines have failed, more than --max-failures"), "{messages}");
    assert_eq!(errors(folder).len(), 2);
}

#[test]
fn a_changed_line_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_lines(folder, 2);
    ends(folder, &[], 0);
    let before = images(&folder.join("out"));
    fs::write(
        folder.join("lines.jsonl"),
        "{\"id\": \"0\", \"prompt\": \"a house\"}\n{\"id\": \"1\", \"prompt\": \"a parrot number 1\"}\n",
    )
    .unwrap();
    assert!(ends(folder, &[], 1).contains("line 1, id 0: its image exists, but was generated with another prompt"));
    write_lines(folder, 2);
    assert_eq!(ends(folder, &["-g", "7"], 1).matches("other settings").count(), 2);
    assert!(images(&folder.join("out")) == before && results(folder).len() == 2);
    // Results of other programs have no digest of the request.
    let lines: String = results(folder)
        .into_iter()
        .map(|mut line| {
            line.as_object_mut().unwrap().remove("request");
            format!("{line}\n")
        })
        .collect();
    fs::write(folder.join("out/results-0-of-1.jsonl"), lines).unwrap();
    ends(folder, &[], 0);
    assert!(ends(folder, &["-g", "7"], 1).contains("(guidance 4.5, not 7)"));
    assert!(images(&folder.join("out")) == before && results(folder).len() == 2);
}

/// A process can end between the rename of an image and its line, or while it writes a line.
#[test]
fn what_a_crash_leaves_is_recognised() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_lines(folder, 4);
    ends(folder, &[], 0);
    let (before, written) = (images(&folder.join("out")), number(folder, &["0", "1", "2", "3"]));
    let path = folder.join("out/results-0-of-1.jsonl");
    let whole = fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = whole.split_inclusive('\n').collect();
    // One line is missing, the next is cut. The last image is damaged.
    fs::write(&path, format!("{}{}", lines[0], &lines[1][..20])).unwrap();
    let cut = &before["3.png"][..before["3.png"].len() / 2];
    fs::write(folder.join("out/3.png"), cut).unwrap();
    fs::write(folder.join("out/.batch-0-of-1-left"), cut).unwrap();
    fs::write(folder.join("out/.batch-0-of-16-other"), "another process's").unwrap();
    let messages = ends(folder, &[], 0);
    assert!(messages.contains("1 images generated") && messages.contains("2 of an interrupted run kept"), "{messages}");
    assert!(images(&folder.join("out")) == before);
    assert!(number(folder, &["0", "1", "2"]) == written[..3]);
    let mut ids: Vec<String> = results(folder).iter().map(|line| line["id"].as_str().unwrap().into()).collect();
    ids.sort();
    assert_eq!(ids, ["0", "1", "2", "3"]);
    let hidden: Vec<String> =
        names(&folder.join("out")).into_iter().filter(|name| name.starts_with(".batch-") && !name.ends_with(".lock")).collect();
    assert_eq!(hidden, [".batch-0-of-16-other"]);
}

/// Images without settings can't be recognised.
#[test]
fn images_without_marks_are_generated_again_after_a_crash() {
    for marks in ["prompt", "settings", "all"] {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        write_lines(folder, 2);
        ends(folder, &["--omit-marks", marks, "--system-prompt", "Draw:"], 0);
        let before = images(&folder.join("out"));
        assert!(ends(folder, &["--omit-marks", marks, "--system-prompt", "Draw:"], 0).contains("2 done before"));
        fs::remove_file(folder.join("out/results-0-of-1.jsonl")).unwrap();
        let messages = ends(folder, &["--omit-marks", marks, "--system-prompt", "Draw:"], 0);
        assert!(messages.contains("2 images generated"), "{messages}");
        assert!(images(&folder.join("out")) == before);
    }
}

#[test]
fn another_image_is_never_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_lines(folder, 2);
    fs::create_dir(folder.join("out")).unwrap();
    let photo = Image::from_rgb(3, 3, vec![7; 27]).unwrap().to_png().unwrap();
    fs::write(folder.join("out/0.png"), &photo).unwrap();
    succeeds(GENERATE, folder, &["a parrot number 1", "-s", "1", "-o", "out/1.png", "-m", SMALL]);
    let drawn = image(folder, "1");
    let messages = ends(folder, &[], 1);
    assert!(messages.contains("0.png exists and is another image (it lacks its prompt or its settings)"), "{messages}");
    assert!(messages.contains("1.png exists and is another image (seed 1, not "), "{messages}");
    assert!(image(folder, "0") == photo && image(folder, "1") == drawn && results(folder).is_empty());
}

#[test]
fn any_sharding_generates_the_same_images() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_lines(folder, 12);
    ends(folder, &[], 0);
    let whole = images(&folder.join("out"));
    let in_shards = |variables: &[(&str, &str)], arguments: &[&str], out: &str| {
        let mut command = Command::new(BATCH);
        // Those of the machine that runs the tests.
        for name in ["JOB_COMPLETION_INDEX", "HART_BATCH_SHARDS", "SLURM_ARRAY_TASK_ID"] {
            command.env_remove(name);
        }
        command.envs(variables.iter().copied()).current_dir(folder);
        let output = command.args(["lines.jsonl", "-o", out, "-m", SMALL]).args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    for index in 0..3 {
        in_shards(&[], &["--shard", &format!("{index}/3")], "given");
        in_shards(&[("JOB_COMPLETION_INDEX", &index.to_string()), ("HART_BATCH_SHARDS", "3")], &[], "job");
        let id = (index + 1).to_string();
        in_shards(&[("SLURM_ARRAY_TASK_ID", &id), ("SLURM_ARRAY_TASK_COUNT", "3"), ("SLURM_ARRAY_TASK_MIN", "1")], &[], "array");
    }
    for out in ["given", "job", "array"] {
        assert!(images(&folder.join(out)) == whole, "{out}");
        let lines: usize = (0..3)
            .map(|k| fs::read_to_string(folder.join(out).join(format!("results-{k}-of-3.jsonl"))).unwrap().lines().count())
            .sum();
        assert_eq!(lines, 12);
    }
    // What three processes have generated is done for any other number.
    let output = run(BATCH, folder, &["lines.jsonl", "-o", "given", "-m", SMALL]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("12 done before"), "{output:?}");
}

#[test]
fn images_at_once_are_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_lines(folder, 30);
    let text = fs::read_to_string(folder.join("lines.jsonl")).unwrap()
        + "{\n{\"id\": \"s\", \"prompt\": \"p\", \"system_prompt\": \"x\"}\n";
    fs::write(folder.join("lines.jsonl"), text).unwrap();
    ends(folder, &["--parallel", "1", "--threads", "4"], 1);
    let output = run(BATCH, folder, &["lines.jsonl", "-o", "four", "-m", SMALL, "--parallel", "4", "--threads", "4"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let alone = images(&folder.join("out"));
    assert!(alone.len() == 31 && images(&folder.join("four")) == alone);
    assert_eq!(fs::read_to_string(folder.join("four/results-0-of-1.jsonl")).unwrap().lines().count(), 31);
    let output = run(BATCH, folder, &["lines.jsonl", "-o", "new", "-m", SMALL, "--dry-run", "--parallel", "4", "--threads", "4"]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("4 at once"), "{output:?}");
}

#[test]
fn a_dry_run_writes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_lines(folder, 3);
    let output = batch(folder, &["--dry-run"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.contains("3 to generate, 0 done, 0 lines with errors"), "{text}");
    assert!(text.contains("an image, ") && text.contains("memory"), "{text}");
    assert_eq!(names(folder), ["lines.jsonl"]);
    ends(folder, &["--shard", "0/2"], 0);
    let done = results_of(folder, "results-0-of-2.jsonl");
    fs::write(folder.join("lines.jsonl"), fs::read_to_string(folder.join("lines.jsonl")).unwrap() + "{\n").unwrap();
    let output = batch(folder, &["--dry-run"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains(&format!("{} to generate, {done} done, 1 lines with errors", 3 - done)), "{text}");
    assert!(output.status.code() == Some(1) && String::from_utf8_lossy(&output.stderr).contains("line 4: "));
}

fn results_of(folder: &Path, name: &str) -> usize {
    objects(folder, name).len()
}

#[test]
fn tar_files_have_the_same_images() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_lines(folder, 7);
    ends(folder, &[], 0);
    let whole = images(&folder.join("out"));
    let tar = |count: &str| run(BATCH, folder, &["lines.jsonl", "-o", "tars", "-m", SMALL, "--tar", count]);
    assert!(tar("3").status.success());
    let messages = String::from_utf8(tar("3").stderr).unwrap();
    assert!(messages.contains("7 done before"), "{messages}");
    let mut found = BTreeMap::new();
    for (index, count) in [(0, 3), (1, 3), (2, 1)] {
        let file = fs::File::open(folder.join(format!("tars/shard-0-of-1-{index:06}.tar"))).unwrap();
        let mut archive = tar::Archive::new(file);
        let entries: Vec<(String, Vec<u8>)> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let mut entry = entry.unwrap();
                let mut bytes = Vec::new();
                std::io::Read::read_to_end(&mut entry, &mut bytes).unwrap();
                (entry.path().unwrap().to_string_lossy().into_owned(), bytes)
            })
            .collect();
        assert_eq!(entries.len(), 2 * count);
        for pair in entries.chunks(2) {
            let object: Value = serde_json::from_slice(&pair[1].1).unwrap();
            let id = object["id"].as_str().unwrap();
            assert_eq!((&pair[0].0, &pair[1].0), (&format!("{id}.png"), &format!("{id}.json")));
            assert_eq!(object["prompt"], json!(format!("a parrot number {id}")));
            found.insert(pair[0].0.clone(), pair[0].1.clone());
        }
    }
    assert!(found == whole);
    assert_eq!(names(&folder.join("tars")).iter().filter(|name| name.contains("shard-")).count(), 3);
    fs::write(folder.join("lines.jsonl"), "{\"id\": \"a.b\", \"prompt\": \"p\"}\n").unwrap();
    assert!(String::from_utf8(tar("3").stderr).unwrap().contains("WebDataset"));
}

#[test]
fn invalid_arguments_are_reported() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_lines(folder, 1);
    let fails = |arguments: &[&str], words: &str| {
        let output = batch(folder, arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && errors.contains(words), "{arguments:?}: {errors}");
        assert!(!folder.join("out").exists(), "{arguments:?}");
    };
    fails(&["--shard", "2/2"], "expected K/N");
    fails(&["--shard", "0/2", "--shards", "2"], "cannot be used with");
    fails(&["--shards", "2"], "pass --shard K/2");
    fails(&["--tar", "0"], "--tar");
    fails(&["--filter", "nowhere.txt"], "nowhere.txt");
    let output = run(BATCH, folder, &["nowhere.jsonl", "-o", "out", "-m", SMALL]);
    assert!(!output.status.success() && String::from_utf8_lossy(&output.stderr).contains("nowhere.jsonl: "), "{output:?}");
    fs::write(folder.join("file"), "").unwrap();
    let output = run(BATCH, folder, &["lines.jsonl", "-o", "file", "-m", SMALL]);
    assert!(!output.status.success() && String::from_utf8_lossy(&output.stderr).contains("--out file: "), "{output:?}");
}

#[cfg(unix)]
mod signals {
    use std::process::Child;
    use std::thread::sleep;
    use std::time::{Duration, Instant};

    use super::*;

    /// Starts a batch of many images, and waits until it has written `count`.
    fn start(folder: &Path, count: usize, arguments: &[&str]) -> Child {
        write_lines(folder, 5000);
        let mut command = Command::new(BATCH);
        command.args(["lines.jsonl", "-o", "out", "-m", SMALL]).args(arguments);
        let mut child = command.current_dir(folder).stderr(Stdio::piped()).spawn().unwrap();
        let lines = || fs::read_to_string(folder.join("out/results-0-of-1.jsonl")).unwrap_or_default().lines().count();
        while lines() < count {
            assert!(child.try_wait().unwrap().is_none());
            sleep(Duration::from_millis(2));
        }
        child
    }

    fn signal(child: &Child, name: &str) {
        assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
    }

    #[test]
    fn a_signal_stops_after_the_images_in_work() {
        for (name, code) in [("-TERM", 143), ("-INT", 130)] {
            let folder = tempfile::tempdir().unwrap();
            let folder = folder.path();
            let child = start(folder, 3, &[]);
            signal(&child, name);
            let output = child.wait_with_output().unwrap();
            let messages = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(code), "{messages}");
            assert!(messages.contains("stopped; run the same command again to continue"), "{messages}");
            // Every image has its line, and the other way round.
            let done = results(folder).len();
            assert!((3..5000).contains(&done) && images(&folder.join("out")).len() == done, "{done}");
            write_lines(folder, done + 3);
            let messages = ends(folder, &[], 0);
            assert!(messages.contains("3 images generated") && messages.contains(&format!("{done} done before")), "{messages}");
        }
    }

    #[test]
    fn a_killed_process_leaves_no_lock_and_a_running_one_does() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let mut child = start(folder, 3, &[]);
        assert!(ends(folder, &[], 1).contains("another process is running this shard"));
        // A dry run may look on.
        assert!(batch(folder, &["--dry-run"]).status.success());
        child.kill().unwrap();
        child.wait().unwrap();
        write_lines(folder, 4);
        ends(folder, &[], 0);
        assert!(results(folder).len() >= 4);
    }

    #[test]
    fn a_signal_stops_a_batch_that_waits_for_lines() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let mut child = Command::new(BATCH)
            .args(["-", "-o", "out", "-m", SMALL])
            .current_dir(folder)
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = child.stdin.take().unwrap();
        lines.write_all(b"{\"id\": \"a\", \"prompt\": \"a parrot\"}\n").unwrap();
        let begin = Instant::now();
        // The image does not wait for further lines.
        while !folder.join("out/a.png").exists() {
            assert!(begin.elapsed() < Duration::from_secs(60));
            sleep(Duration::from_millis(2));
        }
        signal(&child, "-TERM");
        assert_eq!(child.wait().unwrap().code(), Some(143));
        drop(lines);
        assert_eq!(images(&folder.join("out")).len(), results(folder).len());
    }

    /// A prompt that always kills its process must not keep the others waiting.
    #[test]
    fn the_image_in_work_of_a_killed_process_is_generated_last() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let mut child = start(folder, 3, &[]);
        child.kill().unwrap();
        child.wait().unwrap();
        let path = folder.join("out/.batch-0-of-1.work");
        let count = fs::read_to_string(&path).unwrap().lines().count();
        assert!(count <= 64, "{count}");
        write_lines(folder, results(folder).len() + 10);
        let unfinished = results(folder).len() + 4;
        // One image was interrupted more often than another.
        fs::write(&path, format!("2 {unfinished}\n1 {}\n", unfinished + 1)).unwrap();
        ends(folder, &[], 0);
        let ids: Vec<Value> = results(folder).iter().rev().take(2).map(|line| line["id"].clone()).collect();
        assert_eq!(ids, [json!(unfinished.to_string()), json!((unfinished + 1).to_string())]);
        assert!(!path.exists());
    }

    /// The images of a tar file that is not complete are kept.
    #[test]
    fn a_killed_process_continues_its_tar_file() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let mut child = start(folder, 0, &["--tar", "1000000"]);
        let partial = folder.join("out/.shard-0-of-1-000000.tar");
        let begin = Instant::now();
        while fs::metadata(&partial).map_or(0, |file| file.len()) < 20_000 {
            assert!(begin.elapsed() < Duration::from_secs(60));
            sleep(Duration::from_millis(2));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        write_lines(folder, 40);
        let messages = ends(folder, &["--tar", "1000000"], 0);
        let generated: usize = messages.split(" images generated").next().unwrap().lines().last().unwrap().parse().unwrap();
        assert!(generated < 40 && results(folder).len() >= 40, "{messages}");
        let mut archive = tar::Archive::new(fs::File::open(folder.join("out/shard-0-of-1-000000.tar")).unwrap());
        let names: std::collections::BTreeSet<_> =
            archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().into_owned()).collect();
        assert!(names.len() == 2 * results(folder).len() && !partial.exists());
    }
}
