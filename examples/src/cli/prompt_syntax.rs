//! Syntax of other programs in prompts, which HART reads as plain text.

use std::sync::LazyLock;

use regex::Regex;

use super::output;

/// A kind of syntax without a meaning for HART.
struct Syntax {
    pattern: LazyLock<Regex>,
    /// Continues a sentence that begins with the found text in quotes.
    advice: &'static str,
}

/// All kinds of syntax. Texts that are also ordinary language, such as a word in single parentheses, are not among them.
static SYNTAXES: [Syntax; 5] = [
    Syntax {
        // (word:1.3), ((word)), [word], {word}, word++, (word)--. Neither (16:9) nor C++.
        pattern: LazyLock::new(|| {
            regex(r"\([^()]*[^()\d\s]\s*:\s*[+-]?\d*\.?\d+\s*\)|\(\([^()]+\)+|\[[^\[\]]+\]|\{[^{}]+\}|(?:\pL{2,}|\))\+{2,}|\)-{2,}")
        }),
        advice: "is read as plain text: brackets, weights and alternatives have no effect; say in words what matters more",
    },
    Syntax {
        pattern: LazyLock::new(|| regex(r"(?i)\bnegative[ _]prompt\s*:[^\n]*")),
        advice: "is read as a part of the description: there are no negative prompts; describe only what the image shows",
    },
    Syntax {
        // Editors turn two hyphens into a dash.
        pattern: LazyLock::new(|| regex(r"(?:^|\s)(?:--|—)[A-Za-z][\w-]*(?:[ =][^\s,-][^\s,]*)?")),
        advice: "is read as a part of the description, not as an option; options are arguments of their own, see --help",
    },
    Syntax {
        pattern: LazyLock::new(|| regex(r"(?i)<(?:lora|lyco|hypernet|embedding)\b[^<>]*>")),
        advice: "loads nothing and is read as a part of the description",
    },
    Syntax {
        pattern: LazyLock::new(|| regex(r"(?i)\bsteps:\s*\d+,\s*sampler:[^\n]*")),
        advice: "sets nothing and is read as a part of the description; settings are options, see --help",
    },
];

fn regex(pattern: &str) -> Regex {
    Regex::new(pattern).expect("the pattern is valid")
}

/// Returns a hint for each kind of syntax of other programs in these prompts. It quotes the first place.
pub fn hints<S: AsRef<str>>(prompts: &[S]) -> Vec<String> {
    SYNTAXES.iter().filter_map(|syntax| hint(syntax, prompts)).collect()
}

fn hint<S: AsRef<str>>(syntax: &Syntax, prompts: &[S]) -> Option<String> {
    let mut found = prompts.iter().enumerate().filter_map(|(index, prompt)| Some((index, syntax.pattern.find(prompt.as_ref())?)));
    let (index, first) = found.next()?;
    let (place, others) = match (prompts.len(), found.count()) {
        (1, _) => (String::new(), String::new()),
        (_, 0) => (format!("prompt {}: ", index + 1), String::new()),
        (_, others) => (format!("prompt {}: ", index + 1), format!(" (also in {others} other prompts)")),
    };
    Some(format!("{place}\"{}\" {}{others}", output::shortened(first.as_str()), syntax.advice))
}

/// Prints the [`hints`] on standard error.
pub fn warn<S: AsRef<str>>(prompts: &[S]) {
    for hint in hints(prompts) {
        eprintln!("hint: {hint}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the quoted text of the only hint.
    fn quoted(prompt: &str) -> String {
        let hints = hints(&[prompt]);
        assert_eq!(hints.len(), 1, "{prompt}: {hints:?}");
        hints[0].split('"').nth(1).unwrap().to_string()
    }

    #[test]
    fn syntax_of_other_programs_is_quoted() {
        for (prompt, found) in [
            ("a (red:1.3) heart", "(red:1.3)"),
            ("a (big red : .8) heart", "(big red : .8)"),
            ("a ((red)) heart", "((red))"),
            ("a [red] heart", "[red]"),
            ("a {red|blue} heart", "{red|blue}"),
            ("a red++ heart", "red++"),
            ("a (red heart)-- on blue", ")--"),
            ("a heart\nNegative prompt: blue, ugly\nmore", "Negative prompt: blue, ugly"),
            ("negative_prompt: blue", "negative_prompt: blue"),
            ("a heart --no blue", "--no blue"),
            ("a heart --ar 16:9, red", "--ar 16:9"),
            ("a heart —neg blue", "—neg blue"),
            ("a heart --neg=blue", "--neg=blue"),
            ("a <lora:style:0.8> heart", "<lora:style:0.8>"),
            ("Steps: 20, Sampler: Euler a, Seed: 1", "Steps: 20, Sampler: Euler a, Seed: 1"),
        ] {
            assert_eq!(quoted(prompt), found);
        }
    }

    #[test]
    fn ordinary_language_has_no_hints() {
        for prompt in [
            "a heart (red) on yellow",
            "a screen (16:9) that shows the time 10:30",
            "a C++ logo",
            "two words - one dash -- and two",
            "a sign: no parking",
            "steps: a staircase",
            "a < b > c",
            "a well-known house",
            "愛 🦜 — a bird",
        ] {
            assert_eq!(hints(&[prompt]), [""; 0]);
        }
    }

    #[test]
    fn a_kind_is_reported_once_for_all_prompts() {
        let hints = hints(&["a heart", "a (red:1.2) heart", "a [red] heart --no blue", "(x:2)"]);
        assert_eq!(hints.len(), 2);
        assert!(hints[0].starts_with("prompt 2: \"(red:1.2)\"") && hints[0].ends_with("(also in 2 other prompts)"), "{hints:?}");
        assert!(hints[1].starts_with("prompt 3: \"--no blue\"") && !hints[1].contains("also"), "{hints:?}");
        // Codes for the terminal are removed.
        assert!(!super::hints(&["[\x1b[2J]"])[0].contains('\x1b'));
    }
}
