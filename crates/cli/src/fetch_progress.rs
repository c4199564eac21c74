//! Downloads of weights on the terminal: how much and where, then bytes, rate and time left.

use crate::{
    output,
    progress::{Mode, PLAIN_INTERVAL},
    stop,
};
use indicatif::{HumanBytes, HumanDuration, ProgressBar, ProgressStyle};
use opensora::hub::{
    Completed, Locked, Observer, Planned, Progress, Retrying, Started, Unreachable,
};
use opensora_files::error_line;
use std::{ops::ControlFlow, time::Instant};

/// Shows a fetch on standard error; a signal ends it, and the next one resumes.
pub(crate) struct FetchProgress {
    mode: Mode,
    bar: Option<ProgressBar>,
    last_line: Option<Instant>,
}

impl FetchProgress {
    /// Returns the progress of a fetch, and catches signals from now on ([`stop::listen`]).
    pub(crate) fn new(quiet: bool) -> Self {
        stop::listen();
        Self { mode: Mode::new(quiet), bar: None, last_line: None }
    }

    fn line(&mut self, text: impl std::fmt::Display) {
        self.finish();
        if self.mode != Mode::Quiet {
            output::message(text);
        }
    }

    /// Removes the bar.
    pub(crate) fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        self.last_line = None;
    }

    fn advance(&mut self, progress: &Progress<'_>) {
        match self.mode {
            Mode::Quiet => {}
            Mode::Bars => {
                let bar = self.bar.get_or_insert_with(|| new_bar(progress));
                bar.set_position(progress.done);
            }
            Mode::Plain => {
                if self.last_line.is_none_or(|last| last.elapsed() >= PLAIN_INTERVAL) {
                    output::message(plain_line(progress));
                    self.last_line = Some(Instant::now());
                }
            }
        }
    }
}

impl Observer for FetchProgress {
    fn planned(&mut self, event: &Planned<'_>) -> ControlFlow<()> {
        let Planned { repository, folder, files, bytes, .. } = *event;
        let (size, folder) = (HumanBytes(bytes), folder.display());
        let files = if files == 1 { "1 file".into() } else { format!("{files} files") };
        self.line(format_args!("fetching {files}, {size}, from {repository} to {folder}"));
        stop::flow()
    }

    fn started(&mut self, event: &Started<'_>) -> ControlFlow<()> {
        if event.resumed > 0 {
            let (file, resumed) = (event.file, HumanBytes(event.resumed));
            self.line(format_args!("  {file}: resumes after {resumed}"));
        }
        // A small file needs no line of progress.
        self.last_line = Some(Instant::now());
        stop::flow()
    }

    fn downloaded(&mut self, event: &Progress<'_>) -> ControlFlow<()> {
        self.advance(event);
        stop::flow()
    }

    fn completed(&mut self, event: &Completed<'_>) -> ControlFlow<()> {
        self.line(format_args!("  {}: complete", event.file));
        stop::flow()
    }

    fn retrying(&mut self, event: &Retrying<'_>) -> ControlFlow<()> {
        let (reason, seconds) = (error_line(event.error), event.wait.as_secs_f64());
        self.line(format_args!("  {reason}; trying again in {seconds:.0} s"));
        stop::flow()
    }

    fn locked(&mut self, event: &Locked<'_>) -> ControlFlow<()> {
        let file = event.file;
        self.line(format_args!("  {file}: waiting for another process that fetches it"));
        stop::flow()
    }

    fn unreachable(&mut self, event: &Unreachable<'_>) -> ControlFlow<()> {
        self.line(format_args!("using the cached files: {}", error_line(event.error)));
        stop::flow()
    }

    fn waiting(&mut self) -> ControlFlow<()> {
        stop::flow()
    }
}

fn plain_line(progress: &Progress<'_>) -> String {
    let mut line = format!("  {} {}", progress.file, HumanBytes(progress.done));
    if let Some(total) = progress.total {
        line += &format!("/{}", HumanBytes(total));
    }
    line += &format!(", {}/s", HumanBytes(progress.bytes_per_second as u64));
    if let Some(left) = progress.left {
        line += &format!(", {} left", HumanDuration(left));
    }
    line
}

fn new_bar(progress: &Progress<'_>) -> ProgressBar {
    let style = ProgressStyle::with_template(
        "  {prefix} [{bar:32}] {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left",
    )
    .unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(progress.total.unwrap_or(0)).with_style(style);
    // The rate is that of this call, not of the bytes of earlier ones.
    bar.set_position(progress.done);
    bar.reset_eta();
    bar.with_prefix(progress.file.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_plain_line_says_rate_and_time_left() {
        let rate = (4 << 20, Duration::from_secs(2));
        let mut progress = Progress::new("x.bin", 1 << 30, Some(3 << 30), rate);
        progress.left = Some(Duration::from_secs(120));
        let line = plain_line(&progress);
        assert_eq!(line, "  x.bin 1.00 GiB/3.00 GiB, 2.00 MiB/s, 2 minutes left");
    }
}
