//! Generates `include/hart.h` from the doc comments of hart-ffi: `hart_header` writes the file, `hart_header --check`
//! compares it.

mod comments;
mod constants;

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
const SECTIONS: [(&str, &str); 14] = [
    ("version", "Version"),
    ("status", "Status"),
    ("last_error", "Last error"),
    ("device", "Devices"),
    ("options", "Options"),
    ("files", "Files in memory"),
    ("model", "Models"),
    ("cancel", "Cancellation"),
    ("event", "Events"),
    ("request", "Requests"),
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
    let (path, generated) = (root.join("include/hart.h"), header(&root)?);
    let name = path.display();
    match env::args().nth(1).as_deref() {
        None => {
            let mut file = tempfile::NamedTempFile::new_in(root.join("include"))?;
            std::io::Write::write_all(&mut file, generated.as_bytes())?;
            #[cfg(unix)]
            fs::set_permissions(file.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
            file.persist(&path)?;
            Ok(format!("wrote {name}"))
        }
        Some("--check") if fs::read_to_string(&path)? == generated => Ok(format!("{name} is up to date")),
        Some("--check") => {
            Err(format!("{name} differs from the comments of hart-ffi: run `cargo run --release -p hart-header`").into())
        }
        Some(other) => Err(format!("unknown argument {other}: expected nothing, or --check").into()),
    }
}

/// Returns the whole header.
fn header(root: &Path) -> Result<String, Box<dyn Error>> {
    let source = |section: &str| root.join("hart-ffi/src").join(section).with_extension("rs");
    let all: Vec<PathBuf> = SECTIONS.iter().map(|(section, _)| source(section)).collect();
    let mut header = OPENING.to_string();
    // Objects refer to each other, so all of them are declared first.
    header += &heading("Objects");
    header += &bindings(&all, Language::C, &[ItemType::OpaqueItems])?;
    for (section, title) in SECTIONS {
        let source = [source(section)];
        let constants = constants::parse(&bindings(&source, Language::Cxx, &[ItemType::Constants])?)?;
        header += &heading(title);
        header += &constants::macros(&constants);
        let items = [ItemType::Structs, ItemType::Typedefs, ItemType::Functions];
        header += &constants::with_enums(&bindings(&source, Language::C, &items)?, &constants);
    }
    Ok(comments::on_one_line(&header) + CLOSING)
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
    config.export.include = ["hart_stage", "hart_step", "hart_event", "hart_observer"].map(String::from).to_vec();
    let builder = sources.iter().fold(Builder::new().with_config(config), |builder, source| builder.with_src(source));
    let mut text = Vec::new();
    builder.generate()?.write(&mut text);
    Ok(String::from_utf8(text)?.trim().to_string() + "\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_header_matches_the_comments() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let committed = fs::read_to_string(root.join("include/hart.h")).unwrap();
        assert!(committed == header(&root).unwrap(), "include/hart.h is out of date: run `cargo run --release -p hart-header`");
    }
}
