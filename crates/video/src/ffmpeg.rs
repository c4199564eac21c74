//! The `ffmpeg` program, for what is not decoded here: HEVC, AV1, VP9, MKV and so on.
//!
//! Found at run time: what the environment variables `OPENSORA_FFMPEG` and `OPENSORA_FFPROBE` name,
//! else `ffmpeg` and `ffprobe` on the path. Frames come through a pipe, as RGB or planes in the
//! stream's own size and order, none doubled and none dropped, each with its own time. Pictures are
//! turned upright in this process, as older programs know fewer turns.
//! Only local files are opened: names are never taken for options or addresses of other protocols,
//! and no file makes the program open another one.

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
    ffi::OsString,
    io::{ErrorKind, Read},
    path::{Path, PathBuf},
    process::{Child, ChildStderr, Command, Stdio},
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
pub(crate) const CONTAINERS: &str = "mov,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,gif,apng,mxf,nut,\
                          ivf,wtv,rm,dv,h264,hevc,obu,m4v,mjpeg,vc1,yuv4mpegpipe";
/// The first video stream that is no cover picture.
pub(crate) const STREAM: &str = "V:0";
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
    stamps: Stamps,
    turn: Turn,
    /// Seconds of the frames by the container's index, for programs that tell no times.
    times: std::vec::IntoIter<f64>,
    /// The frame whose time counts as 0: the first one, unless it is known before.
    first: Option<Stamp>,
    shown: usize,
    /// A frame that nobody needs any more: new memory for each one costs more than the reading.
    spare: Vec<u8>,
    pub(crate) info: VideoInfo,
}

/// How frames as they come through the pipe become those that are handed over.
#[derive(Clone, Copy)]
struct Turn {
    orientation: Orientation,
    /// Width and height of stored pictures.
    stored: (usize, usize),
    kind: Kind,
}

/// What comes through the pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Red, green and blue of each pixel.
    Rgb,
    /// The same, to be handed over as three planes.
    RgbPlanes,
    /// Planes of 4:2:0.
    Yuv420,
    /// Some pixels in planes of 4:4:4, of pictures that are shown as they are stored.
    Picked,
}

impl Turn {
    /// Returns true if frames are handed over as they come.
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
    /// Asks what the file holds and starts to decode its first video stream to RGB.
    pub(crate) fn open(path: &Path, programs: &Programs) -> Result<Self, VideoError> {
        let probed = probe(path, programs)?;
        let form = Form::rgb(probed.stored, Kind::Rgb);
        Self::start(path, programs, probed, &form, None)
    }

    /// As [`open`](Self::open), to planes: those of 4:2:0 and 8 bits without full range as they are;
    /// if the program is known to pick them from frames of this size, the wanted pixels alone. Others
    /// come as red, green and blue, so that they are the same as with [`open`](Self::open).
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
                .args(["-map", &format!("0:{STREAM}"), "-vsync", "passthrough"])
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

    /// The next frame; `None` after the last.
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
            (false, None) if self.shown == 0 => "it holds no pictures".into(),
            _ => format!("the ffmpeg program ended early ({status})"),
        }
        .into())
    }

    /// Seconds of the frame that was just read.
    fn stamp(&mut self) -> Result<f64, Cause> {
        // By the index, or as if frames lasted equally long.
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

    /// Takes back the bytes of a frame, for the next one.
    pub(crate) fn reuse(&mut self, bytes: Vec<u8>) {
        if self.turn.is_none() {
            self.spare = bytes;
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // It may have ended by itself; either way it is waited for, so that no process is left.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The filter that tells each frame's time and size.
const STAMPS: &str = "showinfo=checksum=0";

/// One of two programs on one video.
#[derive(Clone, Copy)]
struct Half {
    /// Where it begins, in the container's own seconds.
    seek: Option<f64>,
}

impl Half {
    /// Options before the input.
    fn options(self) -> Vec<OsString> {
        let mut options: Vec<OsString> = ["-copyts", "-threads", "1"].map(Into::into).into();
        if let Some(seconds) = self.seek {
            // To the key frame before that time, and nothing thrown away after it.
            options.extend(["-seek_timestamp", "1", "-noaccurate_seek", "-ss"].map(Into::into));
            options.push(format!("{seconds:.6}").into());
        }
        options
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
    kind: Kind,
    /// A filter.
    filter: Option<String>,
    /// Options of the output.
    options: Vec<OsString>,
    /// Bytes of a frame.
    frame_bytes: usize,
    /// Width and height, where the frames come with words about them (YUV4MPEG2).
    size: Option<(usize, usize)>,
}

impl Form {
    /// All pixels of frames of this size (width, height), red, green and blue.
    fn rgb((width, height): (usize, usize), kind: Kind) -> Self {
        let options = ["-pix_fmt", "rgb24", "-f", "rawvideo"].map(Into::into).into();
        Self { kind, filter: None, options, frame_bytes: 3 * height * width, size: None }
    }

    /// All pixels of frames of this size (width, height), 4:2:0.
    fn whole(size @ (width, height): (usize, usize)) -> Self {
        let frame_bytes = height * width + 2 * height.div_ceil(2) * width.div_ceil(2);
        Self::of_planes(Kind::Yuv420, &["-pix_fmt", "yuv420p"], frame_bytes, size)
    }

    /// Some pixels of frames of this size, 4:4:4.
    fn picked(size: (usize, usize), picks: &Picks) -> Self {
        // Several threads for so little would wait for one another.
        let options = ["-filter_threads", "1"];
        let small = (picks.columns.len(), picks.rows.len());
        let form = Self::of_planes(Kind::Picked, &options, picks.frame_bytes(), small);
        Self { filter: Some(picks.filter(size)), ..form }
    }

    /// Planes go out line by line as they lie in the decoder's frames. The plain form, `rawvideo`,
    /// would first have them all copied to another place.
    fn of_planes(kind: Kind, options: &[&str], frame_bytes: usize, size: (usize, usize)) -> Self {
        let options = options.iter().chain(&["-f", "yuv4mpegpipe"]).map(Into::into).collect();
        Self { kind, filter: None, options, frame_bytes, size: Some(size) }
    }
}

/// Starts programs for the wanted pixels where they are picked to the byte, else for all of them.
fn start_planar<T>(
    programs: &Programs,
    probed: &Probed,
    wanted: Wanted<'_>,
    start: impl Fn(&Form) -> Result<T, VideoError>,
) -> Result<(T, Planar), VideoError> {
    let to_rgb = ToRgb::stated(Colour { matrix: probed.matrix, full_range: false })
        .filter(|_| probed.is_plain);
    let Some(to_rgb) = to_rgb else {
        // Other depths, ranges and chroma formats would be rounded or averaged on the way to 4:2:0.
        let (width, height) = (probed.info.width, probed.info.height);
        let picks = Picks { columns: (0..width).collect(), rows: (0..height).collect() };
        let planar = Planar { to_rgb: ToRgb::NONE, picks: Some(picks) };
        return Ok((start(&Form::rgb(probed.stored, Kind::RgbPlanes))?, planar));
    };
    let size = probed.stored;
    let are_possible = probed.orientation.is_as_stored();
    if let Some(picks) = wanted(size.0, size.1).filter(|_| are_possible) {
        // They get going while it is found out whether they are of use.
        let started = start(&Form::picked(size, &picks))?;
        if picks.are_made_by(&programs.ffmpeg, size) {
            return Ok((started, Planar { to_rgb, picks: Some(picks) }));
        }
    }
    Ok((start(&Form::whole(size))?, Planar { to_rgb, picks: None }))
}

/// A path that is no option and no address.
pub(crate) fn local(path: &Path) -> std::io::Result<OsString> {
    let mut name = OsString::from("file:");
    name.push(std::path::absolute(path)?);
    Ok(name)
}

pub(crate) fn absent(path: &Path, program: &Path, source: std::io::Error) -> VideoError {
    let (path, program) = (path.into(), program.into());
    match source.kind() {
        ErrorKind::NotFound => VideoError::NotInstalled { path, program },
        _ => VideoError::Program { path, program, source },
    }
}

/// Reads all that a program complains of, and keeps the beginning.
pub(crate) fn complaints(mut said: ChildStderr) -> String {
    let mut kept = Vec::new();
    let _ = said.by_ref().take(MAX_COMPLAINT).read_to_end(&mut kept);
    let _ = std::io::copy(&mut said, &mut std::io::sink());
    String::from_utf8_lossy(&kept).into_owned()
}

/// The last complaint, without the name of the file, which its reader knows.
pub(crate) fn last_line(text: &str) -> Option<&str> {
    let line = text.lines().map(str::trim).rfind(|line| !line.is_empty())?;
    let is_name = line.starts_with("file:");
    Some(if is_name { line.rsplit_once(": ").map_or(line, |(_, words)| words) } else { line })
}
