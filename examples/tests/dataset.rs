//! The program `dataset` as a user runs it, and the scenes for training.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use hart_core::Image;
use hart_examples::data::colours::{MIN_CONTRAST, contrast};
use hart_examples::data::content::{Content, Kind};
use hart_examples::data::drawings::Label;
use hart_examples::data::random::Random;
use hart_examples::data::{Drawings, SceneOptions, Scenes, Split, open_or_render};
use support::{fails, names, succeeds};

mod support;

const DATASET: &str = env!("CARGO_BIN_EXE_dataset");

fn committed(options: SceneOptions) -> Scenes {
    Scenes::new(Arc::new(open_or_render(None).unwrap()), options).unwrap()
}

/// Options that allow every kind of scene, including five objects and small ones at nine positions.
fn all_kinds() -> SceneOptions {
    let mut options = SceneOptions { counts: [2, 5], ..SceneOptions::default() };
    options.mix.position = 0.3;
    options
}

/// Drawings of coloured squares. They need no renderer, so their scenes are the same on every machine.
fn squares() -> Drawings {
    let label = |i: usize, style: &str| Label {
        concept: format!("square {i}"),
        np: format!("a square {i}"),
        plural: format!("squares {i}"),
        tags: vec![],
        alias: None,
        style: style.into(),
    };
    let labels: Vec<Label> = (0..30).flat_map(|i| ["plain", "dark"].map(|style| label(i, style))).collect();
    let mut random = Random::new(3, 0);
    let images = labels.iter().flat_map(|_| [0, 1, 2, 3].map(|c| if c < 3 { random.bits() as u8 } else { 255 }).repeat(32 * 32));
    Drawings::new(32, labels.clone(), images.collect()).unwrap()
}

#[test]
fn same_arguments_same_scene() {
    let scenes = Scenes::new(Arc::new(squares()), all_kinds()).unwrap();
    let fnv = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    let mut hash = 0xcbf2_9ce4_8422_2325;
    for index in 0..50 {
        let scene = scenes.scene(7, index);
        assert_eq!(scene, scenes.scene(7, index));
        assert_eq!(scene.pixels, scenes.render(&scene.content));
        hash = scene.pixels.iter().chain(scene.caption.as_bytes()).fold(hash, fnv);
    }
    assert_eq!(hash, 0xd293_537f_e29b_2f1c, "the scenes of a seed have changed: trained models are no longer reproducible");
    assert_ne!(scenes.scene(7, 0), scenes.scene(8, 0));
}

/// Returns the facts of a scene that splits can hold out. Independent of the implementation of the splits.
fn facts(scenes: &Scenes, content: &Content) -> Vec<(Split, String)> {
    let drawings = scenes.drawings();
    let name = |i: usize| drawings.concept(content.objects[i].drawing).name.clone();
    let mut facts = Vec::new();
    for object in &content.objects {
        let concept = &drawings.concept(object.drawing).name;
        facts.push((Split::Colour, format!("{concept}, {}", content.background)));
        facts.push((Split::Style, format!("{}", object.drawing)));
    }
    match content.kind {
        Kind::Relation(relation) => {
            let mut pair = [name(0), name(1)];
            facts.extend(pair.iter().map(|name| (Split::Solo, name.clone())));
            if !relation.first_leads() {
                pair.reverse();
            }
            facts.push((Split::Order, pair.join(", ")));
            pair.sort();
            facts.push((Split::Pairs, pair.join(", ")));
        }
        Kind::Count(count) => {
            facts.push((Split::Solo, name(0)));
            facts.push((Split::Count, format!("{}, {count}", name(0))));
        }
        _ => (),
    }
    facts
}

#[test]
fn nothing_held_out_is_trained_on() {
    let scenes = committed(all_kinds());
    let mut trained = HashSet::new();
    for index in 0..20_000 {
        trained.extend(facts(&scenes, &scenes.scene(1, index).content));
    }
    for split in Split::ALL.iter().filter(|split| split.is_held_out()) {
        let prompts = scenes.test_prompts(*split, 300);
        assert!(prompts.len() >= 40, "{split}: {}", prompts.len());
        for prompt in &prompts {
            let of_split = facts(&scenes, &prompt.content).into_iter().filter(|(of, _)| of == split);
            assert!(of_split.into_iter().any(|fact| !trained.contains(&fact)), "{split}: {} was trained on", prompt.caption);
            assert_eq!(scenes.splits().of(&prompt.content), [*split]);
            assert_eq!(scenes.render(&prompt.content).len(), 64 * 64 * 3);
        }
        assert_eq!(scenes.test_prompts(*split, 20), prompts[..20], "{split}");
    }
    let seen = scenes.test_prompts(Split::Seen, 300);
    assert!(seen.len() == 300 && seen.iter().all(|prompt| scenes.splits().allows_training(&prompt.content)));
    // Training must cover nearly all drawings, so that tests only ask for known concepts.
    let concepts: HashSet<_> = trained.iter().filter(|(split, _)| *split == Split::Style).collect();
    assert!(concepts.len() >= 150, "{} of 160 drawings", concepts.len());
}

#[test]
fn held_out_scenes_appear_without_holding_out() {
    let scenes = committed(SceneOptions { hold_out: false, ..all_kinds() });
    let held_out = (0..2000).filter(|&index| !scenes.splits().allows_training(&scenes.scene(1, index).content)).count();
    assert!((300..900).contains(&held_out), "{held_out} of 2000");
}

#[test]
fn captions_match_the_scene() {
    let scenes = committed(all_kinds());
    let drawings = scenes.drawings();
    for index in 0..3000 {
        let scene = scenes.scene(2, index);
        let caption = &scene.caption;
        let clean = caption.chars().all(|c| c.is_ascii_alphanumeric() || " ,-'".contains(c));
        assert!(clean && !caption.contains("  ") && *caption == *caption.trim() && !caption.is_empty(), "{caption:?}");
        for wrong in [" a a", " a e", " a i", " a o", "an b", " an l", "an w"] {
            assert!(!format!(" {caption}").contains(wrong), "{caption:?}");
        }
        let objects = &scene.content.objects;
        let count = match scene.content.kind {
            Kind::Single | Kind::Position(_) => 1,
            Kind::Relation(_) => 2,
            Kind::Count(count) => count,
            Kind::Image => unreachable!("the pack has drawings"),
        };
        assert_eq!(objects.len(), count);
        for (i, object) in objects.iter().enumerate() {
            let concept = drawings.concept(object.drawing);
            let alias = concept.alias.iter().flat_map(|alias| [&alias.np, &alias.plural]);
            let known = [&concept.np, &concept.plural].into_iter().chain(alias).any(|words| caption.contains(words.as_str()));
            assert!(known, "{caption:?}: object {i}");
            assert_eq!(drawings.drawings[object.drawing].style, scene.content.style, "{caption:?}");
            let half = object.size / 2.0;
            let inside = |at: f32| at - half > -2.5 && at + half < 66.5;
            assert!(inside(object.centre.0) && inside(object.centre.1), "{caption:?}: {object:?}");
        }
        if let Kind::Relation(relation) = scene.content.kind {
            let apart = [objects[0].centre.0 - objects[1].centre.0, objects[0].centre.1 - objects[1].centre.1];
            let (x, y) = relation.direction();
            assert!(apart[0] * x as f32 + apart[1] * y as f32 > 28.0, "{caption:?}");
        }
    }
}

#[test]
fn every_object_stands_out() {
    let scenes = committed(all_kinds());
    let drawings = scenes.drawings();
    for index in 0..2000 {
        let content = scenes.scene(3, index).content;
        let colour = hart_examples::data::colours::BACKGROUNDS[content.background].1;
        for object in &content.objects {
            assert!(contrast(drawings.image(object.drawing), drawings.side, colour) >= MIN_CONTRAST);
        }
        assert!(content.colour.iter().zip(colour).all(|(a, b)| a.abs_diff(b) <= 4));
    }
}

#[test]
fn a_pack_keeps_its_drawings() {
    let folder = tempfile::tempdir().unwrap();
    let line = succeeds(DATASET, folder.path(), &["--out", "pack", "--preview", "p.png", "--scenes", "5", "--json", "-q"]);
    let json: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&json["images"], &json["concepts"], &json["side"]), (&160.into(), &80.into(), &128.into()), "{json}");
    assert!(Image::open_png(folder.path().join("p.png")).unwrap().width() > 3 * 128);
    let pack = open_or_render(Some(&folder.path().join("pack"))).unwrap();
    assert!(pack == open_or_render(None).unwrap());
    pack.select(47, &["flat".into()]).unwrap().save(&folder.path().join("few")).unwrap();
    let few = Drawings::open(&folder.path().join("few")).unwrap();
    assert_eq!((few.len(), few.styles.as_slice()), (47, ["flat".to_string()].as_slice()));
    assert_eq!(few.image(3), pack.image(pack.find(3, pack.styles.iter().position(|s| s == "flat").unwrap()).unwrap()));
    assert!(pack.select(47, &["oil".into()]).unwrap_err().contains("noto"));
    // Export is deterministic.
    succeeds(DATASET, folder.path(), &["--export", "v.jsonl.gz", "-q"]);
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/drawings.jsonl.gz");
    assert!(fs::read(folder.path().join("v.jsonl.gz")).unwrap() == fs::read(committed).unwrap());
    assert_eq!(names(folder.path()), ["few", "p.png", "pack", "v.jsonl.gz"]);
}

#[test]
fn a_damaged_pack_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    let opened = |change: &dyn Fn(&Path)| {
        let pack = folder.path().join("pack");
        let _ = fs::remove_dir_all(&pack);
        squares().save(&pack).unwrap();
        change(&pack);
        Drawings::open(&pack).map(|pack| pack.len())
    };
    assert_eq!(opened(&|_| ()), Ok(60));
    let rewritten = |name: &'static str, change: &dyn Fn(Vec<u8>) -> Vec<u8>| {
        opened(&|pack| fs::write(pack.join(name), change(fs::read(pack.join(name)).unwrap())).unwrap()).unwrap_err()
    };
    let pixels = "drawings.safetensors";
    let missing = opened(&|pack| fs::remove_file(pack.join(pixels)).unwrap()).unwrap_err();
    assert!(missing.contains("no drawings.safetensors in") && missing.contains("the program dataset"), "{missing}");
    let missing = opened(&|pack| fs::remove_file(pack.join("captions.jsonl")).unwrap()).unwrap_err();
    assert!(missing.contains("captions.jsonl"), "{missing}");
    for (name, change, words) in [
        (pixels, (|mut b: Vec<u8>| b.split_off(b.len() / 2)) as fn(Vec<u8>) -> Vec<u8>, pixels),
        (pixels, |_| vec![], pixels),
        (
            pixels,
            |mut b| {
                b[..8].fill(0xff);
                b
            },
            pixels,
        ),
        (pixels, |b| String::from_utf8_lossy(&b).replacen("[60,32,32,4]", "[32,60,32,4]", 1).into_bytes(), pixels),
        (pixels, |_| safetensors::serialize([("other", view(&[0; 16], vec![16]))], None).unwrap(), "no tensor images"),
        (pixels, |_| safetensors::serialize([("images", view(&[0; 16], vec![1, 2, 2, 4]))], None).unwrap(), "the side is 2 pixels"),
        ("captions.jsonl", |_| b"{}\n".to_vec(), "has 1 lines"),
        ("captions.jsonl", |b| b.into_iter().map(|b| if b == b'{' { b'[' } else { b }).collect(), "line 1"),
        ("captions.jsonl", |_| vec![0xff; 99], "UTF-8"),
        ("captions.jsonl", |b| b.split_inclusive(|b| *b == b'\n').next().unwrap().repeat(60), "a second square 0"),
    ] {
        let error = rewritten(name, &change);
        assert!(error.contains(words), "{words}: {error}");
    }
}

fn view(data: &[u8], shape: Vec<usize>) -> safetensors::tensor::TensorView<'_> {
    safetensors::tensor::TensorView::new(safetensors::Dtype::U8, shape, data).unwrap()
}

#[test]
fn own_images_are_packed_unchanged() {
    let folder = tempfile::tempdir().unwrap();
    let inside = |name: &str| folder.path().join(name);
    fs::create_dir(inside("own")).unwrap();
    for (name, level) in [("a", 50), ("b", 200)] {
        let image = Image::from_rgb(48, 32, vec![level; 3 * 48 * 32]).unwrap();
        image.save_png(inside("own").join(name).with_extension("png")).unwrap();
        fs::write(inside("own").join(name).with_extension("txt"), format!(" image\n{name}\n")).unwrap();
    }
    succeeds(DATASET, folder.path(), &["--images", "own", "--side", "64", "--out", "texts", "--preview", "p.png", "-q"]);
    let pack = Drawings::open(&inside("texts")).unwrap();
    assert_eq!((pack.side, &pack.captions[..]), (64, &["image a".to_string(), "image b".into()][..]));
    assert!(pack.image(1).chunks(4).all(|pixel| pixel == [200, 200, 200, 255]));
    let scenes = Scenes::new(Arc::new(pack), SceneOptions::default()).unwrap();
    for index in 0..20 {
        let scene = scenes.scene(0, index);
        let level = if scene.caption == "image a" { 50 } else { 200 };
        assert!(scene.content.kind == Kind::Image && scene.pixels.iter().all(|&p| p == level), "{}", scene.caption);
    }
    assert!(scenes.test_prompts(Split::Seen, 5).is_empty());

    fs::write(inside("own/captions.jsonl"), "{\"file\": \"b.png\", \"caption\": \"light\"}\n").unwrap();
    succeeds(DATASET, folder.path(), &["--images", "own", "--out", "table", "-q"]);
    assert_eq!(Drawings::open(&inside("table")).unwrap().captions, ["light"]);

    let own = inside("own").to_string_lossy().into_owned();
    let wrong = |words: &[&str]| fails(DATASET, &["--images", &own, "--out", "pack"], words);
    fs::write(inside("own/captions.jsonl"), "{\"file\": \"c.png\", \"caption\": \"light\"}\n").unwrap();
    wrong(&["c.png", "no such file"]);
    fs::remove_file(inside("own/captions.jsonl")).unwrap();
    fs::write(inside("own/b.txt"), " \n").unwrap();
    wrong(&["b.png", "caption is empty"]);
    fs::remove_file(inside("own/b.txt")).unwrap();
    wrong(&["b.png", "has no caption"]);
    fs::write(inside("own/b.txt"), "b").unwrap();
    fs::write(inside("own/b.png"), "not an image").unwrap();
    wrong(&["b.png"]);
    // Half of a JPEG file.
    fs::remove_file(inside("own/b.png")).unwrap();
    let half = inside("own/b.jpg");
    image::RgbImage::from_fn(64, 64, |x, y| image::Rgb([(x * y) as u8; 3])).save(&half).unwrap();
    let bytes = fs::read(&half).unwrap();
    fs::write(&half, &bytes[..bytes.len() / 2]).unwrap();
    wrong(&["b.jpg: the file is truncated"]);
}

#[test]
fn invalid_arguments_are_reported() {
    let empty = tempfile::tempdir().unwrap();
    let folder = empty.path().to_string_lossy().into_owned();
    fails(DATASET, &[], &["--out"]);
    fails(DATASET, &["--out", "a/b"], &["no folder a"]);
    fails(DATASET, &["--out", &folder], &["already exists"]);
    fails(DATASET, &["--preview", "a.png", "--export", "./a.png"], &["--export ./a.png", "the same file as --preview"]);
    fails(DATASET, &["--out", "pack", "--side", "4"], &["8 to 1024"]);
    fails(DATASET, &["--out", "pack", "--styles", "oil"], &["no style oil", "--icons"]);
    fails(DATASET, &["--out", "pack", "--level", "all"], &["--icons"]);
    fails(DATASET, &["--out", "pack", "--icons", &folder], &["noto/icons.json", "install the package"]);
    fails(DATASET, &["--out", "pack", "--icons", &folder, "--styles", "oil"], &["no style oil", "glossy"]);
    fails(DATASET, &["--out", "pack", "--icons", &folder, "--names", "none.txt"], &["none.txt"]);
    fails(DATASET, &["--out", "pack", "--images", &folder], &["there is no image"]);
    fails(DATASET, &["--out", "pack", "--images", "nowhere"], &["nowhere"]);
}

#[test]
fn invalid_scene_options_are_reported() {
    let drawings = Arc::new(squares());
    let created = |options: &str| Scenes::new(drawings.clone(), serde_json::from_str(options).map_err(|e| e.to_string())?);
    assert!(created(r#"{"side": 32, "mix": {"count": 0}, "sizes": {"single": [40, 60]}}"#).is_ok());
    for (options, word) in [
        (r#"{"sides": 64}"#, "unknown field"),
        (r#"{"side": 4}"#, "side"),
        (r#"{"mix": {"single": -1}}"#, "mix.single"),
        (r#"{"mix": {"single": 0, "relation": 0, "count": 0}}"#, "all shares are 0"),
        (r#"{"sizes": {"count": [30, 20]}}"#, "sizes.count"),
        (r#"{"counts": [2, 9]}"#, "counts"),
        (r#"{"named": {"style": 2}}"#, "named.style"),
        (r#"{"jitter": -1}"#, "jitter"),
    ] {
        let error = created(options).map(drop).unwrap_err();
        assert!(error.contains(word), "{options}: {error}");
    }
    let one = Arc::new(drawings.select(1, &["plain".into()]).unwrap());
    assert!(Scenes::new(one, SceneOptions::default()).map(drop).unwrap_err().contains("two concepts"));
}
