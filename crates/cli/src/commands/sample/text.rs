//! `opensora sample PROMPT`: samples videos of prompts.

use super::{
    Args, each_times,
    job::{Job, Sink},
    print_details,
    record::{OfPrompt, Recorded, Saved, Settings},
};
use crate::{model, progress::Progress, ranks::World, stop};
use anyhow::{Context, bail, ensure};
use burn::tensor::{Device, Tensor};
use opensora::{
    ModelFiles, PipelineError, SampleRequest, TextToVideo, latents,
    manifest::read_prompts,
    pipeline::{SampledClip, SampledLatents},
    stdit::DenoiserWork,
    t5::PromptStates,
};
use std::{num::NonZero, path::Path};

/// Samples every prompt of `args`, or repeats the clip of a record. Rank 0 writes.
pub(super) fn run(args: &Args, recorded: Option<Recorded>, world: &World) -> anyhow::Result<()> {
    let inputs = || {
        let prompts = match &recorded {
            Some(recorded) => recorded.prompts.clone(),
            None => each_times(&prompts(args)?, args.num_videos_per_prompt)?,
        };
        Ok((prompts, args.device.open_on(world.local_rank(), args.report.quiet)?))
    };
    let (prompts, device) = world.agree(inputs())?;
    let name = args.model.as_deref().unwrap_or(opensora_demo::model::NAME);
    let quiet = args.report.quiet || !world.is_main();
    let files = world.main_first(|| model::resolve(name, &args.parts.paths()?, quiet))?;
    let only = recorded.as_ref().map(|recorded| recorded.only);
    let ready = world.agree(Ready::new(args, only, files, device, prompts, world))?;
    let Ready { request, pipeline, of, job, latents, prompts } = ready;
    let pipeline = pipeline.on_ranks(args.ranks(world).context("--divide")?);
    if latents.is_none() {
        // Again, on several ranks: not every model can be divided.
        world.agree(pipeline.check(&request).map_err(Into::into))?;
    }
    let weights = weights_of(pipeline.files());
    // Latents of a file need the VAE only.
    let used = if latents.is_some() { &weights[2..] } else { &weights[..] };
    let job = job.with_weights(used, recorded.as_ref());
    stop::listen();

    let progress = Progress::new(quiet).on(pipeline.device());
    let (is_main, pipeline) = (world.is_main(), &pipeline);
    let call = Call { args, request: &request, pipeline, prompts: &prompts, latents, is_main };
    let done = job.write(
        |progress, sink| call.sample(&job, &of, progress, sink),
        progress,
        |sampled| of.clip(&prompts, sampled),
    );
    world.or_abort(done, stop::have_all_ranks)
}

/// A call that has passed all checks that need no weights.
struct Ready<'a> {
    request: SampleRequest,
    pipeline: TextToVideo,
    of: OfPrompt,
    job: Job<'a>,
    /// Those of `--latents`.
    latents: Option<Tensor<5>>,
    /// With `--latents`, the prompts of that file, if it has them.
    prompts: Vec<String>,
}

impl<'a> Ready<'a> {
    fn new(
        args: &'a Args,
        only: Option<usize>,
        files: ModelFiles,
        device: Device,
        mut prompts: Vec<String>,
        world: &World,
    ) -> anyhow::Result<Self> {
        let name = args.model.as_deref().unwrap_or(opensora_demo::model::NAME);
        let mut request = args.request(&files.defaults);
        if let Some(ratio) = args.aspect_ratio {
            request.image_size = files.nearest_size(ratio).with_context(|| {
                format!("--aspect-ratio: {} was trained for one size: use --image-size", files.name)
            })?;
        }
        print_details(&["denoiser", "T5", "VAE"], &weights_of(&files), &request);
        let settings = Settings::new(args, name, &files.name, &request, &device)?;
        let pipeline = TextToVideo::new(files, args.options(), device)?;
        let size = pipeline.check(&request)?;
        let (latents, saved) = read_latents(args, &pipeline, prompts.len(), size)?.unzip();
        // The clips show those of the file.
        if let Some(found) = saved.as_ref().and_then(|saved| saved.prompts(prompts.len())) {
            prompts = found;
        }

        // Outputs are tried before minutes are spent on their contents.
        let of = OfPrompt::new(args, &request, pipeline.position_scales(&request))?;
        let job = Job::new(args, &request, settings, prompts.len(), only, world)?.with_saved(saved);
        if world.is_main() {
            check_latents_path(args)?;
        }
        Ok(Self { request, pipeline, of, job, latents, prompts })
    }
}

/// Returns the paths of denoiser, text encoder and VAE.
fn weights_of(files: &ModelFiles) -> [&Path; 3] {
    [&files.denoiser, &files.t5, &files.vae]
}

/// Returns the prompts of the command line or the file, without blank lines.
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

/// Reads the latents `[B, C, T, h, w]` of `--latents`, which have to be those of `clips` clips of `size` (T, h, w), and
/// the record in the file.
fn read_latents(
    args: &Args,
    pipeline: &TextToVideo,
    clips: usize,
    size: [usize; 3],
) -> anyhow::Result<Option<(Tensor<5>, Saved)>> {
    let Some(path) = &args.latents else { return Ok(None) };
    let read = latents::load(path, pipeline.device()).context("--latents")?;
    let [found, channels, frames, height, width] = read.dims();
    ensure!(found == clips, "--latents: the file holds {found} clips, but {clips} were asked for");
    let expected = pipeline.files().denoiser_config.in_channels;
    ensure!(
        channels == expected,
        "--latents: the file holds {channels} channels, but the model has {expected}"
    );
    ensure!(
        [frames, height, width] == size,
        "--latents: the file holds clips of {frames}x{height}x{width} latents (frames, rows, columns), but \
         --num-frames and --image-size ask for {}x{}x{}",
        size[0],
        size[1],
        size[2]
    );
    Ok(Some((read, Saved::open(path)?)))
}

/// Checks the path of `--save-latents`.
fn check_latents_path(args: &Args) -> anyhow::Result<()> {
    let Some(path) = &args.save_latents else { return Ok(()) };
    ensure!(
        !(args.no_overwrite && path.exists()),
        "--save-latents: {}: exists already, and --no-overwrite is given",
        path.display()
    );
    ensure!(*path != args.out, "--save-latents: {}: the videos go there (--out)", path.display());
    latents::check_writable(path).context("--save-latents")
}

/// A call of `opensora sample` with its request, pipeline and prompts.
struct Call<'a> {
    args: &'a Args,
    request: &'a SampleRequest,
    pipeline: &'a TextToVideo,
    prompts: &'a [String],
    /// Latents to decode in place of sampling.
    latents: Option<Tensor<5>>,
    /// True on the rank that writes.
    is_main: bool,
}

impl Call<'_> {
    /// Samples and decodes; `sink` receives each clip as soon as it is decoded.
    fn sample(
        &self,
        job: &Job<'_>,
        of: &OfPrompt,
        progress: &mut Progress,
        sink: &mut Sink<'_>,
    ) -> anyhow::Result<()> {
        let Self { args, request, pipeline, prompts, is_main, .. } = self;
        if let Some(latents) = &self.latents {
            return self.decode(latents.clone(), DenoiserWork::default(), progress, sink);
        }
        let conditioning = pipeline.encode(prompts, request, progress)?;
        warn_of_cut_prompts(args.num_videos_per_prompt, &conditioning.prompts, progress);
        let Some(path) = &args.save_latents else {
            return sink.take(pipeline.clips(&conditioning, request, progress)?);
        };
        // Saved before they are decoded, so that minutes of sampling are not lost.
        let (mut done, mut error) = (Vec::<SampledLatents>::new(), None);
        for batch in pipeline.latents(&conditioning, request, progress)? {
            match batch {
                Ok(batch) => done.push(batch),
                Err(stopped) => error = Some(stopped),
            }
        }
        let Some(last) = done.last() else {
            return error.map_or(Ok(()), |error| Err(error.into()));
        };
        // The work of a batch that was stopped is not known.
        let work = error.is_none().then_some(last.work);
        let saved = &prompts[..last.clips.end];
        let latents = Tensor::cat(done.into_iter().map(|batch| batch.latents).collect(), 0);
        if *is_main {
            let record = job.record_of_latents(work, of.latents(saved))?;
            latents::save(path, latents.clone(), &record)?;
        }
        progress.line(&format!("latents of {} clips: {}", saved.len(), path.display()));
        match error {
            Some(error) => Err(error.into()),
            None => self.decode(latents, work.unwrap_or_default(), progress, sink),
        }
    }

    /// Decodes the latents of all prompts.
    fn decode(
        &self,
        latents: Tensor<5>,
        work: DenoiserWork,
        progress: &mut Progress,
        sink: &mut Sink<'_>,
    ) -> anyhow::Result<()> {
        let (size, count) = (self.request.batch_size, self.prompts.len());
        let clips = self.pipeline.decode(latents, progress)?;
        sink.take(clips.enumerate().map(|(index, clip)| {
            let first = index / size * size;
            let batch = first..(first + size).min(count);
            Ok::<_, PipelineError>(SampledClip { index, batch, clip: clip?, work })
        }))
    }
}

/// Warns of prompts that fill every token: they were probably cut. Each prompt has `times` rows.
fn warn_of_cut_prompts(times: NonZero<usize>, states: &PromptStates, progress: &mut Progress) {
    for (index, row) in states.mask.rows().iter().step_by(times.get()).enumerate() {
        if row.iter().all(|&keep| keep) {
            progress.line(&format!(
                "prompt {} fills all {} tokens: the rest of it is not used",
                index + 1,
                row.len()
            ));
        }
    }
}
