//! Images that are generated at once: the same pixels as one by one, events of all of them, errors and cancellation.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use hart_core::{
    CancelToken, Control, Error, Event, FromImage, Hart, Image, Observer, OpenOptions, PromptFilter, Request, Stage, Step,
};

fn shipped() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/models/hart-emoji")
}

fn open(threads: impl Into<Option<usize>>, parallel: usize) -> Hart {
    Hart::open(shipped(), OpenOptions::new().threads(threads).parallel(parallel)).unwrap()
}

/// Records the events and the finished images, and asks for a preview whenever there is one.
#[derive(Default)]
struct Record {
    events: Vec<(usize, Stage, Step, Duration, f32)>,
    previews: Vec<(usize, Step, Image)>,
    images: Vec<Image>,
    threads: Vec<thread::ThreadId>,
    max_side: usize,
}

impl Observer for Record {
    fn event(&mut self, event: &Event<'_>) -> Control {
        self.threads.push(thread::current().id());
        self.events.push((event.image_index, event.stage, event.step, event.elapsed, event.fraction));
        if let Some(preview) = event.preview(self.max_side) {
            self.previews.push((event.image_index, event.step, preview.unwrap()));
        }
        if let Step::Images { finished, .. } = event.step {
            assert_eq!((self.images.len(), event.image_index), (finished, finished - 1));
        }
        Control::Continue
    }

    fn image(&mut self, image: &Image) {
        self.images.push(image.clone());
    }
}

#[test]
fn any_number_at_once_gives_the_same_images() {
    let request = Request::batch(["a house", "a red heart", "a guitar"]).images_per_prompt(2).seed(7);
    let alone = open(3, 1).generate(&request).unwrap().images;
    let start = FromImage::vary(alone[0].clone(), 2);
    let edited = request.clone().from_image(start.clone());
    let expected = open(3, 1).generate(&edited).unwrap().images;
    for (threads, parallel) in [(Some(2), 2), (Some(3), 2), (Some(3), 3), (Some(5), 4), (None, 1)] {
        let hart = open(threads, parallel);
        assert_eq!(hart.parallel(), parallel);
        assert!(hart.generate(&request).unwrap().images == alone, "{threads:?}, {parallel}");
        assert!(hart.generate(&edited).unwrap().images == expected, "{threads:?}, {parallel}");
        let encoded = request.clone().context(hart.encode(&request).unwrap());
        assert!(hart.generate(&encoded).unwrap().images == alone, "{threads:?}, {parallel}");
    }
    // A model without its own threads shares those of rayon's global pool.
    if rayon::current_num_threads() > 1 {
        assert!(open(None, 2).generate(&request).unwrap().images == alone);
    }
    // Within a pool, its threads generate the images one by one.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    assert!(pool.install(|| open(None, 2).generate(&request).unwrap().images == alone));
    let hart = open(2, 2);
    assert!(hart.install(|| hart.generate(&request).unwrap().images == alone));
}

#[test]
fn calls_at_once_share_the_threads() {
    let hart = open(4, 3);
    let request = |index: usize| Request::new("a house").seed(index as u64 / 2).images_per_prompt(1 + index % 2);
    let alone: Vec<Vec<Image>> = (0..8).map(|index| open(2, 1).generate(&request(index)).unwrap().images).collect();
    thread::scope(|scope| {
        let draw = |index: usize| {
            let mut record = Record { max_side: usize::MAX, ..Record::default() };
            let images = hart.generate_with(&request(index), &mut record).unwrap().images;
            assert!(record.images == images && record.threads.iter().all(|id| *id == thread::current().id()));
            images
        };
        let calls: Vec<_> = (0..8).map(|index| (index, scope.spawn(move || draw(index)))).collect();
        calls.into_iter().for_each(|(index, call)| assert!(call.join().unwrap() == alone[index], "{index}"));
    });
}

#[test]
fn images_run_at_the_same_time() {
    let hart = open(2, 2);
    // Each call goes on only when both have begun.
    let barrier = Barrier::new(2);
    thread::scope(|scope| {
        for seed in 0..2 {
            let (hart, barrier) = (&hart, &barrier);
            scope.spawn(move || {
                let mut begun = false;
                let mut observer = |_: &Event<'_>| {
                    if !std::mem::replace(&mut begun, true) {
                        barrier.wait();
                    }
                    Control::Continue
                };
                let _ = hart.generate_with(&Request::new("a house").seed(seed), &mut observer).unwrap();
            });
        }
    });
    // The events of a request's images alternate.
    let mut record = Record::default();
    let _ = hart.generate_with(&Request::new("a house").images_per_prompt(2), &mut record).unwrap();
    let order: Vec<usize> = record.events.iter().map(|event| event.0).collect();
    let second = order.iter().position(|image| *image == 1).unwrap();
    assert!(order[second..].contains(&0), "{order:?}");
}

#[test]
fn events_belong_to_their_image_and_the_fraction_rises() {
    let request = Request::batch(["a house", "a red heart"]).images_per_prompt(3);
    let mut expected = Record { max_side: usize::MAX, ..Record::default() };
    let _ = open(2, 1).generate_with(&request, &mut expected).unwrap();
    for parallel in [2, 3] {
        let mut record = Record { max_side: usize::MAX, ..Record::default() };
        let generation = open(3, parallel).generate_with(&request, &mut record).unwrap();
        assert!(record.images == expected.images && generation.images == expected.images);
        assert!(record.threads.iter().all(|id| *id == thread::current().id()));
        for image in 0..6 {
            let of_image = |record: &Record| -> Vec<(Stage, Step)> {
                let events = record.events.iter().filter(|event| event.0 == image && event.1 != Stage::Text);
                events.map(|event| (event.1, event.2)).collect()
            };
            assert_eq!(of_image(&record), of_image(&expected), "{image}");
            let previews = |record: &Record| -> Vec<(Step, Vec<u8>)> {
                let previews = record.previews.iter().filter(|preview| preview.0 == image);
                previews.map(|(_, step, preview)| (*step, preview.pixels().to_vec())).collect()
            };
            assert!(previews(&record) == previews(&expected), "{image}");
        }
        let text = |record: &Record| record.events.iter().filter(|event| event.1 == Stage::Text).count();
        assert_eq!(text(&record), text(&expected));
        assert!(record.events.is_sorted_by_key(|event| event.4) && record.events.is_sorted_by_key(|event| event.3));
        assert_eq!(record.events.last().unwrap().4, 1.0);
        assert!(generation.timings.of(Stage::Transformer) > Duration::ZERO && generation.timings.of(Stage::Text) > Duration::ZERO);
    }
}

#[test]
fn small_previews_of_finished_images_are_decoded() {
    let request = Request::new("a house").images_per_prompt(3);
    let preview = |hart: &Hart| {
        let mut record = Record { max_side: 16, ..Record::default() };
        let _ = hart.generate_with(&request, &mut record).unwrap();
        let finished = record.previews.into_iter().filter(|preview| matches!(preview.1, Step::Images { .. }));
        finished.map(|preview| preview.2.pixels().to_vec()).collect::<Vec<_>>()
    };
    let previews = preview(&open(3, 3));
    assert!(previews == preview(&open(1, 1)) && previews.len() == 3 && previews[0].len() == 3 * 16 * 16);
}

#[test]
fn cancelling_stops_all_images() {
    let hart = open(4, 4);
    let request = Request::new("a house").images_per_prompt(8);
    for limit in [1, 40, 200] {
        let (mut events, mut images) = (0, 0);
        struct Stopper<'a>(&'a mut usize, &'a mut usize, usize);
        impl Observer for Stopper<'_> {
            fn event(&mut self, _: &Event<'_>) -> Control {
                *self.0 += 1;
                assert!(*self.0 <= self.2, "the observer has cancelled");
                if *self.0 == self.2 { Control::Cancel } else { Control::Continue }
            }

            fn image(&mut self, _: &Image) {
                assert!(*self.0 < self.2, "the observer has cancelled");
                *self.1 += 1;
            }
        }
        let error = hart.generate_with(&request, &mut Stopper(&mut events, &mut images, limit)).unwrap_err();
        assert!(error.is_cancelled() && events == limit && images < 8);
    }
    // A token stops the images that run and those that wait.
    let token = CancelToken::new();
    let many = request.clone().images_per_prompt(500).cancel_token(token.clone());
    thread::scope(|scope| {
        let calls: Vec<_> = (0..3).map(|_| scope.spawn(|| hart.generate(&many).unwrap_err())).collect();
        thread::sleep(Duration::from_millis(100));
        let begin = Instant::now();
        token.cancel();
        calls.into_iter().for_each(|call| assert!(call.join().unwrap().is_cancelled()));
        assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    });
    // When all images are finished, it is too late.
    let mut last = |event: &Event<'_>| match event.step {
        Step::Images { finished: 8, .. } => Control::Cancel,
        _ => Control::Continue,
    };
    assert_eq!(hart.generate_with(&request, &mut last).unwrap().images.len(), 8);
}

#[test]
fn a_panic_or_a_nested_call_of_the_observer_leaves_the_model_usable() {
    let hart = open(2, 2);
    let request = Request::new("a house").images_per_prompt(3);
    let images = hart.generate(&request).unwrap().images;
    for limit in [1, 30, 90] {
        let mut events = 0;
        let mut panics = |_: &Event<'_>| {
            events += 1;
            if events == limit { panic!("the program's own") } else { Control::Continue }
        };
        let caught = catch_unwind(AssertUnwindSafe(|| hart.generate_with(&request, &mut panics).is_ok())).unwrap_err();
        assert_eq!(*caught.downcast::<&str>().unwrap(), "the program's own");
        // All images that could run at once run again.
        let mut nested = Vec::new();
        let mut observer = |event: &Event<'_>| {
            if event.has_preview() && nested.is_empty() {
                nested = hart.generate(&request).unwrap().images;
            }
            Control::Continue
        };
        assert!(hart.generate_with(&request, &mut observer).unwrap().images == images && nested == images);
    }
}

#[test]
fn an_error_of_one_image_ends_the_request() {
    // Guidance of this size overflows.
    let hart = open(3, 3);
    let request = Request::new("a house").images_per_prompt(6);
    let huge = request.clone().guidance(hart_core::MAX_GUIDANCE);
    let one = open(1, 1).generate(&huge).map(|generation| generation.images);
    match (hart.generate(&huge), one) {
        (Ok(side_by_side), Ok(one)) => assert!(side_by_side.images == one),
        (Err(error), Err(expected)) => assert_eq!(error.to_string(), expected.to_string()),
        (got, expected) => panic!("{:?}, {:?}", got.map(|_| ()), expected.map(|_| ())),
    }
    struct Refuse;
    impl PromptFilter for Refuse {
        fn refuse(&self, _: &str) -> Option<String> {
            Some("nothing is allowed".into())
        }
    }
    assert!(matches!(hart.generate(&request.clone().filter(Refuse)).unwrap_err(), Error::Refused { .. }));
    assert!(matches!(hart.generate(&request.clone().top_k(0)).unwrap_err(), Error::Request { .. }));
    assert_eq!(hart.generate(&request).unwrap().images.len(), 6);
}

#[test]
fn the_number_is_checked_and_chosen() {
    let refused = |options: OpenOptions| Hart::open(shipped(), options).unwrap_err().to_string();
    for (threads, parallel) in [(2, 0), (2, 3), (1, 2)] {
        let message = refused(OpenOptions::new().threads(threads).parallel(parallel));
        let expected = format!("parallel: {parallel}, expected 1 to {threads}, the number of threads; leave it out");
        assert!(message.contains(&expected), "{message}");
    }
    // A small model generates an image on each thread.
    for threads in [1, 2, 4] {
        assert_eq!(Hart::open(shipped(), OpenOptions::new().threads(threads)).unwrap().parallel(), threads);
    }
}

#[test]
fn the_memory_of_all_images_at_once_counts() {
    let open = |options: OpenOptions| Hart::open(shipped(), options.threads(4));
    let request = |count| Request::new("a house").images_per_prompt(count);
    let (one, four) = (open(OpenOptions::new().parallel(1)).unwrap(), open(OpenOptions::new().parallel(4)).unwrap());
    let single = one.memory(&request(1));
    assert_eq!(four.memory(&request(1)), single);
    let finished = 3 * 64 * 64;
    for count in 2..6 {
        let at_once = four.memory(&request(count));
        assert!(at_once.working >= count.min(4) as u64 * (single.working - finished) + count as u64 * finished);
        assert!(at_once.weights >= single.weights);
        assert_eq!(one.memory(&request(count)).working, single.working + (count as u64 - 1) * finished);
    }
    // A limit lowers the number that is chosen, and refuses a larger one.
    let limited = |bytes, parallel: Option<usize>| open(OpenOptions::new().max_memory(bytes).parallel(parallel));
    let large = limited(1 << 40, None).unwrap();
    assert_eq!(large.parallel(), 4);
    let needed = |count| large.memory(&request(count)).peak();
    for count in 2..=4 {
        let hart = limited(needed(count), None).unwrap();
        assert_eq!(hart.parallel(), count);
        assert!(hart.memory(&request(count)).peak() <= needed(count));
        assert_eq!(limited(needed(count), Some(count)).unwrap().parallel(), count);
        let less = limited(needed(count) - 1, None).unwrap();
        assert_eq!(less.parallel(), count - 1);
        assert!(less.generate(&request(4)).unwrap().images == one.generate(&request(4)).unwrap().images);
        let error = limited(needed(count) - 1, Some(count)).unwrap_err();
        assert!(matches!(&error, Error::Memory { needed: n, .. } if *n == needed(count)), "{error}");
        assert!(error.to_string().contains(&format!("{} at once fit", count - 1)), "{error}");
    }
}
