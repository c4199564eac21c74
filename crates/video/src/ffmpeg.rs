//! Decoding by the `ffmpeg` program, for formats that are not decoded in this process: HEVC, AV1, VP9, MKV, ...
//!
//! The programs are found at run time: `OPENSORA_FFMPEG` and `OPENSORA_FFPROBE`, else `ffmpeg` and `ffprobe` on
//! the path. Frames are transferred through a pipe, as RGB or planes in the size and order of the stream, none
//! duplicated and none dropped, each with its own timestamp. Rotations are applied in this process, because
//! older versions of the program support fewer.
//!
//! Only local files are opened: a file name is never interpreted as an option or URL, and playlists, which open
//! other files, are excluded.

use crate::{
    VideoError, VideoInfo,
    error::Cause,
    orientation::Orientation,
    picks::Picks,
    pipe::{self, OutputError},
    probe::{Middle, Probed, probe},
    stamps::{Stamp, Stamps},
    yuv::{Colour, ToRgb},
};
use std::{
    collections::HashMap,
    ffi::OsString,
    io::{ErrorKind, Read},
    path::{Path, PathBuf},
    process::{Child, ChildStderr, Command, Stdio},
    sync::{LazyLock, Mutex, PoisonError},
};

/// Returns the program's option that neither drops nor repeats frames: `-fps_mode` since version 5.1, `-vsync`
/// before version 9. Tried once for each program.
fn sync_option(program: &Path) -> &'static str {
    static IS_NEW: LazyLock<Mutex<HashMap<PathBuf, bool>>> = LazyLock::new(Mutex::default);
    let mut known = IS_NEW.lock().unwrap_or_else(PoisonError::into_inner);
    let is_new = *known.entry(program.into()).or_insert_with(|| {
        let mut command = Command::new(program);
        command.args(["-v", "error", "-fps_mode", "passthrough", "-version"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        pipe::shielded(&mut command).status().is_ok_and(|status| status.success())
    });
    if is_new { "-fps_mode" } else { "-vsync" }
}

/// Paths of the programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Programs {
    /// The program that decodes.
    pub ffmpeg: PathBuf,
    /// The program that reports metadata.
    pub ffprobe: PathBuf,
}

impl Default for Programs {
    /// Returns the programs of the environment variables, else those on the path.
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

/// Allowed demuxers of ffmpeg. Playlists (`hls`, `concat`, `dash`) are excluded: an untrusted file could
/// include other files of this computer in its frames.
pub(crate) const CONTAINERS: &str = "mov,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,gif,apng,mxf,nut,\
                          ivf,wtv,rm,dv,h264,hevc,obu,m4v,mjpeg,vc1,yuv4mpegpipe";
/// Specifier of the first video stream that is not a cover image.
pub(crate) const STREAM: &str = "V:0";
/// Maximum size of the kept error messages in bytes.
const MAX_COMPLAINT: u64 = 64 << 10;

/// A frame from the pipe.
pub(crate) struct RawFrame {
    /// Seconds since the first frame.
    pub(crate) time: f64,
    pub(crate) bytes: Vec<u8>,
}

/// A video that is decoded by the program.
pub(crate) struct Stream {
    child: Child,
    out: pipe::Frames,
    stamps: Stamps,
    turn: Turn,
    /// Times of the frames by the container's index, for programs that do not log times.
    times: std::vec::IntoIter<f64>,
    /// Stamp of the frame with time 0: the first one that is read, unless it is known before.
    first: Option<Stamp>,
    shown: usize,
    /// Buffer of an earlier frame, reused because allocating costs more than reading.
    spare: Vec<u8>,
    pub(crate) info: VideoInfo,
}

/// Conversion of frames from the pipe to returned frames.
#[derive(Clone, Copy)]
struct Turn {
    orientation: Orientation,
    /// Width and height of stored frames.
    stored: (usize, usize),
    kind: Kind,
}

/// Pixel format of the pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Interleaved RGB.
    Rgb,
    /// Interleaved RGB, returned as three planes.
    RgbPlanes,
    /// Planes of YUV 4:2:0.
    Yuv420,
    /// Selected pixels in planes of YUV 4:4:4, of frames without rotation.
    Picked,
}

impl Turn {
    /// Returns true if frames are returned unchanged.
    fn is_none(self) -> bool {
        self.kind != Kind::RgbPlanes && self.orientation.is_as_stored()
    }

    fn apply(self, bytes: &[u8]) -> Vec<u8> {
        let Self { orientation, stored, kind } = self;
        match kind {
            Kind::Rgb => orientation.apply::<3>(bytes, stored),
            Kind::RgbPlanes => {
                let (pixels, _) = bytes.as_chunks::<3>();
                let plane = |at: usize| pixels.iter().map(move |pixel| pixel[at]);
                let planes: Vec<u8> = (0..3).flat_map(plane).collect();
                if orientation.is_as_stored() {
                    return planes;
                }
                orientation.apply_to_planes(&planes, stored, stored)
            }
            Kind::Yuv420 => {
                let (width, height) = stored;
                orientation.apply_to_planes(bytes, stored, (width.div_ceil(2), height.div_ceil(2)))
            }
            Kind::Picked => bytes.to_vec(),
        }
    }
}

impl Stream {
    /// Probes a file and starts to decode its first video stream to RGB.
    pub(crate) fn open(path: &Path, programs: &Programs) -> Result<Self, VideoError> {
        let probed = probe(path, programs)?;
        let form = Form::rgb(probed.stored, Kind::Rgb);
        Self::start(path, programs, probed, &form, None)
    }

    /// Starts to decode to planes. Streams of 8-bit 4:2:0 with limited range are returned as YUV, reduced to the
    /// wanted pixels if the program selects them bit-exactly. Other streams are returned as RGB planes, equal to
    /// the frames of [`open`](Self::open).
    pub(crate) fn open_planar(
        path: &Path,
        programs: &Programs,
        wanted: Wanted<'_>,
    ) -> Result<(Self, Planar), VideoError> {
        let probed = probe(path, programs)?;
        start_planar(programs, &probed, wanted, |form| {
            Self::start(path, programs, probed.clone(), form, None)
        })
    }

    /// Starts to decode as [`open_planar`](Self::open_planar) with two processes, each on one core: the first
    /// returns all frames, the second those from a key frame near the middle. `None` if the index names no such
    /// frame.
    ///
    /// The index may be wrong: callers must check by the frames that the second process begins with that frame.
    pub(crate) fn open_planar_halves(
        path: &Path,
        programs: &Programs,
        wanted: Wanted<'_>,
    ) -> Result<Option<Halves>, VideoError> {
        let probed = probe(path, programs)?;
        let Some(Middle { place, seek }) = probed.middle() else { return Ok(None) };
        let mut second = probed.clone();
        second.times.drain(..place);
        let half = |seek| Some(Half { seek });
        let ((first, second), planar) = start_planar(programs, &probed, wanted, |form| {
            let start = |probed: &Probed, seek| {
                Self::start(path, programs, probed.clone(), form, half(seek))
            };
            Ok((start(&probed, None)?, start(&second, Some(seek))?))
        })?;
        Ok(Some(Halves { first, second, place, planar }))
    }

    fn start(
        path: &Path,
        programs: &Programs,
        probed: Probed,
        form: &Form,
        half: Option<Half>,
    ) -> Result<Self, VideoError> {
        let input = local(path).map_err(|source| VideoError::Io { path: path.into(), source })?;
        let filters: Vec<&str> = [STAMPS].into_iter().chain(form.filter.as_deref()).collect();
        let (mut child, out) = pipe::start(
            Command::new(&programs.ffmpeg)
                .args(["-nostdin", "-hide_banner", "-nostats", "-v", "level+info"])
                .args(["-protocol_whitelist", "file,pipe", "-format_whitelist", CONTAINERS])
                .arg("-noautorotate")
                .args(half.map(Half::options).unwrap_or_default())
                .arg("-i")
                .arg(input)
                .args([
                    "-map",
                    &format!("0:{STREAM}"),
                    sync_option(&programs.ffmpeg),
                    "passthrough",
                ])
                .args(["-vf", &filters.join(",")])
                .args(&form.options)
                .arg("pipe:1")
                .stdin(Stdio::null())
                .stderr(Stdio::piped()),
            pipe::PATIENCE,
        )
        .map_err(|error| absent(path, &programs.ffmpeg, error))?;
        let Some(said) = child.stderr.take() else {
            return Err(VideoError::decode(path, "the ffmpeg program cannot be heard"));
        };
        let Probed { info, times, stored, orientation, first, .. } = probed;
        Ok(Self {
            child,
            out: pipe::Frames::new(out, form.frame_bytes, form.size),
            stamps: Stamps::listen(said),
            turn: Turn { orientation, stored, kind: form.kind },
            times: times.into_iter(),
            first: half.map(|_| first),
            shown: 0,
            spare: Vec::new(),
            info,
        })
    }

    /// Returns the next frame; `None` after the last.
    pub(crate) fn next_frame(&mut self) -> Result<Option<RawFrame>, Cause> {
        let mut bytes = std::mem::take(&mut self.spare);
        let filled = match self.out.read(&mut bytes) {
            Ok(pipe::Filled::Whole) => {
                let time = self.stamp()?;
                self.shown += 1;
                if !self.turn.is_none() {
                    let turned = self.turn.apply(&bytes);
                    self.spare = std::mem::replace(&mut bytes, turned);
                }
                return Ok(Some(RawFrame { time, bytes }));
            }
            Ok(pipe::Filled::Part) => true,
            Ok(pipe::Filled::Nothing) => false,
            Err(error) => {
                let _ = self.child.kill();
                return Err(OutputError::of("ffmpeg")(error).into());
            }
        };
        let status = self.child.wait().map_err(OutputError::of("ffmpeg"))?;
        let said = self.stamps.complaints();
        if !filled && status.success() && self.shown > 0 {
            return Ok(None);
        }
        Err(match (filled, last_line(&said)) {
            (_, Some(line)) => format!("the ffmpeg program says: {line}"),
            (false, None) if self.shown == 0 => "it has no frames".into(),
            _ => format!("the ffmpeg program ended early ({status})"),
        }
        .into())
    }

    /// Returns the time in seconds of the frame that was just read.
    fn stamp(&mut self) -> Result<f64, Cause> {
        // The time by the index, else by a constant frame rate.
        let even = if self.info.fps > 0.0 { self.shown as f64 / self.info.fps } else { 0.0 };
        let told = self.times.next().unwrap_or(even);
        let Some(stamp) = self.stamps.next() else { return Ok(told) };
        let (width, height) = self.turn.stored;
        if stamp.size != (width, height) {
            let (w, h) = stamp.size;
            return Err(format!("its size changes from {height}x{width} to {h}x{w}").into());
        }
        let first = *self.first.get_or_insert(stamp);
        Ok(stamp.since(&first).unwrap_or(told))
    }

    /// Returns the buffer of a frame for reuse.
    pub(crate) fn reuse(&mut self, bytes: Vec<u8>) {
        if self.turn.is_none() {
            self.spare = bytes;
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // Waits in any case, so that no zombie process is left.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The filter that logs the time and size of each frame.
const STAMPS: &str = "showinfo=checksum=0";

/// One of two processes that decode one video.
#[derive(Clone, Copy)]
struct Half {
    /// Start in seconds of the container; `None` for the beginning.
    seek: Option<f64>,
}

impl Half {
    /// Returns the options before the input.
    fn options(self) -> Vec<OsString> {
        let mut options: Vec<OsString> = ["-copyts", "-threads", "1"].map(Into::into).into();
        if let Some(seconds) = self.seek {
            // Seeks to the key frame before that time and keeps all frames after it.
            options.extend(["-seek_timestamp", "1", "-noaccurate_seek", "-ss"].map(Into::into));
            options.push(format!("{seconds:.6}").into());
        }
        options
    }
}

/// Two processes that decode one video.
pub(crate) struct Halves {
    /// Returns all frames.
    pub(crate) first: Stream,
    /// Returns the frames from index `place`.
    pub(crate) second: Stream,
    /// Index of the second's first frame.
    pub(crate) place: usize,
    pub(crate) planar: Planar,
}

/// A function that returns the wanted pixels of frames of a width and height; `None` for all pixels.
pub(crate) type Wanted<'a> = &'a dyn Fn(usize, usize) -> Option<Picks>;

/// Format of planar frames.
#[derive(Debug, Clone)]
pub(crate) struct Planar {
    pub(crate) to_rgb: ToRgb,
    /// The selected pixels, as planes of 4:4:4; `None` for all pixels as 4:2:0.
    pub(crate) picks: Option<Picks>,
}

/// Format in which frames are requested from the program.
struct Form {
    kind: Kind,
    /// Filter to apply.
    filter: Option<String>,
    /// Output options.
    options: Vec<OsString>,
    /// Size of a frame in bytes.
    frame_bytes: usize,
    /// Width and height for YUV4MPEG2 output; `None` for raw output.
    size: Option<(usize, usize)>,
}

impl Form {
    /// Requests all pixels of frames of this size (width, height) as RGB.
    fn rgb((width, height): (usize, usize), kind: Kind) -> Self {
        let options = ["-pix_fmt", "rgb24", "-f", "rawvideo"].map(Into::into).into();
        Self { kind, filter: None, options, frame_bytes: 3 * height * width, size: None }
    }

    /// Requests all pixels of frames of this size (width, height) as 4:2:0.
    fn whole(size @ (width, height): (usize, usize)) -> Self {
        let frame_bytes = height * width + 2 * height.div_ceil(2) * width.div_ceil(2);
        Self::of_planes(Kind::Yuv420, &["-pix_fmt", "yuv420p"], frame_bytes, size)
    }

    /// Requests selected pixels of frames of this size as 4:4:4.
    fn picked(size: (usize, usize), picks: &Picks) -> Self {
        // One thread: several would wait for each other.
        let options = ["-filter_threads", "1"];
        let small = (picks.columns.len(), picks.rows.len());
        let form = Self::of_planes(Kind::Picked, &options, picks.frame_bytes(), small);
        Self { filter: Some(picks.filter(size)), ..form }
    }

    /// Requests planes as YUV4MPEG2, which writes the rows of the decoder's frames directly; `rawvideo` would
    /// copy each frame first.
    fn of_planes(kind: Kind, options: &[&str], frame_bytes: usize, size: (usize, usize)) -> Self {
        let options = options.iter().chain(&["-f", "yuv4mpegpipe"]).map(Into::into).collect();
        Self { kind, filter: None, options, frame_bytes, size: Some(size) }
    }
}

/// Starts the program for the wanted pixels if it selects them bit-exactly, else for all pixels.
fn start_planar<T>(
    programs: &Programs,
    probed: &Probed,
    wanted: Wanted<'_>,
    start: impl Fn(&Form) -> Result<T, VideoError>,
) -> Result<(T, Planar), VideoError> {
    let to_rgb = ToRgb::stated(Colour { matrix: probed.matrix, full_range: false })
        .filter(|_| probed.is_plain);
    let Some(to_rgb) = to_rgb else {
        // Conversion of other depths, ranges and chroma formats to 4:2:0 would lose information.
        let (width, height) = (probed.info.width, probed.info.height);
        let picks = Picks { columns: (0..width).collect(), rows: (0..height).collect() };
        let planar = Planar { to_rgb: ToRgb::NONE, picks: Some(picks) };
        return Ok((start(&Form::rgb(probed.stored, Kind::RgbPlanes))?, planar));
    };
    let size = probed.stored;
    let are_possible = probed.orientation.is_as_stored();
    if let Some(picks) = wanted(size.0, size.1).filter(|_| are_possible) {
        // Decoding starts while the program is tested.
        let started = start(&Form::picked(size, &picks))?;
        if picks.are_made_by(&programs.ffmpeg, size) {
            return Ok((started, Planar { to_rgb, picks: Some(picks) }));
        }
    }
    Ok((start(&Form::whole(size))?, Planar { to_rgb, picks: None }))
}

/// Returns a path as a `file:` URL, which is never interpreted as an option or another protocol.
pub(crate) fn local(path: &Path) -> std::io::Result<OsString> {
    let mut name = OsString::from("file:");
    name.push(std::path::absolute(path)?);
    Ok(name)
}

/// Returns the error of a program that cannot be started.
pub(crate) fn absent(path: &Path, program: &Path, source: std::io::Error) -> VideoError {
    let (path, program) = (path.into(), program.into());
    match source.kind() {
        ErrorKind::NotFound => VideoError::NotInstalled { path, program },
        _ => VideoError::Program { path, program, source },
    }
}

/// Reads the error messages of a program and returns their beginning.
pub(crate) fn complaints(mut said: ChildStderr) -> String {
    let mut kept = Vec::new();
    let _ = said.by_ref().take(MAX_COMPLAINT).read_to_end(&mut kept);
    let _ = std::io::copy(&mut said, &mut std::io::sink());
    String::from_utf8_lossy(&kept).into_owned()
}

/// Returns the last error message without the name of the file.
pub(crate) fn last_line(text: &str) -> Option<&str> {
    let line = text.lines().map(str::trim).rfind(|line| !line.is_empty())?;
    let is_name = line.starts_with("file:");
    Some(if is_name { line.rsplit_once(": ").map_or(line, |(_, words)| words) } else { line })
}
