//! `opensora completions`: completions for shells.

use crate::{help, output};
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
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut help::command(), "opensora", &mut script);
    Ok(output::line(String::from_utf8(script)?.trim_end())?)
}
