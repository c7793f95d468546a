//! A converted checkpoint gives the same model as one that is packed on opening.

use std::fs;
use std::path::{Path, PathBuf};

use hart_core::weights::{Checkpoint, NamedTensor, StorageDtype, save_tensors};
use hart_core::{Control, Hart, OpenOptions, Precision, Request, WeightSet, convert};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");
const SHIPPED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/hart-emoji");

fn converted(folder: &Path, precision: Precision) -> PathBuf {
    let to = folder.join(precision.to_string());
    convert(Path::new(SHIPPED), &to, precision, WeightSet::PreferEma, None, &mut |_| Control::Continue).unwrap();
    to
}

fn open(folder: &Path, precision: Precision) -> hart_core::Result<Hart> {
    Hart::open(folder, OpenOptions::new().precision(precision))
}

#[test]
fn a_converted_model_generates_the_same_image_and_is_smaller() {
    let folder = tempfile::tempdir().unwrap();
    let request = Request::new("a red heart on a yellow background").seed(3);
    let image = |hart: &Hart| hart.generate(&request).unwrap().images.remove(0).pixels().to_vec();
    // Without instructions for bfloat16 the visual tokenizer, a third of the model, stays in f32.
    for (precision, percent) in [(Precision::Int8, 70), (Precision::Bf16, 80)] {
        let to = converted(folder.path(), precision);
        let (stored, packed) = (open(&to, Precision::Auto).unwrap(), open(Path::new(SHIPPED), precision).unwrap());
        assert_eq!((stored.precision(), packed.precision()), (precision, precision));
        assert!(image(&stored) == image(&packed), "{precision}");
        assert_eq!(stored.reports()[1].parameters, packed.reports()[1].parameters);
        let weights = |hart: &Hart| hart.memory(&request).weights;
        let in_f32 = 4 * packed.reports().iter().map(|report| report.parameters).sum::<u64>();
        // Pages of mapped files can be released, packed copies of them can not.
        assert!(
            weights(&stored) <= weights(&packed) && weights(&packed) < in_f32 * percent / 100,
            "{precision}: {} of {in_f32}",
            weights(&packed)
        );
        // It therefore opens with a memory limit that is too small for the original.
        let limit = Hart::open(&to, OpenOptions::new().max_memory(u64::MAX)).unwrap().memory(&request).peak();
        let limited = |folder: &Path| Hart::open(folder, OpenOptions::new().max_memory(limit)).map(|_| ());
        assert!(limited(&to).is_ok() && limited(Path::new(SHIPPED)).is_err(), "{precision}");
    }
}

#[test]
fn a_converted_model_opens_in_its_own_precision_only() {
    let folder = tempfile::tempdir().unwrap();
    let to = converted(folder.path(), Precision::Int8);
    for other in [Precision::F32, Precision::Bf16] {
        let message = open(&to, other).unwrap_err().to_string();
        assert!(message.contains("holds int8 weights") && message.contains("auto"), "{message}");
    }
    let again = convert(&to, &folder.path().join("again"), Precision::Int8, WeightSet::PreferEma, None, &mut |_| Control::Continue)
        .unwrap_err()
        .to_string();
    assert!(again.contains("already packed"), "{again}");
    assert!(!folder.path().join("again").exists());
}

/// Published files contain buffers next to the weights, with infinities and integers.
#[test]
fn a_published_checkpoint_is_converted() {
    for name in ["tiny-a", "slim-a", "slim-b", "slim-c"] {
        let (folder, from) = (tempfile::tempdir().unwrap(), Path::new(FIXTURES).join(name));
        let request = Request::new("a parrot").seed(3);
        for precision in [Precision::Int8, Precision::Bf16] {
            let to = folder.path().join(precision.to_string());
            convert(&from, &to, precision, WeightSet::PreferEma, None, &mut |_| Control::Continue).unwrap();
            let image = |hart: Hart| hart.generate(&request).unwrap().images.remove(0).pixels().to_vec();
            assert!(image(open(&to, Precision::Auto).unwrap()) == image(open(&from, precision).unwrap()), "{name}, {precision}");
        }
    }
}

/// The observer receives fractions from 0 to 1; cancelling leaves no files.
#[test]
fn a_conversion_reports_progress_and_can_be_cancelled() {
    let folder = tempfile::tempdir().unwrap();
    let mut received = vec![];
    let mut run = |to: &str, last: f32| {
        received.clear();
        let observer = &mut |fraction: f32| {
            received.push(fraction);
            if fraction > last { Control::Cancel } else { Control::Continue }
        };
        let done = convert(Path::new(SHIPPED), &folder.path().join(to), Precision::Int8, WeightSet::PreferEma, None, observer);
        (done, received.clone())
    };
    let (done, received) = run("whole", 1.0);
    assert!(done.is_ok() && received.is_sorted() && received[0] == 0.0 && received.last() == Some(&1.0), "{received:?}");
    for last in [-1.0, 0.5, 0.9] {
        let (done, received) = run("half", last);
        assert!(
            done.unwrap_err().is_cancelled() && received.last().is_some_and(|fraction| (last..1.0).contains(fraction)),
            "{received:?}"
        );
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn invalid_conversions_are_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |from: &str, to: &Path, precision| {
        convert(Path::new(from), to, precision, WeightSet::PreferEma, None, &mut |_| Control::Continue).unwrap_err().to_string()
    };
    let new = folder.path().join("new");
    assert!(refused(SHIPPED, &new, Precision::F32).contains("precision: f32, expected int8 or bf16"));
    assert!(refused(SHIPPED, folder.path(), Precision::Int8).contains("already exists"));
    assert!(refused("/nowhere", &new, Precision::Int8).contains("no such folder"));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// The error names a scale that is missing or not a number.
#[test]
fn damaged_scales_are_found_when_the_model_is_opened() {
    let folder = tempfile::tempdir().unwrap();
    let to = converted(folder.path(), Precision::Int8);
    let file = to.join("llm/model.safetensors");
    let bytes = fs::read(&file).unwrap();
    let name = "blocks.0.attn.qkv_proj.weight_scale";
    let at = bytes.windows(name.len()).position(|window| window == name.as_bytes()).unwrap();
    let mut damaged = bytes.clone();
    damaged[at] = b'x';
    fs::write(&file, damaged).unwrap();
    let message = open(&to, Precision::Auto).unwrap_err().to_string();
    assert!(message.contains(name), "{message}");
    fs::write(&file, bytes).unwrap();
    open(&to, Precision::Auto).unwrap();
    // Floats in place of integers are an ordinary weight of another shape.
    let checkpoint = Checkpoint::open(&to.join("llm"), false).unwrap();
    let names = checkpoint.names().filter(|n| n.ends_with("_scale") || checkpoint.values(n).is_ok());
    let tensors: Vec<NamedTensor> = names
        .map(|n| NamedTensor {
            name: n.to_string(),
            shape: checkpoint.info(n).unwrap().shape.clone(),
            values: checkpoint.values(n).unwrap(),
        })
        .collect();
    save_tensors(&file, &tensors, StorageDtype::F32).unwrap();
    let message = open(&to, Precision::Auto).unwrap_err().to_string();
    assert!(message.contains("qkv_proj.weight"), "{message}");
}
