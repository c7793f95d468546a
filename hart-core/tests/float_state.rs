//! Programs that change the processor's floating-point state: directed rounding, traps, subnormal numbers flushed to zero.

#![cfg(target_arch = "x86_64")]
#![allow(unsafe_code)]

use std::arch::asm;
use std::path::{Path, PathBuf};

use hart_core::{Control, Error, Event, Hart, Image, OpenOptions, Request};

/// The default state, MXCSR: exceptions are masked, and results rounded to the nearest number.
const DEFAULT: u32 = 0x1f80;
/// Other states, with the names that C gives them.
const STATES: [(&str, u32); 5] = [
    ("FE_UPWARD", DEFAULT | 0x4000),
    ("FE_DOWNWARD", DEFAULT | 0x2000),
    ("FE_TOWARDZERO", DEFAULT | 0x6000),
    ("flush to zero", DEFAULT | 0x8040),
    ("feenableexcept(FE_ALL_EXCEPT)", 0),
];

/// Runs work in another state. Returns its result and the state after it.
fn in_state<R>(state: u32, work: impl FnOnce() -> R) -> (R, u32) {
    let (default, mut after) = (DEFAULT, 0u32);
    // SAFETY: the library sets the state that Rust assumes before it computes, which is what the tests are about.
    unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const state, options(nostack, readonly)) };
    let result = opaque(work);
    // SAFETY: the instructions store the register and set the default state.
    unsafe {
        asm!("stmxcsr [{0}]", "ldmxcsr [{1}]", in(reg) &raw mut after, in(reg) &raw const default, options(nostack));
    }
    (result, after)
}

#[inline(never)]
fn opaque<R>(work: impl FnOnce() -> R) -> R {
    work()
}

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/slim-b")
}

fn draw(hart: &Hart) -> Result<Vec<Image>, Error> {
    let mut previews = Vec::new();
    let mut observer = |event: &Event<'_>| {
        previews.extend(event.preview(8).map(Result::unwrap));
        Control::Continue
    };
    let mut images = hart.generate_with(&Request::new("a red heart").seed(3), &mut observer)?.images;
    images.extend(previews);
    Ok(images)
}

#[test]
fn images_do_not_depend_on_the_programs_state_which_is_kept() {
    for options in [OpenOptions::new(), OpenOptions::new().threads(2)] {
        let hart = Hart::open(fixture(), options.clone()).unwrap();
        let images = draw(&hart).unwrap();
        for (name, state) in STATES {
            let (drawn, after) = in_state(state, || draw(&hart));
            assert!(drawn.unwrap() == images, "{name}");
            assert_eq!(after, state, "{name}");
            // The threads of a model inherit the state of the thread that opens it.
            let (opened, after) = in_state(state, || Hart::open(fixture(), options.clone()));
            assert_eq!(after, state, "{name}");
            assert!(draw(&opened.unwrap()).unwrap() == images, "{name}: opened in this state");
        }
    }
}
