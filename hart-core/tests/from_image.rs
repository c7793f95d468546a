//! Starting from an image: the known part stays, the masked part is regenerated.

use std::path::{Path, PathBuf};

use hart_core::stages::{Philox, Progress, SamplingParams};
use hart_core::{Control, Error, Event, FromImage, Hart, Image, Keep, Mask, OpenOptions, Request};

const SIDE: usize = 64;

fn hart() -> Hart {
    let shipped: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/models/hart-emoji");
    Hart::open(shipped, OpenOptions::new()).unwrap()
}

fn generate(hart: &Hart, request: Request) -> Image {
    hart.generate(&request).unwrap().images.remove(0)
}

/// Mean difference of the pixels where `inside` holds.
fn difference(a: &Image, b: &Image, inside: impl Fn(usize, usize) -> bool) -> f64 {
    let positions = (0..a.width() * a.height()).filter(|i| inside(i % a.width(), i / a.width()));
    let differences: Vec<f64> =
        positions.flat_map(|i| (0..3).map(move |c| 3 * i + c)).map(|i| f64::from(a.pixels()[i].abs_diff(b.pixels()[i]))).collect();
    differences.iter().sum::<f64>() / differences.len() as f64
}

#[test]
fn the_known_part_has_the_images_latent_to_the_last_bit() {
    let hart = hart();
    let image = generate(&hart, Request::new("a red heart on a yellow background").seed(7));
    let mask = Mask::rectangle((SIDE, SIDE), 0, 0, SIDE / 2, SIDE);
    let known = hart.visual().known_tokens(&FromImage::inpaint(image.clone(), mask)).unwrap();
    let features = hart.visual().tokenize_images(&[image]).unwrap().features;
    let [_, channels, height, width] = features.dims();
    let mut progress = Progress::silent();
    let tokens = hart.text().tokenizer().tokenize(&["a panda"], None, hart.config().transformer.context_tokens).unwrap();
    let context = hart.text().encode(&tokens, &mut progress).unwrap();
    let steps = hart.config().residual.steps.clone();
    for smoothing in [false, true] {
        let sampling = SamplingParams { guidance: 2.0, smoothing, top_k: None, top_p: 0.0, steps: steps.clone(), pruning: None };
        let latent = hart.sample_from(Some(&known), context.clone(), &sampling, &Philox::new(vec![1]), &mut progress).unwrap();
        let values = |tensor: &hart_core::burn::prelude::Tensor<4>| tensor.clone().into_data().iter::<f32>().collect::<Vec<f32>>();
        let (result, original) = (values(&latent.0), values(&features));
        for i in 0..channels * height * width {
            let is_known = i % width >= width / 2;
            assert!(
                !is_known || result[i].to_bits() == original[i].to_bits(),
                "position {i}: {}, expected {}",
                result[i],
                original[i]
            );
        }
        let changed = (0..channels * height * width).filter(|i| i % width < width / 2 && result[*i] != original[*i]).count();
        assert_eq!(changed, channels * height * width / 2);
    }
}

#[test]
fn inpainting_changes_only_the_masked_region() {
    let hart = hart();
    let image = generate(&hart, Request::new("a red heart on a yellow background").seed(7));
    let mask = Mask::rectangle((SIDE, SIDE), 0, 0, SIDE / 2, SIDE);
    let request = |seed| {
        let from = FromImage::inpaint(image.clone(), mask.clone()).keep(Keep::Latent);
        Request::new("a house").seed(seed).top_p(0.9).from_image(from)
    };
    let (first, second) = (generate(&hart, request(1)), generate(&hart, request(2)));
    // Decoding mixes neighbours, so pixels near the mask may differ a little.
    let (far_left, far_right) = (|x: usize, _: usize| x < SIDE / 4, |x: usize, _: usize| x >= SIDE - SIDE / 4);
    assert!(difference(&first, &image, far_left) > 1.5 * difference(&first, &image, far_right));
    assert!(difference(&first, &second, far_left) > difference(&first, &second, far_right));
    assert!(difference(&first, &image, far_right) < 12.0, "{}", difference(&first, &image, far_right));
    let settings = &first.provenance.as_ref().unwrap().settings;
    assert!(settings.ends_with("inpainting of an image, keep latent"), "{settings}");
    assert!(first == generate(&hart, request(1)) && first != second);
}

#[test]
fn pixels_outside_the_mask_stay_exactly() {
    let hart = hart();
    let image = generate(&hart, Request::new("a red heart on a yellow background").seed(7));
    // A mask of another resolution, with a border within a patch.
    let mask = Mask::rectangle((2 * SIDE, 2 * SIDE), 0, 0, SIDE + 6, 2 * SIDE);
    let left = SIDE / 2 + 3;
    let from = FromImage::inpaint(image.clone(), mask);
    let edit = |from: FromImage| generate(&hart, Request::new("a house").seed(1).from_image(from));
    let (pixels, latent) = (edit(from.clone()), edit(from.keep(Keep::Latent)));
    assert_eq!(difference(&pixels, &image, |x, _| x >= left), 0.0);
    assert!(difference(&latent, &image, |x, _| x >= left) > 0.5);
    // The soft edge is one pixel wide.
    assert_eq!(difference(&pixels, &latent, |x, _| x < left - 1), 0.0);
    let between = |x: usize, _: usize| x == left - 1;
    let (to_image, to_latent) = (difference(&pixels, &image, between), difference(&pixels, &latent, between));
    assert!((to_image - to_latent).abs() <= 1.0, "{to_image} and {to_latent}");
    let settings = &pixels.provenance.as_ref().unwrap().settings;
    assert!(settings.ends_with("inpainting of an image"), "{settings}");
}

#[test]
fn outpainting_keeps_the_smaller_image_at_its_position() {
    let hart = hart();
    let whole = generate(&hart, Request::new("a sunflower").seed(3));
    let rows = (8..40).flat_map(|y| whole.pixels()[3 * (y * SIDE + 8)..3 * (y * SIDE + 40)].to_vec());
    let middle = Image::from_rgb(32, 32, rows.collect()).unwrap();
    let outpainted = generate(&hart, Request::new("a sunflower").seed(9).from_image(FromImage::outpaint(middle.clone(), 8, 8)));
    let inside = |x: usize, y: usize| (8..40).contains(&x) && (8..40).contains(&y);
    assert_eq!(difference(&outpainted, &whole, inside), 0.0);
    let from = FromImage::outpaint(middle, 8, 8).keep(Keep::Latent);
    let outpainted = generate(&hart, Request::new("a sunflower").seed(9).from_image(from));
    let inside = |x: usize, y: usize| (12..36).contains(&x) && (12..36).contains(&y);
    assert!(difference(&outpainted, &whole, inside) < 25.0, "{}", difference(&outpainted, &whole, inside));
}

#[test]
fn a_variation_is_closer_the_more_scales_it_keeps() {
    let hart = hart();
    let scales = hart.config().transformer.sides.len();
    // The image has another prompt, so the regenerated part differs from it.
    let image = generate(&hart, Request::new("a red heart on a yellow background").seed(3));
    let distance = |kept: usize| {
        let images = (0..4u64).map(|seed| {
            generate(
                &hart,
                Request::new("a key on a dark blue background").seed(100 + seed).from_image(FromImage::vary(image.clone(), kept)),
            )
        });
        images.map(|p| difference(&p, &image, |_, _| true)).sum::<f64>() / 4.0
    };
    let (few, many) = (distance(1), distance(scales - 1));
    assert!(many < few / 2.0, "keeping 1 scale: distance {few:.1}, keeping {}: {many:.1}", scales - 1);
}

#[test]
fn an_image_that_does_not_fit_is_refused_before_any_work() {
    let hart = hart();
    let small = Image::from_rgb(8, 8, vec![0; 3 * 64]).unwrap();
    let whole = Image::from_rgb(SIDE, SIDE, vec![0; 3 * SIDE * SIDE]).unwrap();
    let scales = hart.config().transformer.sides.len();
    for from in [
        FromImage::vary(small.clone(), 1),
        FromImage::vary(whole.clone(), scales),
        FromImage::outpaint(small.clone(), SIDE - 7, 0),
        FromImage::inpaint(whole, Mask::from_image(&small)),
    ] {
        let mut events = 0;
        let mut count = |_: &Event<'_>| {
            events += 1;
            Control::Continue
        };
        let error = hart.generate_with(&Request::new("a house").from_image(from), &mut count).unwrap_err();
        assert!(matches!(error, Error::Request { field: "image to start from", .. }), "{error}");
        assert_eq!(events, 0);
    }
}
