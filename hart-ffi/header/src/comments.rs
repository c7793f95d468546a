//! The layout of comments.

use crate::LINE_LENGTH;

/// Puts each comment of one line, which cbindgen writes on three lines, on one line.
pub(crate) fn on_one_line(header: &str) -> String {
    let lines: Vec<&str> = header.lines().collect();
    let mut output = String::new();
    let mut at = 0;
    while at < lines.len() {
        let (line, taken) = match short_comment(&lines[at..]) {
            Some(comment) => (comment, 3),
            None => (lines[at].to_string(), 1),
        };
        output += &line;
        output.push('\n');
        at += taken;
    }
    output
}

/// Returns the comment that the first three lines hold, if it fits on one line.
fn short_comment(lines: &[&str]) -> Option<String> {
    let [open, text, close, ..] = lines else { return None };
    if open.trim_start() != "/**" || close.trim_start() != "*/" {
        return None;
    }
    let indent = " ".repeat(open.len() - open.trim_start().len());
    let comment = format!("{indent}/** {} */", text.trim_start().strip_prefix("* ")?);
    (comment.len() <= LINE_LENGTH).then_some(comment)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_short_comments_move_to_one_line() {
        let short = "  /**\n   * Rows.\n   */\n  uint32_t height;\n";
        assert_eq!(on_one_line(short), "  /** Rows. */\n  uint32_t height;\n");
        let long = format!("/**\n * {}\n */\n", "x".repeat(LINE_LENGTH));
        assert_eq!(on_one_line(&long), long);
        let two_lines = "/**\n * Frees the image.\n * Twice.\n */\n";
        assert_eq!(on_one_line(two_lines), two_lines);
    }
}
