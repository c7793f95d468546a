//! The layers of the crate: a module uses only modules of its own layer and of lower ones.
//!
//! The tests read the sources: every path that begins with `crate`, `super` or `self`, in `use` groups too, is resolved to the file
//! that defines it, through re-exports. Tests within the sources may use anything.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// A module by the names on its path; the crate's root is empty.
type Module = Vec<String>;

/// The layers from the bottom up; a module uses those of earlier lines, and of its own line.
const LAYERS: [&[&str]; 11] = [
    &["math"],
    &[
        "error",
        "process",
        "image",
        "progress",
        "device",
        "rng",
        "filter",
        "scales",
        "schedule",
        "pruning",
        "config",
        "files",
        "from_image",
    ],
    &["kernels", "threads"],
    &["nn"],
    &["weights", "precision", "options"],
    &["text", "transformer", "sampling", "residual", "visual"],
    &["request"],
    &["memory"],
    &["pipeline"],
    &["convert"],
    &["train", "stages"],
];
/// The stages in order of execution; a stage uses only earlier ones.
const STAGES: [&str; 5] = ["text", "transformer", "sampling", "residual", "visual"];

/// A source file without comments, string contents and tests.
struct Source {
    file: PathBuf,
    module: Module,
    text: String,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let relative = path.strip_prefix(&root).unwrap().with_extension("");
            let mut module: Module = relative.iter().map(|name| name.to_string_lossy().into_owned()).collect();
            module.pop_if(|name| name == "mod" || name == "lib");
            let is_test = module.iter().any(|name| name == "tests" || name == "testing");
            if path.extension().is_some_and(|extension| extension == "rs") && !is_test {
                let text = code(&fs::read_to_string(&path).unwrap());
                found.push(Source { file: path, module, text });
            }
        }
    }
    found
}

/// Returns the text without comments, the contents of strings, and everything from the unit tests on.
fn code(text: &str) -> String {
    let lines = text.lines().take_while(|line| *line != "#[cfg(test)]" && !line.starts_with("#[cfg(all(test"));
    let mut out = String::new();
    for line in lines.filter(|line| !line.trim_start().starts_with("//")) {
        let mut in_string = false;
        let mut escaped = false;
        for (at, letter) in line.char_indices() {
            if !in_string && line[at..].starts_with("//") {
                break;
            }
            if letter == '"' && !escaped && !line[..at].ends_with('\'') {
                in_string = !in_string;
            }
            escaped = in_string && letter == '\\' && !escaped;
            out.push(if in_string && letter != '"' { ' ' } else { letter });
        }
        out.push('\n');
    }
    out
}

/// Splits into identifiers, `::` and single characters.
fn tokens(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(letter) = rest.chars().next() {
        let word = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        let length = if word > 0 {
            word
        } else if rest.starts_with("::") {
            2
        } else {
            letter.len_utf8()
        };
        if !letter.is_whitespace() {
            found.push(&rest[..length]);
        }
        rest = &rest[length..];
    }
    found
}

/// Returns the absolute paths in a source, each with the name under which a `pub use` exports it.
fn paths(source: &Source) -> Vec<(Module, Option<String>)> {
    let tokens = tokens(&source.text);
    let mut found = Vec::new();
    // Inline modules that are open, with the depth of braces at which they end.
    let mut inline: Vec<usize> = Vec::new();
    let (mut depth, mut at, mut exported) = (0, 0, false);
    while at < tokens.len() {
        match tokens[at] {
            "{" => depth += 1,
            "}" => {
                depth -= 1;
                inline.pop_if(|end| *end == depth);
            }
            "mod" if tokens.get(at + 2) == Some(&"{") => inline.push(depth),
            "use" => exported = at > 0 && (tokens[at - 1] == "pub" || tokens[at - 1] == ")"),
            ";" => exported = false,
            "crate" | "super" | "self" if tokens.get(at + 1) == Some(&"::") && (at == 0 || tokens[at - 1] != "::") => {
                let nested = inline.len();
                at = path(&tokens, at, &source.module, nested, exported, &mut found);
                continue;
            }
            // `use child::Item` within a folder's own file.
            first if at > 0 && tokens[at - 1] == "use" && tokens.get(at + 1) == Some(&"::") && first != "crate" => {
                let prefix = [source.module.clone(), vec![first.to_string()]].concat();
                at = group(&tokens, at + 2, prefix, exported, &mut found);
                continue;
            }
            _ => {}
        }
        at += 1;
    }
    found
}

/// Reads a path that begins with `crate`, `super` or `self` at a token; returns the token behind it.
fn path(
    tokens: &[&str],
    mut at: usize,
    module: &Module,
    nested: usize,
    exported: bool,
    found: &mut Vec<(Module, Option<String>)>,
) -> usize {
    let mut prefix = if tokens[at] == "crate" { Vec::new() } else { module.clone() };
    // An inline module's `super` is the file's module.
    let mut inside = nested;
    while matches!(tokens[at], "crate" | "super" | "self") && tokens.get(at + 1) == Some(&"::") {
        if tokens[at] == "super" {
            if inside > 0 { inside -= 1 } else { drop(prefix.pop()) }
        }
        at += 2;
    }
    group(tokens, at, prefix, exported, found)
}

/// Reads the rest of a path after its prefix: more segments, or a group in braces.
fn group(tokens: &[&str], mut at: usize, mut prefix: Module, exported: bool, found: &mut Vec<(Module, Option<String>)>) -> usize {
    loop {
        match tokens.get(at) {
            Some(&"{") => {
                at += 1;
                while tokens[at] != "}" {
                    if tokens[at] == "," {
                        at += 1;
                    } else {
                        at = group(tokens, at, prefix.clone(), exported, found);
                    }
                }
                return at + 1;
            }
            Some(&"self") | Some(&"*") => {
                found.push((prefix, None));
                return at + 1;
            }
            Some(&name) if name.chars().all(|c| c.is_alphanumeric() || c == '_') => {
                prefix.push(name.to_string());
                at += 1;
                if tokens.get(at) == Some(&"::") {
                    at += 1;
                    continue;
                }
                let mut alias = name.to_string();
                if tokens.get(at) == Some(&"as") {
                    alias = tokens[at + 1].to_string();
                    at += 2;
                }
                found.push((prefix, exported.then_some(alias)));
                return at;
            }
            _ => {
                found.push((prefix, None));
                return at;
            }
        }
    }
}

/// The files that each file uses.
struct Graph {
    uses: BTreeMap<Module, BTreeSet<Module>>,
}

impl Graph {
    fn new(sources: &[Source]) -> Self {
        let modules: BTreeSet<&Module> = sources.iter().map(|source| &source.module).collect();
        let paths: Vec<_> = sources.iter().map(|source| (source, paths(source))).collect();
        let mut exports: BTreeMap<Module, Module> = BTreeMap::new();
        for (source, found) in &paths {
            for (path, alias) in found {
                if let Some(alias) = alias {
                    exports.insert([source.module.clone(), vec![alias.clone()]].concat(), path.clone());
                }
            }
        }
        let resolve = |path: &Module| {
            let mut path = path.clone();
            for _ in 0..10 {
                // The longest prefix that is re-exported under this name.
                let export = (1..=path.len()).rev().find_map(|length| Some((length, exports.get(&path[..length])?)));
                match export {
                    Some((length, target)) if target[..] != path[..length] => path = [target, &path[length..]].concat(),
                    _ => break,
                }
            }
            (0..=path.len()).rev().map(|length| path[..length].to_vec()).find(|prefix| modules.contains(prefix))
        };
        let mut uses: BTreeMap<Module, BTreeSet<Module>> = BTreeMap::new();
        for (source, found) in &paths {
            let used = uses.entry(source.module.clone()).or_default();
            for target in found.iter().filter_map(|(path, _)| resolve(path)) {
                // A folder's own file holds what the folder's files share.
                if target != source.module && !source.module.starts_with(&target) {
                    used.insert(target);
                }
            }
        }
        Self { uses }
    }

    /// Returns the files that are part of a cycle, each with the files of the cycle that it uses.
    fn cycles(&self) -> Vec<String> {
        let mut left = self.uses.clone();
        // A file that uses none of the remaining files, or that none of them uses, is not part of a cycle.
        loop {
            let used: BTreeSet<&Module> = left.values().flatten().collect();
            let free = |module: &Module, uses: &BTreeSet<Module>| {
                !used.contains(module) || uses.iter().all(|target| !left.contains_key(target))
            };
            let done: Vec<Module> =
                left.iter().filter(|(module, uses)| free(module, uses)).map(|(module, _)| module.clone()).collect();
            if done.is_empty() {
                break;
            }
            done.iter().for_each(|module| drop(left.remove(module)));
        }
        let name = |module: &Module| module.join("::");
        let inside =
            |uses: &BTreeSet<Module>| uses.iter().filter(|target| left.contains_key(*target)).map(name).collect::<Vec<_>>();
        left.iter().map(|(module, uses)| format!("{} uses {}", name(module), inside(uses).join(", "))).collect()
    }
}

fn layer(name: &str) -> usize {
    LAYERS.iter().position(|layer| layer.contains(&name)).unwrap_or_else(|| panic!("{name} has no layer in this test"))
}

#[test]
fn a_module_uses_only_lower_layers() {
    for (module, used) in Graph::new(&sources()).uses.iter().filter(|(module, _)| !module.is_empty()) {
        for target in used.iter().filter(|target| !target.is_empty() && target[0] != module[0]) {
            let (from, to) = (module.join("::"), target.join("::"));
            // An error carries the report of a checkpoint's weights.
            if (from.as_str(), to.as_str()) == ("error", "weights::report") {
                continue;
            }
            assert!(layer(&target[0]) <= layer(&module[0]), "{from} uses {to}, which is in a higher layer");
        }
    }
}

#[test]
fn a_stage_uses_only_earlier_stages() {
    for (module, used) in Graph::new(&sources()).uses {
        let Some(position) = module.first().and_then(|name| STAGES.iter().position(|stage| stage == name)) else { continue };
        for target in used.iter().filter(|target| target[..1] != module[..1]) {
            let later = STAGES[position + 1..].contains(&target.first().map_or("", String::as_str));
            assert!(!later, "{} uses {}", module.join("::"), target.join("::"));
        }
    }
}

#[test]
fn files_have_no_cyclic_dependencies() {
    assert_eq!(Graph::new(&sources()).cycles(), [""; 0]);
}

#[test]
fn no_module_outside_kernels_names_a_backend() {
    for (module, used) in
        Graph::new(&sources()).uses.iter().filter(|(module, _)| module.first().is_none_or(|name| name != "kernels"))
    {
        for target in used.iter().filter(|target| target.first().is_some_and(|name| name == "kernels")) {
            let backend = target.get(1).is_some_and(|name| ["cpu", "gpu", "absent", "reference"].contains(&name.as_str()));
            // The type is opaque outside; its definition depends on the backend.
            let is_packed = target[1..] == ["cpu", "packed"];
            assert!(!backend || is_packed, "{} uses {}", module.join("::"), target.join("::"));
        }
    }
}

#[test]
fn unsafe_code_is_only_in_kernels_and_the_memory_mapping() {
    for source in sources() {
        let allowed = source.module.first().is_some_and(|name| name == "kernels") || source.module == ["files", "map"];
        let words = tokens(&source.text);
        assert!(allowed || !words.contains(&"unsafe"), "{}", source.file.display());
    }
}

#[test]
fn layers_and_stages_are_the_same_in_every_build() {
    for source in sources() {
        let Some(top) = source.module.first() else { continue };
        let text = fs::read_to_string(&source.file).unwrap();
        if STAGES.contains(&top.as_str()) || top == "nn" {
            for feature in ["train", "cpu", "cuda", "wgpu"] {
                let condition = format!("feature = \"{feature}\"");
                let conditional =
                    text.lines().any(|line| line.contains("cfg") && line.contains(&condition) && !line.contains("test"));
                assert!(!conditional, "{} depends on the feature {feature}", source.file.display());
            }
        }
    }
}

#[test]
fn a_source_file_has_at_most_400_lines() {
    for source in sources() {
        let lines = fs::read_to_string(&source.file).unwrap().lines().count();
        assert!(lines <= 400, "{} has {lines} lines", source.file.display());
    }
}

/// The parser finds paths that a text search for `crate::` would miss.
#[test]
fn groups_supers_and_re_exports_are_resolved() {
    let source = |module: &[&str], text: &str| Source {
        file: PathBuf::new(),
        module: module.iter().map(|name| name.to_string()).collect(),
        text: code(text),
    };
    let graph = Graph::new(&[
        source(&[], ""),
        source(&["a"], "pub use inner::Thing;\nuse crate::{b::{self, X as Y}, c};"),
        source(&["a", "inner"], "mod nested { use super::super::super::c::Z; } // crate::d\nconst T: &str = \"crate::d\";"),
        source(&["b"], "fn f() { super::a::Thing::new(); }"),
        source(&["c"], ""),
        source(&["d"], ""),
    ]);
    let uses = |module: &[&str]| -> Vec<String> {
        let module: Module = module.iter().map(|name| name.to_string()).collect();
        graph.uses[&module].iter().map(|target| target.join("::")).collect()
    };
    assert_eq!(uses(&["a"]), ["a::inner", "b", "c"]);
    assert_eq!(uses(&["a", "inner"]), ["c"]);
    assert_eq!(uses(&["b"]), ["a::inner"]);
    assert_eq!(graph.cycles(), [""; 0]);
}
