//! `opensora data caption`: captions clips with a vision model on a server.

use super::{
    options::{RequestOptions, StepOptions, shard_help},
    parts,
};
use crate::{
    options::Report,
    output,
    step_progress::{StepProgress, print_summary},
};
use anyhow::Context;
use clap::{Args as ClapArgs, ValueEnum};
use opensora::{
    manifest::Table,
    prepare::{
        assemble::output_path,
        caption::{
            self, CaptionSpec, Endpoint, EndpointOptions, ImageSpec, Job, Key, Layout, Prompt,
            Timeouts,
        },
    },
};
use serde_json::{Map, Value};
use std::{path::PathBuf, time::Duration};

#[derive(ClapArgs)]
#[command(mut_arg("workers", |arg| arg.help("Clips captioned at once").default_value("4")))]
#[command(mut_arg("shard", |arg| shard_help(arg, "rows", "")))]
#[command(mut_arg("retry_failed", |arg| arg.help("Retry rows that got no caption in an earlier run")))]
#[command(mut_arg("connect_timeout", |arg| arg.default_value("10")))]
#[command(mut_arg("attempts", |arg| {
    arg.help("Attempts per clip if the server is busy or closes the connection").default_value("6")
}))]
#[command(after_long_help = "\
Examples:
  opensora data caption --data kept.csv -o captioned.csv --endpoint http://localhost:8000 --model llava
  opensora data caption --data kept.csv -o captioned.csv --endpoint https://api.openai.com \\
        --key-env OPENAI_API_KEY --model gpt-4o-mini --frames grid --dry-run")]
pub(crate) struct Args {
    /// Table of clips (CSV); rows that have a caption are kept as they are
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Table of the clips with captions (CSV)
    ///
    /// Clips that got no caption are listed beside it: captioned.csv gives captioned.failed.csv. With --shard
    /// 0/4 it is written to captioned.0-of-4.csv.
    #[arg(long, short, alias = "output", value_name = "FILE")]
    out: PathBuf,
    /// Address of a server with OpenAI's API, such as http://localhost:8000, with or without
    /// /v1/chat/completions
    #[arg(long, value_name = "URL")]
    endpoint: String,
    /// Name of a vision model on that server
    #[arg(long, value_name = "NAME")]
    model: String,
    /// Environment variable that holds the server's key, such as OPENAI_API_KEY [default: no key is
    /// sent]
    #[arg(long, value_name = "VARIABLE")]
    key_env: Option<String>,
    /// Layout of a clip's frames in the request
    #[arg(long, value_enum, default_value_t = FramesName::Multi)]
    frames: FramesName,
    /// Positions of the frames in a clip, from 0 (start) to 1 (end)
    #[arg(long, value_delimiter = ',', default_values_t = ImageSpec::default().positions)]
    positions: Vec<f64>,
    /// Maximum width and height of a frame in pixels
    #[arg(long, default_value_t = ImageSpec::default().max_side)]
    max_side: usize,
    /// JPEG quality, from 1 to 100
    #[arg(long, default_value_t = ImageSpec::default().quality)]
    quality: u8,
    /// File with the prompt [default: a built-in prompt]
    ///
    /// {frames} in it becomes a phrase that describes the images, {num_frames} the number of frames.
    #[arg(long, value_name = "FILE")]
    prompt: Option<PathBuf>,
    /// Sampling temperature of the model; 0 gives the likeliest wording
    #[arg(long, default_value_t = 0.2)]
    temperature: f64,
    /// Maximum number of tokens of a caption
    ///
    /// Longer answers are cut at a sentence and marked in the column caption_cut.
    #[arg(long, default_value_t = 300)]
    max_tokens: u32,
    /// Extra request fields as a JSON object; a null value removes the field
    ///
    /// Newer models of OpenAI need {"max_tokens": null, "max_completion_tokens": 300}.
    #[arg(long, value_name = "JSON", value_parser = parse_object)]
    extra: Option<JsonObject>,
    /// Seconds to wait for a whole answer
    #[arg(long, default_value_t = Timeouts::default().answer.as_secs())]
    answer_timeout: u64,
    /// Replace captions that rows have already
    #[arg(long)]
    recaption: bool,
    /// Print the request of the first row, images shortened, and send nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    requests: RequestOptions,
    #[command(flatten)]
    step: StepOptions,
    #[command(flatten)]
    report: Report,
}

#[derive(Clone, Copy, ValueEnum)]
enum FramesName {
    /// One image per frame; vLLM must be started for it (--limit-mm-per-prompt)
    Multi,
    /// Side by side in one image
    Grid,
    /// The first of the positions only
    First,
}

/// Request fields of `--extra`, parsed from a JSON object.
#[derive(Clone)]
struct JsonObject(Map<String, Value>);

fn parse_object(text: &str) -> Result<JsonObject, String> {
    serde_json::from_str(text)
        .map(JsonObject)
        .map_err(|error| format!("expected a JSON object: {error}"))
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let options = args.step.run_options(4, args.report)?;
    let key = args.key_env.as_deref().map(Key::from_environment).transpose();
    let endpoint = EndpointOptions {
        key: key.context("--key-env")?,
        timeouts: Timeouts {
            connect: args.requests.connect_timeout(),
            answer: Duration::from_secs(args.answer_timeout),
        },
        retry: args.requests.retry_policy(),
        connections: options.workers,
    };
    let endpoint = Endpoint::new(&args.endpoint, endpoint)?;
    let job = Job { spec: spec(args)?, endpoint, recaption: args.recaption, options };
    let input = Table::read(&args.data).context("--data")?;
    if args.dry_run {
        let request = caption::preview(&job, &input)?
            .context("no row without a caption has a clip that can be read")?;
        output::message(format_args!("POST {}", job.endpoint.address()));
        return Ok(output::line(format_args!("{request:#}"))?);
    }
    let out = output_path(&args.data, &args.out, options.shard).context("--out")?;
    let mut progress = StepProgress::new(args.report.quiet, "captions");
    let done = caption::run(&job, &input, &out, &mut progress);
    progress.finish();
    print_summary(&done?.summary(), "captioned", &out, args.report.json)?;
    if !args.report.quiet {
        parts::say_next(&args.out, options.shard, &args.data, None)?;
    }
    Ok(())
}

fn spec(args: &Args) -> anyhow::Result<CaptionSpec> {
    let prompt = args.prompt.as_deref().map(Prompt::read).transpose().context("--prompt")?;
    Ok(CaptionSpec {
        model: args.model.clone(),
        prompt: prompt.unwrap_or_default(),
        images: ImageSpec {
            positions: args.positions.clone(),
            layout: match args.frames {
                FramesName::Multi => Layout::Multi,
                FramesName::Grid => Layout::Grid,
                FramesName::First => Layout::First,
            },
            max_side: args.max_side,
            quality: args.quality,
        },
        temperature: args.temperature,
        max_tokens: args.max_tokens,
        extra: args.extra.clone().unwrap_or_else(|| JsonObject(Map::new())).0,
    })
}
