//! `opensora data shots`: prints the shots of videos.

use crate::{
    options::Report,
    output::{self, OutputError},
    progress::Progress,
    stop::{self, Stopped},
};
use anyhow::{Context, bail, ensure};
use clap::{Args as ClapArgs, ValueEnum};
use opensora::{
    files::{check_writable, error_line, write_atomically},
    prepare::shots::{self, Flashes, Method, Release, Score, Settings, VideoShots, Weights},
    video::Decoder,
};
use serde_json::{Value, json};
use std::{
    fmt::Write,
    ops::Range,
    path::{Path, PathBuf},
};

#[derive(ClapArgs)]
#[command(after_long_help = "\
Examples:
  opensora data shots video.mp4
  opensora data shots video.mp4 --detector adaptive -o scores.csv --json")]
pub(crate) struct Args {
    /// Videos
    #[arg(required = true, value_name = "VIDEO")]
    videos: Vec<PathBuf>,
    /// Method of finding cuts
    #[arg(long, value_enum, default_value_t = DetectorName::Content)]
    detector: DetectorName,
    /// Score from which a frame is a cut; for adaptive the ratio to the scores around it
    /// [default: 27; adaptive: 3]
    #[arg(long)]
    threshold: Option<f64>,
    /// Length of the shortest scene in frames
    #[arg(long, default_value_t = Settings::default().min_scene_len)]
    min_scene_len: usize,
    /// Keep the first of cuts that are too close, instead of merging their scenes
    #[arg(long)]
    suppress: bool,
    /// Compare brightness only
    #[arg(long)]
    luma_only: bool,
    /// PySceneDetect release whose cuts are reproduced: 0.6.3 (Open-Sora 1.0), 0.6.7 or 0.7
    #[arg(long, default_value_t = Settings::default().release)]
    compat: Release,
    /// Write the score of each frame to a file (CSV); for a single video
    #[arg(long, short, aliases = ["output", "stats"], value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    report: Report,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum DetectorName {
    /// Compare the score of a frame with a threshold
    Content,
    /// Compare the score of a frame with the scores around it
    Adaptive,
}

/// Scenes, frame times and cut scores of a video.
struct Found {
    fps: f64,
    /// Frames of each scene.
    scenes: Vec<Range<usize>>,
    /// Time of each frame in seconds.
    times: Vec<f64>,
    /// End of the last frame in seconds.
    end: f64,
    scores: Vec<Score>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    ensure!(
        args.out.is_none() || args.videos.len() == 1,
        "--out: expected one video, found {}",
        args.videos.len()
    );
    ensure!(
        !(args.suppress && args.detector == DetectorName::Adaptive),
        "--suppress: --detector adaptive has no use for it"
    );
    if let Some(out) = &args.out {
        let is_out = |video: &PathBuf| video.canonicalize().ok() == out.canonicalize().ok();
        ensure!(
            !(out.exists() && args.videos.iter().any(is_out)),
            "--out: {}: it is the video that is read, expected another file",
            out.display()
        );
        // Before minutes are spent; leaves no file.
        check_writable(out).with_context(|| format!("--out: {}", out.display()))?;
    }
    let settings = args.settings();
    settings.validate()?;
    let mut progress = Progress::new(args.report.quiet);
    let (mut objects, mut failed) = (Vec::new(), 0);
    stop::listen();
    for (done, path) in args.videos.iter().enumerate() {
        if stop::asked() {
            progress.finish();
            bail!(Stopped(format!("{done} of {} videos are done", args.videos.len())));
        }
        progress.advance("finding shots", done, args.videos.len());
        let found = match find(path, &settings) {
            Ok(found) => found,
            Err(error) => {
                failed += 1;
                progress.finish();
                output::message(format_args!("failed: {}", error_line(error.as_ref())));
                continue;
            }
        };
        if let Some(path) = &args.out {
            let table = stats_table(&found);
            write_atomically(path, |path| std::fs::write(path, table))
                .with_context(|| format!("--out: {}", path.display()))?;
        }
        if args.report.json {
            objects.push(found.json(path));
        } else {
            progress.finish();
            found.print(path)?;
        }
    }
    progress.finish();
    if args.report.json {
        output::json(&json!({ "videos": objects, "failed": failed }))?;
    }
    ensure!(failed == 0, "{failed} of {} videos could not be used", args.videos.len());
    Ok(())
}

impl Args {
    fn settings(&self) -> Settings {
        let flashes = if self.suppress { Flashes::Suppress } else { Flashes::Merge };
        let method = match self.detector {
            DetectorName::Content => {
                Method::Content { threshold: self.threshold.unwrap_or(27.0), flashes }
            }
            DetectorName::Adaptive => Method::Adaptive {
                ratio: self.threshold.unwrap_or(3.0),
                window: 2,
                min_score: 15.0,
            },
        };
        Settings {
            method,
            min_scene_len: self.min_scene_len,
            weights: if self.luma_only { Weights::VALUE } else { Weights::EQUAL },
            downscale: true,
            release: self.compat,
        }
    }
}

/// Finds the shots of a video.
fn find(path: &Path, settings: &Settings) -> anyhow::Result<Found> {
    let VideoShots { info, shots, times, end, .. } =
        shots::of_video(path, Decoder::Auto, settings)?;
    Ok(Found { fps: info.fps, scenes: shots.scenes, times, end, scores: shots.scores })
}

impl Found {
    /// Returns the second at which a frame is shown, or the end of the last one.
    fn time(&self, frame: usize) -> f64 {
        self.times.get(frame).copied().unwrap_or(self.end)
    }

    fn json(&self, path: &Path) -> Value {
        let scene = |scene: &Range<usize>| {
            json!({
                "start_frame": scene.start,
                "end_frame": scene.end,
                "start": self.time(scene.start),
                "end": self.time(scene.end),
            })
        };
        json!({
            "path": output::path(path),
            "fps": self.fps,
            "num_frames": self.times.len(),
            "scenes": self.scenes.iter().map(scene).collect::<Vec<_>>(),
        })
    }

    fn print(&self, path: &Path) -> Result<(), OutputError> {
        let (scenes, frames) = (self.scenes.len(), self.times.len());
        output::line(format_args!("{}: {scenes} scenes of {frames} frames", path.display()))?;
        for scene in &self.scenes {
            let (start, end) = (self.time(scene.start), self.time(scene.end));
            output::line(format_args!(
                "  frames {}..{}, {start:.3} to {end:.3} s",
                scene.start, scene.end
            ))?;
        }
        Ok(())
    }
}

/// Returns a CSV row per frame, with columns of the reference's statistics file.
fn stats_table(found: &Found) -> String {
    let mut table = String::from("frame,time,content_val,delta_hue,delta_sat,delta_lum\n");
    for (frame, score) in found.scores.iter().enumerate() {
        let Score { content, hue, saturation, value } = score;
        let time = found.time(frame);
        // Writing to a string does not fail.
        let _ =
            writeln!(table, "{frame},{time:.6},{content:.6},{hue:.6},{saturation:.6},{value:.6}");
    }
    table
}
