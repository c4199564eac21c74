//! `opensora train` and `opensora train-vae`.

use crate::{open_device, stop, train_progress::TrainProgress};
use anyhow::{Context, bail};
use clap::Args as ClapArgs;
use opensora::{
    nn::dtype::Dtype,
    train::{
        Outcome, Recipe, Session,
        metrics::flops::measure_matmul_ceiling,
        run::{Hooks, NoHooks},
    },
    training::SampleSheets,
};
use std::path::PathBuf;

/// What both commands take. What is named here wins over the recipe.
#[derive(ClapArgs)]
pub(crate) struct Args {
    /// Recipe file (TOML), or the name of one that comes along
    #[arg(long)]
    recipe: PathBuf,
    /// Folder of the run: checkpoints, metrics, samples, finished weights
    #[arg(long)]
    out: PathBuf,
    /// Manifest of clips and captions (CSV)
    #[arg(long)]
    data: Option<PathBuf>,
    /// Folder of latents and prompt states made by `opensora data encode`
    #[arg(long)]
    cache: Option<PathBuf>,
    /// Weights to start from: the stage before, or a PixArt-alpha
    #[arg(long)]
    init: Option<PathBuf>,
    /// Folder of the text encoder
    #[arg(long)]
    t5: Option<PathBuf>,
    /// Folder or file of the VAE
    #[arg(long)]
    vae: Option<PathBuf>,
    /// Steps in all
    #[arg(long)]
    steps: Option<u64>,
    /// Seed of everything that is drawn
    #[arg(long)]
    seed: Option<u64>,
    /// Go on from the newest complete checkpoint, where there is one
    #[arg(long)]
    resume: bool,
    /// Bad rows that are left out (and listed) before the run stops
    #[arg(long)]
    skip_bad: Option<usize>,
    /// Checkpoints that are kept
    #[arg(long)]
    keep: Option<usize>,
    /// Steps between checkpoints
    #[arg(long)]
    checkpoint_every: Option<u64>,
    /// Peak of the device in TFLOP/s, for the utilisation; measured by a matmul without it
    #[arg(long)]
    peak_tflops: Option<f64>,
    /// Device, such as flex, cuda:0 or vulkan (see `opensora devices`)
    #[arg(long)]
    device: Option<String>,
    /// Print the outcome as one JSON object
    #[arg(long)]
    json: bool,
    /// No progress
    #[arg(long, short)]
    quiet: bool,
}

/// `opensora train`.
pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let recipe = recipe(&args)?;
    train(args, recipe)
}

/// `opensora train-vae`: the same for a recipe that trains a VAE.
pub(crate) fn run_vae(args: Args) -> anyhow::Result<()> {
    let recipe = recipe(&args)?;
    if recipe.vae.is_none() {
        bail!("{}: not a recipe for a VAE: it has no [vae]", args.recipe.display());
    }
    train(args, recipe)
}

/// The recipe with what the command line says.
fn recipe(args: &Args) -> anyhow::Result<Recipe> {
    let mut recipe = Recipe::open(&args.recipe)?;
    let set = |target: &mut Option<PathBuf>, value: &Option<PathBuf>| {
        if value.is_some() {
            target.clone_from(value);
        }
    };
    set(&mut recipe.data.manifest, &args.data);
    set(&mut recipe.data.cache, &args.cache);
    let (stdit, vae) = (recipe.stdit.as_mut(), recipe.vae.as_mut());
    match (stdit, vae) {
        (Some(part), _) => {
            set(&mut part.init, &args.init);
            set(&mut part.t5, &args.t5);
            set(&mut part.vae, &args.vae);
        }
        (_, Some(part)) => set(&mut part.init, &args.init),
        _ => {}
    }
    let run = &mut recipe.run;
    run.steps = args.steps.unwrap_or(run.steps);
    run.seed = args.seed.unwrap_or(run.seed);
    run.skip_bad = args.skip_bad.unwrap_or(run.skip_bad);
    run.keep = args.keep.unwrap_or(run.keep);
    run.checkpoint_every = args.checkpoint_every.unwrap_or(run.checkpoint_every);
    recipe.validate()?;
    Ok(recipe)
}

fn train(args: Args, recipe: Recipe) -> anyhow::Result<()> {
    let device = open_device(args.device.as_deref())?;
    let peak_flops = match args.peak_tflops {
        Some(peak) if peak > 0.0 && peak.is_finite() => Some(peak * 1e12),
        Some(peak) => bail!("--peak-tflops is {peak}, expected a positive number"),
        None if recipe.stdit.is_some() => {
            let dtype = recipe.run.dtype.parse::<Dtype>()?.check(&device)?;
            measure_matmul_ceiling(&device, dtype.float())
        }
        None => None,
    };
    let mut progress = TrainProgress::new(args.quiet);
    let folder = args.out.clone();
    let mut sheets = match &recipe.stdit {
        Some(part) if recipe.run.sample_every > 0 && !recipe.sample.prompts.is_empty() => {
            Some(SampleSheets::new(&recipe, part, &folder, &device).context("sample videos")?)
        }
        _ => None,
    };
    let mut none = NoHooks;
    let hooks: &mut dyn Hooks<_> = match &mut sheets {
        Some(sheets) => sheets,
        None => &mut none,
    };
    let session = Session { recipe, folder, resume: args.resume, peak_flops, device };
    stop::listen();
    let outcome = session.run(&mut progress, hooks);
    progress.finish();
    let (finished, done) = match outcome? {
        Outcome::Finished(done) => (true, done),
        Outcome::Stopped(done) => (false, done),
    };
    if args.json {
        let mut line = serde_json::to_value(done)?;
        line["finished"] = finished.into();
        println!("{line}");
    } else if finished {
        println!(
            "finished at step {} after {:.0} s: {}",
            done.step,
            done.seconds,
            args.out.display()
        );
    }
    if !finished {
        bail!("stopped after step {} as asked; --resume goes on from there", done.step);
    }
    Ok(())
}
