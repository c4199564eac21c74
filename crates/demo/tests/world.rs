//! The data set of the demo world on disk, and the judge on encoded clips.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use opensora::{
    nn::random::HostRng,
    video::{Frames, VideoSpec, Writer, mp4, png},
};
use opensora_demo::{
    DemoSpec, Kind, Labels, Observer, Written, film, judge, render, training_clip, training_still,
    write_dataset,
};
use opensora_manifest::Manifest;
use std::{ops::ControlFlow, path::Path};

/// Number of clips for the judge.
const CLIPS: u64 = 300;

/// Returns the numbers of correct verdicts of (shape, colour, background, motion) on `CLIPS` clips,
/// each passed through `change`.
fn right(
    seed: u64,
    frames: usize,
    side: usize,
    change: impl Fn(u64, Frames) -> Frames,
) -> [u64; 4] {
    let mut right = [0; 4];
    for index in 0..CLIPS {
        let scene = training_clip(seed, index).scene;
        let clip = change(index, render(&scene, frames, [side, side]).unwrap());
        let verdict = judge(&clip).verdict;
        let Labels { shape, colour, background, motion } = scene.labels;
        let marks = [
            verdict.shape == Some(shape),
            verdict.colour == Some(colour),
            verdict.background == Some(background),
            verdict.motion == motion,
        ];
        for (count, mark) in right.iter_mut().zip(marks) {
            *count += u64::from(mark);
        }
    }
    right
}

/// Asserts that at least 99 % of the verdicts are correct for every attribute.
fn assert_reliable(right: [u64; 4], what: &str) {
    assert!(right.iter().all(|&count| 100 * count >= 99 * CLIPS), "{what}: {right:?} of {CLIPS}");
}

fn through_mp4(folder: &Path, index: u64, clip: &Frames) -> Frames {
    let spec =
        VideoSpec { frames: clip.len(), width: clip.width(), height: clip.height(), fps: 8.0 };
    let path = folder.join(format!("{index}.mp4"));
    Writer::open(&path, &spec).unwrap().write(clip, &serde_json::Value::Null).unwrap();
    mp4::read(&path).unwrap().0
}

/// Returns the clip blurred by a Gaussian of `sigma` pixels, with Gaussian noise of standard deviation
/// `noise` (of 255) added.
fn blurred(clip: &Frames, sigma: f64, noise: f64, rng: &mut HostRng) -> Frames {
    let (height, width) = (clip.height(), clip.width());
    let reach = (3.0 * sigma).ceil() as isize;
    let kernel: Vec<f64> =
        (-reach..=reach).map(|d| (-((d * d) as f64) / (2.0 * sigma * sigma)).exp()).collect();
    let total: f64 = kernel.iter().sum();
    let smooth = |plane: &[f64], step: usize, side: usize| -> Vec<f64> {
        let value = |at: usize| {
            let place = (at / step) % side;
            let weighted = kernel.iter().enumerate().map(|(tap, weight)| {
                let tap = (place as isize + tap as isize - reach).clamp(0, side as isize - 1);
                weight * plane[at - place * step + tap as usize * step]
            });
            weighted.sum::<f64>() / total
        };
        (0..plane.len()).map(value).collect()
    };
    let mut data = Vec::new();
    for frame in clip.iter() {
        let mut planes = [0, 1, 2].map(|channel| {
            let plane: Vec<f64> = frame.chunks(3).map(|pixel| f64::from(pixel[channel])).collect();
            smooth(&smooth(&plane, 1, width), width, height)
        });
        for plane in &mut planes {
            for value in plane.iter_mut() {
                // Box-Muller transform.
                let (u, v) = (1.0 - rng.uniform(), rng.uniform());
                *value += noise * (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos();
            }
        }
        data.extend((0..height * width).flat_map(|at| planes.each_ref().map(|p| p[at] as u8)));
    }
    Frames::from_rgb(data, [clip.len(), height, width]).unwrap()
}

#[test]
fn the_judge_reads_real_files() {
    let folder = tempfile::tempdir().unwrap();
    for (frames, side) in [(16, 64), (8, 32)] {
        let read = right(1, frames, side, |i, clip| through_mp4(folder.path(), i, &clip));
        assert_reliable(read, &format!("{frames} frames of {side} pixels"));
    }
}

#[test]
fn the_judge_sees_through_blur_and_noise() {
    for (side, sigma, noise) in [(64, 2.0, 4.0), (64, 1.0, 12.0), (32, 1.0, 4.0), (32, 0.7, 12.0)] {
        let read = right(2, 8, side, |index, clip| {
            blurred(&clip, sigma, noise, &mut Kind::RealClip.rng(2, index))
        });
        assert_reliable(read, &format!("{side} pixels, blur {sigma}, noise {noise}"));
    }
}

#[test]
fn stills_show_what_they_should() {
    let mut wrong = Vec::new();
    for index in 0..CLIPS {
        let still = training_still(4, index);
        let verdict = judge(&render(&still.scene, 1, [64, 64]).unwrap()).verdict;
        let Labels { shape, colour, background, motion } = still.scene.labels;
        let seen = (verdict.shape, verdict.colour, verdict.background, verdict.motion);
        if seen != (Some(shape), Some(colour), Some(background), motion) {
            wrong.push((still, verdict));
        }
    }
    assert!(wrong.len() <= 3, "{} {wrong:?}", wrong.len());
}

#[test]
fn a_data_set_is_written_and_an_interrupted_one_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let spec = DemoSpec { clips: 6, stills: 4, seed: 3, image_size: [32, 32], ..<_>::default() };
    let spec = DemoSpec { num_frames: 4, ..spec };
    struct Steps(Vec<(usize, usize)>);
    impl Observer for Steps {
        fn written(&mut self, event: &Written) -> ControlFlow<()> {
            self.0.push((event.done, event.total));
            ControlFlow::Continue(())
        }
    }
    let mut steps = Steps(Vec::new());
    write_dataset(folder.path(), &spec, &mut steps).unwrap();
    assert_eq!(steps.0, (1..=10).map(|done| (done, 10)).collect::<Vec<_>>());

    let clips = Manifest::read(&folder.path().join("clips.csv")).unwrap().rows;
    let stills = Manifest::read(&folder.path().join("stills.csv")).unwrap().rows;
    assert_eq!((clips.len(), stills.len()), (6, 4));
    for (index, row) in clips.iter().enumerate() {
        assert_eq!(row.caption, training_clip(3, index as u64).caption);
        let (clip, fps) = mp4::read(&row.path).unwrap();
        assert_eq!((clip.len(), clip.height(), clip.width(), fps), (4, 32, 32, 8.0));
        assert_eq!(row.num_frames, Some(4));
    }
    let still = training_still(3, 2);
    assert_eq!(png::read(&stills[2].path).unwrap(), render(&still.scene, 1, [32, 32]).unwrap());
    let captions = std::fs::read_to_string(folder.path().join("captions.txt")).unwrap();
    let expected: Vec<&str> = clips.iter().chain(&stills).map(|row| row.caption.as_str()).collect();
    assert_eq!(captions.lines().collect::<Vec<_>>(), expected);

    // Existing files are kept; missing files and files of other settings are written again.
    let written = |index: usize| std::fs::metadata(&clips[index].path).unwrap().modified().unwrap();
    let kept = written(0);
    let whole = std::fs::read(&clips[1].path).unwrap();
    std::fs::remove_file(&clips[1].path).unwrap();
    write_dataset(folder.path(), &spec, &mut ()).unwrap();
    assert_eq!((written(0), std::fs::read(&clips[1].path).unwrap()), (kept, whole));
    write_dataset(folder.path(), &DemoSpec { seed: 4, ..spec }, &mut ()).unwrap();
    let again = Manifest::read(&folder.path().join("clips.csv")).unwrap().rows;
    assert_eq!(again[0].caption, training_clip(4, 0).caption);
    assert_ne!(written(0), kept);
}

#[test]
fn a_film_is_its_shots_one_after_the_other() {
    let folder = tempfile::tempdir().unwrap();
    let spec = DemoSpec { films: 2, shots: 3, seed: 8, num_frames: 4, ..DemoSpec::default() };
    write_dataset(folder.path(), &spec, &mut ()).unwrap();
    let names = |folder: &Path| std::fs::read_dir(folder).unwrap().count();
    assert_eq!((names(folder.path()), names(&folder.path().join("films"))), (1, 4));
    let (read, fps) = mp4::read(&folder.path().join("films/000001.mp4")).unwrap();
    assert_eq!((read.len(), read.height(), fps), (12, 64, 8.0));
    for (index, shot) in film(8, 1, 3).iter().enumerate() {
        let middle = read.frame(4 * index + 2).unwrap().to_vec();
        let verdict = judge(&Frames::from_rgb(middle, [1, 64, 64]).unwrap()).verdict;
        assert_eq!(verdict.background, Some(shot.scene.labels.background));
        assert_eq!(verdict.colour, Some(shot.scene.labels.colour));
    }
}

#[test]
fn impossible_settings_are_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let spec = DemoSpec { clips: 1, ..DemoSpec::default() };
    for (spec, named) in [
        (DemoSpec { image_size: [64, 63], ..spec.clone() }, "image_size = 64x63"),
        (DemoSpec { num_frames: 1, ..spec.clone() }, "num_frames = 1"),
        (DemoSpec { clips: 0, ..spec }, "clips = 0"),
    ] {
        let error = write_dataset(&out, &spec, &mut ()).unwrap_err().to_string();
        assert!(error.starts_with(named), "{error}");
        assert!(!out.exists());
    }
}
