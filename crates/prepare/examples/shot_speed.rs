//! Shots of a raw stream of frames: how fast they are found, and their scores.
//!
//! ```text
//! ffmpeg -i clip.mp4 -f rawvideo -pix_fmt rgb24 - | cargo run --release -p opensora-prepare --example shot_speed -- 1280x720
//! cargo run --release -p opensora-prepare --example shot_speed -- clip.mp4
//! ```
//!
//! The first form takes frames of any decoder; further arguments are a release (`0.6.3`, `0.7`),
//! `adaptive`, and `scores`, which prints a score a line.

use opensora_prepare::shots::{Detector, Method, Rgb, Settings};
use std::{error::Error, io::Read, time::Instant};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let input = arguments.next().ok_or("expected a video, or a size such as 1280x720")?;
    let (mut settings, mut scores) = (Settings::default(), false);
    for argument in arguments {
        match argument.as_str() {
            "adaptive" => settings.method = Method::ADAPTIVE,
            "scores" => scores = true,
            release => settings.release = release.parse()?,
        }
    }

    let start = Instant::now();
    let mut detector = Detector::new(&settings)?;
    let mut cuts = Vec::new();
    let mut push = |rgb: &[u8], width, height| -> Result<(), Box<dyn Error>> {
        let frame = Rgb::new(rgb, width, height).ok_or("a frame of another size")?;
        let (score, cut) = detector.push(&frame)?;
        cuts.extend(cut);
        if scores {
            println!("{:.6}", score.content);
        }
        Ok(())
    };
    let size = input.split_once('x').and_then(|(w, h)| Some((w.parse().ok()?, h.parse().ok()?)));
    if let Some((width, height)) = size {
        let mut frame = vec![0; 3 * width * height];
        let mut stdin = std::io::stdin().lock();
        while stdin.read_exact(&mut frame).is_ok() {
            push(&frame, width, height)?;
        }
    } else {
        let (frames, _) = opensora_video::mp4::read(input.as_ref())?;
        for rgb in frames.iter() {
            push(rgb, frames.width(), frames.height())?;
        }
    }
    let (frames, seconds) = (detector.frames(), start.elapsed().as_secs_f64());
    let rate = frames as f64 / seconds;
    println!("{frames} frames in {seconds:.2} s, {rate:.1} a second; cuts {cuts:?}");
    Ok(())
}
