//! Timestamps of frames from the log of the `ffmpeg` program.
//!
//! The filter `showinfo` logs a line for each decoded frame before the frame is written to the pipe. Each time
//! therefore belongs to its frame, also in files with a wrong index or with frames that are not decodable.

use std::{
    io::{BufRead, BufReader, Read},
    process::ChildStderr,
    sync::mpsc::{self, Receiver},
    thread::JoinHandle,
};

/// Maximum length of a line in bytes; the rest is ignored.
const MAX_LINE: usize = 4096;
/// Maximum size of the error messages that are kept from `ffmpeg`'s log, in bytes.
const MAX_COMPLAINT: usize = 64 << 10;

/// Timestamp and size of a frame.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Stamp {
    /// Time in ticks, if known.
    pub(crate) ticks: Option<i64>,
    /// Seconds per tick: numerator and denominator.
    pub(crate) tick: (u64, u64),
    /// Width and height.
    pub(crate) size: (usize, usize),
}

impl Stamp {
    /// Returns the time in seconds of the container; `None` if the container states none.
    pub(crate) fn seconds(&self) -> Option<f64> {
        Some(self.ticks? as f64 * self.tick.0 as f64 / self.tick.1 as f64)
    }

    /// Returns the seconds since another frame; `None` if a time is unknown.
    pub(crate) fn since(&self, first: &Self) -> Option<f64> {
        if self.tick != first.tick {
            return Some(self.seconds()? - first.seconds()?);
        }
        let ticks = self.ticks?.checked_sub(first.ticks?)?;
        Self { ticks: Some(ticks), ..*self }.seconds()
    }
}

/// The timestamps of a program's frames.
pub(crate) struct Stamps {
    stamps: Receiver<Stamp>,
    complaints: Option<JoinHandle<String>>,
}

impl Stamps {
    /// Reads the log of a program in a thread until the program ends.
    pub(crate) fn listen(said: ChildStderr) -> Self {
        let (sender, stamps) = mpsc::channel();
        let complaints = std::thread::spawn(move || {
            // The receiver may be gone; the log must still be read, so that the program does not block.
            read(said, |stamp| {
                let _ = sender.send(stamp);
            })
        });
        Self { stamps, complaints: Some(complaints) }
    }

    /// Returns the stamp of the frame that was just read; `None` if the log ends without it.
    pub(crate) fn next(&mut self) -> Option<Stamp> {
        self.stamps.recv().ok()
    }

    /// Returns the error messages of the program after its end.
    pub(crate) fn complaints(&mut self) -> String {
        self.complaints.take().and_then(|said| said.join().ok()).unwrap_or_default()
    }
}

/// Reads log lines with levels in brackets. Returns the lines of errors.
fn read(said: impl Read, mut stamp: impl FnMut(Stamp)) -> String {
    let mut said = BufReader::new(said);
    let (mut tick, mut complaints) = ((0, 1), String::new());
    while let Some(line) = next_line(&mut said) {
        let is_error =
            ["[error] ", "[fatal] ", "[panic] "].iter().find(|level| line.contains(**level));
        if let Some(level) = is_error {
            if complaints.len() < MAX_COMPLAINT {
                complaints.push_str(&line.replacen(level, "", 1));
                complaints.push('\n');
            }
        } else if line.contains("showinfo") {
            if let Some(found) = time_base(&line) {
                tick = found;
            } else {
                of_frame(&line, tick).into_iter().for_each(&mut stamp);
            }
        }
    }
    complaints
}

/// Returns the next line, cut at the maximum length.
fn next_line(said: &mut impl BufRead) -> Option<String> {
    let mut line = Vec::new();
    said.by_ref().take(MAX_LINE as u64).read_until(b'\n', &mut line).ok()?;
    if line.is_empty() {
        return None;
    }
    if line.last() != Some(&b'\n') && line.len() == MAX_LINE {
        said.skip_until(b'\n').ok()?;
    }
    Some(String::from_utf8_lossy(&line).trim_end().to_string())
}

/// Parses a line such as `config in time_base: 1/15360, frame_rate: 30/1`.
fn time_base(line: &str) -> Option<(u64, u64)> {
    let (_, ratio) = line.split_once("config in time_base: ")?;
    let (above, rest) = ratio.split_once('/')?;
    let below = rest.split(',').next()?;
    Some((above.parse().ok()?, below.parse().ok().filter(|below| *below > 0)?))
}

/// Parses a line such as `n:   1 pts:    512 pts_time:0.0333333 ... s:320x180 ...`.
fn of_frame(line: &str, tick: (u64, u64)) -> Option<Stamp> {
    let (_, words) = line.split_once(" n:")?;
    let (_, rest) = words.split_once(" pts:")?;
    // `NOPTS` is no number.
    let ticks = rest.split_whitespace().next()?.parse().ok();
    let size = words.split_whitespace().find_map(|word| word.strip_prefix("s:"))?;
    let (width, height) = size.split_once('x')?;
    Some(Stamp { ticks, tick, size: (width.parse().ok()?, height.parse().ok()?) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_times() {
        let said = "\
[info] Input #0, mov, from 'pts:1 s:1x1':
[Parsed_showinfo_0 @ 0x55] [info] config in time_base: 1/15360, frame_rate: 30/1
[Parsed_showinfo_0 @ 0x55] [info] config out time_base: 0/0, frame_rate: 0/0
[Parsed_showinfo_0 @ 0x55] [info] n:   0 pts:    512 pts_time:0.0333333 pos:       48 fmt:yuv420p sar:1/1 s:320x180 i:P iskey:1 type:I 
[Parsed_showinfo_0 @ 0x55] [info] color_range:unknown color_space:unknown
[h264 @ 0x56] [error] error while decoding MB 3 4
[Parsed_showinfo_0 @ 0x55] [info] n:   1 pts:  15872 pts_time:1 duration:512 duration_time:0.03 fmt:yuv420p cl:left sar:1/1 s:322x180 i:P iskey:0 type:B 
[Parsed_showinfo_0 @ 0x55] [info] n:   2 pts:  NOPTS pts_time:NOPTS   s:320x180
";
        let long = format!("[Parsed_showinfo_0 @ 0x55] [info] {}\n", "x".repeat(3 * MAX_LINE));
        let mut found = Vec::new();
        let said = [said, &long, "[error] file:/a: no\nlast"].concat();
        let complaints = read(said.as_bytes(), |stamp| found.push(stamp));
        assert_eq!(complaints, "[h264 @ 0x56] error while decoding MB 3 4\nfile:/a: no\n");
        let stamp = |ticks, size| Stamp { ticks, tick: (1, 15360), size };
        let expected =
            [stamp(Some(512), (320, 180)), stamp(Some(15872), (322, 180)), stamp(None, (320, 180))];
        assert_eq!(found, expected);
        assert_eq!((found[1].since(&found[0]), found[2].since(&found[0])), (Some(1.0), None));
        assert_eq!(found[0].seconds(), Some(512.0 / 15360.0));
        let other = Stamp { ticks: Some(2), tick: (1, 60), ..found[0] };
        assert_eq!(found[1].since(&other), Some(15872.0 / 15360.0 - 2.0 / 60.0));
    }
}
