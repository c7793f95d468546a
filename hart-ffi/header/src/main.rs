//! Generates `include/hart.h` and `include/hart.cdef` from the doc comments of hart-ffi: `hart_header` writes the files,
//! `hart_header --check` compares them.

mod comments;
mod constants;
mod declarations;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{env, fs};

use cbindgen::{Builder, Config, DocumentationStyle, ItemType, Language, SortKey, Style};

/// The text before the declarations.
const OPENING: &str = include_str!("opening.h");
/// The text after the declarations.
const CLOSING: &str = "#ifdef __cplusplus\n}\n#endif\n\n#endif\n";
/// Maximum length of a line of the header, as in .rustfmt.toml.
const LINE_LENGTH: usize = 132;
/// Files of hart-ffi in the order of the header, each with its heading.
const SECTIONS: [(&str, &str); 18] = [
    ("version", "Version"),
    ("status", "Status"),
    ("last_error", "Last error"),
    ("user_data", "User data"),
    ("log", "Log"),
    ("device", "Devices"),
    ("cancel", "Cancellation"),
    ("event", "Events"),
    ("options", "Options"),
    ("files", "Files in memory"),
    ("model", "Models"),
    ("request", "Requests"),
    ("request_image", "Images that requests start from"),
    ("request_values", "Values of requests"),
    ("context", "Contexts"),
    ("generate", "Generation"),
    ("image", "Images"),
    ("tokens", "Tokens"),
];

fn main() -> ExitCode {
    match run() {
        Ok(message) => {
            println!("{message}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<String, Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize()?;
    let files = generated(&root)?;
    match env::args().nth(1).as_deref() {
        None => {
            for (path, text) in files {
                let mut file = tempfile::NamedTempFile::new_in(root.join("include"))?;
                std::io::Write::write_all(&mut file, text.as_bytes())?;
                #[cfg(unix)]
                fs::set_permissions(file.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
                file.persist(&path)?;
            }
            Ok("wrote include/hart.h and include/hart.cdef".into())
        }
        Some("--check") => match files.iter().find(|(path, text)| fs::read_to_string(path).ok().as_ref() != Some(text)) {
            None => Ok("include/hart.h and include/hart.cdef are up to date".into()),
            Some((path, _)) => {
                let name = path.display();
                Err(format!("{name} differs from the comments of hart-ffi: run `cargo run --release -p hart-header`").into())
            }
        },
        Some(other) => Err(format!("unknown argument {other}: expected nothing, or --check").into()),
    }
}

/// Returns the generated files with their paths.
fn generated(root: &Path) -> Result<[(PathBuf, String); 2], Box<dyn Error>> {
    let body = body(root)?;
    let header = format!("{OPENING}{body}{CLOSING}");
    Ok([(root.join("include/hart.h"), header), (root.join("include/hart.cdef"), declarations::of(&body)?)])
}

/// Returns the documented declarations of the header.
fn body(root: &Path) -> Result<String, Box<dyn Error>> {
    let source = |section: &str| root.join("hart-ffi/src").join(section).with_extension("rs");
    let all: Vec<PathBuf> = SECTIONS.iter().map(|(section, _)| source(section)).collect();
    // Objects refer to each other, so all of them are declared first.
    let mut body = heading("Objects");
    body += &bindings(&all, Language::C, &[ItemType::OpaqueItems])?;
    for (section, title) in SECTIONS {
        let source = [source(section)];
        let constants = constants::parse(&bindings(&source, Language::Cxx, &[ItemType::Constants])?)?;
        body += &heading(title);
        body += &constants::macros(&constants);
        let items = [ItemType::Structs, ItemType::Typedefs, ItemType::Functions];
        body += &constants::with_enums(&bindings(&source, Language::C, &items)?, &constants);
    }
    Ok(comments::on_one_line(&body))
}

fn heading(title: &str) -> String {
    format!("/* ---- {title} {} */\n\n", "-".repeat(70 - title.len()))
}

/// Returns the declarations of some kinds of items in some files, separated by blank lines.
fn bindings(sources: &[PathBuf], language: Language, items: &[ItemType]) -> Result<String, Box<dyn Error>> {
    let mut config = Config { language, style: Style::Type, usize_is_size_t: true, no_includes: true, ..Config::default() };
    config.documentation_style = DocumentationStyle::Doxy;
    config.line_length = LINE_LENGTH;
    config.constant.allow_constexpr = false;
    config.sort_by = SortKey::None;
    config.function.prefix = Some("HART_API".into());
    config.function.sort_by = Some(SortKey::None);
    config.export.item_types = items.to_vec();
    // cbindgen leaves out types that no function of their own section uses.
    config.export.include = ["hart_stage", "hart_step", "hart_event", "hart_observer", "hart_destroy"].map(String::from).to_vec();
    let builder = sources.iter().fold(Builder::new().with_config(config), |builder, source| builder.with_src(source));
    let mut text = Vec::new();
    builder.generate()?.write(&mut text);
    Ok(String::from_utf8(text)?.trim().to_string() + "\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_files_match_the_comments() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        for (path, text) in generated(&root).unwrap() {
            let committed = fs::read_to_string(&path).unwrap();
            assert!(committed == text, "{} is out of date: run `cargo run --release -p hart-header`", path.display());
        }
    }
}
