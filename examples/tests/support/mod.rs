//! Helpers that run the example programs as a shell does.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

/// Runs a program in a folder.
pub fn run(program: &str, folder: &Path, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).current_dir(folder).output().unwrap()
}

/// Runs a program that must succeed, and returns its standard output.
pub fn succeeds(program: &str, folder: &Path, arguments: &[&str]) -> String {
    let output = run(program, folder, arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a program that must fail with a message that contains all of `words`, and must leave no files.
pub fn fails(program: &str, arguments: &[&str], words: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let output = run(program, folder.path(), arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{arguments:?} succeeded");
    assert!(!errors.contains("panicked"), "{errors}");
    for word in words {
        assert!(errors.contains(word), "{arguments:?}: no {word:?} in: {errors}");
    }
    assert_eq!(names(folder.path()), [""; 0], "{arguments:?} left files");
}

/// Returns the sorted names of a folder's files.
pub fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
