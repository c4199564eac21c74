//! Metadata of the first video stream of a file, by the `ffprobe` program.

use crate::{
    PixelAspect, VideoError, VideoInfo,
    error::Cause,
    ffmpeg::{CONTAINERS, Programs, STREAM, absent, complaints, last_line, local},
    frames::MAX_SIDE,
    orientation::Orientation,
    pipe::{self, OutputError},
    stamps::Stamp,
};
use std::{
    collections::HashMap,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
};

/// Metadata of the first video stream of a file.
#[derive(Clone)]
pub(crate) struct Probed {
    /// Information for users; sizes are those of shown frames.
    pub(crate) info: VideoInfo,
    /// Width and height of stored frames.
    pub(crate) stored: (usize, usize),
    /// Orientation of stored frames.
    pub(crate) orientation: Orientation,
    /// Times of the shown frames in seconds since the first; empty if unknown.
    pub(crate) times: Vec<f64>,
    /// Stamp of the first shown frame.
    pub(crate) first: Stamp,
    /// Indices of key frames in `times`, ascending.
    pub(crate) key_frames: Vec<usize>,
    /// `matrix_coefficients` of H.264 (table E-5).
    pub(crate) matrix: u8,
    /// True for 8-bit 4:2:0 with limited range and even sides.
    pub(crate) is_plain: bool,
}

/// A key frame near the middle of a video.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Middle {
    /// Index of the frame.
    pub(crate) place: usize,
    /// Seek time in seconds of the container, for which this is the last key frame.
    pub(crate) seek: f64,
}

/// Minimum number of frames for a second process.
const FEWEST_FOR_HALVES: usize = 240;
/// Seconds added to the seek time. In containers without an index by display time, ffmpeg seeks up to 3/23 s too
/// early if frames are reordered (`ffmpeg_demux.c`).
const SEEK_LATER: f64 = 0.2;

impl Probed {
    /// Returns the key frame nearest to the middle, if each part has at least a third of the frames.
    pub(crate) fn middle(&self) -> Option<Middle> {
        let frames = self.times.len();
        if frames < FEWEST_FOR_HALVES {
            return None;
        }
        let nearest = |place: &usize| place.abs_diff(frames / 2);
        let among = (0..self.key_frames.len()).min_by_key(|&i| nearest(&self.key_frames[i]))?;
        let place = self.key_frames[among];
        if place < frames / 3 || place > frames - frames / 3 {
            return None;
        }
        let next = self.key_frames.get(among + 1).copied().unwrap_or(frames - 1);
        let length = self.times[next] - self.times[place];
        let start = self.first.seconds().unwrap_or(0.0);
        let seek = start + self.times[place] + SEEK_LATER.min(0.5 * length);
        Some(Middle { place, seek })
    }
}

/// Returns the metadata of the first video stream of a file.
pub(crate) fn probe(path: &Path, programs: &Programs) -> Result<Probed, VideoError> {
    let fail = |reason: Cause| VideoError::decode(path, reason);
    let io = |source| VideoError::Io { path: path.into(), source };
    let input = local(path).map_err(io)?;
    let (mut child, out) = pipe::start(
        Command::new(&programs.ffprobe)
            .args(["-v", "error", "-protocol_whitelist", "file,pipe"])
            .args(["-format_whitelist", CONTAINERS, "-select_streams", STREAM])
            .args([
                "-show_entries",
                "stream=codec_name,width,height,avg_frame_rate,r_frame_rate,color_space,\
                 color_range,pix_fmt,sample_aspect_ratio,time_base,duration\
                 :stream_side_data=displaymatrix:packet=pts,duration,flags:format=duration",
            ])
            .args(["-of", "compact", "-i"])
            .arg(input)
            .stdin(Stdio::null())
            .stderr(Stdio::piped()),
        pipe::PATIENCE,
    )
    .map_err(|error| absent(path, &programs.ffprobe, error))?;
    let said = child.stderr.take().map(|said| std::thread::spawn(|| complaints(said)));
    let answer = Answer::read(BufReader::new(out));
    let _ = child.kill();
    let _ = child.wait();
    let said = said.and_then(|said| said.join().ok()).unwrap_or_default();
    let answer = answer.map_err(|error| fail(OutputError::of("ffprobe")(error).into()))?;
    if answer.stream.is_empty() {
        return Err(fail(match last_line(&said) {
            Some(line) => format!("the ffprobe program says: {line}").into(),
            None => "it has no video track".into(),
        }));
    }
    answer.probed().map_err(fail)
}

/// A coded frame that is shown.
#[derive(Clone, Copy)]
struct Packet {
    /// Display time in ticks.
    time: i64,
    /// Duration in ticks.
    ticks: Option<i64>,
    is_key: bool,
}

/// The parsed output of the program.
#[derive(Default)]
struct Answer {
    /// Packets with a time.
    packets: Vec<Packet>,
    /// Number of shown frames, with and without a time.
    frames: usize,
    stream: HashMap<String, String>,
    format: HashMap<String, String>,
}

impl Answer {
    fn read(out: impl BufRead) -> std::io::Result<Self> {
        let mut answer = Self::default();
        for line in out.split(b'\n') {
            let line = line?;
            let line = String::from_utf8_lossy(&line);
            let mut words = line.trim_end().split('|');
            let section = words.next().unwrap_or_default();
            let fields = words.filter_map(|word| word.split_once('='));
            match section {
                "packet" => answer.packet(fields),
                "stream" if answer.stream.is_empty() => answer.stream = owned(fields),
                "format" => answer.format = owned(fields),
                _ => {}
            }
        }
        Ok(answer)
    }

    fn packet<'a>(&mut self, fields: impl Iterator<Item = (&'a str, &'a str)>) {
        let (mut time, mut ticks, mut flags) = (None, None, "");
        for (name, value) in fields {
            match name {
                "pts" => time = value.parse().ok(),
                "duration" => ticks = value.parse().ok(),
                "flags" => flags = value,
                _ => {}
            }
        }
        // Only decoded for other frames, and hidden by an edit.
        if flags.contains('D') {
            return;
        }
        self.frames += 1;
        let is_key = flags.starts_with('K');
        self.packets.extend(time.map(|time| Packet { time, ticks, is_key }));
    }

    fn probed(mut self) -> Result<Probed, Cause> {
        let text = |name: &str| self.stream.get(name).map_or("", String::as_str);
        let side = |name: &str| text(name).parse::<usize>().ok();
        let (Some(width), Some(height)) = (side("width"), side("height")) else {
            return Err("the ffprobe program reports no size".into());
        };
        if !(1..=MAX_SIDE).contains(&width) || !(1..=MAX_SIDE).contains(&height) {
            let reason = format!(
                "its frames have {height}x{width} pixels, expected sides of 1 to {MAX_SIDE}"
            );
            return Err(reason.into());
        }
        let rate = |name: &str| {
            let (above, below) = ratio(text(name), '/')?;
            Some(above as f64 / below as f64)
        };
        let (above, below) = ratio(text("time_base"), '/').unwrap_or((0, 1));
        let matrix = match text("color_space") {
            "bt709" => 1,
            "fcc" => 4,
            "bt470bg" => 5,
            "smpte170m" => 6,
            "smpte240m" => 7,
            "bt2020nc" | "bt2020_ncl" => 9,
            // Unspecified.
            "" | "unknown" | "unspecified" | "reserved" => 2,
            // Not supported.
            _ => 255,
        };
        let is_plain = text("pix_fmt") == "yuv420p"
            && text("color_range") != "pc"
            && matrix != 255
            && width.is_multiple_of(2)
            && height.is_multiple_of(2);
        let orientation = orientation(text("displaymatrix"));
        let aspect = ratio(text("sample_aspect_ratio"), ':')
            .and_then(|(width, height)| PixelAspect::stated(width, height))
            .unwrap_or(PixelAspect::SQUARE);
        let number = |text: Option<&String>| text.and_then(|text| text.parse::<f64>().ok());
        let stated = number(self.stream.get("duration"));
        let of_file = number(self.format.get("duration"));

        // If some frames have no time, the frame rate is assumed constant.
        if self.packets.len() != self.frames {
            self.packets.clear();
        }
        self.packets.sort_by_key(|packet| packet.time);
        let first = self.packets.first().map_or(0, |packet| packet.time);
        let seconds = |ticks: i64| ticks as f64 * above as f64 / below as f64;
        let times = |packet: &Packet| seconds(packet.time.saturating_sub(first));
        let span = self.packets.last().and_then(|last| {
            let end = last.time.checked_add(last.ticks?)?;
            // An edit may shorten the last frame.
            let whole = seconds(end.saturating_sub(first));
            Some(stated.filter(|stated| *stated > times(last)).map_or(whole, |it| whole.min(it)))
        });
        let shown: Vec<f64> = self.packets.iter().map(times).collect();
        // `r_frame_rate` may be the rate of the clock: 1000 in WebM as browsers record it.
        let fps = rate("avg_frame_rate").or(mean_rate(&shown)).or(rate("r_frame_rate"));
        let (shown_width, shown_height) = orientation.swap((width, height));
        let info = VideoInfo {
            width: shown_width,
            height: shown_height,
            fps: fps.unwrap_or(0.0),
            num_frames: (self.frames > 0).then_some(self.frames),
            duration: span.or(stated).or(of_file),
            codec: Some(text("codec_name"))
                .filter(|name| !name.is_empty())
                .unwrap_or("unknown")
                .into(),
            pixel_aspect: aspect.upright(orientation),
        };
        let keys = self.packets.iter().enumerate().filter(|(_, packet)| packet.is_key);
        Ok(Probed {
            info,
            stored: (width, height),
            orientation,
            key_frames: keys.map(|(place, _)| place).collect(),
            times: shown,
            first: Stamp { ticks: Some(first), tick: (above, below), size: (width, height) },
            matrix,
            is_plain,
        })
    }
}

/// Newer versions put a nested section before the names of its fields: `side_datum/display_matrix:displaymatrix`.
fn owned<'a>(fields: impl Iterator<Item = (&'a str, &'a str)>) -> HashMap<String, String> {
    let bare = |name: &'a str| name.rsplit_once(':').map_or(name, |(_, bare)| bare);
    fields.map(|(name, value)| (bare(name).into(), value.into())).collect()
}

/// Returns the mean frames per second of frames at these times, in seconds since the first.
fn mean_rate(times: &[f64]) -> Option<f64> {
    let rate = times.len().checked_sub(1)? as f64 / times.last()?;
    Some(rate).filter(|rate| rate.is_finite() && *rate > 0.0)
}

/// Parses a ratio of two positive integers.
fn ratio(text: &str, between: char) -> Option<(u64, u64)> {
    let (above, below) = text.split_once(between)?;
    let number = |text: &str| text.parse::<u64>().ok().filter(|number| *number > 0);
    Some((number(above)?, number(below)?))
}

/// Parses a display matrix as the program prints it: three lines, each after its number and a colon.
fn orientation(text: &str) -> Orientation {
    let text = text.replace("\\n", " ");
    let numbers: Vec<i32> = text
        .split_whitespace()
        .filter(|word| !word.ends_with(':'))
        .filter_map(|word| word.parse().ok())
        .collect();
    match numbers[..] {
        [a, b, _, c, d, _, ..] => Orientation::of_matrix([a, b, c, d]),
        _ => Orientation::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM_LINE: &str = "stream|codec_name=h264|width=320|height=180|\
        sample_aspect_ratio=4:3|pix_fmt=yuv420p|color_range=unknown|color_space=bt709|\
        r_frame_rate=30/1|avg_frame_rate=25/1|time_base=1/100|duration=9.0|\
        side_data_type=Display Matrix|displaymatrix=\\n00000000:            0      -65536       \
        0\\n00000001:        65536           0           0\\n00000002:            0           0  \
        1073741824\\n";

    fn probed(lines: &[&str]) -> Result<Probed, Cause> {
        Answer::read(lines.join("\n").as_bytes()).unwrap().probed()
    }

    #[test]
    fn the_clock_is_not_the_frame_rate() {
        let stream = "stream|codec_name=vp8|width=640|height=480|avg_frame_rate=0/0|\
                      r_frame_rate=1000/1|time_base=1/1000|pix_fmt=yuv420p";
        let packets = [7, 40, 81, 127].map(|pts| format!("packet|pts={pts}|duration=N/A|flags=_"));
        let [a, b, c, d] = packets.each_ref().map(String::as_str);
        assert_eq!(probed(&[a, b, c, d, stream]).unwrap().info.fps, 25.0);
        // One frame, and frames without times.
        for frame in [a, "packet|pts=N/A|flags=_"] {
            assert_eq!(probed(&[frame, stream]).unwrap().info.fps, 1000.0);
        }
    }

    #[test]
    fn what_is_shown_counts() {
        let found = probed(&[
            "packet|pts=-8|duration=4|flags=KD",
            "packet|pts=0|duration=4|flags=_D",
            "packet|pts=10|duration=4|flags=K_",
            "packet|pts=18|duration=4|flags=___",
            "packet|pts=14|duration=4|flags=___",
            STREAM_LINE,
            "format|duration=77.0",
        ])
        .unwrap();
        let info = &found.info;
        assert_eq!((info.width, info.height, found.stored), (180, 320, (320, 180)));
        assert_eq!((info.fps, info.num_frames, info.duration), (25.0, Some(3), Some(0.12)));
        assert_eq!(info.pixel_aspect, PixelAspect { width: 3, height: 4 });
        assert_eq!(
            (found.times, found.first.seconds(), found.key_frames),
            (vec![0.0, 0.04, 0.08], Some(0.1), vec![0])
        );
        let cut = STREAM_LINE.replace("duration=9.0", "duration=0.1");
        let cut = probed(&["packet|pts=0|duration=20|flags=K_", &cut]).unwrap();
        assert_eq!(cut.info.duration, Some(0.1));
        assert!(found.orientation.transposed && found.is_plain && found.matrix == 1);
        // As versions since 6.1 print it.
        let newer =
            STREAM_LINE.replace("|displaymatrix=", "|side_datum/display_matrix:displaymatrix=");
        let newer = probed(&["packet|pts=0|duration=20|flags=K_", &newer]).unwrap();
        assert_eq!(newer.orientation, found.orientation);
    }

    #[test]
    fn what_is_not_told_is_not_made_up() {
        let bare = "stream|codec_name=hevc|width=7|height=5|avg_frame_rate=0/0|r_frame_rate=0/0|\
                    time_base=1/100|pix_fmt=yuv420p10le|color_space=unknown";
        let found = probed(&["packet|pts=N/A|flags=K_", bare, "format|duration=2.5"]).unwrap();
        let info = &found.info;
        assert_eq!((info.fps, info.num_frames, info.duration), (0.0, Some(1), Some(2.5)));
        assert!(info.pixel_aspect.is_square() && found.orientation.is_as_stored());
        assert!(found.times.is_empty() && !found.is_plain && found.matrix == 2);
        assert_eq!(probed(&[bare]).unwrap().info.num_frames, None);
        for size in ["", "|width=0|height=5", "|width=70000|height=5", "|width=x|height=5"] {
            assert!(probed(&[&format!("stream|codec_name=h264{size}")]).is_err(), "{size}");
        }
    }
}
