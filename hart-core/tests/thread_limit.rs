//! A system that starts no threads: calls fail, say so, and succeed once the limit is gone. The limit holds for a whole process, so the
//! test runs its checks in a process of their own.

#![cfg(target_os = "linux")]
#![allow(unsafe_code)]

use std::fs;
use std::path::Path;
use std::process::Command;

use hart_core::{Control, Error, Event, Files, Hart, Image, OpenOptions, Request, WeightSet};

const NAME: &str = "a_process_that_may_start_no_threads_gets_an_error_that_says_so";
/// Set in the process with the limit.
const LIMITED: &str = "HART_TEST_LIMITED";
/// User and group without privileges: the limit does not hold for root.
const NOBODY: u32 = 65534;

fn files() -> Files {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/slim-b");
    let mut files = Files::new();
    for part in ["llm", "text", "tokenizer"] {
        for entry in fs::read_dir(root.join(part)).unwrap() {
            let path = entry.unwrap().path();
            files.insert(path.strip_prefix(&root).unwrap(), fs::read(&path).unwrap()).unwrap();
        }
    }
    files
}

fn draw(hart: &Hart) -> Result<Vec<Image>, Error> {
    Ok(hart.generate(&Request::new("a red heart").seed(3))?.images)
}

/// Limits the number of threads of this user, or removes the limit.
fn set_limit(limited: bool) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is valid for reads and writes.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NPROC, &mut limit), 0);
        limit.rlim_cur = if limited { 1 } else { limit.rlim_max };
        assert_eq!(libc::setrlimit(libc::RLIMIT_NPROC, &limit), 0);
    }
}

fn assert_limited<T>(result: Result<T, Error>) {
    let Some(error) = result.err() else { panic!("threads were started") };
    let message = error.to_string();
    assert!(matches!(error, Error::Threads { .. }), "{message}");
    assert!(message.contains("no threads could be started: Resource temporarily unavailable"), "{message}");
}

/// The checks in the process with the limit.
fn checks(files: Files) {
    let open =
        |threads: Option<usize>| Hart::from_files(files.clone(), OpenOptions::new().threads(threads).weight_set(WeightSet::Plain));
    for _ in 0..2 {
        assert_limited(open(None));
        assert_limited(open(Some(2)));
    }
    set_limit(false);
    let models = [open(None).unwrap(), open(Some(2)).unwrap()];
    let images = draw(&models[0]).unwrap();
    set_limit(true);
    // The threads that have been started keep working.
    for hart in &models {
        assert!(draw(hart).unwrap() == images);
        // An observer that generates needs threads of its own.
        let mut nested = 0;
        let mut observer = |event: &Event<'_>| {
            if event.has_preview() {
                assert_limited(draw(hart));
                nested += 1;
            }
            Control::Continue
        };
        assert!(hart.generate_with(&Request::new("a red heart").seed(3), &mut observer).unwrap().images == images);
        assert!(nested > 0);
    }
    assert_limited(open(Some(1)));
    set_limit(false);
    assert!(draw(&open(Some(1)).unwrap()).unwrap() == images);
}

#[test]
fn a_process_that_may_start_no_threads_gets_an_error_that_says_so() {
    if std::env::var_os(LIMITED).is_none() {
        let program = std::env::current_exe().unwrap();
        let run = Command::new(program).args(["--exact", NAME, "--nocapture"]).env(LIMITED, "1").output().unwrap();
        let (printed, errors) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
        assert!(run.status.success() && printed.contains("1 passed"), "{printed}\n{errors}");
        assert!(!errors.contains("panicked"), "{errors}");
        return;
    }
    let files = files();
    // SAFETY: changes only the identity of this process.
    unsafe {
        if libc::geteuid() == 0 {
            assert_eq!((libc::setresgid(NOBODY, NOBODY, NOBODY), libc::setresuid(NOBODY, NOBODY, NOBODY)), (0, 0));
        }
    }
    set_limit(true);
    if std::thread::Builder::new().spawn(|| ()).is_ok() {
        // Some sandboxes ignore the limit.
        eprintln!("this system does not limit threads: nothing is tested");
        return;
    }
    checks(files);
}
