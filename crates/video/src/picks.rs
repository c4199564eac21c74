//! A subset of the pixels of each frame, selected while the `ffmpeg` program decodes.
//!
//! Transferring all pixels through a pipe costs as much as half the decoding, which is wasted if only one pixel
//! in 25 is used. The `scale` filter with `neighbor` can select pixels, but some versions select others or
//! change values. Therefore the program is tested once for each size: it must reduce a frame of noise to exactly
//! the expected bytes.

use std::{
    collections::HashMap,
    io::{Read, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{LazyLock, Mutex, PoisonError},
};

/// A selection of pixels: columns and rows, each ascending.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Picks {
    /// Columns.
    pub columns: Vec<usize>,
    /// Rows.
    pub rows: Vec<usize>,
}

impl Picks {
    /// Returns the size of a frame in bytes: luma, blue and red difference of each pixel.
    pub(crate) fn frame_bytes(&self) -> usize {
        3 * self.columns.len() * self.rows.len()
    }

    /// Returns the `ffmpeg` filter that selects the pixels of 4:2:0 frames of this size (width, height).
    ///
    /// The chroma location of the stream is ignored, as in the conversion to RGB: the filter assumes the centre.
    /// Frames of other sizes are passed unchanged, so that their number of bytes differs.
    pub(crate) fn filter(&self, (width, height): (usize, usize)) -> String {
        let (columns, rows) = (self.columns.len(), self.rows.len());
        let same = format!("eq(iw,{width})*eq(ih,{height})");
        format!(
            "scale=w='if({same},{columns},iw)':h='if({same},{rows},ih)':flags=neighbor:\
             in_h_chr_pos=128:in_v_chr_pos=128,format=yuv444p"
        )
    }

    /// Returns the pixels of a `yuv420p` frame of this size (width, height): three planes `[rows, columns]`.
    fn of(&self, frame: &[u8], (width, height): (usize, usize)) -> Vec<u8> {
        let (luma, differences) = frame.split_at(width * height);
        let (blue, red) = differences.split_at(differences.len() / 2);
        let mut picked = Vec::with_capacity(self.frame_bytes());
        for (plane, width, part) in
            [(luma, width, 1), (blue, width.div_ceil(2), 2), (red, width.div_ceil(2), 2)]
        {
            for row in &self.rows {
                let line = &plane[row / part * width..][..width];
                picked.extend(self.columns.iter().map(|column| line[column / part]));
            }
        }
        picked
    }

    /// Returns the pixels of an RGB frame `[H, W, 3]`: three planes `[rows, columns]`.
    pub(crate) fn of_rgb(&self, rgb: &[u8], width: usize) -> Vec<u8> {
        let mut picked = Vec::with_capacity(self.frame_bytes());
        for channel in 0..3 {
            for row in &self.rows {
                let line = &rgb[3 * row * width..][..3 * width];
                picked.extend(self.columns.iter().map(|column| line[3 * column + channel]));
            }
        }
        picked
    }

    /// Returns true if the program selects these pixels of frames of this size (width, height) bit-exactly. The
    /// result of the test is cached.
    pub(crate) fn are_made_by(&self, program: &Path, size: (usize, usize)) -> bool {
        type Asked = (PathBuf, (usize, usize), Picks);
        static ANSWERS: LazyLock<Mutex<HashMap<Asked, bool>>> = LazyLock::new(Mutex::default);
        let key = (program.to_path_buf(), size, self.clone());
        let answers = || ANSWERS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(&answer) = answers().get(&key) {
            return answer;
        }
        let answer = self.ask(program, size).unwrap_or(false);
        answers().insert(key, answer);
        answer
    }

    fn ask(&self, program: &Path, size @ (width, height): (usize, usize)) -> std::io::Result<bool> {
        let frame = noise(width * height + 2 * width.div_ceil(2) * height.div_ceil(2));
        let mut child = Command::new(program)
            .args(["-v", "error", "-f", "rawvideo", "-pix_fmt", "yuv420p"])
            .args(["-video_size", &format!("{width}x{height}"), "-i", "pipe:0"])
            .args([
                "-filter_threads",
                "1",
                "-vf",
                &self.filter(size),
                "-frames:v",
                "1",
                "-f",
                "rawvideo",
                "pipe:1",
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut answer = Vec::new();
        let read = std::thread::scope(|scope| {
            if let Some(mut input) = child.stdin.take() {
                let frame = &frame;
                // A program that does not read the frame does not answer correctly either.
                scope.spawn(move || input.write_all(frame));
            }
            let most = self.frame_bytes() as u64 + 1;
            child.stdout.take().map_or(Ok(0), |out| out.take(most).read_to_end(&mut answer))
        });
        let status = child.wait()?;
        read?;
        Ok(status.success() && answer == self.of(&frame, size))
    }
}

/// Returns pseudorandom bytes, which reveal wrong positions and changed values.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..length).map(|_| next()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every so many, from the middle of the first ones.
    fn every(factor: usize, side: usize) -> Vec<usize> {
        (factor / 2..side).step_by(factor).collect()
    }

    #[test]
    fn pixels_share_their_colour_differences() {
        let picks = Picks { columns: vec![0, 2], rows: vec![1, 2] };
        // 3x3 pixels, 2x2 differences.
        let frame: Vec<u8> = (0..17).collect();
        assert_eq!(picks.of(&frame, (3, 3)), [3, 5, 6, 8, 9, 10, 11, 12, 13, 14, 15, 16]);
    }

    #[test]
    fn a_program_is_taken_at_its_deeds() {
        let program = crate::ffmpeg::Programs::default().ffmpeg;
        let right = Picks { columns: every(5, 320), rows: every(5, 180) };
        assert!(!right.are_made_by(Path::new("/nowhere/ffmpeg"), (320, 180)));
        // Reads nothing and writes nothing.
        assert!(!right.are_made_by(Path::new("true"), (320, 180)));
        if Command::new(&program).arg("-version").output().is_err() {
            eprintln!("not compared: ffmpeg is not installed");
            return;
        }
        // Even sides: where one is odd, the program's colour differences lie elsewhere, and it is refused.
        for (factors, size) in [
            ((5, 5), (320, 180)),
            ((5, 5), (180, 320)),
            ((3, 3), (768, 432)),
            ((15, 15), (1920, 1080)),
            // Columns or rows alone.
            ((5, 1), (320, 182)),
        ] {
            let picks = Picks { columns: every(factors.0, size.0), rows: every(factors.1, size.1) };
            assert!(picks.are_made_by(&program, size), "{factors:?} {size:?}");
            let mut shifted = picks.clone();
            let last = shifted.columns.len() - 1;
            shifted.columns[last] -= 1;
            assert!(factors.0 == 1 || !shifted.are_made_by(&program, size), "{size:?}");
        }
    }
}
