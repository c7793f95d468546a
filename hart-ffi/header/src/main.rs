//! Makes `include/hart.h` from the comments of hart-ffi: `hart_header` writes it, `hart_header --check` compares.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{env, fs};

use cbindgen::{Builder, Config, DocumentationStyle, ItemType, Language, SortKey, Style};

/// What stands before the declarations.
const OPENING: &str = include_str!("opening.h");
/// What stands after them.
const CLOSING: &str = "#ifdef __cplusplus\n}\n#endif\n\n#endif\n";
/// hart-ffi's files in the header's order, and the heading of each.
const SECTIONS: [(&str, &str); 12] = [
    ("version", "Version"),
    ("status", "Status and errors"),
    ("device", "Devices"),
    ("options", "Options"),
    ("files", "Files in memory"),
    ("model", "Models"),
    ("cancel", "Cancelling"),
    ("event", "Events"),
    ("request", "Requests"),
    ("generate", "Generating"),
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
    let (path, made) = (root.join("include/hart.h"), header(&root)?);
    let name = path.display();
    match env::args().nth(1).as_deref() {
        None => {
            let mut file = tempfile::NamedTempFile::new_in(root.join("include"))?;
            std::io::Write::write_all(&mut file, made.as_bytes())?;
            #[cfg(unix)]
            fs::set_permissions(file.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
            file.persist(&path)?;
            Ok(format!("wrote {name}"))
        }
        Some("--check") if fs::read_to_string(&path)? == made => Ok(format!("{name} is up to date")),
        Some("--check") => Err(format!("{name} has drifted from hart-ffi: run `cargo run --release -p hart-header`").into()),
        Some(other) => Err(format!("unknown argument {other}: expected nothing, or --check").into()),
    }
}

/// The whole header.
fn header(root: &Path) -> Result<String, Box<dyn Error>> {
    let source = |section: &str| root.join("hart-ffi/src").join(section).with_extension("rs");
    let all: Vec<PathBuf> = SECTIONS.iter().map(|(section, _)| source(section)).collect();
    let mut header = OPENING.to_string();
    // Objects know each other, so they come first of all.
    header += &heading("Objects");
    header += &declarations(&all, &[ItemType::OpaqueItems])?;
    for (section, title) in SECTIONS {
        header += &heading(title);
        let items = [ItemType::Constants, ItemType::Structs, ItemType::Typedefs, ItemType::Functions];
        header += &declarations(&[source(section)], &items)?;
    }
    Ok(header + CLOSING)
}

fn heading(title: &str) -> String {
    format!("/* ---- {title} {} */\n\n", "-".repeat(70 - title.len()))
}

/// The declarations of some kinds in some files.
fn declarations(sources: &[PathBuf], items: &[ItemType]) -> Result<String, Box<dyn Error>> {
    let mut config =
        Config { language: Language::C, style: Style::Type, usize_is_size_t: true, no_includes: true, ..Config::default() };
    config.documentation_style = DocumentationStyle::Cxx;
    config.line_length = 132;
    config.sort_by = SortKey::None;
    config.function.prefix = Some("HART_API".into());
    config.function.sort_by = Some(SortKey::None);
    config.export.item_types = items.to_vec();
    // Used in another section than their own; what isn't used in its own is else left out.
    config.export.include = ["hart_event", "hart_observer"].map(String::from).to_vec();
    let builder = sources.iter().fold(Builder::new().with_config(config), |builder, source| builder.with_src(source));
    let mut text = Vec::new();
    builder.generate()?.write(&mut text);
    Ok(String::from_utf8(text)?.trim().to_string() + "\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_header_is_what_the_comments_make() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let committed = fs::read_to_string(root.join("include/hart.h")).unwrap();
        assert!(committed == header(&root).unwrap(), "include/hart.h has drifted: run `cargo run --release -p hart-header`");
    }
}
