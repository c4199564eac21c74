//! `opensora sample`: prompts to video files.
//!
//! Everything that can fail early does: the request is checked against the model and every output
//! is opened and tried before the first weight is read.

use crate::{model, output, progress::Progress};
use anyhow::{Context, bail, ensure};
use clap::ValueEnum;
use opensora::{
    ModelFiles, SampleRequest, TextToVideo,
    diffusion::SamplerKind,
    latents,
    model_files::PartPaths,
    nn::dtype::Dtype,
    stdit::{AttentionReuse, DenoiserWork},
    t5::PromptStates,
    video::{VideoSpec, Writer},
};
use serde_json::{Value, json};
use std::path::PathBuf;

/// Options of `opensora sample`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// What the video shows.
    #[arg(conflicts_with = "prompt_path")]
    prompt: Option<String>,
    /// File with one prompt a line.
    #[arg(long)]
    prompt_path: Option<PathBuf>,
    /// Model: demo (comes along), a preset (opensora-v1-16x256x256, opensora-v1-hq-16x256x256,
    /// opensora-v1-hq-16x512x512), a folder with a model.json, or an STDiT-XL/2 checkpoint.
    #[arg(long, default_value = opensora_demo::model::NAME)]
    model: String,
    /// Folder of the T5 v1.1 encoder (config.json, spiece.model, weights).
    #[arg(long)]
    t5: Option<PathBuf>,
    /// Folder or file of the Stable Diffusion VAE.
    #[arg(long)]
    vae: Option<PathBuf>,
    /// Folder that holds the files of a preset [default: pretrained_models].
    #[arg(long)]
    weights_dir: Option<PathBuf>,
    /// Frames of a clip; one makes an image [default: the model's].
    #[arg(long)]
    num_frames: Option<usize>,
    /// Height and width in pixels, such as 256x256 [default: the model's].
    #[arg(long, value_parser = parse_size, value_name = "HxW")]
    image_size: Option<[usize; 2]>,
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
    /// Seed of all noise.
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Prompts that are sampled at once.
    #[arg(long, default_value_t = 1)]
    batch_size: usize,
    /// Device, as `opensora devices` lists them [default: the first that is present].
    #[arg(long)]
    device: Option<String>,
    /// Float type of denoiser and VAE: f32, bf16 or f16.
    #[arg(long, default_value_t = Dtype::F32)]
    dtype: Dtype,
    /// Float type of the text encoder.
    #[arg(long, default_value_t = Dtype::F32)]
    t5_dtype: Dtype,
    /// Use less memory and more time: the denoiser stays in its file, which is read at every step (3
    /// GB at published size) one block at a time, and frames are decoded one by one, in tiles. The
    /// latents are the same, the pixels as well but for rounding.
    #[arg(long)]
    low_memory: bool,
    /// Output file (.mp4, .gif, .png), or folder for several prompts.
    #[arg(short, long, default_value = "outputs")]
    output: PathBuf,
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

pub(crate) fn parse_sampler(text: &str) -> Result<SamplerKind, String> {
    text.parse().map_err(|error: opensora::diffusion::sampler::SamplerError| error.to_string())
}

pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let prompts = prompts(&args)?;
    let device = crate::open_device(args.device.as_deref())?;
    let parts = PartPaths {
        t5: args.t5.clone(),
        vae: args.vae.clone(),
        weights_dir: args.weights_dir.clone(),
    };
    let files = model::resolve(&args.model, &parts)?;
    let request = request(&args, &files);
    let pipeline = TextToVideo::new(files, args.dtype, args.t5_dtype, device)?
        .with_low_memory(args.low_memory);
    pipeline.check(&request)?;

    // The outputs are tried before minutes are spent on what goes into them.
    let mut writers = open_writers(&args, &request, prompts.len())?;
    if let Some(path) = &args.save_latents {
        latents::check_writable(path).context("--save-latents")?;
    }

    let mut progress = Progress::new(args.quiet);
    let record = |prompt: &[String], work: Option<DenoiserWork>| {
        metadata(&args, &request, &pipeline, prompt, work)
    };
    let (sampled, work) = match &args.latents {
        Some(path) => {
            let sampled = latents::load(path, pipeline.device()).context("--latents")?;
            let found = sampled.dims()[0];
            ensure!(
                found == prompts.len(),
                "--latents: the file holds {found} clips, but {} prompts were given",
                prompts.len()
            );
            (sampled, None)
        }
        None => {
            let states = pipeline.encode_prompts(&prompts, &mut progress)?;
            warn_of_cut_prompts(&states, &mut progress);
            let (sampled, work) = pipeline.sample_counted(&states, &request, &mut progress)?;
            (sampled, Some(work))
        }
    };
    if let Some(path) = &args.save_latents {
        latents::save(path, sampled.clone(), &record(&prompts, work))?;
        progress.line(&format!("latents: {}", path.display()));
    }

    let mut written = Vec::new();
    pipeline.decode(sampled, &mut progress, |sample, clip| -> anyhow::Result<()> {
        let writer = writers[sample].take().context("a clip came twice")?;
        let metadata = record(&prompts[sample..=sample], work);
        written.push((writer.write(&clip, &metadata)?, metadata));
        Ok(())
    })?;
    progress.finish();
    for (path, metadata) in written {
        if args.json {
            output::json(&json!({"output": path, "metadata": metadata}))?;
        } else {
            output::line(path.display())?;
        }
    }
    Ok(())
}

/// The prompts from the command line or the file; blank lines of a file are no prompts.
fn prompts(args: &Args) -> anyhow::Result<Vec<String>> {
    let prompts: Vec<String> = match (&args.prompt, &args.prompt_path) {
        (Some(prompt), _) => vec![prompt.trim().to_string()],
        (None, Some(path)) => std::fs::read_to_string(path)
            .with_context(|| format!("--prompt-path: {}", path.display()))?
            .lines()
            .map(|line| line.trim().to_string())
            .filter(|line| !line.is_empty())
            .collect(),
        (None, None) => bail!("no prompt: give one, or a file of them with --prompt-path"),
    };
    match &args.prompt_path {
        Some(path) => {
            ensure!(!prompts.is_empty(), "--prompt-path: {} holds no prompt", path.display())
        }
        None => ensure!(!prompts[0].is_empty(), "the prompt is empty: say what the video shows"),
    }
    Ok(prompts)
}

fn request(args: &Args, files: &ModelFiles) -> SampleRequest {
    let defaults = &files.defaults;
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
        seed: args.seed,
        batch_size: args.batch_size,
    }
}

/// One writer for each prompt: the named file for one prompt, numbered files in a folder otherwise.
fn open_writers(
    args: &Args,
    request: &SampleRequest,
    count: usize,
) -> anyhow::Result<Vec<Option<Writer>>> {
    let [height, width] = request.image_size;
    let spec = VideoSpec { frames: request.num_frames, width, height, fps: request.fps };
    let is_file = args.output.extension().is_some() && !args.output.is_dir();
    ensure!(
        count == 1 || !is_file,
        "--output: {} is one file, but {count} prompts were given: name a folder",
        args.output.display()
    );
    (0..count)
        .map(|index| {
            let path = if is_file {
                args.output.clone()
            } else {
                let name = match args.format {
                    FileKind::Mp4 => format!("sample_{index}.mp4"),
                    FileKind::Gif => format!("sample_{index}.gif"),
                    FileKind::Png => format!("sample_{index}"),
                };
                args.output.join(name)
            };
            Ok(Some(Writer::open(&path, &spec).context("--output")?))
        })
        .collect()
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

/// What is written beside an output, enough to make it again.
fn metadata(
    args: &Args,
    request: &SampleRequest,
    pipeline: &TextToVideo,
    prompts: &[String],
    work: Option<DenoiserWork>,
) -> Value {
    let guidance = request.guidance();
    let scales = pipeline.position_scales(request);
    json!({
        "prompt": if let [prompt] = prompts { json!(prompt) } else { json!(prompts) },
        "model": pipeline.files().name,
        "num_frames": request.num_frames,
        "image_size": request.image_size,
        "fps": request.fps,
        "sampler": request.sampler.name(),
        "steps": request.steps.unwrap_or(request.sampler.default_steps()),
        "guidance_scale": guidance.guidance_scale,
        "guided_channels": guidance.guided_channels,
        "attention_reuse": request.attention_reuse.to_string(),
        // Of all prompts of the call together; unknown where latents come from a file.
        "denoiser_work": work,
        "space_scale": scales.space_scale,
        "time_scale": scales.time_scale,
        "seed": request.seed,
        "batch_size": request.batch_size,
        "dtype": args.dtype.to_string(),
        "device": format!("{:?}", pipeline.device()),
        "low_memory": args.low_memory,
        "version": env!("CARGO_PKG_VERSION"),
    })
}
