//! Shots of a raw stream of frames: how fast they are found, and their scores.
//!
//! ```text
//! ffmpeg -i clip.mp4 -f rawvideo -pix_fmt rgb24 - | cargo run --release -p opensora-shots --example shot_speed -- 1280x720
//! cargo run --release -p opensora-shots --example shot_speed -- clip.mp4
//! ```
//!
//! The first form takes frames of any decoder; further arguments are `yuv420p` for planes (of BT.601)
//! instead of RGB, a release (`0.6.3`, `0.7`), `adaptive`, and `scores`, which prints a score a line.

use opensora_shots::{Detector, Method, Rgb, Settings, Source, Yuv420};
use opensora_video::yuv::ToRgb;
use std::{error::Error, io::Read, time::Instant};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let input = arguments.next().ok_or("expected a video, or a size such as 1280x720")?;
    let (mut settings, mut scores, mut planes) = (Settings::default(), false, false);
    for argument in arguments {
        match argument.as_str() {
            "adaptive" => settings.method = Method::ADAPTIVE,
            "scores" => scores = true,
            "yuv420p" => planes = true,
            release => settings.release = release.parse()?,
        }
    }

    let start = Instant::now();
    let mut detector = Detector::new(&settings)?;
    let size = input.split_once('x').and_then(|(w, h)| Some((w.parse().ok()?, h.parse().ok()?)));
    if let Some((width, height)) = size {
        let bt601 = ToRgb::stated(2, false).ok_or("BT.601 is not known")?;
        let half = usize::div_ceil(width, 2) * usize::div_ceil(height, 2);
        let bytes = if planes { width * height + 2 * half } else { 3 * width * height };
        let mut frame = vec![0; bytes];
        let mut stdin = std::io::stdin().lock();
        while stdin.read_exact(&mut frame).is_ok() {
            let score = if planes {
                push(&mut detector, Yuv420::new(&frame, width, height, bt601))?
            } else {
                push(&mut detector, Rgb::new(&frame, width, height))?
            };
            if scores {
                println!("{score:.6}");
            }
        }
    } else {
        let (frames, _) = opensora_video::mp4::read(input.as_ref())?;
        for rgb in frames.iter() {
            let score = push(&mut detector, Rgb::new(rgb, frames.width(), frames.height()))?;
            if scores {
                println!("{score:.6}");
            }
        }
    }
    let (frames, seconds) = (detector.frames(), start.elapsed().as_secs_f64());
    let rate = frames as f64 / seconds;
    let cuts: Vec<usize> = detector.scenes().iter().skip(1).map(|scene| scene.start).collect();
    println!("{frames} frames in {seconds:.2} s, {rate:.1} a second; cuts {cuts:?}");
    Ok(())
}

fn push(detector: &mut Detector, frame: Option<impl Source>) -> Result<f64, Box<dyn Error>> {
    let (score, _) = detector.push(&frame.ok_or("a frame of another size")?)?;
    Ok(score.content)
}
