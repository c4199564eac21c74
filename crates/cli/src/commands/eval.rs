//! `opensora eval`: measures how well a model follows its prompts.

use crate::{
    model,
    options::{DeviceName, Report, Sampling},
    output,
    progress::Progress,
    stop::{self, Stopped},
};
use anyhow::{Context, bail, ensure};
use opensora::{
    PipelineError, PipelineOptions, SampleRequest, TextToVideo,
    diffusion::SampleError,
    files::{error_line, read::read_text, remove_if_present, write_atomically},
    model_files::PartPaths,
    nn::dtype::Dtype,
    video::{
        Frames, VideoSpec, Writer, frames::MAX_SIDE, png, sheet::SheetOptions, writer::record_path,
    },
};
use opensora_demo::{
    eval::{Attribute, EvalError, Evaluation, Judged, PromptSet, Scores, vae_ceiling},
    reel::{Tile, sheet},
};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Options of `opensora eval`.
#[derive(clap::Args)]
#[command(after_long_help = "\
Examples:
  opensora eval demo --prompts 24
  opensora help eval demo")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Sample clips of the demo world and check by image analysis whether they match their prompts
    Demo(Box<DemoArgs>),
}

/// Options of `opensora eval demo`.
#[derive(clap::Args)]
#[command(after_long_help = "\
Examples:
  opensora eval demo --prompts 24
  opensora eval demo --model run --all -o clips --require frames=0.75,colour=0.9")]
struct DemoArgs {
    /// Model: demo (bundled), or a folder with a model.json
    #[arg(long, default_value = opensora_demo::model::NAME)]
    model: String,
    /// Allow paths in a model.json outside its folder and the working directory
    #[arg(long)]
    allow_outside_paths: bool,
    /// Number of prompts
    #[arg(long, default_value_t = 216)]
    prompts: usize,
    /// Use combinations of shape, colour and motion that training never showed (default)
    #[arg(long, group = "set")]
    held_out: bool,
    /// Use combinations that training showed
    #[arg(long, group = "set")]
    seen: bool,
    /// Use all combinations
    #[arg(long, group = "set")]
    all: bool,
    #[command(flatten)]
    sampling: Sampling,
    /// Prompts per batch
    #[arg(long, default_value_t = 8)]
    batch_size: usize,
    /// Also judge real clips after encoding and decoding by the model's VAE
    #[arg(long)]
    vae_ceiling: bool,
    /// Fail if an accuracy is lower than this, such as frames=0.75,motion=0.95,all=0.4
    ///
    /// frames: share of frames with the prompt's shape. Shares of clips: shape, colour, background (right in every
    /// frame), majority (shape right in more than half of the frames), motion, all.
    #[arg(long, value_delimiter = ',', value_parser = parse_requirement, value_name = "NAME=SHARE,...")]
    require: Vec<(Attribute, f64)>,
    /// Folder for the clips with their prompts and verdicts, and for contact sheets of all clips
    ///
    /// Clips, sheets and report of an earlier evaluation in the folder are replaced or, if there were more, removed.
    #[arg(long, short, alias = "output", value_name = "FOLDER")]
    out: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceName,
    /// Float type of denoiser and VAE: f32, bf16 or f16
    #[arg(long, default_value_t = Dtype::F32)]
    dtype: Dtype,
    #[command(flatten)]
    report: Report,
}

fn parse_requirement(text: &str) -> anyhow::Result<(Attribute, f64)> {
    let (name, share) = text.split_once('=').context("expected such as colour=0.95")?;
    let attribute = name.trim().parse()?;
    match share.trim().parse() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok((attribute, share)),
        _ => bail!("'{share}' is not a share: expected a number from 0 to 1"),
    }
}

pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::Demo(args) => demo(&args),
    }
}

fn demo(args: &DemoArgs) -> anyhow::Result<()> {
    let device = args.device.open(args.report.quiet)?;
    let policy = model::policy(args.allow_outside_paths)?;
    let files = model::resolve(
        &args.model,
        &PartPaths { policy, ..PartPaths::default() },
        args.report.quiet,
    )?;
    let evaluation = Evaluation {
        set: match (args.seen, args.all) {
            (true, _) => PromptSet::Seen,
            (_, true) => PromptSet::All,
            _ => PromptSet::HeldOut,
        },
        prompts: args.prompts,
        request: SampleRequest {
            batch_size: args.batch_size,
            ..args.sampling.request(&files.defaults)
        },
        // Measured below, where a signal may stop it.
        vae_ceiling: false,
    };
    let options = PipelineOptions { dtype: args.dtype.float(), ..PipelineOptions::default() };
    let pipeline = TextToVideo::new(files, options, device)?;
    evaluation.check(&pipeline)?;
    let mut gallery = match &args.out {
        Some(folder) => Some(Gallery::create(folder, &evaluation.request)?),
        None => None,
    };

    stop::listen();
    let mut progress = Progress::new(args.report.quiet).on(pipeline.device());
    let mut judged_clips = 0;
    let stopped = |clips: usize| Stopped(format!("{clips} of {} clips are judged", args.prompts));
    let report = evaluation.run(&pipeline, &mut progress, |judged| {
        if let Some(gallery) = &mut gallery {
            gallery.add(judged)?;
        }
        judged_clips += 1;
        if stop::asked() && judged_clips < args.prompts {
            bail!(stopped(judged_clips));
        }
        Ok(())
    });
    progress.finish();
    let mut report =
        report.map_err(|error| match error.downcast_ref() {
            Some(EvalError::Pipeline(PipelineError::Sample(SampleError::Interrupted {
                ..
            }))) if stop::asked() => stopped(judged_clips).into(),
            _ => error,
        })?;
    // The evaluation is complete: its report is delivered even if the ceiling fails.
    let ceiling = match args.vae_ceiling {
        true => measure_ceiling(&pipeline, &evaluation, &mut progress)
            .map(|scores| report.vae = Some(scores)),
        false => Ok(()),
    };
    let json = report.to_json();
    if let Some(gallery) = &mut gallery {
        gallery.finish(&json)?;
    }
    let printed = match args.report.json {
        true => output::json(&json),
        false => output::line(&report),
    };
    if let Some(Err(error)) = gallery.map(|gallery| gallery.remove_older())
        && !args.report.quiet
    {
        output::message(format_args!("warning: {}", error_line(error.as_ref())));
    }
    printed?;
    ceiling?;
    let short: Vec<String> =
        report.shortfalls(&args.require).iter().map(ToString::to_string).collect();
    ensure!(short.is_empty(), "--require: {}", short.join("; "));
    Ok(())
}

/// Measures the ceiling of the VAE, unless a signal stops it.
fn measure_ceiling(
    pipeline: &TextToVideo,
    evaluation: &Evaluation,
    progress: &mut Progress,
) -> anyhow::Result<Scores> {
    progress.stop_in_decoding();
    let scores = vae_ceiling(pipeline, &evaluation.prompts(), &evaluation.request, progress);
    progress.finish();
    match scores {
        Err(EvalError::Pipeline(PipelineError::DecodingStopped { .. })) if stop::asked() => {
            bail!(Stopped("all clips are judged; the ceiling of the VAE is not measured".into()))
        }
        scores => scores.context("--vae-ceiling"),
    }
}

/// Name of the report in the folder of `--out`.
const REPORT: &str = "report.json";
/// Key that only records of an evaluation have.
const EXPECTED: &str = "expected";
/// Maximum size in bytes of a record that is read; a record has a verdict for each frame.
const MAX_RECORD: u64 = 16 << 20;
/// Maximum number of clips per contact sheet.
const CLIPS_PER_SHEET: usize = 24;
/// Maximum number of frames per clip on a contact sheet.
const FRAMES_SHOWN: usize = 8;
/// Sides of clips from which a contact sheet shows each pixel as one instead of as 2x2.
const LARGE: usize = 256;

/// Layout of the contact sheets of clips of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct SheetLayout {
    clips: usize,
    options: SheetOptions,
}

impl SheetLayout {
    /// Returns as many clips and frames as a sheet can have.
    fn of([height, width]: [usize; 2]) -> Self {
        let scale = if height.max(width) < LARGE { 2 } else { 1 };
        // With gaps, margins and the caption, which are smaller than this.
        let fit = |side: usize| (MAX_SIDE - 64) / (scale * (side + 4) + 40);
        let columns = fit(width).clamp(1, FRAMES_SHOWN);
        Self {
            clips: fit(height).clamp(1, CLIPS_PER_SHEET),
            options: SheetOptions { columns, scale },
        }
    }
}

/// Writes the clips to files, and contact sheets of several clips.
struct Gallery {
    folder: PathBuf,
    spec: VideoSpec,
    layout: SheetLayout,
    /// Captions and clips of the sheet that is not full yet.
    clips: Vec<(String, Frames)>,
    /// Number of clips that are written.
    written: usize,
    sheets: usize,
}

impl Gallery {
    fn create(folder: &Path, request: &SampleRequest) -> anyhow::Result<Self> {
        let [height, width] = request.image_size;
        let spec = VideoSpec { frames: request.num_frames, width, height, fps: request.fps };
        // Tried before minutes are spent; leaves no file behind.
        Writer::open(&folder.join("0000.mp4"), &spec).context("--out")?;
        std::fs::create_dir_all(folder).with_context(|| format!("--out: {}", folder.display()))?;
        // The report of an earlier evaluation would stand beside clips of this one.
        let report = folder.join(REPORT);
        remove_if_present(&report).with_context(|| format!("--out: {}", report.display()))?;
        let layout = SheetLayout::of(request.image_size);
        Ok(Self { folder: folder.into(), spec, layout, clips: Vec::new(), written: 0, sheets: 0 })
    }

    fn add(&mut self, judged: Judged<'_>) -> anyhow::Result<()> {
        let Judged { index, prompt, clip, judgement } = judged;
        let path = self.clip_path(index);
        let record = json!({
            "prompt": prompt.text,
            EXPECTED: prompt.labels,
            "found": judgement.verdict,
            "frames": judgement.frames,
            "stability": judgement.stability,
        });
        Writer::open(&path, &self.spec)?.write(&clip, &record)?;
        self.written = index + 1;
        let frames = &judgement.frames;
        let right = frames.iter().filter(|frame| frame.shape == Some(prompt.labels.shape)).count();
        let caption = format!("{} ({right}/{})", prompt.text, frames.len());
        self.clips.push((caption, clip));
        if self.clips.len() == self.layout.clips { self.sheet() } else { Ok(()) }
    }

    /// Writes a contact sheet with one row per clip, in order: its frames, its prompt, and the number of frames
    /// that show the prompt's shape.
    fn sheet(&mut self) -> anyhow::Result<()> {
        let path = self.sheet_path(self.sheets);
        let tiles: Vec<Tile<'_>> =
            self.clips.iter().map(|(caption, clip)| Tile { caption, clip }).collect();
        png::write(&path, &sheet(&tiles, &self.layout.options)?)?;
        self.clips.clear();
        self.sheets += 1;
        Ok(())
    }

    fn finish(&mut self, report: &Value) -> anyhow::Result<()> {
        if !self.clips.is_empty() {
            self.sheet()?;
        }
        let path = self.folder.join(REPORT);
        write_atomically(&path, |temporary| std::fs::write(temporary, format!("{report:#}\n")))
            .with_context(|| path.display().to_string())
    }

    fn clip_path(&self, index: usize) -> PathBuf {
        self.folder.join(format!("{index:04}.mp4"))
    }

    fn sheet_path(&self, index: usize) -> PathBuf {
        self.folder.join(format!("sheet-{index:02}.png"))
    }

    /// Removes the further clips and sheets of an earlier evaluation with more prompts: the report does not count
    /// them.
    fn remove_older(&self) -> anyhow::Result<()> {
        let remove = |path: &Path| {
            remove_if_present(path)
                .with_context(|| format!("{}: it cannot be removed", path.display()))
        };
        for index in self.written.. {
            let clip = self.clip_path(index);
            let record = record_path(&clip);
            if !is_of_evaluation(&record) {
                break;
            }
            // The record last: without it, the next evaluation would keep the clip.
            remove(&clip)?;
            remove(&record)?;
        }
        for index in self.sheets.. {
            let sheet = self.sheet_path(index);
            if !sheet.is_file() {
                break;
            }
            remove(&sheet)?;
        }
        Ok(())
    }
}

/// Returns true if the file is the record of a judged clip: clips of `sample` may have the same name.
fn is_of_evaluation(record: &Path) -> bool {
    read_text(record, MAX_RECORD)
        .ok()
        .and_then(|text| serde_json::from_str::<Value>(&text).ok())
        .is_some_and(|record| record.get(EXPECTED).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sheets_of_large_clips_have_a_possible_size() {
        for size in [[48, 48], [300, 300], [64, 2044], [2000, 64]] {
            let layout = SheetLayout::of(size);
            let clip = Frames::from_rgb(vec![9; 8 * size[0] * size[1] * 3], [8, size[0], size[1]]);
            let clip = clip.unwrap();
            let tiles = vec![Tile { caption: "a red circle grows", clip: &clip }; layout.clips];
            let sheet = sheet(&tiles, &layout.options).unwrap();
            assert!(sheet.width() <= MAX_SIDE && sheet.height() <= MAX_SIDE, "{size:?}");
        }
        let small = SheetLayout::of([48, 48]);
        assert_eq!((small.clips, small.options.columns, small.options.scale), (24, 8, 2));
    }
}
