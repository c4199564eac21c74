//! `opensora data caption`: captions by a vision model that a server holds.

use crate::step_progress::{StepProgress, print_summary};
use anyhow::Context;
use clap::{Args as ClapArgs, ValueEnum};
use opensora::{
    manifest::Table,
    prepare::{
        assemble::shard_path,
        caption::{
            CaptionSpec, Endpoint, Key, Layout, Options, PictureSpec, Prompt, Timeouts, caption,
            preview,
        },
        retry::Patience,
        step::Shard,
    },
};
use serde_json::{Map, Value};
use std::{path::PathBuf, time::Duration};

#[derive(ClapArgs)]
pub(crate) struct Args {
    /// Table of clips (CSV); rows that have a caption are kept as they are
    #[arg(long)]
    data: PathBuf,
    /// Table of the clips with captions (CSV); those without are listed beside it (.failed.csv), and
    /// a shard's number is put before the ending
    #[arg(long)]
    out: PathBuf,
    /// Address of a server that answers as OpenAI's does, such as http://localhost:8000, with or
    /// without /v1/chat/completions
    #[arg(long)]
    endpoint: String,
    /// Name of a vision model, as the server knows it
    #[arg(long)]
    model: String,
    /// Variable of the environment that holds the server's key, such as OPENAI_API_KEY [default: no
    /// key is sent]
    #[arg(long, value_name = "VARIABLE")]
    key_env: Option<String>,
    /// How the frames of a clip are handed over
    #[arg(long, value_enum, default_value_t = FramesName::Multi)]
    frames: FramesName,
    /// Where in a clip its frames are taken, 0 to 1
    #[arg(long, value_delimiter = ',', default_values_t = PictureSpec::default().positions)]
    positions: Vec<f64>,
    /// Pixels that the longer side of a frame has at most
    #[arg(long, default_value_t = PictureSpec::default().max_side)]
    max_side: usize,
    /// Quality of the JPEG, 1 to 100
    #[arg(long, default_value_t = PictureSpec::default().quality)]
    quality: u8,
    /// File with another prompt: {frames} in it becomes a phrase that says what the model is given,
    /// and {num_frames} the number of frames
    #[arg(long)]
    prompt: Option<PathBuf>,
    /// How freely the model words its answers; 0 is the likeliest wording
    #[arg(long, default_value_t = 0.2)]
    temperature: f64,
    /// Tokens of a caption, at most; answers that are cut off count as failed
    #[arg(long, default_value_t = 300)]
    max_tokens: u32,
    /// More fields of the request as a JSON object, null to leave one out; newer models of OpenAI
    /// want {"max_tokens": null, "max_completion_tokens": 300}
    #[arg(long, value_name = "JSON", value_parser = parse_object)]
    extra: Option<JsonObject>,
    /// Clips worked on at once
    #[arg(long, default_value_t = 4)]
    parallel: usize,
    /// Seconds to wait for a connection
    #[arg(long, default_value_t = Timeouts::default().connect.as_secs())]
    connect_timeout: u64,
    /// Seconds to wait for a whole answer
    #[arg(long, default_value_t = Timeouts::default().answer.as_secs())]
    answer_timeout: u64,
    /// Attempts at a clip where the server is busy or breaks off
    #[arg(long, default_value_t = 6)]
    attempts: u32,
    /// Caption rows that have a caption as well
    #[arg(long)]
    recaption: bool,
    /// Part of the rows, such as 0/4
    #[arg(long, default_value_t = Shard::WHOLE)]
    shard: Shard,
    /// Try rows again that got no caption before
    #[arg(long)]
    retry_failed: bool,
    /// Print the request of the first row, its pictures shortened, and send nothing
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// No progress
    #[arg(long, short)]
    quiet: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum FramesName {
    /// A picture each; vLLM wants to be started for it (--limit-mm-per-prompt)
    Multi,
    /// Side by side in one picture
    Grid,
    /// The first of the positions alone
    First,
}

/// Fields of a request.
#[derive(Clone)]
struct JsonObject(Map<String, Value>);

fn parse_object(text: &str) -> Result<JsonObject, String> {
    serde_json::from_str(text)
        .map(JsonObject)
        .map_err(|error| format!("expected a JSON object: {error}"))
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let spec = spec(args)?;
    let options = Options {
        workers: args.parallel,
        shard: args.shard,
        retry_failed: args.retry_failed,
        recaption: args.recaption,
    };
    let key = args.key_env.as_deref().map(Key::from_environment).transpose();
    let key = key.context("--key-env")?;
    let timeouts = Timeouts {
        connect: Duration::from_secs(args.connect_timeout),
        answer: Duration::from_secs(args.answer_timeout),
    };
    let patience = Patience { attempts: args.attempts, ..Patience::default() };
    let endpoint = Endpoint::new(&args.endpoint, key, timeouts, patience, args.parallel)?;
    let input = Table::read(&args.data).context("--data")?;
    if args.dry_run {
        let request = preview(&input, &spec, &options)?
            .context("no row without a caption has a clip that can be read")?;
        eprintln!("POST {}", endpoint.address());
        println!("{request:#}");
        return Ok(());
    }
    let out = shard_path(&args.out, args.shard);
    let mut progress = StepProgress::new(args.quiet, "captions");
    let done = caption(&input, &out, &spec, &endpoint, &options, &mut progress);
    progress.finish();
    let done = done?;
    done.tables.write(&out)?;
    print_summary(&done.summary(), "captioned", &out, args.json);
    Ok(())
}

fn spec(args: &Args) -> anyhow::Result<CaptionSpec> {
    let prompt = args.prompt.as_deref().map(Prompt::read).transpose().context("--prompt")?;
    Ok(CaptionSpec {
        model: args.model.clone(),
        prompt: prompt.unwrap_or_default(),
        pictures: PictureSpec {
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
