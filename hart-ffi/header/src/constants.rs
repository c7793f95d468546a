//! Constants as anonymous enums.
//!
//! cbindgen writes every constant as a macro. Programs that read declarations without a preprocessor, such as cffi and
//! LuaJIT, do not see macros, so a constant of a named type (`hart_status`) becomes an enumerator next to that type. A
//! constant of a plain type (`uint32_t`) stays a macro, for `#if`.

use std::error::Error;

/// A constant with its comment.
pub(crate) struct Constant {
    comment: String,
    kind: String,
    name: String,
    value: String,
}

impl Constant {
    /// Returns `true` if the constant has a type of hart's.
    fn has_named_type(&self) -> bool {
        self.kind.starts_with("hart_")
    }
}

/// Parses the constants that cbindgen writes for C++: `static const hart_status HART_OK = 0;`, each after its comment.
/// Only the C++ form names the type.
pub(crate) fn parse(declarations: &str) -> Result<Vec<Constant>, Box<dyn Error>> {
    let blocks = declarations.split("\n\n").filter(|block| !block.trim().is_empty());
    blocks.map(|block| constant(block).ok_or_else(|| format!("unexpected constant: {block}").into())).collect()
}

fn constant(block: &str) -> Option<Constant> {
    let (comment, declaration) = block.rsplit_once('\n')?;
    let (declaration, value) = declaration.strip_prefix("static const ")?.strip_suffix(';')?.split_once(" = ")?;
    let (kind, name) = declaration.split_once(' ')?;
    let [comment, kind, name, value] = [comment, kind, name, value].map(String::from);
    Some(Constant { comment, kind, name, value })
}

/// Returns the constants of plain types as macros.
pub(crate) fn macros(constants: &[Constant]) -> String {
    let plain = constants.iter().filter(|constant| !constant.has_named_type());
    plain.map(|Constant { comment, name, value, .. }| format!("{comment}\n#define {name} {value}\n\n")).collect()
}

/// Adds an anonymous enum with the constants of a type after the type's declaration.
pub(crate) fn with_enums(declarations: &str, constants: &[Constant]) -> String {
    let mut output = String::new();
    for block in declarations.split_inclusive("\n\n") {
        output += block;
        let declares = |kind: &str| block.contains(&format!("\ntypedef int32_t {kind};"));
        let values: Vec<&Constant> = constants.iter().filter(|c| c.has_named_type() && declares(&c.kind)).collect();
        if !values.is_empty() {
            output += &anonymous_enum(&values);
        }
    }
    output
}

fn anonymous_enum(constants: &[&Constant]) -> String {
    let enumerator = |constant: &&Constant| {
        let comment: String = constant.comment.lines().map(|line| format!("  {line}\n")).collect();
        format!("{comment}  {} = {}", constant.name, constant.value)
    };
    // No comma after the last one: C90 does not allow it.
    let enumerators: Vec<String> = constants.iter().map(enumerator).collect();
    format!("enum {{\n{}\n}};\n\n", enumerators.join(",\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_of_named_types_become_enumerators() {
        let constants = "/**\n * A.\n */\nstatic const hart_status HART_OK = 0;\n\n/**\n * B.\n */\nstatic const uint32_t HART_VERSION = 1;\n\n";
        let constants = parse(constants).unwrap();
        assert_eq!(macros(&constants), "/**\n * B.\n */\n#define HART_VERSION 1\n\n");
        let declarations = "/**\n * S.\n */\ntypedef int32_t hart_status;\n\nvoid f(void);\n\n";
        let expected = "/**\n * S.\n */\ntypedef int32_t hart_status;\n\nenum {\n  /**\n   * A.\n   */\n  HART_OK = 0\n};\n\nvoid f(void);\n\n";
        assert_eq!(with_enums(declarations, &constants), expected);
        assert!(parse("extern int x;").is_err());
    }
}
