//! Measures the speed of shot detection on a video or a raw stream of frames, and prints scores.
//!
//! ```text
//! ffmpeg -i clip.mp4 -f rawvideo -pix_fmt rgb24 - | cargo run --release -p opensora-shots --example shot_speed -- 1280x720
//! cargo run --release -p opensora-shots --example shot_speed -- clip.mp4
//! ```
//!
//! The first form reads frames of any decoder. Further arguments: `yuv420p` for planes (BT.601) instead of
//! RGB, a release (`0.6.3`, `0.7`), `adaptive`, and `scores`, which prints one score per line.

use opensora_shots::{Detector, Method, Rgb, Settings, Source, Yuv420, of_video};
use opensora_video::{
    Decoder,
    yuv::{Colour, ToRgb},
};
use std::{error::Error, io::Read, ops::Range, time::Instant};

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
    let size = input.split_once('x').and_then(|(w, h)| Some((w.parse().ok()?, h.parse().ok()?)));
    if let Some((width, height)) = size {
        let mut detector = Detector::new(&settings)?;
        let bt601 =
            ToRgb::stated(Colour { matrix: 2, full_range: false }).ok_or("BT.601 is not known")?;
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
        let cuts: Vec<usize> = detector.scenes().iter().skip(1).map(|scene| scene.start).collect();
        report(detector.frames(), start, &format!("cuts {cuts:?}"));
    } else {
        let found = of_video(input.as_ref(), Decoder::Auto, &settings)?;
        for score in found.shots.scores.iter().filter(|_| scores) {
            println!("{:.6}", score.content);
        }
        let cut =
            |scene: &Range<usize>| format!("{} ({:.3} s)", scene.start, found.time(scene.start));
        let cuts: Vec<String> = found.shots.scenes.iter().skip(1).map(cut).collect();
        let cuts = format!("cuts {}, end {:.3} s", cuts.join(", "), found.end);
        report(found.times.len(), start, &cuts);
    }
    Ok(())
}

fn report(frames: usize, start: Instant, cuts: &str) {
    let seconds = start.elapsed().as_secs_f64();
    println!("{frames} frames in {seconds:.2} s, {:.1} a second; {cuts}", frames as f64 / seconds);
}

fn push(detector: &mut Detector, frame: Option<impl Source>) -> Result<f64, Box<dyn Error>> {
    let (score, _) = detector.push(&frame.ok_or("a frame of another size")?)?;
    Ok(score.content)
}
