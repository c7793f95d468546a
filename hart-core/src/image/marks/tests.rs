//! Marks in files of every format.

use std::io::Cursor;

use super::super::{GenerationSettings, ImageFormat};
use super::*;

const FORMATS: [ImageFormat; 3] = [ImageFormat::Png, ImageFormat::JPEG, ImageFormat::WebP];

/// Returns a generated image with a prompt and settings that every format has to escape.
fn generated() -> Image {
    let mut image = Image::from_rgb(8, 16, vec![200; 3 * 8 * 16]).unwrap();
    let mut provenance = Provenance::new("a \"café\", <b>🦜</b> & more\nSteps: 3\r\n\0\u{fffe}", u64::MAX, "guidance 0.3");
    provenance.generation = Some(GenerationSettings {
        guidance: 0.1 + 0.2,
        smoothing: true,
        top_k: Some(20),
        top_p: 0.9,
        steps: "10,5".into(),
        step_count: 15,
        prune: None,
        system_prompt: Some("secret".into()),
        system_prompt_omitted: false,
        precision: "int8".into(),
        device: "cpu".into(),
        model: "emoji, \"small\"".into(),
        model_fingerprint: "0123456789abcdef".repeat(4),
        width: 8,
        height: 16,
        edit: None,
        version: VERSION.into(),
    });
    image.provenance = Some(provenance);
    image
}

fn read_back(image: &Image, format: ImageFormat) -> Image {
    Image::decode("file", &image.encode(format).unwrap()).unwrap()
}

/// Returns whether a file contains a text in any of the encodings of marks.
fn contains(bytes: &[u8], text: &str) -> bool {
    let utf16: Vec<u8> = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
    [text.as_bytes(), &utf16].iter().any(|text| bytes.windows(text.len()).any(|window| window == *text))
}

#[test]
fn every_format_keeps_all_settings_exactly() {
    let mut image = generated();
    for guidance in [0.1 + 0.2, 4.5, 1.0 / 3.0, -100.0, f64::MIN_POSITIVE, 7.100_000_000_000_001] {
        image.provenance.as_mut().unwrap().generation.as_mut().unwrap().guidance = guidance;
        for format in FORMATS {
            assert_eq!(read_back(&image, format).provenance, image.provenance, "{format:?}");
        }
    }
}

#[test]
fn the_parameters_are_those_of_the_web_ui() {
    let image = generated();
    let line = format!(
        "Steps: 15, Sampler: HART, CFG scale: 0.30000000000000004, Seed: 18446744073709551615, Size: 8x16, \
         Model hash: 0123456789, Model: \"emoji, \\\"small\\\"\", Version: {SOFTWARE}"
    );
    assert_eq!(parameters::text(&image, Marks { prompt: false, ..Marks::ALL }), Some(line.clone()));
    let whole = parameters::text(&image, Marks::ALL).unwrap();
    assert_eq!(whole, format!("a \"café\", <b>🦜</b> & more\nSteps: 3\r\n\u{fffd}\u{fffe}\n{line}"));
    for format in [ImageFormat::JPEG, ImageFormat::WebP] {
        let expected = [&b"UNICODE\0"[..], &whole.encode_utf16().flat_map(u16::to_be_bytes).collect::<Vec<_>>()].concat();
        let bytes = image.encode(format).unwrap();
        assert!(bytes.windows(expected.len()).any(|window| window == expected), "{format:?}");
    }
}

#[test]
fn each_mark_can_be_left_out() {
    let mut image = generated();
    let found = |image: &Image, format| {
        let bytes = image.encode(format).unwrap();
        let texts = ["caf\\u00e9", "café", "secret", "Sampler: HART", "\"top_k\"", "trainedAlgorithmicMedia"];
        // In PNG and XMP, the JSON is escaped or not.
        let texts = texts.map(|text| contains(&bytes, text) || contains(&bytes, &text.replace('"', "&quot;")));
        (texts[0] || texts[1], texts[2], texts[3], texts[4], texts[5])
    };
    for format in FORMATS {
        image.marks = Marks::ALL;
        // The prompt of a text chunk may be in Latin-1, but this one is not.
        assert_eq!(found(&image, format), (true, true, true, true, true), "{format:?}");
        image.marks = Marks::ALL.without("prompt".parse().unwrap());
        assert_eq!(found(&image, format), (false, false, true, true, true), "{format:?}");
        let read = read_back(&image, format).provenance.unwrap();
        assert_eq!((read.prompt.as_str(), read.seed), ("", u64::MAX));
        assert!(read.generation.unwrap().system_prompt_omitted);
        image.marks = Marks::ALL.without("parameters".parse().unwrap());
        assert_eq!(found(&image, format), (true, true, false, true, true), "{format:?}");
        image.marks = Marks::ALL.without("settings".parse().unwrap());
        assert_eq!(found(&image, format), (true, false, true, false, true), "{format:?}");
        image.marks = Marks::ALL.without("source".parse().unwrap());
        assert_eq!(found(&image, format), (true, true, true, true, false), "{format:?}");
        image.marks = Marks::NONE;
        assert_eq!(found(&image, format), (false, false, false, false, false), "{format:?}");
        let bytes = image.encode(format).unwrap();
        assert!(!contains(&bytes, "hart") && !contains(&bytes, "Exif"), "{format:?}");
        assert_eq!(read_back(&image, format).digital_source(), None);
    }
}

#[test]
fn the_source_survives_without_settings_and_in_grids() {
    let mut image = generated();
    image.marks = "source".parse().unwrap();
    for format in FORMATS {
        let read = read_back(&image, format);
        assert_eq!((read.digital_source(), &read.provenance), (Some(DigitalSource::Generated), &None));
        assert_eq!(read_back(&read, format).digital_source(), Some(DigitalSource::Generated));
    }
    image.provenance.as_mut().unwrap().generation.as_mut().unwrap().edit = Some("inpainting of an image".into());
    assert_eq!(read_back(&image, ImageFormat::WebP).digital_source(), Some(DigitalSource::Composite));
    let photo = Image::from_rgb(8, 16, vec![0; 3 * 8 * 16]).unwrap();
    assert_eq!(read_back(&photo, ImageFormat::JPEG).digital_source(), None);
    let grid = Image::grid(&[&photo, &generated(), &image], 2).unwrap();
    assert_eq!(grid.digital_source(), Some(DigitalSource::Composite));
    assert_eq!(Image::grid(&[&photo, &photo], 2).unwrap().digital_source(), None);
    assert_eq!(generated().crop(0, 0, 2, 2).unwrap().digital_source(), Some(DigitalSource::Generated));
}

#[test]
fn what_a_jpeg_file_cannot_hold_is_left_out_in_order() {
    let mut image = generated();
    let mut marks = |prompt: String| {
        image.provenance.as_mut().unwrap().prompt = prompt;
        let (exif, xmp) = exif_and_xmp(&image, true);
        let (exif, xmp) = (exif.unwrap(), xmp.unwrap());
        assert!(exif.len() <= MAX_JPEG_EXIF && xmp.len() <= MAX_JPEG_XMP && contains(&exif, "Sampler: HART"));
        assert!(contains(xmp.as_bytes(), "trainedAlgorithmicMedia"));
        image.encode(ImageFormat::JPEG).unwrap();
        ["xx", "AIPromptInformation", "hart:Settings"].map(|text| contains(&[&exif[..], xmp.as_bytes()].concat(), text))
    };
    assert_eq!(marks("x".repeat(1000)), [true, true, true]);
    assert_eq!(marks("x".repeat(34_000)), [true, false, true]);
    assert_eq!(marks("x".repeat(60_000)), [true, false, true]);
    assert_eq!(marks("x".repeat(70_000)), [false, false, false]);
}

#[test]
fn files_of_earlier_versions_are_read() {
    let old = Provenance::new("a café", 7, "guidance 2, inpainting of an image");
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, 1, 1);
    encoder.set_color(png::ColorType::Rgb);
    encoder.add_itxt_chunk("prompt".into(), old.prompt.clone()).unwrap();
    encoder.add_text_chunk("seed".into(), "7".into()).unwrap();
    encoder.add_itxt_chunk("settings".into(), old.settings.clone()).unwrap();
    encoder.write_header().unwrap().write_image_data(&[0; 3]).unwrap();
    let image = Image::decode("old.png", &bytes).unwrap();
    assert_eq!((image.digital_source(), &image.provenance), (Some(DigitalSource::Composite), &Some(old.clone())));

    let json = settings::ascii(&serde_json::json!({"prompt": old.prompt, "seed": 7, "settings": old.settings}).to_string());
    let value = ::exif::Value::Undefined([b"ASCII\0\0\0", json.as_bytes()].concat(), 0);
    let field = ::exif::Field { tag: ::exif::Tag::UserComment, ifd_num: ::exif::In::PRIMARY, value };
    let (mut writer, mut data) = (::exif::experimental::Writer::new(), Cursor::new(Vec::new()));
    writer.push_field(&field);
    writer.write(&mut data, false).unwrap();
    assert_eq!(read(read_exif(data.get_ref()).as_ref(), None).0, Some(old));
}

#[test]
fn marks_are_named() {
    let parsed = |names: &str| names.parse::<Marks>().unwrap();
    assert_eq!(parsed("source, prompt"), Marks { prompt: true, source: true, ..Marks::NONE });
    for names in ["all", "none", "prompt,parameters,source", "settings"] {
        assert_eq!(parsed(names).to_string(), names);
    }
    for names in ["", "promt", "prompt,", "prompt,all"] {
        assert!(names.parse::<Marks>().unwrap_err().to_string().contains("expected all, none, or names of prompt"));
    }
}
