//! Forked processes: models work in them, or refuse at once. A file of its own, since a fork must not meet calls of other tests.

#![cfg(target_os = "linux")]
#![allow(unsafe_code)]

use std::io::Write;
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use hart_core::{Control, Error, Event, Hart, Image, OpenOptions, Precision, Request, WeightSet};

/// Longest time for a child to end. It needs a few seconds without optimisation.
const LIMIT: Duration = Duration::from_secs(120);

fn open(options: OpenOptions) -> Hart {
    Hart::open(fixture(), options).unwrap()
}

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/slim-b")
}

fn draw(hart: &Hart) -> Result<Vec<Image>, Error> {
    Ok(hart.generate(&Request::new("a red heart").seed(3))?.images)
}

/// Runs checks in a forked child and waits for it. Kills it if it hangs.
fn in_child(name: &str, checks: impl FnOnce()) {
    // SAFETY: the child calls nothing that depends on threads that it does not have, which is what the test is about.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "{name}: fork failed");
    if child == 0 {
        let failed = catch_unwind(AssertUnwindSafe(checks)).is_err();
        // SAFETY: ends the child without the destructors and handlers of the test program.
        unsafe { libc::_exit(failed.into()) };
    }
    let (begin, mut status) = (Instant::now(), 0);
    // SAFETY: `status` is valid for writes.
    while unsafe { libc::waitpid(child, &mut status, libc::WNOHANG) } == 0 {
        if begin.elapsed() > LIMIT {
            // SAFETY: the child has not been waited for, so its number is still its own.
            unsafe { libc::kill(child, libc::SIGKILL) };
            panic!("{name}: the child hangs");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(status, 0, "{name}: the child failed");
}

fn assert_state(error: Error) {
    assert!(matches!(&error, Error::State { problem } if problem.contains("forked while a call of hart was running")), "{error}");
}

#[test]
fn a_forked_child_draws_or_refuses_at_once() {
    // The test harness captures what a panic prints, and the child's memory is lost.
    std::panic::set_hook(Box::new(|panic| drop(writeln!(std::io::stderr(), "{panic}"))));
    let (shared, own) = (open(OpenOptions::new()), open(OpenOptions::new().threads(1)));
    in_child("before the first image", || {
        assert!(draw(&shared).unwrap() == draw(&own).unwrap());
    });
    let images = draw(&shared).unwrap();
    assert!(draw(&own).unwrap() == images);
    in_child("inherited models", || {
        assert!(draw(&shared).unwrap() == images);
        assert!(draw(&own).unwrap() == images);
        assert!(shared.install(rayon::current_num_threads) == own.install(|| std::thread::available_parallelism().unwrap().get()));
        in_child("a child's child", || {
            assert!(draw(&shared).unwrap() == images && draw(&own).unwrap() == images);
        });
        // An observer is called on the calling thread, and may use the model.
        let mut nested = None;
        let mut observer = |event: &Event<'_>| {
            if event.has_preview() && nested.is_none() {
                nested = Some((draw(&shared).unwrap(), std::thread::current().id()));
            }
            Control::Continue
        };
        let request = Request::new("a red heart").seed(3);
        assert!(shared.generate_with(&request, &mut observer).unwrap().images == images);
        let (drawn, thread) = nested.unwrap();
        assert!(drawn == images && thread == std::thread::current().id());
    });
    in_child("new models", || {
        assert!(draw(&open(OpenOptions::new())).unwrap() == images);
        assert!(draw(&open(OpenOptions::new().threads(2))).unwrap() == images);
        assert!(!hart_core::devices().is_empty());
        let folder = tempfile::tempdir().unwrap();
        let convert = || {
            let to = folder.path().join("int8");
            hart_core::convert(&fixture(), &to, Precision::Int8, WeightSet::Plain, None, &mut |_| Control::Continue)
        };
        assert!(convert().unwrap_err().to_string().contains("rayon::ThreadPool::install"));
        rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap().install(convert).unwrap();
    });
    // The child drops the only handles.
    let handles = ManuallyDrop::new((open(OpenOptions::new()), open(OpenOptions::new().threads(2))));
    in_child("dropped models", || drop(ManuallyDrop::into_inner(handles)));
    for hart in [&shared, &own] {
        std::thread::scope(|scope| {
            let ((started, start), (end, ended)) = (channel(), channel());
            scope.spawn(move || {
                let mut waiting = true;
                let mut observer = |_: &Event<'_>| {
                    if std::mem::take(&mut waiting) {
                        started.send(()).unwrap();
                        ended.recv().unwrap();
                    }
                    Control::Continue
                };
                drop(hart.generate_with(&Request::new("a red heart"), &mut observer).unwrap());
            });
            start.recv().unwrap();
            in_child("forked during a call", || {
                let begin = Instant::now();
                assert_state(draw(&shared).unwrap_err());
                assert_state(draw(&own).unwrap_err());
                assert_state(shared.encode(&Request::new("a red heart")).unwrap_err());
                assert_state(shared.try_install(|| Ok(())).unwrap_err());
                for options in [OpenOptions::new(), OpenOptions::new().threads(1)] {
                    assert_state(Hart::open(fixture(), options).unwrap_err());
                }
                assert!(begin.elapsed() < Duration::from_secs(1));
            });
            end.send(()).unwrap();
        });
    }
    in_child("after that call", || assert!(draw(&shared).unwrap() == images && draw(&own).unwrap() == images));
    // The parent still works.
    assert!(draw(&shared).unwrap() == images && draw(&own).unwrap() == images);
}
