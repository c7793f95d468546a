//! Names of a program's flags in messages of the library.

use clap::{Command, CommandFactory};

/// A part of a message that names an option of the library.
struct OptionText {
    text: &'static str,
    /// The flag that sets the option, without dashes.
    flag: &'static str,
    /// The text with the flag.
    with_flag: &'static str,
    /// The text for programs without the flag.
    without_flag: &'static str,
}

/// The options that messages of the library recommend.
const OPTIONS: [OptionText; 6] = [
    OptionText {
        text: ", or allow unused tensors (turn the option `strict` off)",
        flag: "allow-unused",
        with_flag: ", or ignore unused tensors with `--allow-unused`",
        without_flag: "",
    },
    OptionText {
        text: "name its folder (the option `text_model`)",
        flag: "text-model",
        with_flag: "name its folder with `--text-model`",
        without_flag: "put it there",
    },
    OptionText {
        text: "name the text model's folder (the option `text_model`)",
        flag: "text-model",
        with_flag: "name the text model's folder with `--text-model`",
        without_flag: "expected the text model's folder",
    },
    OptionText {
        text: "use the plain weights (the option `weights`)",
        flag: "weights",
        with_flag: "use `--weights plain`",
        without_flag: "use the plain weights",
    },
    OptionText {
        text: "without the option `keep_text_model`",
        flag: "keep-text-model",
        with_flag: "without `--keep-text-model`",
        without_flag: "if the text model is not kept in memory",
    },
    OptionText {
        text: "raise the limit (the option `max_memory`)",
        flag: "max-memory",
        with_flag: "raise `--max-memory`",
        without_flag: "raise the limit",
    },
];

/// Fields of requests, as errors name them, and the flags that set them.
const FIELDS: [(&str, &str); 11] = [
    ("guidance", "guidance"),
    ("top-k", "top-k"),
    ("top-p", "top-p"),
    ("steps", "steps"),
    ("pruning", "prune"),
    ("precision", "precision"),
    ("marks", "omit-marks"),
    ("c2pa", "c2pa-certificate"),
    ("threads", "threads"),
    ("system prompt", "system-prompt"),
    ("images per prompt", "count"),
];

/// Returns a message in which the library's options are the flags of the program with these arguments.
pub fn with_flags<A: CommandFactory>(message: &str) -> String {
    with_flags_of(&A::command(), message)
}

fn with_flags_of(command: &Command, message: &str) -> String {
    let has_flag = |flag: &str| command.get_arguments().any(|argument| argument.get_long() == Some(flag));
    let mut message = message.to_string();
    for option in &OPTIONS {
        message = message.replace(option.text, if has_flag(option.flag) { option.with_flag } else { option.without_flag });
    }
    for (field, flag) in FIELDS.into_iter().filter(|(_, flag)| has_flag(flag)) {
        if let Some(problem) = message.strip_prefix(&format!("request: {field}: ")) {
            message = format!("--{flag}: {problem}");
        }
    }
    // The values of other fields are arguments without a flag.
    message.strip_prefix("request: ").map_or(message.clone(), str::to_string)
}

#[cfg(test)]
mod tests {
    use clap::Args;

    use super::*;
    use crate::cli::args::GenerationArgs;

    #[test]
    fn options_become_the_flags_that_a_program_has() {
        let all = GenerationArgs::augment_args(Command::new("generate"));
        let none = Command::new("train");
        for option in &OPTIONS {
            let message = format!("model: {}.", option.text);
            let (with, without) = (with_flags_of(&all, &message), with_flags_of(&none, &message));
            assert!(with.contains(&format!("--{}", option.flag)) && !with.contains("option"), "{with}");
            assert!(!without.contains("--") && !without.contains("option"), "{without}");
        }
        assert_eq!(with_flags_of(&all, "request: top-p: 2, expected less"), "--top-p: 2, expected less");
        assert_eq!(with_flags_of(&none, "request: top-p: 2, expected less"), "top-p: 2, expected less");
        assert_eq!(with_flags_of(&all, "request: prompt: number 1 is empty"), "prompt: number 1 is empty");
        assert_eq!(with_flags_of(&all, "prompt \"request: top-p: 2\" is refused"), "prompt \"request: top-p: 2\" is refused");
    }
}
