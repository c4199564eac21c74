//! `opensora train` and `opensora train-vae`.

use crate::{
    options::{DeviceName, Report},
    output,
    progress::warm_up,
    ranks::{World, on_ranks},
    stop::{self, Stopped},
    train_progress::TrainProgress,
};
use anyhow::{Context, bail};
use burn::tensor::Device;
use clap::Args as ClapArgs;
use opensora::{
    nn::dtype::Dtype,
    train::{
        Outcome, Ranks, Recipe, Session, Zero, metrics::flops::measure_matmul_ceiling, run::Hooks,
    },
    training::SampleSheets,
};
use std::path::PathBuf;

/// Options of `opensora train` and `opensora train-vae`, which override the recipe.
#[derive(ClapArgs)]
#[command(after_long_help = "\
Examples:
  opensora train --recipe stage2-16x256x256 --cache cache --init PixArt-XL-2-512x512.pth -o run
  opensora train --recipe stage2-16x256x256 --cache cache --init PixArt-XL-2-512x512.pth -o run --resume
  opensora train-vae --recipe vae.toml --data images.csv -o vae
  mpirun -n 4 opensora train --recipe recipe.toml --cache cache -o run --device cuda:local --zero 2")]
pub(crate) struct Args {
    /// Recipe file (TOML), or the name of a bundled recipe
    #[arg(long)]
    recipe: PathBuf,
    /// Folder of the run: checkpoints, metrics, samples, finished weights
    #[arg(long, short, alias = "output", value_name = "FOLDER")]
    out: PathBuf,
    /// Manifest of clips and captions (CSV) [default: from the recipe]
    #[arg(long)]
    data: Option<PathBuf>,
    /// Cache of latents and prompt states from `opensora data encode` [default: from the recipe]
    #[arg(long)]
    cache: Option<PathBuf>,
    /// Weights to start from: an earlier stage or a PixArt-alpha [default: from the recipe]
    #[arg(long)]
    init: Option<PathBuf>,
    /// Folder of the text encoder [default: from the recipe]
    #[arg(long)]
    t5: Option<PathBuf>,
    /// Folder or file of the VAE [default: from the recipe]
    #[arg(long)]
    vae: Option<PathBuf>,
    /// Total number of steps [default: from the recipe]
    #[arg(long)]
    steps: Option<u64>,
    /// Seed of all random draws [default: from the recipe]
    #[arg(long)]
    seed: Option<u64>,
    /// Resume from the newest complete checkpoint, if there is one
    #[arg(long)]
    resume: bool,
    /// Bad rows to skip (and list in skipped.csv) before the run fails [default: from the recipe]
    #[arg(long)]
    skip_bad: Option<usize>,
    /// Number of checkpoints to keep [default: from the recipe]
    #[arg(long)]
    keep: Option<usize>,
    /// Steps between checkpoints [default: from the recipe]
    #[arg(long)]
    checkpoint_every: Option<u64>,
    /// State that the ranks divide (ZeRO): 0 none, 1 optimizer and moving average, 2 gradients too [default: from
    /// the recipe]
    #[arg(long, value_name = "0|1|2")]
    zero: Option<u8>,
    /// Ranks that share the frames of each sample, for clips too long for one device; divides the number of ranks
    #[arg(long, value_name = "N", default_value_t = 1)]
    sequence: usize,
    /// Peak of the device in TFLOP/s, for the MFU [default: measured by matrix products]
    #[arg(long)]
    peak_tflops: Option<f64>,
    #[command(flatten)]
    device: DeviceName,
    #[command(flatten)]
    report: Report,
}

impl Args {
    /// Arranges the ranks. A collective, with the same error on all.
    fn ranks(&self, world: &World) -> anyhow::Result<Ranks> {
        let group = world.group().clone();
        match self.sequence {
            1 => Ok(Ranks::new(group)),
            sequence => Ranks::with_sequence(group, sequence).context("--sequence"),
        }
    }
}

/// `opensora train`.
pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    on_ranks(|world| {
        let recipe = world.agree(recipe(&args))?;
        train(&args, recipe, world)
    })
}

/// `opensora train-vae`: `opensora train` for a recipe with a VAE.
pub(crate) fn run_vae(args: Args) -> anyhow::Result<()> {
    on_ranks(|world| {
        let recipe = world.agree(recipe(&args))?;
        if recipe.vae.is_none() {
            bail!("{}: not a recipe for a VAE: no [vae] found", args.recipe.display());
        }
        train(&args, recipe, world)
    })
}

/// Reads the recipe and applies the options.
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
    run.zero = args.zero.map_or(Ok(run.zero), Zero::try_from).context("--zero")?;
    recipe.validate().context("recipe")?;
    let model = match &recipe {
        Recipe { stdit: Some(_), .. } => "[stdit]",
        Recipe { vae: Some(_), .. } => "[vae]",
        _ => "[t5]",
    };
    for (option, is_given, models) in [
        ("--cache", args.cache.is_some(), &["[stdit]"][..]),
        ("--t5", args.t5.is_some(), &["[stdit]"]),
        ("--vae", args.vae.is_some(), &["[stdit]"]),
        ("--init", args.init.is_some(), &["[stdit]", "[vae]"]),
        ("--peak-tflops", args.peak_tflops.is_some(), &["[stdit]"]),
    ] {
        if is_given && !models.contains(&model) {
            bail!("{option}: a recipe with {model} has no use for it");
        }
    }
    let settings =
        [("sample_every", recipe.run.sample_every > 0), ("cache", recipe.data.cache.is_some())];
    for (name, is_set) in settings {
        if is_set && model != "[stdit]" {
            let recipe = args.recipe.display();
            bail!("{recipe}: {name}: a recipe with {model} has no use for it");
        }
    }
    Ok(recipe)
}

fn train(args: &Args, recipe: Recipe, world: &World) -> anyhow::Result<()> {
    let device = args.device.open_on(world.local_rank(), args.report.quiet);
    let device = world.agree(device)?;
    let (folder, ranks) = (args.out.clone(), args.ranks(world)?);
    let resume = args.resume;
    let session = Session { recipe, folder, resume, peak_flops: None, device, ranks };
    // Checks that need no model come first: measuring the peak and loading models take a while.
    let prepared = session.prepare()?;
    let Session { recipe, device, .. } = &session;
    let peak_flops = world.agree(peak_flops(args, recipe, device))?;
    let mut progress = TrainProgress::new(args.report.quiet || !world.is_main());
    if let Some(text) = warm_up(device) {
        progress.message(text);
    }
    let mut sheets = world.agree(sample_sheets(&session, world))?;
    let mut none = ();
    let hooks: &mut dyn Hooks<_> = match &mut sheets {
        Some(sheets) => sheets,
        None => &mut none,
    };
    stop::listen();
    let outcome = prepared.with_peak_flops(peak_flops).run(&mut progress, hooks);
    progress.finish();
    report(args, outcome?)
}

/// Returns the peak FLOP/s of the device, as given or measured.
fn peak_flops(args: &Args, recipe: &Recipe, device: &Device) -> anyhow::Result<Option<f64>> {
    match args.peak_tflops {
        Some(peak) if peak > 0.0 && peak.is_finite() => Ok(Some(peak * 1e12)),
        Some(peak) => bail!("--peak-tflops is {peak}, expected a positive number"),
        None if recipe.stdit.is_some() => {
            let dtype = recipe.run.dtype.parse::<Dtype>()?.check(device)?;
            Ok(measure_matmul_ceiling(device, dtype.float()))
        }
        None => Ok(None),
    }
}

/// Loads what sample videos need, on rank 0.
fn sample_sheets(session: &Session, world: &World) -> anyhow::Result<Option<SampleSheets>> {
    let Session { recipe, folder, device, .. } = session;
    match &recipe.stdit {
        Some(part) if world.is_main() && recipe.run.sample_every > 0 => {
            if recipe.sample.prompts.is_empty() {
                let every = recipe.run.sample_every;
                bail!("sample_every is {every}, but [sample] has no prompts");
            }
            Ok(Some(SampleSheets::new(recipe, part, folder, device).context("sample videos")?))
        }
        _ => Ok(None),
    }
}

/// Prints the result. A run that was stopped is an error.
fn report(args: &Args, outcome: Outcome) -> anyhow::Result<()> {
    let (finished, done) = match outcome {
        Outcome::Finished(done) => (true, done),
        Outcome::Stopped(done) => (false, done),
    };
    let printed = if args.report.json {
        let mut line = serde_json::to_value(done)?;
        line["finished"] = finished.into();
        output::json(&line)
    } else if finished {
        let out = args.out.display();
        let (step, seconds) = (done.step, done.seconds);
        output::line(format_args!("finished at step {step} after {seconds:.0} s: {out}"))
    } else {
        Ok(())
    };
    if !finished {
        bail!(Stopped(format!("step {} is done; --resume continues from it", done.step)));
    }
    Ok(printed?)
}
