//! The program `preview` as a user runs it.

use std::fs;
use std::io::Cursor;
use std::path::Path;

use hart_core::Image;
use image::codecs::gif::GifDecoder;
use image::codecs::png::PngDecoder;
use image::{AnimationDecoder, Frame, RgbImage};
#[cfg(unix)]
use support::run;
use support::{fails, names, succeeds};

mod support;

const PREVIEW: &str = env!("CARGO_BIN_EXE_preview");
const GENERATE: &str = env!("CARGO_BIN_EXE_generate");
/// Scales of the shipped model.
const SCALES: usize = 6;

fn bytes(folder: &Path, name: &str) -> Vec<u8> {
    fs::read(folder.join(name)).unwrap()
}

#[test]
fn without_a_terminal_lines_are_printed_and_the_image_equals_that_of_generate() {
    let folder = tempfile::tempdir().unwrap();
    let settings = ["a parrot", "--seed", "5", "--guidance", "2", "--top-k", "40", "--system-prompt", "small"];
    let output = succeeds(PREVIEW, folder.path(), &settings);
    for scale in 1..=SCALES {
        assert!(output.lines().any(|line| line.starts_with(&format!("scale {scale} of {SCALES}: "))), "{output}");
    }
    assert!(!output.contains('\x1b') && output.ends_with("a parrot, seed 5\n"), "{output:?}");
    succeeds(GENERATE, folder.path(), &[&settings[..], &["-o", "b.png"]].concat());
    assert_eq!(names(folder.path()), ["b.png", "out.png"]);
    assert!(bytes(folder.path(), "out.png") == bytes(folder.path(), "b.png"));
}

#[test]
fn a_prompt_can_not_control_the_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let output = succeeds(PREVIEW, folder.path(), &["a parrot\x1b[2J\nscale 9"]);
    assert!(!output.contains('\x1b') && output.ends_with("\na parrot [2J scale 9, seed 0\n"), "{output:?}");
}

/// Asserts that the frames are the scales and the finished image, each pixel as 4 x 4 pixels, and that the last one is shown longest. Its
/// values differ from `finished` by at most `tolerance`.
fn assert_frames(frames: &[Frame], finished: &Image, tolerance: u8) {
    assert_eq!(frames.len(), SCALES + 1);
    assert!(frames.iter().all(|frame| frame.buffer().dimensions() == (256, 256)));
    let ms: Vec<u32> = frames.iter().map(|frame| frame.delay().numer_denom_ms().0).collect();
    assert!(ms[..SCALES].iter().all(|ms| *ms == 350) && ms[SCALES] == 2500, "{ms:?}");
    let last = image::DynamicImage::ImageRgba8(frames[SCALES].buffer().clone()).to_rgb8();
    let differs = |a: &[u8], b: &[u8]| a.iter().zip(b).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
    let finished = RgbImage::from_raw(64, 64, finished.pixels().to_vec()).unwrap();
    let worst = last.enumerate_pixels().map(|(x, y, pixel)| differs(&pixel.0, &finished.get_pixel(x / 4, y / 4).0)).max().unwrap();
    assert!(worst <= tolerance, "{worst}");
    assert!(frames[0].buffer() != frames[SCALES].buffer());
}

#[test]
fn the_scales_become_an_animated_gif() {
    let folder = tempfile::tempdir().unwrap();
    succeeds(PREVIEW, folder.path(), &["a red heart", "--animation", "a.gif"]);
    assert_eq!(names(folder.path()), ["a.gif", "out.png"]);
    let gif = bytes(folder.path(), "a.gif");
    assert!(gif.windows(11).any(|w| w == b"NETSCAPE2.0"), "the animation does not loop");
    let contains = |text: &[u8]| gif.windows(text.len()).any(|window| window == text);
    assert!(contains(b"\x21\xff\x0bXMP DataXMP<?xpacket ") && contains(b"/trainedAlgorithmicMedia<"), "the animation has no marks");
    let frames = GifDecoder::new(Cursor::new(gif)).unwrap().into_frames().collect_frames().unwrap();
    // A frame has only 256 colours.
    assert_frames(&frames, &Image::open_png(folder.path().join("out.png")).unwrap(), 40);
    succeeds(PREVIEW, folder.path(), &["a red heart", "--animation", "a.gif", "--omit-marks", "all"]);
    assert!(!bytes(folder.path(), "a.gif").windows(3).any(|window| window == b"XMP"));
}

#[test]
fn the_scales_become_an_animated_png_with_the_finished_image_as_default() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a.png"), "the old file").unwrap();
    succeeds(PREVIEW, folder.path(), &["a red heart 🦜", "-a", "a.png"]);
    let finished = Image::open_png(folder.path().join("out.png")).unwrap();
    let decoder = PngDecoder::new(Cursor::new(bytes(folder.path(), "a.png"))).unwrap();
    assert_frames(&decoder.apng().unwrap().into_frames().collect_frames().unwrap(), &finished, 0);
    let still = Image::open_png(folder.path().join("a.png")).unwrap();
    assert_eq!((still.width(), &still.provenance), (256, &finished.provenance));
    assert_eq!(still.pixels()[..3], finished.pixels()[..3]);
}

/// The disk is full after the image is saved: the old animation stays.
#[cfg(target_os = "linux")]
#[test]
fn an_animation_is_not_half_written() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a.gif"), "the old one").unwrap();
    // A file size limit of 32 blocks of 512 bytes, with its signal ignored, makes writes fail like a full disk.
    let script = format!("trap '' XFSZ; ulimit -f 32; '{PREVIEW}' 'a parrot' -a a.gif >/dev/null");
    let output = run("sh", folder.path(), &["-c", &script]);
    assert!(!output.status.success() && String::from_utf8_lossy(&output.stderr).contains("error: a.gif: "), "{output:?}");
    assert_eq!(names(folder.path()), ["a.gif", "out.png"]);
    assert_eq!(bytes(folder.path(), "a.gif"), b"the old one");
}

/// Runs in a terminal of 80 x 24 characters that answers no queries.
#[cfg(target_os = "linux")]
#[test]
fn in_a_terminal_the_scales_are_drawn_in_one_place() {
    let folder = tempfile::tempdir().unwrap();
    let draw = |environment: &str, arguments: &str| {
        let inner = format!("stty rows 24 cols 80; {environment} '{PREVIEW}' 'a red heart' {arguments}");
        let script = format!("env -u TMUX -u TERM_PROGRAM -u LC_TERMINAL -u NO_COLOR script -qec \"{inner}\" /dev/null </dev/null");
        String::from_utf8(run("sh", folder.path(), &["-c", &script]).stdout).unwrap()
    };
    let text = draw("TERM=xterm COLORTERM=truecolor", "");
    // 24 rows have room for an image of 44 pixels in 22 rows. The cursor moves up by 22 rows before each image.
    assert_eq!(text.matches("\x1b[22A").count(), SCALES + 1, "{text:?}");
    assert_eq!(text.matches('▀').count(), (SCALES + 1) * 44 * 22);
    assert!(text.contains("\x1b[38;2;") && text.contains("scale 6 of 6") && text.contains("a red heart, seed 0"));
    let text = draw("TERM=xterm COLORTERM=", "");
    assert!(text.contains("\x1b[38;5;") && !text.contains("38;2;"));
    assert_eq!(draw("TERM=xterm-kitty", "").matches("\x1b_Ga=T").count(), SCALES + 1);
    assert_eq!(draw("TERM=xterm", "--draw iterm").matches("\x1b]1337;File=inline=1").count(), SCALES + 1);
    assert_eq!(draw("TERM=xterm", "--draw sixel").matches("\x1bP").count(), SCALES + 1);
    for plain in [draw("TERM=dumb", ""), draw("TERM=xterm", "--draw none")] {
        assert!(!plain.contains('\x1b') && plain.contains("scale 6 of 6"), "{plain:?}");
    }
}

/// Ctrl-C stops the run and leaves no files.
#[cfg(unix)]
#[test]
fn ctrl_c_cancels_with_the_shells_code() {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(PREVIEW);
    command.args(["a parrot", "--steps", "1000", "-a", "a.gif"]).current_dir(folder.path());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    // A thousand diffusion steps follow.
    assert!(lines.any(|line| line.starts_with("scale 6 of 6")));
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "cancelled\n");
    assert_eq!(names(folder.path()), [""; 0]);
}

#[test]
fn invalid_arguments_are_reported() {
    fails(PREVIEW, &[], &["PROMPT"]);
    fails(PREVIEW, &[" "], &["prompt", "empty"]);
    fails(PREVIEW, &["x", "y"], &["'y'"]);
    fails(PREVIEW, &["x", "--animation", "a.webp"], &["--animation a.webp", ".gif, .png or .apng"]);
    fails(PREVIEW, &["x", "--animation", "gif"], &["--animation gif", ".gif, .png or .apng"]);
    fails(PREVIEW, &["x", "--animation", "missing/a.gif"], &["--animation", "create it first"]);
    fails(PREVIEW, &["x", "--animation", "out.png"], &["--animation out.png", "the same file as the image"]);
    fails(PREVIEW, &["x", "--animation", "./out.png"], &["--animation ./out.png", "the same file as the image"]);
    fails(PREVIEW, &["x", "--out", "missing/a.png"], &["--out", "create it first"]);
    fails(PREVIEW, &["x", "--seed", "18446744073709551616"], &["--seed"]);
    fails(PREVIEW, &["x", "--guidance", "nan"], &["guidance"]);
    fails(PREVIEW, &["x", "--draw", "ascii"], &["--draw", "blocks"]);
    fails(PREVIEW, &["x", "--model", "nowhere"], &["nowhere", "root folder"]);
    #[cfg(target_os = "linux")]
    fails(PREVIEW, &["x", "--animation", "/proc/a.gif"], &["--animation", "can't write"]);
}
