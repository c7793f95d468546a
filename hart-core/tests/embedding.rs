//! Guarantees for programs that embed the library: previews, threads, memory, models in memory, a model's settings.

use std::fs;
use std::path::{Path, PathBuf};

use hart_core::stages::{DecoderMemory, Progress};
use hart_core::{
    Control, Error, Event, Files, Hart, Image, Observer, OpenOptions, Precision, PromptFilter, Request, Step, WeightSet,
};

fn shipped() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/models/hart-emoji")
}

fn open(options: OpenOptions) -> Hart {
    Hart::open(shipped(), options).unwrap()
}

/// A model's files, as a program would embed them.
fn in_memory(root: &Path) -> Files {
    in_memory_with(root, |_, contents| contents)
}

fn in_memory_with(root: &Path, change: impl Fn(&Path, Vec<u8>) -> Vec<u8>) -> Files {
    let mut files = Files::new();
    for part in ["llm", "text", "tokenizer"] {
        for entry in fs::read_dir(root.join(part)).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap();
            files.insert(name, change(name, fs::read(&path).unwrap())).unwrap();
        }
    }
    files
}

/// Collects previews of one size, the finished images, and the threads that it is called on.
#[derive(Default)]
struct Viewer {
    max_side: usize,
    previews: Vec<(Step, Image)>,
    finished: Vec<Image>,
    threads: Vec<std::thread::ThreadId>,
}

impl Observer for Viewer {
    fn event(&mut self, event: &Event<'_>) -> Control {
        self.threads.push(std::thread::current().id());
        if let Some(image) = event.preview(self.max_side) {
            self.previews.push((event.step, image.unwrap()));
        }
        Control::Continue
    }

    fn image(&mut self, image: &Image) {
        self.finished.push(image.clone());
    }
}

#[test]
fn a_preview_after_every_scale_changes_nothing() {
    let hart = open(OpenOptions::new());
    let request = Request::new("a red heart").seed(3);
    let alone = hart.generate(&request).unwrap().images.remove(0);
    let scales = hart.config().transformer.sides.len();
    for max_side in [usize::MAX, 16, 1] {
        let mut viewer = Viewer { max_side, ..Viewer::default() };
        let watched = hart.generate_with(&request, &mut viewer).unwrap().images.remove(0);
        assert!(watched == alone && viewer.finished == [watched]);
        assert_eq!(viewer.previews.len(), scales + 1);
        let side = max_side.clamp(hart.config().visual.downsample(), hart.config().resolution());
        assert!(viewer.previews.iter().all(|(_, image)| (image.width(), image.height()) == (side, side)));
        let differences: Vec<u64> = viewer.previews.iter().map(|(_, p)| distance(p, &viewer.previews[scales].1)).collect();
        // The last preview is the image. The one before lacks only the residual, the first lacks nearly everything.
        assert!(matches!(viewer.previews[scales].0, Step::Images { finished: 1, total: 1 }));
        assert!(side < 8 || differences[scales - 1] < differences[0], "{differences:?}");
        assert!(max_side != usize::MAX || viewer.previews[scales].1.pixels() == alone.pixels());
    }
}

fn distance(a: &Image, b: &Image) -> u64 {
    a.pixels().iter().zip(b.pixels()).map(|(a, b)| u64::from(a.abs_diff(*b))).sum()
}

#[test]
fn a_models_own_threads_give_the_same_image_and_events_arrive_on_the_callers() {
    let request = Request::new("a house").images_per_prompt(2);
    let shared = open(OpenOptions::new()).generate(&request).unwrap();
    for threads in [1, 3] {
        let hart = open(OpenOptions::new().threads(threads));
        assert_eq!(hart.install(rayon::current_num_threads), threads);
        let mut viewer = Viewer { max_side: usize::MAX, ..Viewer::default() };
        let own = hart.generate_with(&request, &mut viewer).unwrap();
        assert!(own.images == shared.images && viewer.finished == shared.images);
        assert!(viewer.threads.iter().all(|id| *id == std::thread::current().id()));
        assert_eq!(viewer.previews.len(), 2 * (hart.config().transformer.sides.len() + 1));
        let mut refuse = |_: &Event<'_>| Control::Cancel;
        assert!(hart.generate_with(&request, &mut refuse).unwrap_err().is_cancelled());
        // An observer may generate with the same model, although its only thread waits for the observer.
        let mut within = None;
        let mut nested = |event: &Event<'_>| {
            if within.is_none() && event.has_preview() {
                within = Some((
                    hart.generate_with(&request, &mut |_: &Event<'_>| Control::Continue),
                    hart.install(rayon::current_num_threads),
                ));
            }
            Control::Continue
        };
        assert!(hart.generate_with(&request, &mut nested).unwrap().images == shared.images);
        let (generation, count) = within.unwrap();
        assert!(generation.unwrap().images == shared.images && count == threads);
        // A panic of the observer propagates, and the model remains usable.
        let mut panic = |_: &Event<'_>| panic!("the program's own");
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| hart.generate_with(&request, &mut panic).is_ok()));
        assert_eq!(*caught.unwrap_err().downcast::<&str>().unwrap(), "the program's own");
        assert!(hart.generate(&request).unwrap().images == shared.images);
    }
    for threads in [0, usize::MAX] {
        let error = Hart::open(shipped(), OpenOptions::new().threads(threads)).unwrap_err();
        assert!(error.to_string().contains("expected 1 to 1024"), "{error}");
    }
}

#[test]
fn a_model_opens_from_memory() {
    let request = Request::new("a guitar").seed(5);
    let hart = Hart::from_files(in_memory(&shipped()), OpenOptions::new()).unwrap();
    let image = |hart: &Hart| hart.generate(&request).unwrap().images.remove(0);
    // A model from memory has no name.
    assert!(image(&hart).pixels() == image(&open(OpenOptions::new())).pixels());
    let mut files = Files::new();
    let refused = |files: &Files| Hart::from_files(files.clone(), OpenOptions::new()).unwrap_err().to_string();
    assert!(refused(&files).contains("llm/config.json: no such file"), "{}", refused(&files));
    for name in ["llm/config.json", "tokenizer/config.json"] {
        files.insert(name, fs::read(shipped().join(name)).unwrap()).unwrap();
    }
    assert!(refused(&files).contains("no text model"), "{}", refused(&files));
    files.insert("text/config.json", fs::read(shipped().join("text/config.json")).unwrap()).unwrap();
    assert!(refused(&files).contains("llm: holds no weights"), "{}", refused(&files));
    files.insert("llm/model.safetensors", fs::read(shipped().join("llm/model.safetensors")).unwrap()).unwrap();
    assert!(refused(&files).contains("text/tokenizer.json: no such file"), "{}", refused(&files));
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-a");
    // It has EMA weights as a torch file.
    let files = in_memory(&fixture);
    assert!(refused(&files).contains("torch files can't be read from memory"), "{}", refused(&files));
    assert!(Hart::from_files(files, OpenOptions::new().weight_set(WeightSet::Plain)).is_ok());
}

#[test]
fn memory_is_estimated_and_can_be_limited() {
    let hart = open(OpenOptions::new().precision(Precision::F32));
    let request = Request::new("a house");
    let memory = hart.memory(&request);
    // The files hold f16, in which the linear layers stay; the visual tokenizer is in f32.
    let parameters: Vec<u64> = hart.reports().iter().map(|report| report.parameters).collect();
    let decoder = 4 * parameters[2] / 2;
    let transformer = memory.weights - decoder;
    assert!((2 * parameters[1]..4 * parameters[1]).contains(&transformer), "{transformer} of {parameters:?}");
    // The text model's pages are released before the stage that needs most. Of its embedding only some rows are read; its norms and
    // biases are in f32 and stay.
    let kept = open(OpenOptions::new().precision(Precision::F32).keep_text_model(true));
    let embedding = (kept.config().text.vocab_size * kept.config().text.hidden_size) as u64;
    let (text, layers) = (kept.memory(&request).weights - memory.weights, parameters[0] - embedding);
    assert!((19 * layers / 10..2 * layers).contains(&text), "{text} of {layers}");
    let one_by_one = open(OpenOptions::new().precision(Precision::F32).parallel(1));
    let many = one_by_one.memory(&Request::new("a house").images_per_prompt(100));
    assert_eq!(many.working - memory.working, 99 * 3 * 64 * 64);
    // With a limit, the transformer's pages are released too.
    let memory = open(OpenOptions::new().precision(Precision::F32).max_memory(u64::MAX)).memory(&request);
    assert!(memory.weights < hart.memory(&request).weights);
    let limited = |limit, options: OpenOptions| Hart::open(shipped(), options.max_memory(limit)).unwrap_err();
    match limited(memory.peak() - 1, OpenOptions::new().precision(Precision::F32)) {
        Error::Memory { needed, limit, remedy, .. } => {
            assert_eq!((needed, limit), (memory.peak(), memory.peak() - 1));
            assert!(remedy.contains("converted to int8 it takes"), "{remedy}");
        }
        other => panic!("{other:?}"),
    }
    let message = limited(memory.peak(), OpenOptions::new().precision(Precision::F32).keep_text_model(true)).to_string();
    assert!(message.contains("without the option `keep_text_model` it takes"), "{message}");
    let message = limited(1 << 20, OpenOptions::new()).to_string();
    assert!(message.contains("raise the limit (the option `max_memory`) or use a smaller model"), "{message}");
    let tight = open(OpenOptions::new().precision(Precision::F32).max_memory(memory.peak()));
    assert!(tight.generate(&Request::new("a house")).is_ok());
    let error = tight.generate(&Request::new("a house").images_per_prompt(2)).unwrap_err();
    assert!(matches!(error, Error::Memory { .. }), "{error}");
}

#[test]
fn a_decoder_in_bf16_or_with_limited_memory_gives_nearly_the_same_image() {
    let exact = open(OpenOptions::new().precision(Precision::F32));
    let image = exact.generate(&Request::new("a house")).unwrap().images.remove(0);
    let latent = exact.visual().tokenize_images(&[image]).unwrap().hybrid();
    let levels = |hart: &Hart, memory| -> Vec<u8> {
        let image = hart.visual().decode_images_with(memory, &latent, &mut Progress::silent()).unwrap().remove(0);
        image.pixels().to_vec()
    };
    let want = levels(&exact, DecoderMemory::Full);
    assert_eq!(levels(&exact, DecoderMemory::Limited), want, "in f32 all bits are equal");
    for precision in [Precision::Bf16, Precision::Int8] {
        let hart = open(OpenOptions::new().precision(precision));
        for memory in [DecoderMemory::Full, DecoderMemory::Limited] {
            let got = levels(&hart, memory);
            let squares = got.iter().zip(&want).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2));
            let mean = squares.sum::<f64>() / want.len() as f64;
            // 45 dB.
            assert!(mean < 255.0 * 255.0 * 10f64.powf(-4.5), "{precision}, {memory:?}: a mean square of {mean} levels");
        }
    }
}

#[test]
fn a_models_settings_are_the_defaults_of_a_request() {
    let hart = open(OpenOptions::new());
    let generate = |request: Request| hart.generate(&request).unwrap().images.remove(0);
    let settings = |image: &Image| image.provenance.as_ref().unwrap().settings.clone();
    let own = generate(Request::new("a house"));
    assert!(settings(&own).starts_with("guidance 2, smoothing false, top-k model, top-p 0.4"), "{}", settings(&own));
    assert!(own == generate(Request::new("a house").guidance(2.0).smoothing(false).top_p(0.4)));
    let requested = generate(Request::new("a house").guidance(3.0).smoothing(true).top_p(0.0).top_k(50));
    assert!(settings(&requested).starts_with("guidance 3, smoothing true, top-k 50, top-p 0,"), "{}", settings(&requested));

    let files =
        in_memory_with(
            &shipped(),
            |name, contents| {
                if name.ends_with("generation_config.json") { br#"{"top_k": 0}"#.to_vec() } else { contents }
            },
        );
    let error = Hart::from_files(files, OpenOptions::new()).unwrap_err().to_string();
    assert!(error.contains("generation_config.json") && error.contains("top_k"), "{error}");
}

#[test]
fn a_filter_refuses_a_prompt_before_any_work() {
    struct NoBirds;
    impl PromptFilter for NoBirds {
        fn refuse(&self, prompt: &str) -> Option<String> {
            prompt.contains("parrot").then(|| "birds are excluded".into())
        }
    }
    let hart = open(OpenOptions::new());
    let long = format!("a parrot {}", "and a house ".repeat(50));
    for request in [Request::batch(["a house", &long]).filter(NoBirds), Request::new(&long).filter(|p: &str| NoBirds.refuse(p))] {
        // A clone keeps the filter.
        let request = request.clone();
        let mut observer = |_: &Event<'_>| panic!("work has begun");
        let error = hart.generate_with(&request, &mut observer).unwrap_err();
        let message = error.to_string();
        assert!(message.starts_with("prompt \"a parrot and a house") && message.ends_with("...\" is refused: birds are excluded"));
        assert!(message.len() < 120, "{message}");
        let Error::Refused { prompt, reason } = error else { panic!("{message}") };
        assert_eq!((prompt, reason.as_str()), (long.clone(), "birds are excluded"));
        assert!(format!("{request:?}").contains("Filter"));
        assert!(hart.generate(&request.prompts(["a house"])).is_ok());
    }
}

#[test]
fn a_filter_receives_every_prompt_once_and_changes_no_image() {
    let received = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let inside = received.clone();
    let request = Request::batch(["a house", "a guitar"]).images_per_prompt(2);
    let filtered = request.clone().filter(move |prompt: &str| {
        inside.lock().unwrap().push(prompt.to_string());
        None
    });
    let hart = open(OpenOptions::new());
    assert!(hart.generate(&filtered).unwrap().images == hart.generate(&request).unwrap().images);
    assert_eq!(*received.lock().unwrap(), ["a house", "a guitar"]);
}
