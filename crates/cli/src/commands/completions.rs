//! `opensora completions`: completions for shells.

use crate::{help, output};
use clap::Command;
use clap_complete::Shell;

/// Options of `opensora completions`.
#[derive(clap::Args)]
#[command(after_long_help = "\
Examples:
  opensora completions bash > ~/.local/share/bash-completion/completions/opensora
  opensora completions zsh > ~/.zfunc/_opensora
  opensora completions fish > ~/.config/fish/completions/opensora.fish")]
pub(crate) struct Args {
    /// Shell
    shell: Shell,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let whole = help::command();
    // clap_complete would list hidden subcommands.
    let mut shown = Command::new("opensora")
        .version(env!("CARGO_PKG_VERSION"))
        .args(whole.get_arguments().cloned())
        .subcommands(whole.get_subcommands().filter(|sub| !sub.is_hide_set()).cloned());
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut shown, "opensora", &mut script);
    Ok(output::line(String::from_utf8(script)?.trim_end())?)
}
