//! `opensora man`: manual pages.

use crate::{help, output};
use anyhow::Context;
use clap::Command;
use clap_mangen::Man;
use opensora::files::write_atomically;
use std::{fs, path::PathBuf};

/// Options of `opensora man`.
#[derive(clap::Args)]
#[command(after_long_help = "\
Examples:
  opensora man -o ~/.local/share/man/man1
  opensora man > opensora.1")]
pub(crate) struct Args {
    /// Folder for a page of each subcommand [default: the page of the program on standard output]
    #[arg(long, short, alias = "output", value_name = "FOLDER")]
    out: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    // Each subcommand has a page, which replaces `help`.
    let mut command = help::command().disable_help_subcommand(true);
    command.build();
    let Some(folder) = &args.out else {
        return Ok(output::line(page(command)?.trim_end())?);
    };
    fs::create_dir_all(folder).with_context(|| format!("--out: {}", folder.display()))?;
    let (mut commands, mut written) = (vec![command], Vec::new());
    while let Some(command) = commands.pop() {
        let shown = command.get_subcommands().filter(|sub| !sub.is_hide_set());
        commands.extend(shown.cloned());
        let name = command.get_display_name().unwrap_or(command.get_name()).to_string();
        let path = folder.join(format!("{name}.1"));
        let text = page(command)?;
        write_atomically(&path, |path| fs::write(path, &text))
            .with_context(|| format!("--out: {}", path.display()))?;
        written.push(path);
    }
    written.sort();
    Ok(written.iter().try_for_each(|path| output::line(path.display()))?)
}

/// Returns the page of a command in roff.
fn page(command: Command) -> anyhow::Result<String> {
    let mut page = Vec::new();
    Man::new(command).render(&mut page)?;
    Ok(String::from_utf8(page)?)
}
