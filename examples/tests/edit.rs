//! The program `edit` as a user runs it.

use std::path::Path;

use hart_core::Image;

use support::{fails, names, run, succeeds};

mod support;

const EDIT: &str = env!("CARGO_BIN_EXE_edit");
const GENERATE: &str = env!("CARGO_BIN_EXE_generate");

/// Generates heart.png.
fn heart(folder: &Path) {
    succeeds(GENERATE, folder, &["a red heart on a yellow background", "--seed", "7", "--out", "heart.png", "-q"]);
}

#[test]
fn a_region_is_regenerated_and_the_rest_stays() {
    let folder = tempfile::tempdir().unwrap();
    heart(folder.path());
    let mask = (0..64).flat_map(|i| [if i % 8 < 4 { 255u8 } else { 0 }; 3]).collect();
    Image::from_rgb(8, 8, mask).unwrap().save_png(folder.path().join("mask.png")).unwrap();
    succeeds(
        EDIT,
        folder.path(),
        &["heart.png", "a key on a dark blue background", "--rectangle", "0,0,50,100", "--seed", "4", "--out", "a.png", "-q"],
    );
    succeeds(
        EDIT,
        folder.path(),
        &["heart.png", "a key on a dark blue background", "--mask", "mask.png", "--seed", "4", "--out", "b.png", "-q"],
    );
    let open = |name: &str| Image::open_png(folder.path().join(name)).unwrap();
    let (before, after) = (open("heart.png"), open("a.png"));
    assert!(after == open("b.png"), "a mask of the same half gives the same edit");
    let difference = |columns: std::ops::Range<usize>| -> u32 {
        let offsets = (0..64).flat_map(|y| columns.clone().map(move |x| 3 * (64 * y + x)));
        offsets.flat_map(|i| i..i + 3).map(|i| u32::from(before.pixels()[i].abs_diff(after.pixels()[i]))).sum()
    };
    assert!(difference(0..16) > 2 * difference(48..64), "{} and {}", difference(0..16), difference(48..64));
    assert_eq!(difference(32..64), 0);
    let settings = after.provenance.unwrap().settings;
    assert!(settings.ends_with("inpainting of an image"), "{settings}");
}

#[test]
fn white_on_a_transparent_layer_and_a_hole_are_masks() {
    let folder = tempfile::tempdir().unwrap();
    heart(folder.path());
    let save = |name: &str, left: [u8; 4], right: [u8; 4]| {
        let colour = |x: u32, _: u32| image::Rgba(if x < 16 { left } else { right });
        image::RgbaImage::from_fn(32, 32, colour).save(folder.path().join(name)).unwrap();
    };
    save("black.png", [255; 4], [0, 0, 0, 255]);
    save("layer.png", [255; 4], [0; 4]);
    save("hole.png", [0; 4], [200, 100, 250, 255]);
    let edit = |option: &str, file: &str, keep: &str| {
        let arguments = ["heart.png", "a key", option, file, "--keep", keep, "--out", "a.png", "-q"];
        succeeds(EDIT, folder.path(), &arguments);
        Image::open_png(folder.path().join("a.png")).unwrap()
    };
    let expected = edit("--mask", "black.png", "pixels");
    for other in [edit("--mask", "layer.png", "pixels"), edit("--hole", "hole.png", "pixels")] {
        assert_eq!(expected.pixels(), other.pixels());
    }
    let hint = |file: &str| {
        let output = run(EDIT, folder.path(), &["heart.png", "a key", "--mask", file, "--out", "b.png"]);
        String::from_utf8_lossy(&output.stderr).contains(&format!("hint: {file} is opaque around a transparent part"))
    };
    assert!(hint("hole.png") && !hint("layer.png") && !hint("black.png"));
    let latent = edit("--mask", "black.png", "latent");
    assert!(latent.pixels() != expected.pixels());
    assert!(latent.provenance.unwrap().settings.ends_with("inpainting of an image, keep latent"));
}

#[test]
fn variations_and_outpainting_are_saved_and_shown_in_a_grid() {
    let folder = tempfile::tempdir().unwrap();
    heart(folder.path());
    let arguments = ["heart.png", "a red heart", "--vary", "2", "-n", "3", "--out", "v{n}.png", "--grid", "all.png"];
    succeeds(EDIT, folder.path(), &arguments);
    assert_eq!(names(folder.path()), ["all.png", "heart.png", "v0.png", "v1.png", "v2.png"]);
    let all = Image::open_png(folder.path().join("all.png")).unwrap();
    assert_eq!((all.width(), all.height()), (4 * 64, 64));
    // The original is on the left.
    let heart = Image::open_png(folder.path().join("heart.png")).unwrap();
    assert!(all.pixels().chunks(3 * 4 * 64).zip(heart.pixels().chunks(3 * 64)).all(|(row, left)| row.starts_with(left)));
    // The next images continue the names and the seeds, and those that exist stay.
    std::fs::write(folder.path().join("v3.png"), "kept").unwrap();
    let arguments = ["heart.png", "a red heart", "--vary", "2", "-n", "2", "--seed", "2", "--first", "2", "--out", "w{n}.png"];
    succeeds(EDIT, folder.path(), &arguments);
    let bytes = |name: &str| std::fs::read(folder.path().join(name)).unwrap();
    assert!(bytes("w2.png") == bytes("v2.png") && !folder.path().join("w0.png").exists());
    let arguments = ["heart.png", "a red heart", "--vary", "2", "--first", "3", "--out", "v{n}.png", "--skip-existing"];
    let output = run(EDIT, folder.path(), &arguments);
    assert!(String::from_utf8_lossy(&output.stderr).contains("1 image existed") && bytes("v3.png") == b"kept", "{output:?}");
    succeeds(EDIT, folder.path(), &["heart.png", "a red heart", "--outpaint", "25,25,50", "--out", "around.png"]);
    let around = Image::open_png(folder.path().join("around.png")).unwrap();
    assert!(around.provenance.unwrap().settings.ends_with("outpainting of an image"));
}

#[test]
fn invalid_arguments_are_reported() {
    let image = concat!(env!("CARGO_MANIFEST_DIR"), "/models/hart-emoji/samples.png");
    fails(EDIT, &[image, "x"], &["--mask", "--rectangle", "--outpaint", "--vary"]);
    fails(EDIT, &[image, "x", "--vary", "2", "--rectangle", "0,0,1,1"], &["cannot be used with"]);
    fails(EDIT, &[image, "x", "--rectangle", "0,0,200,1"], &["--rectangle", "expected 4 numbers from 0 to 100"]);
    fails(EDIT, &[image, "x", "--vary", "2", "--keep", "all"], &["--keep", "expected pixels or latent"]);
    let tall = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/edit.png");
    fails(
        EDIT,
        &[image, "x", "--mask", tall],
        &["edit.png: has ", "but the image has ", "expected a mask of the same proportions"],
    );
    fails(EDIT, &[image, "x", "--hole", image], &["--hole", "samples.png: no pixel is transparent; --mask"]);
    fails(EDIT, &[image, "x", "--outpaint", "0,0"], &["--outpaint", "expected 3 numbers"]);
    fails(EDIT, &[image, "x", "--outpaint", "0,0,0"], &["--outpaint", "the image would have no pixels"]);
    fails(EDIT, &[image, "x", "--outpaint", "90,0,50"], &["reach beyond the model's 64 x 64"]);
    fails(EDIT, &[image, "x", "--vary", "6"], &["expected 1 to 5 of 6"]);
    fails(EDIT, &[image, "x", "--rectangle", "0,0,0,0"], &["keeps everything"]);
    fails(EDIT, &["nowhere.png", "x", "--vary", "2"], &["nowhere.png"]);
    fails(EDIT, &[image, "", "--vary", "2"], &["prompt: number 1 is empty"]);
    fails(EDIT, &[image, "x", "--vary", "2", "--out", "x.png", "--grid", "x.png"], &["--grid x.png", "the same file as an image"]);
    fails(EDIT, &[image, "x", "--vary", "2", "--out", "no/x.png"], &["--out", "create it first"]);
    fails(EDIT, &[image, "x", "--vary", "2", "--no", "cat"], &["hint: there are no negative prompts"]);
}

#[test]
fn input_files_are_not_overwritten() {
    fails(EDIT, &["out.png", "x", "--vary", "2"], &["--out out.png", "the same file as the original image"]);
    fails(EDIT, &["./out-1.png", "x", "--vary", "2", "-n", "2"], &["--out out-1.png", "the same file as the original image"]);
    fails(EDIT, &["a.png", "x", "--vary", "2", "--grid", "./a.png"], &["--grid ./a.png", "the same file as the original image"]);
    fails(EDIT, &["a.png", "x", "--mask", "m.png", "--out", "./m.png"], &["--out ./m.png", "the same file as the mask"]);
}
