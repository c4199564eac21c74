//! `opensora data filter`: selects clips by measurements, bounds and near-duplicates.

use super::{
    options::{StepOptions, shard_help},
    parts,
};
use crate::{options::Report, output, step_progress::StepProgress};
use anyhow::Context;
use clap::{
    Arg, ArgAction, ArgMatches, Args as ClapArgs, Command, FromArgMatches, ValueEnum, value_parser,
};
use opensora::{
    manifest::Table,
    prepare::{
        assemble::output_path,
        filter::{self, Bound, Duplicates, Job, Keep, OnnxSpec},
    },
};
use std::path::PathBuf;

#[derive(ClapArgs)]
#[command(mut_arg("workers", |arg| arg.help("Files measured at once [default: one per core]")))]
#[command(mut_arg("shard", |arg| {
    shard_help(
        arg,
        "files",
        " Near-duplicates need --hashes here, and --duplicates on the merged table.",
    )
}))]
#[command(mut_arg("retry_failed", |arg| arg.help("Retry files that could not be read in an earlier run")))]
#[command(after_long_help = "\
Examples:
  opensora data filter --data clips.csv -o kept.csv --min-motion 0.002 --min-short-side 256 --duplicates
  opensora data filter --data clips.csv -o scored.csv --score-only --model aesthetic=model.onnx
  opensora data filter --data scored.csv -o kept.csv --min matching_score=0.4

On several machines, near-duplicates included (the last two commands once, after all parts):
  opensora data filter --data clips.csv -o hashed.csv --min-motion 0.002 --hashes --shard 0/4
  opensora data merge hashed.*-of-4.csv -o hashed.csv --order-of clips.csv
  opensora data filter --data hashed.csv -o kept.csv --duplicates")]
pub(crate) struct Args {
    /// Table of clips (CSV)
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Table of the clips that are kept
    ///
    /// STEM.dropped.csv and STEM.failed.csv are written beside it. The number of a --shard is put
    /// before the ending.
    #[arg(long, short, alias = "output", value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    bounds: Bounds,
    /// Drop near-duplicates
    #[arg(long)]
    duplicates: bool,
    /// Write the hashes of --duplicates without dropping anything for them
    ///
    /// For the tables of shards: --duplicates on their merged table needs no second pass over the
    /// files.
    #[arg(long)]
    hashes: bool,
    /// Maximum distance of near-duplicates: mean over five frames of the bits, of 64, that differ
    #[arg(long, default_value_t = 6.0, requires = "duplicates", value_parser = parse_bits, value_name = "BITS")]
    max_distance: f64,
    /// Which of several near-duplicates is kept
    #[arg(long, value_enum, default_value_t = KeepName::Longest, requires = "duplicates")]
    keep: KeepName,
    /// ONNX model that scores clips, such as aesthetic=model.onnx; repeatable
    ///
    /// With settings:
    /// text_overlay=model.onnx,size=224x224,mean=0.5/0.5/0.5,std=0.5/0.5/0.5,output=0,element=1.
    #[arg(long, value_name = "COLUMN=FILE[,...]")]
    model: Vec<OnnxSpec>,
    /// Write all columns and drop nothing; the report counts what would have been dropped
    #[arg(long)]
    score_only: bool,
    /// Measure values again that the table has already
    #[arg(long)]
    measure_again: bool,
    /// File that keeps the measurements [default: --out with .journal.jsonl added]
    ///
    /// Other bounds then need no second pass over the files.
    #[arg(long, value_name = "FILE")]
    journal: Option<PathBuf>,
    #[command(flatten)]
    step: StepOptions,
    #[command(flatten)]
    report: Report,
}

#[derive(Clone, Copy, ValueEnum)]
enum KeepName {
    /// The first in the table
    First,
    /// The longest, then the largest, then the first
    Longest,
}

/// Columns with separate options, these options, and descriptions of the columns. Rows are checked in this
/// order: cheap columns first.
const BOUNDS: [(&str, &str, &str, &str); 15] = [
    ("text_characters", "min-text-characters", "max-text-characters", "characters of the caption"),
    ("text_words", "min-text-words", "max-text-words", "words of the caption"),
    ("num_frames", "min-frames", "max-frames", "frames"),
    ("fps", "min-fps", "max-fps", "frames per second"),
    ("duration", "min-duration", "max-duration", "duration in seconds"),
    ("short_side", "min-short-side", "max-short-side", "shorter side in pixels"),
    ("pixels", "min-pixels", "max-pixels", "width times height"),
    ("aspect_ratio", "min-aspect-ratio", "max-aspect-ratio", "width divided by height"),
    ("motion", "min-motion", "max-motion", "mean difference of neighbouring frames, from 0 to 1"),
    ("flow", "min-flow", "max-flow", "optical flow per frame as a fraction of the shorter side"),
    ("brightness", "min-brightness", "max-brightness", "mean luma, from 0 to 1"),
    ("dark_share", "min-dark-share", "max-dark-share", "fraction of dark frames, from 0 to 1"),
    (
        "bright_share",
        "min-bright-share",
        "max-bright-share",
        "fraction of bright frames, from 0 to 1",
    ),
    ("aesthetic", "min-aesthetic", "max-aesthetic", "score of a --model of this column"),
    ("text_overlay", "min-text-overlay", "max-text-overlay", "score of a --model of this column"),
];

/// Bounds by column: minimum and maximum.
struct Bounds(Vec<(String, Option<f64>, Option<f64>)>);

impl ClapArgs for Bounds {
    fn augment_args(mut command: Command) -> Command {
        let number = |name: &'static str| {
            let number = Arg::new(name).long(name).value_name("N").allow_negative_numbers(true);
            number.value_parser(value_parser!(f64)).help_heading("Bounds")
        };
        for (_, min, max, what) in BOUNDS {
            command = command.arg(number(min).help(format!("Smallest {what}")));
            command = command.arg(number(max).help(format!("Largest {what}")));
        }
        for (name, what) in [("min", "Smallest"), ("max", "Largest")] {
            command = command.arg(
                Arg::new(name)
                    .long(name)
                    .value_name("COLUMN=N")
                    .value_parser(parse_limit)
                    .action(ArgAction::Append)
                    .help_heading("Bounds")
                    .help(format!("{what} value of any column of numbers")),
            );
        }
        command
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Bounds {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let limit = |name: &str| matches.get_one::<f64>(name).copied();
        let named = BOUNDS.map(|(column, min, max, _)| (column.into(), limit(min), limit(max)));
        let mut bounds: Vec<_> = named.into();
        let others = |name: &str| {
            let others = matches.get_many::<(String, f64)>(name).unwrap_or_default();
            others.cloned().collect::<Vec<_>>()
        };
        bounds.extend(others("min").into_iter().map(|(column, min)| (column, Some(min), None)));
        bounds.extend(others("max").into_iter().map(|(column, max)| (column, None, Some(max))));
        bounds.retain(|(_, min, max)| min.is_some() || max.is_some());
        Ok(Self(bounds))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Parses a column and its limit.
fn parse_limit(text: &str) -> Result<(String, f64), String> {
    let limit = text.rsplit_once('=').and_then(|(column, n)| Some((column, n.parse().ok()?)));
    let limit = limit.filter(|(column, _)| !column.is_empty());
    let limit = limit.map(|(column, n)| (column.to_string(), n));
    limit.ok_or_else(|| "expected a column and a number, such as matching_score=0.4".into())
}

fn parse_bits(text: &str) -> Result<f64, String> {
    let bits = text.parse().ok().filter(|bits| (0.0..=64.0).contains(bits));
    bits.ok_or_else(|| "expected bits from 0 to 64".into())
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let bounds = args.bounds.0.iter().map(|(column, min, max)| Bound::new(column, *min, *max));
    let bounds: Vec<Bound> = bounds.collect::<Result<_, _>>()?;
    anyhow::ensure!(
        args.score_only || args.duplicates || args.hashes || !bounds.is_empty(),
        "nothing to filter by: expected a bound such as --min-frames, --duplicates, --hashes or \
         --score-only"
    );
    let options = args.step.run_options(cores(), args.report)?;
    let out = output_path(&args.data, &args.out, options.shard).context("--out")?;
    let keep = match args.keep {
        KeepName::First => Keep::First,
        KeepName::Longest => Keep::Longest,
    };
    let spec = Duplicates { max_distance: args.max_distance, keep };
    let job = Job {
        journal: args.journal.clone(),
        bounds,
        duplicates: args.duplicates.then_some(spec),
        hashes: args.hashes,
        models: args.model.iter().map(OnnxSpec::load).collect::<Result<_, _>>()?,
        score_only: args.score_only,
        measure_again: args.measure_again,
        options,
    };
    let table = Table::read(&args.data)?;
    let mut progress = StepProgress::new(args.report.quiet, "measuring");
    let report = filter::run(&job, &table, &out, &mut progress);
    progress.finish();
    let report = report?;
    if args.report.json {
        output::json(&report)?;
    } else {
        output::line(&report)?;
        output::line(format_args!("written: {}", out.display()))?;
    }
    if !args.report.quiet {
        let has_hashes = args.hashes || args.score_only;
        parts::say_next(&args.out, options.shard, &args.data, has_hashes.then_some(""))?;
    }
    Ok(())
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
