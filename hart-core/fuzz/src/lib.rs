//! The entry point of a fuzz target: libFuzzer's under cargo-fuzz, otherwise a program that replays files.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use arbitrary::{Arbitrary, Unstructured};
#[cfg(fuzzing)]
pub use libfuzzer_sys::fuzz_target;

/// Defines `main`, which runs the target on each file named on the command line.
///
/// Takes a closure as libFuzzer's macro of this name does, and makes its argument from a file's bytes in the same way.
#[cfg(not(fuzzing))]
#[macro_export]
macro_rules! fuzz_target {
    (|$input:ident: &[u8]| $body:expr) => {
        fn main() -> std::process::ExitCode {
            $crate::replay(|$input: &[u8]| $body)
        }
    };
    (|$input:ident: $type:ty| $body:expr) => {
        fn main() -> std::process::ExitCode {
            $crate::replay(|bytes| {
                if let Some($input) = $crate::input_from_bytes::<$type>(bytes) {
                    $body
                }
            })
        }
    };
}

/// Runs the target on each file named on the command line. A target fails by a panic, after the name of its file was printed.
pub fn replay(target: impl Fn(&[u8])) -> ExitCode {
    let paths: Vec<_> = env::args_os().skip(1).map(PathBuf::from).collect();
    if paths.is_empty() {
        eprintln!("no input: pass the files to replay");
        return ExitCode::from(2);
    }
    for path in &paths {
        println!("{}", path.display());
        match fs::read(path) {
            Ok(bytes) => target(&bytes),
            Err(e) => {
                eprintln!("{} can't be read: {e}", path.display());
                return ExitCode::FAILURE;
            }
        }
    }
    println!("{} inputs replayed", paths.len());
    ExitCode::SUCCESS
}

/// Returns the input that these bytes encode, or `None` if they are too few or encode none, as libFuzzer's macro does.
pub fn input_from_bytes<'a, T: Arbitrary<'a>>(bytes: &'a [u8]) -> Option<T> {
    let (least, _) = T::size_hint(0);
    (bytes.len() >= least).then(|| T::arbitrary_take_rest(Unstructured::new(bytes)).ok()).flatten()
}
