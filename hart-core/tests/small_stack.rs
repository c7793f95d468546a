//! Threads with little stack, as other languages and audio or network libraries start them.

#![cfg(any(target_os = "linux", target_os = "macos"))]

use std::path::Path;
use std::thread::{self, Builder};

use hart_core::{Control, Event, Hart, Image, OpenOptions, Request, with_enough_stack};

/// Stack of the threads. Without optimisation a third of it is used.
const STACK: usize = 64 << 10;

fn open(options: OpenOptions) -> Hart {
    Hart::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/slim-b"), options).unwrap()
}

fn draw(hart: &Hart) -> Vec<Image> {
    let (caller, mut images) = (thread::current().id(), Vec::new());
    let mut observer = |event: &Event<'_>| {
        assert_eq!(thread::current().id(), caller);
        images.extend(event.preview(8).map(Result::unwrap));
        Control::Continue
    };
    let request = Request::new("a red heart").seed(3).system_prompt(hart_core::SystemPrompt::Text("Draw well.".into()));
    let generation = hart.generate_with(&request, &mut observer).unwrap();
    images.extend(generation.images);
    images
}

#[test]
fn models_open_and_generate_on_threads_with_little_stack() {
    for options in [OpenOptions::new(), OpenOptions::new().threads(1)] {
        let images = draw(&open(options.clone()));
        let small = move || {
            let hart = open(options);
            let file = with_enough_stack(|| images[0].encode(hart_core::ImageFormat::JPEG)).unwrap();
            assert!(file.is_ok() && draw(&hart) == images);
            // A panic of an observer propagates from such a thread too.
            let mut panic = |_: &Event<'_>| std::panic::resume_unwind(Box::new("the program's own"));
            let run = || hart.generate_with(&Request::new("a red heart"), &mut panic).is_ok();
            let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).unwrap_err();
            assert_eq!(*caught.downcast::<&str>().unwrap(), "the program's own");
        };
        Builder::new().stack_size(STACK).spawn(small).unwrap().join().unwrap();
    }
}
