//! The `ffmpeg` program, for what is not decoded here: HEVC, AV1, VP9, MKV and so on.
//!
//! Found at run time: what the environment variables `OPENSORA_FFMPEG` and `OPENSORA_FFPROBE` name,
//! else `ffmpeg` and `ffprobe` on the path. Frames come through a pipe, as RGB or planes in the
//! stream's own size and order, none doubled and none dropped; rotations that a camera noted are not
//! made.
//! Only local files are opened: names are never taken for options or addresses of other protocols,
//! and no file makes the program open another one.

use crate::{VideoError, VideoInfo, frames::MAX_SIDE, picks::Picks, pipe, yuv::ToRgb};
use serde_json::Value;
use std::{
    ffi::OsString,
    io::{ErrorKind, Read},
    path::{Path, PathBuf},
    process::{Child, ChildStderr, Command, Stdio},
    thread::JoinHandle,
    vec,
};

/// Where the programs are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Programs {
    /// Decodes.
    pub ffmpeg: PathBuf,
    /// Tells what a file holds.
    pub ffprobe: PathBuf,
}

impl Default for Programs {
    /// As the environment says, else from the path.
    fn default() -> Self {
        let named = |variable: &str, name: &str| {
            std::env::var_os(variable).map_or_else(|| name.into(), PathBuf::from)
        };
        Self {
            ffmpeg: named("OPENSORA_FFMPEG", "ffmpeg"),
            ffprobe: named("OPENSORA_FFPROBE", "ffprobe"),
        }
    }
}

/// What a file may be read as, by the names of ffmpeg's demultiplexers. Those of playlists and
/// lists (`hls`, `concat`, `dash`) are not among them: a file of a stranger would have others on
/// this machine read, and its clips would show them.
const CONTAINERS: &str = "mov,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,gif,apng,mxf,nut,\
                          ivf,wtv,rm,dv,h264,hevc,obu,m4v,mjpeg,vc1,yuv4mpegpipe";
/// The first video stream that is no cover picture.
const STREAM: &str = "V:0";
/// Most bytes that are read of what `ffprobe` says: times of some hours of video.
const MAX_PROBE: u64 = 64 << 20;
/// Most bytes that are kept of complaints.
const MAX_COMPLAINT: u64 = 64 << 10;

/// A frame as it came through the pipe.
pub(crate) struct RawFrame {
    /// Seconds from the first frame.
    pub(crate) time: f64,
    pub(crate) bytes: Vec<u8>,
}

/// A video that the program decodes.
pub(crate) struct Stream {
    child: Child,
    out: pipe::Frames,
    complaints: Option<JoinHandle<String>>,
    /// Seconds of the frames, in display order.
    times: vec::IntoIter<f64>,
    shown: usize,
    /// A frame that nobody needs any more: new memory for each one costs more than the reading.
    spare: Vec<u8>,
    pub(crate) info: VideoInfo,
}

impl Stream {
    /// Asks what the file holds and starts to decode its first video stream to RGB.
    pub(crate) fn open(path: &Path, programs: &Programs) -> Result<Self, VideoError> {
        let probed = probe(path, programs)?;
        let form = Form {
            options: ["-pix_fmt", "rgb24", "-f", "rawvideo"].map(Into::into).into(),
            frame_bytes: 3 * probed.info.height * probed.info.width,
            size: None,
        };
        Self::start(path, programs, probed, &form, &[])
    }

    /// As [`open`](Self::open), to planes of 4:2:0 and 8 bits without full range; where the program
    /// is known to pick them from frames of this size, to the wanted pixels alone.
    pub(crate) fn open_planar(
        path: &Path,
        programs: &Programs,
        wanted: Wanted<'_>,
    ) -> Result<(Self, Planar), VideoError> {
        let probed = probe(path, programs)?;
        let to_rgb = ToRgb::stated(probed.matrix, false).ok_or_else(|| VideoError::Decode {
            path: path.into(),
            reason: "its colours are coded in a way that is not known".into(),
        })?;
        let (stream, picks) = start_planar(programs, &probed, wanted, |form| {
            Self::start(path, programs, probed.clone(), form, &[])
        })?;
        Ok((stream, Planar { to_rgb, picks }))
    }

    /// As [`open_planar`](Self::open_planar), by two programs at once: the first gives all frames,
    /// the second those from a key frame near the middle on, each on one core. With the place of that
    /// frame; `None` where the file tells of no such frame.
    ///
    /// The second is only as good as the file's index: whether it does begin with that frame has to
    /// be seen from the frames.
    pub(crate) fn open_planar_halves(
        path: &Path,
        programs: &Programs,
        wanted: Wanted<'_>,
    ) -> Result<Option<Halves>, VideoError> {
        let probed = probe(path, programs)?;
        let Some(Middle { place, seek }) = probed.middle() else { return Ok(None) };
        let Some(to_rgb) = ToRgb::stated(probed.matrix, false) else { return Ok(None) };
        let mut second = probed.clone();
        second.times.drain(..place);
        let from = |seek: Option<f64>| {
            let mut options: Vec<OsString> = vec!["-threads".into(), "1".into()];
            if let Some(seconds) = seek {
                // To the key frame before that time, and nothing thrown away after it.
                options.extend(["-seek_timestamp", "1", "-noaccurate_seek", "-ss"].map(Into::into));
                options.push(format!("{seconds:.6}").into());
            }
            options
        };
        let ((first, second), picks) = start_planar(programs, &probed, wanted, |form| {
            let start = |probed: &Probed, seek| {
                Self::start(path, programs, probed.clone(), form, &from(seek))
            };
            Ok((start(&probed, None)?, start(&second, Some(seek))?))
        })?;
        Ok(Some(Halves { first, second, place, planar: Planar { to_rgb, picks } }))
    }

    fn start(
        path: &Path,
        programs: &Programs,
        Probed { info, times, .. }: Probed,
        form: &Form,
        input_options: &[OsString],
    ) -> Result<Self, VideoError> {
        let fail = |reason: String| VideoError::Decode { path: path.into(), reason };
        let input = local(path).map_err(|source| VideoError::Io { path: path.into(), source })?;
        let (mut child, out) = pipe::start(
            Command::new(&programs.ffmpeg)
                .args(["-nostdin", "-v", "error", "-protocol_whitelist", "file,pipe"])
                .args(["-format_whitelist", CONTAINERS, "-noautorotate"])
                .args(input_options)
                .arg("-i")
                .arg(input)
                .args(["-map", &format!("0:{STREAM}"), "-vsync", "passthrough"])
                .args(&form.options)
                .arg("pipe:1")
                .stdin(Stdio::null())
                .stderr(Stdio::piped()),
        )
        .map_err(|error| absent(path, &programs.ffmpeg, &error))?;
        let Some(said) = child.stderr.take() else {
            return Err(fail("the ffmpeg program cannot be heard".into()));
        };
        let complaints = std::thread::spawn(|| complaints(said));
        Ok(Self {
            child,
            out: pipe::Frames::new(out, form.frame_bytes, form.size),
            complaints: Some(complaints),
            times: times.into_iter(),
            shown: 0,
            spare: Vec::new(),
            info,
        })
    }

    /// The next frame; `None` after the last.
    pub(crate) fn next_frame(&mut self) -> Result<Option<RawFrame>, String> {
        let mut bytes = std::mem::take(&mut self.spare);
        let filled = match self.out.read(&mut bytes) {
            Ok(pipe::Filled::Whole) => {
                let even = self.shown as f64 / self.info.fps;
                self.shown += 1;
                return Ok(Some(RawFrame { time: self.times.next().unwrap_or(even), bytes }));
            }
            Ok(pipe::Filled::Part) => true,
            Ok(pipe::Filled::Nothing) => false,
            Err(error) => return Err(format!("the ffmpeg program: {error}")),
        };
        let status = self.child.wait().map_err(|error| format!("the ffmpeg program: {error}"))?;
        let said = self.complaints.take().and_then(|said| said.join().ok()).unwrap_or_default();
        if !filled && status.success() && self.shown > 0 {
            return Ok(None);
        }
        Err(match (filled, last_line(&said)) {
            (_, Some(line)) => format!("the ffmpeg program says: {line}"),
            (false, None) if self.shown == 0 => "it holds no pictures".into(),
            _ => format!("the ffmpeg program ended early ({status})"),
        })
    }
}

impl Stream {
    /// Takes back the bytes of a frame, for the next one.
    pub(crate) fn reuse(&mut self, bytes: Vec<u8>) {
        self.spare = bytes;
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // It may have ended by itself; either way it is waited for, so that no process is left.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Two programs on one video.
pub(crate) struct Halves {
    /// All frames.
    pub(crate) first: Stream,
    /// Those from `place` on.
    pub(crate) second: Stream,
    /// Frames before the second's first.
    pub(crate) place: usize,
    pub(crate) planar: Planar,
}

/// Which pixels are looked at, for frames of a width and a height; `None` for all of them.
pub(crate) type Wanted<'a> = &'a dyn Fn(usize, usize) -> Option<Picks>;

/// What the frames of a stream of planes are.
#[derive(Debug, Clone)]
pub(crate) struct Planar {
    pub(crate) to_rgb: ToRgb,
    /// The pixels that there are, as planes of 4:4:4; all of them, as 4:2:0, where `None`.
    pub(crate) picks: Option<Picks>,
}

/// The form in which frames are asked for.
struct Form {
    /// Options of the output.
    options: Vec<OsString>,
    /// Bytes of a frame.
    frame_bytes: usize,
    /// Width and height, where the frames come with words about them (YUV4MPEG2).
    size: Option<(usize, usize)>,
}

impl Form {
    /// All pixels of frames of this size (width, height), 4:2:0.
    fn whole(size @ (width, height): (usize, usize)) -> Self {
        let frame_bytes = height * width + 2 * height.div_ceil(2) * width.div_ceil(2);
        Self::of_planes(&["-pix_fmt", "yuv420p"], frame_bytes, size)
    }

    /// Some pixels of frames of this size, 4:4:4.
    fn picked(size: (usize, usize), picks: &Picks) -> Self {
        // Several threads for so little would wait for one another.
        let options = ["-filter_threads", "1", "-vf", &picks.filter(size)];
        Self::of_planes(&options, picks.frame_bytes(), (picks.columns.len(), picks.rows.len()))
    }

    /// Planes go out line by line as they lie in the decoder's frames. The plain form, `rawvideo`,
    /// would first have them all copied to another place.
    fn of_planes(options: &[&str], frame_bytes: usize, size: (usize, usize)) -> Self {
        let options = options.iter().chain(&["-f", "yuv4mpegpipe"]).map(Into::into).collect();
        Self { options, frame_bytes, size: Some(size) }
    }
}

/// Starts programs for the wanted pixels where they are picked to the byte, else for all of them.
fn start_planar<T>(
    programs: &Programs,
    probed: &Probed,
    wanted: Wanted<'_>,
    start: impl Fn(&Form) -> Result<T, VideoError>,
) -> Result<(T, Option<Picks>), VideoError> {
    let size = (probed.info.width, probed.info.height);
    // What has another depth or range is converted as a whole: in one step with picking, it could
    // be rounded otherwise.
    if let Some(picks) = wanted(size.0, size.1).filter(|_| probed.is_plain) {
        // They get going while it is found out whether they are of use.
        let started = start(&Form::picked(size, &picks))?;
        if picks.are_made_by(&programs.ffmpeg, size) {
            return Ok((started, Some(picks)));
        }
    }
    Ok((start(&Form::whole(size))?, None))
}

/// A key frame near the middle of a video.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Middle {
    /// Frames that are shown before it.
    place: usize,
    /// A time in the container's own seconds whose last key frame it is.
    seek: f64,
}

/// What is known of a file's first video stream.
#[derive(Clone)]
struct Probed {
    info: VideoInfo,
    /// Seconds of its frames from the first; empty where they are not known.
    times: Vec<f64>,
    /// Seconds of the first frame as the container counts them.
    start: f64,
    /// Places of the key frames in `times`, ascending.
    key_frames: Vec<usize>,
    /// `matrix_coefficients` of H.264 (table E-5).
    matrix: u8,
    /// Whether frames are decoded to 4:2:0 with 8 bits and limited range.
    is_plain: bool,
}

/// Videos of fewer frames are not worth a second program.
const FEWEST_FOR_HALVES: usize = 240;
/// Containers without an index by display time are searched this much too early by ffmpeg
/// (`ffmpeg_demux.c`, 3/23 s where frames are reordered); seeking later by more than that makes up
/// for it.
const SEEK_LATER: f64 = 0.2;

impl Probed {
    /// The key frame nearest to the middle, where neither half is less than a third.
    fn middle(&self) -> Option<Middle> {
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
        let seek = self.start + self.times[place] + SEEK_LATER.min(0.5 * length);
        Some(Middle { place, seek })
    }
}

/// What a file's first video stream is.
fn probe(path: &Path, programs: &Programs) -> Result<Probed, VideoError> {
    let fail = |reason: String| VideoError::Decode { path: path.into(), reason };
    let mut child = Command::new(&programs.ffprobe)
        .args(["-v", "error", "-protocol_whitelist", "file,pipe"])
        .args(["-format_whitelist", CONTAINERS, "-select_streams", STREAM])
        .args([
            "-show_entries",
            "stream=codec_name,width,height,avg_frame_rate,r_frame_rate,color_space,color_range,\
             pix_fmt",
        ])
        .args(["-show_entries", "packet=pts_time,flags", "-show_entries", "format=duration"])
        .args(["-of", "json", "-i"])
        .arg(local(path).map_err(|source| VideoError::Io { path: path.into(), source })?)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| absent(path, &programs.ffprobe, &error))?;
    let said = child.stderr.take().map(|said| std::thread::spawn(|| complaints(said)));
    let mut text = String::new();
    let read = match child.stdout.take() {
        Some(out) => out.take(MAX_PROBE).read_to_string(&mut text),
        None => Ok(0),
    };
    let _ = child.kill();
    let _ = child.wait();
    let said = said.and_then(|said| said.join().ok()).unwrap_or_default();
    let answer: Option<Value> = read.ok().and_then(|_| serde_json::from_str(&text).ok());
    let stream = answer.as_ref().map(|answer| &answer["streams"][0]);
    let Some((answer, stream)) = answer.as_ref().zip(stream.filter(|stream| stream.is_object()))
    else {
        return Err(fail(match last_line(&said) {
            Some(line) => format!("the ffprobe program says: {line}"),
            None => "it holds no video track".into(),
        }));
    };

    let side = |name: &str| stream[name].as_u64().and_then(|side| usize::try_from(side).ok());
    let (Some(width), Some(height)) = (side("width"), side("height")) else {
        return Err(fail("the ffprobe program tells no size".into()));
    };
    if !(1..=MAX_SIDE).contains(&width) || !(1..=MAX_SIDE).contains(&height) {
        return Err(fail(format!(
            "its pictures are {height}x{width}, sides are 1 to {MAX_SIDE} pixels"
        )));
    }
    let number = |value: &Value| value.as_str().and_then(|text| text.parse::<f64>().ok());
    let packets = answer["packets"].as_array().map(Vec::as_slice).unwrap_or_default();
    let is_key =
        |packet: &Value| packet["flags"].as_str().is_some_and(|flags| flags.starts_with('K'));
    let mut shown: Vec<(f64, bool)> = packets
        .iter()
        .filter_map(|packet| Some((number(&packet["pts_time"])?, is_key(packet))))
        .collect();
    shown.sort_by(|a, b| a.0.total_cmp(&b.0));
    let start = shown.first().map_or(0.0, |&(time, _)| time);
    let mut times: Vec<f64> = shown.iter().map(|(time, _)| time - start).collect();
    let key_frames = (0..shown.len()).filter(|&place| shown[place].1).collect();
    // Without a time for each packet they cannot be told apart: then frames last equally long.
    let frames = (!packets.is_empty()).then_some(packets.len());
    if Some(times.len()) != frames {
        times.clear();
    }
    let rate = ["avg_frame_rate", "r_frame_rate"].into_iter().find_map(|name| {
        let (above, below) = stream[name].as_str()?.split_once('/')?;
        let rate = above.parse::<f64>().ok()? / below.parse::<f64>().ok()?;
        (rate.is_finite() && rate > 0.0).then_some(rate)
    });
    let fps = rate.ok_or_else(|| fail("it has no frame rate".into()))?;
    let duration = number(&answer["format"]["duration"]);
    let codec = stream["codec_name"].as_str().unwrap_or("unknown").to_string();
    let matrix = match stream["color_space"].as_str() {
        Some("bt709") => 1,
        Some("fcc") => 4,
        Some("bt470bg") => 5,
        Some("smpte170m") => 6,
        Some("smpte240m") => 7,
        Some("bt2020nc" | "bt2020_ncl") => 9,
        // Not stated.
        _ => 2,
    };
    let info = VideoInfo { width, height, fps, num_frames: frames, duration, codec };
    let is_plain = stream["pix_fmt"].as_str() == Some("yuv420p")
        && stream["color_range"].as_str().is_none_or(|range| range != "pc");
    Ok(Probed { info, times, start, key_frames, matrix, is_plain })
}

/// A path that is no option and no address.
fn local(path: &Path) -> std::io::Result<OsString> {
    let mut name = OsString::from("file:");
    name.push(std::path::absolute(path)?);
    Ok(name)
}

fn absent(path: &Path, program: &Path, error: &std::io::Error) -> VideoError {
    let program = program.display();
    let reason = match error.kind() {
        ErrorKind::NotFound => {
            format!("the program {program}, which reads other kinds of video, is not there")
        }
        _ => format!("the program {program} cannot be started: {error}"),
    };
    VideoError::Program { path: path.into(), reason }
}

/// Reads all that a program complains of, and keeps the beginning.
fn complaints(mut said: ChildStderr) -> String {
    let mut kept = Vec::new();
    let _ = said.by_ref().take(MAX_COMPLAINT).read_to_end(&mut kept);
    let _ = std::io::copy(&mut said, &mut std::io::sink());
    String::from_utf8_lossy(&kept).into_owned()
}

/// The last complaint, without the name of the file, which its reader knows.
fn last_line(text: &str) -> Option<&str> {
    let line = text.lines().map(str::trim).rfind(|line| !line.is_empty())?;
    let is_name = line.starts_with("file:");
    Some(if is_name { line.rsplit_once(": ").map_or(line, |(_, words)| words) } else { line })
}
