//! `opensora sample --label`: samples images or clips of class labels.

use super::{
    Args, each_times,
    job::Job,
    print_details,
    record::{Of, OfLabel, Recorded, Settings},
};
use crate::{model, progress::Progress, ranks::World, stop};
use anyhow::{Context, bail, ensure};
use opensora::{
    ClassToVideo, labels,
    model_files::PartPaths,
    presets::{Preset, PresetModel},
};

/// Default of `--model` with labels.
const DEFAULT_MODEL: &str = "dit-xl-2-256x256";

/// Samples every label of `args`, or repeats the output of a record.
pub(super) fn run(args: &Args, recorded: Option<Recorded>, world: &World) -> anyhow::Result<()> {
    reject_options_of_prompts(args)?;
    let device = args.device.open(args.report.quiet)?;
    let parts = PartPaths { t5: None, ..args.parts.paths()? };
    let name = args.model.as_deref().unwrap_or(DEFAULT_MODEL);
    check_labels_of_preset(args, name)?;
    let files = model::resolve_class(name, &parts, args.report.quiet)?;
    let labels = args
        .label
        .iter()
        .map(|text| labels::parse(text, files.labels))
        .collect::<Result<Vec<usize>, _>>()
        .context("--label")?;
    let labels = each_times(&labels, args.num_videos_per_prompt)?;
    let request = args.request(&files.defaults);
    print_details(&["denoiser", "VAE"], &[&files.denoiser, &files.vae], &request);
    let settings = Settings::new(args, name, &files.name, &request, &device)?;
    let of = OfLabel::new(&files);
    let pipeline = ClassToVideo::new(files, args.options(), device)?;
    pipeline.check(&labels, &request)?;
    let only = recorded.as_ref().map(|recorded| recorded.only);
    let job = Job::new(args, &request, settings, labels.len(), only, world)?;
    let files = pipeline.files();
    let job = job.with_weights(&[&files.denoiser, &files.vae], recorded.as_ref());
    stop::listen();

    let progress = Progress::new(args.report.quiet).on(pipeline.device());
    job.write(
        |progress, sink| sink.take(pipeline.clips(&labels, &request, progress)?),
        progress,
        |sampled| Of::Label(of.output(&labels, sampled)),
    )
}

/// Checks the labels of a preset before its files are fetched.
fn check_labels_of_preset(args: &Args, name: &str) -> anyhow::Result<()> {
    let Some(PresetModel::Class(_, names)) = Preset::find(name).map(|preset| preset.model) else {
        return Ok(());
    };
    let classes = names.classes();
    for text in &args.label {
        let label = labels::parse(text, Some(names)).context("--label")?;
        ensure!(label < classes, "--label: {label}: {name} has classes 0 to {}", classes - 1);
    }
    Ok(())
}

/// Rejects options that have no meaning for labels. (`--label` itself conflicts with them; the record of a
/// label is only known as one once it is read.)
fn reject_options_of_prompts(args: &Args) -> anyhow::Result<()> {
    let given = [
        ("--negative-prompt", args.negative_prompt.is_some()),
        ("--t5", args.parts.t5.is_some()),
        ("--t5-dtype", args.t5_dtype.is_some()),
        ("--aspect-ratio", args.aspect_ratio.is_some()),
        ("--pab", args.sampling.pab.is_some()),
        ("--space-scale", args.space_scale.is_some()),
        ("--time-scale", args.time_scale.is_some()),
    ];
    match given.iter().find(|(_, given)| *given) {
        Some((option, _)) => bail!("{option} has no meaning for the record of a label"),
        None => Ok(()),
    }
}
