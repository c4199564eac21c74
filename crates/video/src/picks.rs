//! Frames made smaller by leaving pixels out, while the `ffmpeg` program decodes.
//!
//! Whoever looks at one pixel in twenty-five need not have all of them through a pipe, which costs
//! as much as half the decoding. The `scale` filter with `neighbor` leaves out just the others, but
//! where it does it at other places, or rounds, colours change. So nothing is believed: for each
//! size the program is given noise to make smaller before it is given a video, and it has to answer
//! with the bytes that are wanted.

use std::{
    collections::HashMap,
    io::{Read, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{LazyLock, Mutex, PoisonError},
};

/// Pixels that are looked at: these columns of these rows, each ascending.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Picks {
    /// Columns.
    pub columns: Vec<usize>,
    /// Rows.
    pub rows: Vec<usize>,
}

impl Picks {
    /// Bytes of a frame: luma, blue and red differences of each pixel.
    pub(crate) fn frame_bytes(&self) -> usize {
        3 * self.columns.len() * self.rows.len()
    }

    /// What the filter leaves of a 4:2:0 frame of this size (width, height), if it does it right.
    ///
    /// Where a stream notes its colour differences to lie does not count, as it does not where they
    /// become RGB: they are taken to lie in the middle. Frames of other sizes come out whole, and so
    /// with another number of bytes, as they do without the filter.
    pub(crate) fn filter(&self, (width, height): (usize, usize)) -> String {
        let (columns, rows) = (self.columns.len(), self.rows.len());
        let same = format!("eq(iw,{width})*eq(ih,{height})");
        format!(
            "scale=w='if({same},{columns},iw)':h='if({same},{rows},ih)':flags=neighbor:\
             in_h_chr_pos=128:in_v_chr_pos=128,format=yuv444p"
        )
    }

    /// The pixels of a frame `yuv420p` of this size (width, height): three planes `[rows, columns]`.
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

    /// The pixels of a frame of red, green and blue, `[H, W, 3]`: three planes `[rows, columns]`.
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

    /// Whether this program picks these pixels of frames of this size (width, height) to the byte.
    /// It is asked once.
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
                // A program that does not take it gives no right answer either.
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

/// Bytes without a pattern, so that a wrong place or a rounded value shows.
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
        // Takes nothing and says nothing.
        assert!(!right.are_made_by(Path::new("true"), (320, 180)));
        if Command::new(&program).arg("-version").output().is_err() {
            eprintln!("not compared: the ffmpeg program is not there");
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
