//! `opensora sample`: prompts to video files.
//!
//! Everything that can fail early does: the request is checked against the model and every output
//! is opened and tried before the first weight is read.

mod label;
mod outputs;
mod record;

use crate::{model, options::open_device, output, progress::Progress, stop};
use anyhow::{Context, bail, ensure};
use burn::tensor::Tensor;
use clap::ValueEnum;
use opensora::{
    Observer, PipelineError, SampleRequest, TextToVideo,
    diffusion::SamplerKind,
    latents,
    manifest::read_prompts,
    model_files::PartPaths,
    nn::dtype::Dtype,
    pipeline::Sampled,
    stdit::{AttentionReuse, DenoiserWork},
    t5::PromptStates,
};
use outputs::Outputs;
use record::Record;
use serde_json::json;
use std::path::{Path, PathBuf};

/// Options of `opensora sample`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// What the video shows.
    #[arg(conflicts_with = "prompt_path")]
    prompt: Option<String>,
    /// File with one prompt a line.
    #[arg(long)]
    prompt_path: Option<PathBuf>,
    /// Class that the image or clip shows, a number or a name such as "golden retriever", for models that
    /// follow labels (dit-xl-2-256x256, dit-xl-2-512x512, latte-xl-2-16x256x256-ucf101); may be given
    /// several times.
    #[arg(long, value_name = "LABEL", conflicts_with_all = ["prompt", "prompt_path", "from_record",
        "latents", "save_latents", "t5", "t5_dtype", "pab", "space_scale", "time_scale"])]
    label: Vec<String>,
    /// Make the clip of a record (the .json beside an output) again: its prompt and all settings that
    /// are not given here. Bit-exact on the same kind of device.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt", "prompt_path", "latents", "save_latents"])]
    from_record: Option<PathBuf>,
    /// Model: demo (bundled), a preset (opensora-v1-16x256x256, opensora-v1-hq-16x256x256,
    /// opensora-v1-hq-16x512x512; for images pixart-xl-2-256x256, pixart-xl-2-sam-256x256,
    /// pixart-xl-2-512x512, pixart-xl-2-1024-ms), a folder with a model.json, or an STDiT-XL/2 checkpoint
    /// [default: demo; with --label dit-xl-2-256x256].
    #[arg(long)]
    model: Option<String>,
    /// Folder of the T5 v1.1 encoder (config.json, spiece.model, weights).
    #[arg(long)]
    t5: Option<PathBuf>,
    /// Folder or file of the Stable Diffusion VAE.
    #[arg(long)]
    vae: Option<PathBuf>,
    /// Folder that holds the files of a preset [default: pretrained_models].
    #[arg(long)]
    weights_dir: Option<PathBuf>,
    /// Let the paths in a model.json lead anywhere, not only into its folder and below the working
    /// directory.
    #[arg(long)]
    allow_outside_paths: bool,
    /// Frames of a clip; one makes an image [default: the model's].
    #[arg(long)]
    num_frames: Option<usize>,
    /// Height and width in pixels, such as 256x256 [default: the model's].
    #[arg(long, value_parser = parse_size, value_name = "HxW")]
    image_size: Option<[usize; 2]>,
    /// Height to width, such as 9:16: the nearest size that pixart-xl-2-1024-ms was trained for.
    #[arg(long, value_parser = parse_ratio, value_name = "H:W", conflicts_with_all = ["image_size", "label"])]
    aspect_ratio: Option<f64>,
    /// Frames per second of the output [default: the model's].
    #[arg(long)]
    fps: Option<f64>,
    /// Sampler [default: the model's; iddpm for published ones].
    #[arg(long, value_parser = parse_sampler, value_name = "iddpm|ddim|dpm-solver")]
    sampler: Option<SamplerKind>,
    /// Steps of the sampler [default: the model's; else 100, for dpm-solver 20]. Recommended where
    /// time counts: --sampler dpm-solver --steps 20, a fifth of the work of 100 steps of iddpm.
    #[arg(long)]
    steps: Option<usize>,
    /// Use attention outputs again in later steps (pyramid attention broadcast): computed every 2nd
    /// (spatial), 4th (temporal) and 6th (cross) step at timesteps from 450 to 930 as published, or
    /// as given, such as --pab=spatial=2,cross=6,above=100,below=850. Faster, and unlike the full
    /// result; it keeps up to three tensors of all tokens for each block.
    #[arg(
        long,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "published",
        value_name = "RANGES"
    )]
    pab: Option<AttentionReuse>,
    /// How strongly the prompt is followed; 1 is without guidance [default: the model's; 7 for
    /// published ones].
    #[arg(long)]
    cfg_scale: Option<f64>,
    /// Latent channels that are guided [default: 3, for dpm-solver all, as published].
    #[arg(long)]
    guided_channels: Option<usize>,
    /// Unit of rows and columns in the position tables [default: the model's].
    #[arg(long)]
    space_scale: Option<f64>,
    /// Unit of frames in the position tables [default: the model's].
    #[arg(long)]
    time_scale: Option<f64>,
    /// Seed of all noise [default: 42].
    #[arg(long)]
    seed: Option<u64>,
    /// Noise index of the first prompt: the 7th prompt of a file is sampled again with 6.
    #[arg(long, default_value_t = 0)]
    noise_index: u64,
    /// Prompts that are sampled at once.
    #[arg(long, default_value_t = 1)]
    batch_size: usize,
    /// Device, as `opensora devices` lists them [default: the first that is present].
    #[arg(long)]
    device: Option<String>,
    /// Float type of denoiser and VAE: f32, bf16 or f16 [default: f32].
    #[arg(long)]
    dtype: Option<Dtype>,
    /// Float type of the text encoder [default: f32].
    #[arg(long)]
    t5_dtype: Option<Dtype>,
    /// Use less memory and more time: the denoiser stays in its file, which is read at every step (3
    /// GB at published size) one block at a time, and frames are decoded one by one, in tiles. The
    /// latents are the same, the pixels as well but for rounding.
    #[arg(long)]
    low_memory: bool,
    /// Output file (.mp4, .gif, .png), folder for several prompts, or - for standard output.
    #[arg(short, long, visible_alias = "output", default_value = "outputs")]
    out: PathBuf,
    /// Fail if an output exists already, instead of replacing it.
    #[arg(long)]
    no_overwrite: bool,
    /// Kind of file where the output is a folder; a single frame is always a PNG.
    #[arg(long, default_value = "mp4")]
    format: FileKind,
    /// Keep the sampled latents in this file before they are decoded.
    #[arg(long, value_name = "FILE")]
    save_latents: Option<PathBuf>,
    /// Decode latents that were kept by --save-latents instead of sampling.
    #[arg(long, value_name = "FILE", conflicts_with = "save_latents")]
    latents: Option<PathBuf>,
    /// Print one JSON object for each output.
    #[arg(long)]
    json: bool,
    /// Print nothing but the outputs' paths.
    #[arg(long)]
    quiet: bool,
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

pub(crate) fn parse_size(text: &str) -> Result<[usize; 2], String> {
    let parsed = text.split_once('x').and_then(|(h, w)| Some([h.parse().ok()?, w.parse().ok()?]));
    parsed.ok_or_else(|| "expected height x width in pixels, such as 256x256".into())
}

fn parse_ratio(text: &str) -> Result<f64, String> {
    let parsed = text
        .split_once(':')
        .and_then(|(h, w)| Some(h.trim().parse::<f64>().ok()? / w.trim().parse::<f64>().ok()?));
    parsed
        .filter(|ratio| ratio.is_finite() && *ratio > 0.0)
        .ok_or_else(|| "expected height to width, such as 9:16".into())
}

pub(crate) fn parse_sampler(text: &str) -> Result<SamplerKind, String> {
    text.parse().map_err(|error: opensora::diffusion::sampler::SamplerError| error.to_string())
}

pub(crate) fn run(mut args: Args) -> anyhow::Result<()> {
    if !args.label.is_empty() || label::is_record(&args) {
        return label::run(&mut args);
    }
    let source = match args.from_record.take() {
        Some(path) => Source::of_record(&path, &mut args)?,
        None => Source { prompts: prompts(&args)?, only: None },
    };
    let prompts = &source.prompts;
    let device = open_device(args.device.as_deref())?;
    let parts = PartPaths {
        t5: args.t5.clone(),
        vae: args.vae.clone(),
        weights_dir: args.weights_dir.clone(),
        policy: model::policy(args.allow_outside_paths)?,
    };
    let files = model::resolve(args.model(), &parts)?;
    if let Some(ratio) = args.aspect_ratio {
        let size = files.nearest_size(ratio).with_context(|| {
            format!("--aspect-ratio: {} was trained for one size: use --image-size", files.name)
        })?;
        args.image_size = Some(size);
    }
    let request = request_for(&args, &files.defaults);
    let pipeline = TextToVideo::new(files, args.dtype(), args.t5_dtype(), device)?
        .with_low_memory(args.low_memory);
    pipeline.check(&request)?;

    // Outputs are tried before minutes are spent on what goes into them.
    let outputs = Outputs::new(&args, &request, source.only.map_or(prompts.len(), |_| 1))?;
    if let Some(path) = &args.save_latents {
        latents::check_writable(path).context("--save-latents")?;
    }
    stop::listen();

    let mut progress = Progress::new(args.quiet);
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
        Some(path) if args.json => output::json(&json!({"output": path, "metadata": record})),
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
                "--latents: the file holds {found} clips, but {} prompts were given",
                prompts.len()
            );
            (latents, DenoiserWork::default())
        }
        (None, save) => {
            let states = pipeline.encode_prompts(prompts, progress)?;
            warn_of_cut_prompts(&states, progress);
            let Some(path) = save else {
                let sampled = pipeline.sample_each(&states, request, progress, |sampled| {
                    write(sampled)?;
                    stop::check()
                });
                return sampled.map_err(stop::or_error);
            };
            // Saved before they are decoded, so that minutes of sampling are not lost.
            let mut done = Vec::new();
            let sampled = sample_batches(pipeline, &states, request, progress, &mut done);
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

/// Samples every batch; `done` holds the latents of those that are complete, also after an error.
fn sample_batches(
    pipeline: &TextToVideo,
    states: &PromptStates,
    request: &SampleRequest,
    progress: &mut Progress,
    done: &mut Vec<Tensor<5>>,
) -> Result<DenoiserWork, PipelineError> {
    let mut denoiser = pipeline.load_denoiser(request, progress)?;
    let (count, size) = (states.states.dims()[0], request.batch_size);
    let batches = count.div_ceil(size);
    for batch in 0..batches {
        let first = batch * size;
        let part = states.select(first..(first + size).min(count));
        done.push(
            denoiser.sample(&part, first, |step, steps| {
                progress.sampled(step, steps, batch, batches)
            })?,
        );
    }
    Ok(denoiser.work())
}

/// What is sampled.
struct Source {
    prompts: Vec<String>,
    /// The one clip that is written, of prompts that are sampled at once with it.
    only: Option<usize>,
}

impl Source {
    /// Takes prompts and all settings that the command line does not name from a record.
    fn of_record(path: &Path, args: &mut Args) -> anyhow::Result<Self> {
        let record =
            Record::open(path).with_context(|| format!("--from-record: {}", path.display()))?;
        if record.version != env!("CARGO_PKG_VERSION") && !args.quiet {
            output::message(format_args!(
                "{}: made by version {}: this version may compute other last digits",
                path.display(),
                record.version
            ));
        }
        let only = record.apply(args)?;
        Ok(Self { prompts: record.batch_prompts(), only: Some(only) })
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
    let sampler = args.sampler.unwrap_or(defaults.sampler);
    // The default steps of a model are those of its own sampler.
    let own_steps = defaults.steps.filter(|_| sampler == defaults.sampler);
    SampleRequest {
        num_frames: args.num_frames.unwrap_or(defaults.num_frames),
        image_size: args.image_size.unwrap_or(defaults.image_size),
        fps: args.fps.unwrap_or(defaults.fps),
        sampler,
        steps: args.steps.or(own_steps),
        guidance_scale: args.cfg_scale.unwrap_or(defaults.guidance_scale),
        guided_channels: args.guided_channels,
        attention_reuse: args.pab.unwrap_or(defaults.attention_reuse),
        space_scale: args.space_scale,
        time_scale: args.time_scale,
        seed: args.seed.unwrap_or(defaults.seed),
        noise_index: args.noise_index,
        batch_size: args.batch_size,
    }
}

/// A prompt that fills every token was probably cut.
fn warn_of_cut_prompts(states: &PromptStates, progress: &mut Progress) {
    for (index, row) in states.mask.rows().iter().enumerate() {
        if row.iter().all(|&keep| keep) {
            progress.line(&format!(
                "prompt {} fills all {} tokens: what lies beyond is not seen",
                index + 1,
                row.len()
            ));
        }
    }
}
