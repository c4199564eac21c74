//! `opensora sample`: prompts to video files.
//!
//! Everything that can fail early does: the request is checked against the model and every output
//! is opened and tried before the first weight is read.

mod label;
mod outputs;
mod record;

use crate::{
    model,
    options::{DeviceName, Report, Sampling},
    output,
    progress::Progress,
    stop,
};
use anyhow::{Context, bail, ensure};
use burn::tensor::Tensor;
use clap::ValueEnum;
use opensora::{
    PipelineError, SampleRequest, TextToVideo, latents, manifest::read_prompts,
    model_files::PartPaths, nn::dtype::Dtype, pipeline::Sampled, stdit::DenoiserWork,
    t5::PromptStates,
};
use outputs::Outputs;
use record::Record;
use serde_json::{Value, json};
use std::{
    iter::repeat_n,
    num::NonZero,
    path::{Path, PathBuf},
};

/// Most videos of one call; their prompts are held in memory.
const MAX_VIDEOS: usize = 1_000_000;

/// Options of `opensora sample`.
#[derive(clap::Args)]
#[command(after_long_help = "\
Examples:
  opensora sample \"a red circle grows on a black background\" -o circle.mp4
  opensora sample --model opensora-v1-hq-16x256x256 --prompt-path prompts.txt -o clips \\
        --sampler dpm-solver --steps 20
  opensora sample \"waves at night\" --negative-prompt people --num-videos-per-prompt 4 -o waves
  opensora sample --from-record clips/sample_6.mp4.json -o again.mp4")]
pub(crate) struct Args {
    /// What the video shows
    #[arg(conflicts_with = "prompt_path")]
    prompt: Option<String>,
    /// File with one prompt a line
    #[arg(long)]
    prompt_path: Option<PathBuf>,
    /// What the videos should not show, in place of the model's null prompt [default: the null prompt]
    #[arg(long, value_name = "TEXT")]
    negative_prompt: Option<String>,
    /// Videos of each prompt
    ///
    /// Video v of prompt p (both from 0) has the noise index --noise-index + p * N + v, so that it is
    /// the same in every call with that index.
    #[arg(long, value_name = "N", default_value_t = NonZero::<usize>::MIN, conflicts_with = "from_record")]
    num_videos_per_prompt: NonZero<usize>,
    /// Class of the image or clip: a number, or a name such as "golden retriever"; repeatable
    ///
    /// For models with class labels (dit-xl-2-256x256, dit-xl-2-512x512,
    /// latte-xl-2-16x256x256-ucf101).
    #[arg(long, value_name = "LABEL", conflicts_with_all = ["prompt", "prompt_path", "from_record",
        "latents", "save_latents", "negative_prompt", "t5", "t5_dtype", "pab", "space_scale", "time_scale"])]
    label: Vec<String>,
    /// Make the clip of a record (the .json beside an output) again
    ///
    /// The record gives the prompt and all settings that are not given here. Bit-exact on the same kind
    /// of device.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt", "prompt_path", "latents", "save_latents"])]
    from_record: Option<PathBuf>,
    /// Model: demo (bundled), a preset, a folder, a repository of the Hugging Face hub, or a checkpoint
    /// [default: demo; with --label dit-xl-2-256x256]
    ///
    /// Presets are fetched on first use. A folder or a repository (OWNER/NAME) needs a model.json; a
    /// checkpoint is one of an STDiT-XL/2.
    ///
    /// Presets: opensora-v1-16x256x256, opensora-v1-hq-16x256x256, opensora-v1-hq-16x512x512; for
    /// images pixart-xl-2-256x256, pixart-xl-2-sam-256x256, pixart-xl-2-512x512, pixart-xl-2-1024-ms;
    /// see --label.
    #[arg(long)]
    model: Option<String>,
    /// Folder of the T5 v1.1 encoder (config.json, spiece.model, weights)
    #[arg(long)]
    t5: Option<PathBuf>,
    /// Folder or file of the Stable Diffusion VAE
    #[arg(long)]
    vae: Option<PathBuf>,
    /// Folder that holds the files of a preset; nothing is fetched then [default: pretrained_models, else
    /// the cache of the Hugging Face hub]
    #[arg(long)]
    weights_dir: Option<PathBuf>,
    /// Let the paths in a model.json lead anywhere, not only into its folder and below the working
    /// directory
    #[arg(long)]
    allow_outside_paths: bool,
    #[command(flatten)]
    sampling: Sampling,
    /// Ratio of height to width, such as 9:16; takes the nearest size that pixart-xl-2-1024-ms was
    /// trained for
    #[arg(long, value_parser = parse_ratio, value_name = "H:W", conflicts_with_all = ["image_size", "label"])]
    aspect_ratio: Option<f64>,
    /// Frames per second of the output [default: the model's]
    #[arg(long)]
    fps: Option<f64>,
    /// Latent channels that are guided [default: 3, for dpm-solver all, as published]
    #[arg(long)]
    guided_channels: Option<usize>,
    /// Unit of rows and columns in the position tables [default: the model's]
    #[arg(long)]
    space_scale: Option<f64>,
    /// Unit of frames in the position tables [default: the model's]
    #[arg(long)]
    time_scale: Option<f64>,
    /// Noise index of the first clip: the 7th clip of a folder is sampled again with 6
    #[arg(long, default_value_t = 0)]
    noise_index: u64,
    /// Clips that are sampled at once
    #[arg(long, default_value_t = 1)]
    batch_size: usize,
    #[command(flatten)]
    device: DeviceName,
    /// Float type of denoiser and VAE: f32, bf16 or f16 [default: f32]
    #[arg(long)]
    dtype: Option<Dtype>,
    /// Float type of the text encoder [default: f32]
    #[arg(long)]
    t5_dtype: Option<Dtype>,
    /// Use less memory and more time
    ///
    /// The denoiser stays in its file, which is read at every step (3 GB at published size) one block
    /// at a time, and frames are decoded one by one, in tiles. The latents are the same, the pixels as
    /// well but for rounding. Denoisers other than STDiT are held in memory all the same.
    #[arg(long)]
    low_memory: bool,
    /// Output file (.mp4, .gif, .png), folder for several prompts, or - for standard output
    #[arg(short, long, alias = "output", default_value = "outputs")]
    out: PathBuf,
    /// Fail if an output exists already, instead of replacing it
    #[arg(long)]
    no_overwrite: bool,
    /// Kind of file where the output is a folder; a single frame is always a PNG
    #[arg(long, default_value = "mp4")]
    format: FileKind,
    /// Keep the sampled latents in this file before they are decoded
    #[arg(long, value_name = "FILE")]
    save_latents: Option<PathBuf>,
    /// Decode latents that were kept by --save-latents instead of sampling
    #[arg(long, value_name = "FILE", conflicts_with = "save_latents")]
    latents: Option<PathBuf>,
    #[command(flatten)]
    report: Report,
}

impl Args {
    fn model(&self) -> &str {
        self.model.as_deref().unwrap_or(opensora_demo::model::NAME)
    }

    fn dtype(&self) -> Dtype {
        self.dtype.unwrap_or(Dtype::F32)
    }

    fn t5_dtype(&self) -> Dtype {
        self.t5_dtype.unwrap_or(Dtype::F32)
    }
}

/// Kinds of file in an output folder.
#[derive(Clone, Copy, ValueEnum)]
enum FileKind {
    Mp4,
    Gif,
    /// A folder of PNG frames for each clip.
    Png,
}

fn parse_ratio(text: &str) -> Result<f64, String> {
    let parsed = text
        .split_once(':')
        .and_then(|(h, w)| Some(h.trim().parse::<f64>().ok()? / w.trim().parse::<f64>().ok()?));
    parsed
        .filter(|ratio| ratio.is_finite() && *ratio > 0.0)
        .ok_or_else(|| "expected height to width, such as 9:16".into())
}

pub(crate) fn run(mut args: Args) -> anyhow::Result<()> {
    if !args.label.is_empty() || label::is_record(&args) {
        return label::run(&mut args);
    }
    let source = match args.from_record.take() {
        Some(path) => Source::of_record(&path, &mut args)?,
        None => {
            let prompts = each_times(&prompts(&args)?, args.num_videos_per_prompt)?;
            Source { prompts, only: None, weights: Vec::new() }
        }
    };
    let prompts = &source.prompts;
    let device = args.device.open()?;
    let parts = PartPaths {
        t5: args.t5.clone(),
        vae: args.vae.clone(),
        weights_dir: args.weights_dir.clone(),
        policy: model::policy(args.allow_outside_paths)?,
    };
    let files = model::resolve(args.model(), &parts, args.report.quiet)?;
    if let Some(ratio) = args.aspect_ratio {
        let size = files.nearest_size(ratio).with_context(|| {
            format!("--aspect-ratio: {} was trained for one size: use --image-size", files.name)
        })?;
        args.sampling.image_size = Some(size);
    }
    let request = request_for(&args, &files.defaults);
    if !args.report.quiet {
        warn_of_other_weights(&source.weights, &[&files.denoiser, &files.t5, &files.vae]);
    }
    for (part, path) in [("denoiser", &files.denoiser), ("T5", &files.t5), ("VAE", &files.vae)] {
        output::detail(format_args!("{part}: {}", path.display()));
    }
    output::detail(format_args!("request: {request:?}"));
    let pipeline = TextToVideo::new(files, args.dtype(), args.t5_dtype(), device)?
        .with_low_memory(args.low_memory);
    pipeline.check(&request)?;

    // Outputs are tried before minutes are spent on what goes into them.
    let outputs = Outputs::new(&args, &request, source.only.map_or(prompts.len(), |_| 1))?;
    if let Some(path) = &args.save_latents {
        ensure!(
            !(args.no_overwrite && path.exists()),
            "--save-latents: {}: exists already, and --no-overwrite is given",
            path.display()
        );
        ensure!(
            *path != args.out,
            "--save-latents: {}: the videos go there (--out)",
            path.display()
        );
        latents::check_writable(path).context("--save-latents")?;
    }
    stop::listen();

    let mut progress = Progress::new(args.report.quiet).on(pipeline.device());
    let mut written = Vec::new();
    let mut write = |sampled: Sampled| -> anyhow::Result<()> {
        let at = match source.only {
            Some(only) if only != sampled.index => return Ok(()),
            Some(_) => 0,
            None => sampled.index,
        };
        let record = Record::new(&args, &request, &pipeline, prompts, &sampled)?.to_json()?;
        written.push((outputs.write(at, &sampled.clip, &record)?, record));
        Ok(())
    };
    let result = sample(&args, &request, &pipeline, prompts, &mut progress, &mut write);
    progress.finish();
    // What is complete stays, also where the run was stopped or failed.
    let printed = written.into_iter().try_for_each(|(path, record)| match path {
        None => Ok(()),
        Some(path) if args.report.json => {
            output::json(&json!({"output": path, "metadata": record}))
        }
        Some(path) => output::line(path.display()),
    });
    result?;
    Ok(printed?)
}

/// Samples and decodes; `write` gets each clip as soon as it is decoded.
fn sample(
    args: &Args,
    request: &SampleRequest,
    pipeline: &TextToVideo,
    prompts: &[String],
    progress: &mut Progress,
    write: &mut impl FnMut(Sampled) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let clips = match (&args.latents, &args.save_latents) {
        (Some(path), _) => {
            let latents = latents::load(path, pipeline.device()).context("--latents")?;
            let found = latents.dims()[0];
            ensure!(
                found == prompts.len(),
                "--latents: the file holds {found} clips, but {} were asked for",
                prompts.len()
            );
            (latents, DenoiserWork::default())
        }
        (None, save) => {
            let states = pipeline.encode(prompts, request, progress)?;
            warn_of_cut_prompts(args.num_videos_per_prompt, &states.prompts, progress);
            let Some(path) = save else {
                let sampled = pipeline.sample_each(&states, request, progress, |sampled| {
                    write(sampled)?;
                    stop::check()
                });
                return sampled.map_err(stop::or_error);
            };
            // Saved before they are decoded, so that minutes of sampling are not lost.
            let mut done = Vec::new();
            let sampled = pipeline.sample_batches(&states, request, progress, |latents| {
                done.push(latents);
                Ok::<_, PipelineError>(())
            });
            let (latents, work, error) = match (sampled, done.is_empty()) {
                (Ok(work), _) => (Tensor::cat(done, 0), work, None),
                (Err(error), true) => return Err(stop::or_error(error.into())),
                (Err(error), false) => (Tensor::cat(done, 0), DenoiserWork::default(), Some(error)),
            };
            let saved = &prompts[..latents.dims()[0]];
            let record = Record::of_latents(args, request, pipeline, saved, work)?.to_json()?;
            latents::save(path, latents.clone(), &record)?;
            progress.line(&format!("latents of {} clips: {}", saved.len(), path.display()));
            if let Some(error) = error {
                return Err(stop::or_error(error.into()));
            }
            (latents, work)
        }
    };
    let (latents, work) = clips;
    let batch_size = request.batch_size;
    pipeline
        .decode(latents, progress, |index, clip| {
            let first = index / batch_size * batch_size;
            let batch = first..(first + batch_size).min(prompts.len());
            write(Sampled { index, batch, clip, work })?;
            stop::check()
        })
        .map_err(stop::or_error)
}

/// What is sampled.
struct Source {
    prompts: Vec<String>,
    /// The one clip that is written, of prompts that are sampled at once with it.
    only: Option<usize>,
    /// What a record says of the weights that are from the hub.
    weights: Vec<Value>,
}

/// Warns if the weights of a record are other ones than those that are used now.
fn warn_of_other_weights(recorded: &[Value], paths: &[&Path]) {
    if recorded.is_empty() {
        return;
    }
    let now = model::sources(paths);
    for of_record in recorded.iter().filter(|of_record| !now.contains(of_record)) {
        let text = |field: &str| of_record[field].as_str().unwrap_or("unknown").to_string();
        output::message(format_args!(
            "warning: the record was made with {} of {} at commit {}, which is not what is used now: \
             the output will be another one",
            text("file"),
            text("repository"),
            text("commit")
        ));
    }
}

impl Source {
    /// Takes prompts and all settings that the command line does not name from a record.
    fn of_record(path: &Path, args: &mut Args) -> anyhow::Result<Self> {
        let record =
            Record::open(path).with_context(|| format!("--from-record: {}", path.display()))?;
        if record.version != env!("CARGO_PKG_VERSION") && !args.report.quiet {
            output::message(format_args!(
                "{}: made by version {}: this version may compute other last digits",
                path.display(),
                record.version
            ));
        }
        let only = record.apply(args)?;
        Ok(Self { prompts: record.batch_prompts(), only: Some(only), weights: record.weights })
    }
}

/// The prompts from the command line or the file; blank lines of a file are no prompts.
fn prompts(args: &Args) -> anyhow::Result<Vec<String>> {
    match (&args.prompt, &args.prompt_path) {
        (Some(prompt), _) => {
            let prompt = prompt.trim();
            ensure!(!prompt.is_empty(), "the prompt is empty: say what the video shows");
            Ok(vec![prompt.to_string()])
        }
        (None, Some(path)) => Ok(read_prompts(path).context("--prompt-path")?),
        (None, None) => bail!("no prompt: give one, or a file of them with --prompt-path"),
    }
}

fn request_for(args: &Args, defaults: &SampleRequest) -> SampleRequest {
    SampleRequest {
        fps: args.fps.unwrap_or(defaults.fps),
        negative_prompt: args.negative_prompt.clone(),
        guided_channels: args.guided_channels,
        space_scale: args.space_scale,
        time_scale: args.time_scale,
        noise_index: args.noise_index,
        batch_size: args.batch_size,
        ..args.sampling.request(defaults)
    }
}

/// Repeats each item: all of the first, then all of the second.
fn each_times<T: Clone>(items: &[T], times: NonZero<usize>) -> anyhow::Result<Vec<T>> {
    let count = items.len().checked_mul(times.get()).filter(|&count| count <= MAX_VIDEOS);
    ensure!(
        count.is_some(),
        "--num-videos-per-prompt: {times} of {}: more than {MAX_VIDEOS} videos",
        items.len()
    );
    Ok(items.iter().flat_map(|item| repeat_n(item.clone(), times.get())).collect())
}

/// A prompt that fills every token was probably cut. Each stands in `times` rows.
fn warn_of_cut_prompts(times: NonZero<usize>, states: &PromptStates, progress: &mut Progress) {
    for (index, row) in states.mask.rows().iter().step_by(times.get()).enumerate() {
        if row.iter().all(|&keep| keep) {
            progress.line(&format!(
                "prompt {} fills all {} tokens: what lies beyond is not seen",
                index + 1,
                row.len()
            ));
        }
    }
}
