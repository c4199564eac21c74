//! The command line with its options in groups, for help, completions and manual pages.

use crate::Cli;
use clap::{Arg, Command, CommandFactory};

/// Returns the command line with its options in groups.
pub(crate) fn command() -> Command {
    grouped(Cli::command())
}

/// Headings and the options below them, by name. Options that are not listed stay under "Options".
const GROUPS: [(&str, &[&str]); 8] = [
    (
        "Model",
        &[
            "model",
            "t5",
            "vae",
            "weights-dir",
            "allow-outside-paths",
            "preset",
            "depth",
            "hidden-size",
            "num-heads",
            "layers",
        ],
    ),
    (
        "Sampling",
        &[
            "num-frames",
            "image-size",
            "aspect-ratio",
            "sampler",
            "steps",
            "guidance-scale",
            "guided-channels",
            "negative-prompt",
            "num-videos-per-prompt",
            "pab",
            "seed",
            "noise-index",
            "space-scale",
            "time-scale",
            "batch-size",
            "fps",
        ],
    ),
    ("Server", &["host", "port", "token", "token-file", "allow-host", "max-connections"]),
    (
        "Limits",
        &[
            "max-queued",
            "max-jobs",
            "max-disk",
            "delete-oldest",
            "max-side",
            "max-frames",
            "max-pixels",
            "max-steps",
        ],
    ),
    ("Device", &["device", "dtype", "t5-dtype", "residency", "low-memory", "peak-tflops"]),
    ("Rows and workers", &["workers", "shard", "retry-failed", "attempts", "skip-bad", "journal"]),
    (
        "Output",
        &[
            "out",
            "no-overwrite",
            "format",
            "save-latents",
            "keep",
            "checkpoint-every",
            "shard-size",
        ],
    ),
    ("Reporting", &["json", "quiet", "verbose"]),
];

/// Puts the options of a command and of its subcommands below their headings.
fn grouped(command: Command) -> Command {
    command.mut_args(below_heading).mut_subcommands(grouped)
}

fn below_heading(arg: Arg) -> Arg {
    let heading = arg
        .get_long()
        .and_then(|name| GROUPS.iter().find(|(_, names)| names.contains(&name)))
        .map(|&(heading, _)| heading);
    match heading {
        Some(heading) => arg.help_heading(heading),
        None => arg,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All commands that do something themselves, with the words that call them.
    fn leaves(command: &Command, words: &str, found: &mut Vec<(String, Command)>) {
        let words = format!("{words}{}", command.get_name());
        if !command.has_subcommands() {
            found.push((words.clone(), command.clone()));
        }
        for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
            leaves(sub, &format!("{words} "), found);
        }
    }

    fn all() -> Vec<(String, Command)> {
        let mut found = Vec::new();
        leaves(&command(), "", &mut found);
        assert!(found.len() > 20, "{}", found.len());
        found
    }

    #[test]
    fn the_command_line_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn every_help_ends_with_examples_that_parse() {
        for (words, leaf) in all() {
            let help = leaf.get_after_long_help().unwrap_or_else(|| panic!("{words}: no examples"));
            let help = help.to_string();
            let lines =
                help.strip_prefix("Examples:\n").unwrap_or_else(|| panic!("{words}: {help}"));
            let lines = lines.replace("\\\n", " ");
            let examples: Vec<&str> =
                lines.lines().filter(|line| line.trim_start().starts_with("opensora ")).collect();
            assert!(examples.iter().any(|line| line.contains(&words)), "{words}: {help}");
            for example in examples {
                let parsed = command().try_get_matches_from(shell_words(example));
                assert!(parsed.is_ok(), "{example}: {}", parsed.unwrap_err());
            }
        }
    }

    #[test]
    fn the_commands_of_the_guides_parse() {
        let guides = [
            include_str!("../docs/sampling.md"),
            include_str!("../docs/training.md"),
            include_str!("../docs/migration.md"),
            include_str!("../docs/command-line.md"),
            include_str!("../docs/scaling.md"),
        ];
        let mut commands = 0;
        for block in guides.iter().flat_map(|guide| guide.split("```sh\n").skip(1)) {
            let block = block.split("```").next().unwrap_or_default().replace("\\\n", " ");
            for line in block.lines() {
                let line = line.split(" #").next().unwrap_or_default();
                let words = shell_words(line);
                // `mpirun` and `srun` start the program; other lines install it.
                let Some(first) = words.iter().position(|word| word == "opensora") else {
                    assert!(line.starts_with("cargo "), "{line}");
                    continue;
                };
                let parsed = command().try_get_matches_from(&words[first..]);
                assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
                commands += 1;
            }
        }
        assert!(commands > 12, "{commands}");
    }

    /// The unit, the container file and the examples of the guide to `serve`.
    #[cfg(feature = "serve")]
    #[test]
    fn the_commands_of_the_guide_to_deployment_parse() {
        let guide = include_str!("../docs/deployment.md").replace("\\\n", " ");
        let mut commands = 0;
        for line in guide.lines() {
            let line = line.strip_prefix("ExecStart=/usr/local/bin/").unwrap_or(line);
            let words = match line.strip_prefix("ENTRYPOINT ") {
                Some(words) => serde_json::from_str(words).unwrap(),
                None if line.starts_with("opensora serve") => {
                    shell_words(line.split(" #").next().unwrap_or_default())
                }
                None => continue,
            };
            let parsed = command().try_get_matches_from(words);
            assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
            commands += 1;
        }
        assert_eq!(commands, 3, "an example, the unit and the container file");
    }

    /// The words of a line, of which some stand in double quotes; what follows a pipe or `>` is left out.
    fn shell_words(line: &str) -> Vec<String> {
        let line = line.split(['|', '>']).next().unwrap_or_default();
        line.split('"')
            .enumerate()
            .flat_map(|(index, part)| match index % 2 {
                0 => part.split_whitespace().map(String::from).collect(),
                _ => vec![part.to_string()],
            })
            .collect()
    }

    #[test]
    fn shared_options_are_spelled_the_same_everywhere() {
        for (words, leaf) in all() {
            for arg in leaf.get_arguments() {
                let short = arg.get_short();
                match arg.get_long() {
                    Some("out") => {
                        assert_eq!(short, Some('o'), "{words}");
                        assert!(arg.get_all_aliases().unwrap_or_default().contains(&"output"));
                    }
                    Some("quiet") => assert_eq!(short, Some('q'), "{words}"),
                    Some("verbose") => assert_eq!(short, Some('v'), "{words}"),
                    _ => assert!(
                        !matches!(short, Some('o' | 'q' | 'v')),
                        "{words}: {}",
                        arg.get_id()
                    ),
                }
            }
            let has = |name| leaf.get_arguments().any(|arg| arg.get_long() == Some(name));
            assert_eq!(has("json"), has("quiet"), "{words}");
        }
    }

    /// The first paragraph of an option's help is what `-h` shows.
    #[test]
    fn short_help_is_short() {
        let mut long = Vec::new();
        for (words, leaf) in all() {
            for arg in leaf.get_arguments() {
                let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
                assert!(!help.is_empty(), "{words} {}", arg.get_id());
                let said = help.split(" [default:").next().unwrap_or_default();
                if said.len() > 110 {
                    long.push(format!("{words} {}: {help}", arg.get_id()));
                }
            }
        }
        assert!(long.is_empty(), "{}", long.join("\n"));
    }

    #[test]
    fn groups_name_options_that_exist_and_none_twice() {
        let leaves = all();
        let mut seen = std::collections::BTreeSet::new();
        for name in GROUPS.iter().flat_map(|(_, names)| names.iter()) {
            assert!(seen.insert(name), "{name}");
            let exists = leaves
                .iter()
                .any(|(_, leaf)| leaf.get_arguments().any(|arg| arg.get_long() == Some(name)));
            assert!(exists || *name == "verbose", "{name}");
        }
    }
}
