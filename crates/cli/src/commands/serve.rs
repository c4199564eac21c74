//! `opensora serve`: an HTTP server with a queue of jobs and a page.

use crate::{
    model,
    options::{DeviceName, ModelParts, Report, parse_bytes},
    output,
    stop::{self, Stopped},
};
use anyhow::{Context, ensure};
use clap::ValueEnum;
use opensora::{PipelineOptions, Residency, TextToVideo, files::read::read_text, nn::dtype::Dtype};
use opensora_serve::{
    Engine, Job, JobObserver, JobStatus, Limits, ModelEngine, ModelInfo, Queue, QueueOptions,
    Security, Server, ServerOptions, VideoRequest, WhenFull,
};
use serde_json::{Map, Value, json};
use std::{
    net::{IpAddr, Ipv4Addr, ToSocketAddrs},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// Maximum size of a file with a token, in bytes.
const MAX_TOKEN_BYTES: u64 = 4096;

/// Interval at which signals are polled.
const SIGNAL_INTERVAL: Duration = Duration::from_millis(50);

/// Options of `opensora serve`.
#[derive(clap::Args)]
#[command(after_long_help = "\
Examples:
  opensora serve
  opensora serve --model opensora-v1-hq-16x256x256 --dtype bf16 --out /var/lib/opensora --port 8080
  opensora serve --token-file token.txt --allow-host videos.example.org

The page is at http://127.0.0.1:8080/, the description of the API at /openapi.json.")]
pub(crate) struct Args {
    /// Model: demo (bundled), a preset, a folder or a repository of the Hugging Face hub, as in sample
    #[arg(long, default_value = opensora_demo::model::NAME)]
    model: String,
    #[command(flatten)]
    parts: ModelParts,
    /// Address or name to listen on; any but localhost and loopback addresses needs a token
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST).to_string())]
    host: String,
    /// Port to listen on; 0: any free port
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Token that clients have to send (other users of this machine can see it: see --token-file)
    #[arg(long, conflicts_with = "token_file")]
    token: Option<String>,
    /// File with the token
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Accepted host name, besides localhost and IP addresses; needs a token; repeatable
    #[arg(long, value_name = "NAME", value_parser = parse_host)]
    allow_host: Vec<String>,
    /// Folder of the jobs: requests, videos and their records
    #[arg(short, long, alias = "output", default_value = "videos", value_name = "DIR")]
    out: PathBuf,
    /// Maximum number of queued jobs
    #[arg(long, value_name = "N", default_value_t = Limits::default().max_queued)]
    max_queued: usize,
    /// Maximum number of jobs, including finished ones
    #[arg(long, value_name = "N", default_value_t = Limits::default().max_jobs)]
    max_jobs: usize,
    /// Maximum disk space of all jobs, such as 500MB or 20GB [default: 10GiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    max_disk: Option<u64>,
    /// Delete the oldest finished jobs if the disk space or number is reached, instead of rejecting new ones
    #[arg(long)]
    delete_oldest: bool,
    /// Maximum width and height in pixels
    #[arg(long, value_name = "PIXELS", default_value_t = Limits::default().max_side)]
    max_side: usize,
    /// Maximum number of frames of a video
    #[arg(long, value_name = "N", default_value_t = Limits::default().max_frames)]
    max_frames: usize,
    /// Maximum number of pixels of all frames of a video
    #[arg(long, value_name = "PIXELS", default_value_t = Limits::default().max_pixels)]
    max_pixels: usize,
    /// Maximum number of sampler steps
    #[arg(long, value_name = "N", default_value_t = Limits::default().max_steps)]
    max_steps: usize,
    /// Maximum number of open connections
    #[arg(long, value_name = "N", default_value_t = ServerOptions::default().max_connections)]
    max_connections: usize,
    #[command(flatten)]
    device: DeviceName,
    /// Float type of denoiser and VAE: f32, bf16 or f16
    #[arg(long, default_value_t = Dtype::F32)]
    dtype: Dtype,
    /// Float type of the text encoder
    #[arg(long, default_value_t = Dtype::F32)]
    t5_dtype: Dtype,
    /// Models that stay in memory between jobs
    #[arg(long, default_value = "all")]
    residency: Resident,
    #[command(flatten)]
    report: Report,
}

/// Value of `--residency`: the models that stay in memory between jobs.
#[derive(Clone, Copy, ValueEnum)]
enum Resident {
    /// Text encoder, denoiser and VAE
    All,
    /// The denoiser
    Denoiser,
    /// None; one is in memory at a time
    None,
    /// None; the denoiser is read from its file at every step, as with --low-memory of sample
    Streamed,
}

/// Parses the name of a host: no scheme, port or path.
fn parse_host(text: &str) -> Result<String, String> {
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    match text.split('.').all(label) {
        true => Ok(text.into()),
        false => {
            Err("expected a plain name without scheme and port, such as videos.example.org".into())
        }
    }
}

impl Args {
    fn token(&self) -> anyhow::Result<Option<String>> {
        let Some(path) = &self.token_file else { return Ok(self.token.clone()) };
        let text = read_text(path, MAX_TOKEN_BYTES)
            .with_context(|| format!("--token-file: {}", path.display()))?;
        Ok(Some(text.trim().into()))
    }

    fn limits(&self) -> Limits {
        let default = Limits::default();
        Limits {
            max_queued: self.max_queued,
            max_jobs: self.max_jobs,
            max_disk_bytes: self.max_disk.unwrap_or(default.max_disk_bytes),
            when_full: if self.delete_oldest { WhenFull::DeleteOldest } else { WhenFull::Reject },
            max_side: self.max_side,
            max_frames: self.max_frames,
            max_pixels: self.max_pixels,
            max_steps: self.max_steps,
        }
    }

    /// Returns a warning for each limit that rejects the request of a client which gives a prompt only. Such a server can
    /// still make smaller videos.
    fn small_limits(&self, model: &ModelInfo) -> Vec<String> {
        let limits = self.limits();
        let &ModelInfo { width, height, .. } = model;
        // Such a request takes no more frames and steps than the limits.
        let frames = model.num_frames.min(limits.max_frames);
        let pixels = frames.saturating_mul(width).saturating_mul(height);
        let request = VideoRequest { prompt: "a prompt".into(), ..VideoRequest::default() };
        let unlimited = Limits { max_side: usize::MAX, max_pixels: usize::MAX, ..limits.clone() };
        let bytes = request.resolve(model, &unlimited, 0).map_or(0, |request| request.max_bytes());
        [
            ("--max-side", "pixels", limits.max_side as u64, width.max(height) as u64),
            ("--max-pixels", "pixels", limits.max_pixels as u64, pixels as u64),
            ("--max-disk", "bytes", limits.max_disk_bytes, bytes),
        ]
        .into_iter()
        .filter(|(_, _, found, least)| found < least)
        .map(|(option, unit, found, least)| {
            format!(
                "{option} is {found}: requests without a size are rejected; the model's {frames} frames of \
                 {width}x{height} need {least} {unit}"
            )
        })
        .collect()
    }

    fn server_options(&self) -> anyhow::Result<ServerOptions> {
        for (option, value) in [
            ("--max-connections", self.max_connections),
            ("--max-jobs", self.max_jobs),
            ("--max-queued", self.max_queued),
            ("--max-side", self.max_side),
            ("--max-frames", self.max_frames),
            ("--max-pixels", self.max_pixels),
            ("--max-steps", self.max_steps),
        ] {
            ensure!(value > 0, "{option}: found 0, expected at least 1");
        }
        let host = (self.host.as_str(), self.port)
            .to_socket_addrs()
            .ok()
            .and_then(|mut addresses| addresses.next())
            .with_context(|| format!("--host: '{}' is no address of this machine", self.host))?
            .ip();
        // The name to listen on is an accepted host name.
        let mut hosts = self.allow_host.clone();
        if self.host.parse::<IpAddr>().is_err() && self.host != "localhost" {
            hosts.push(self.host.clone());
        }
        let security = Security { token: self.token()?, hosts };
        let options = ServerOptions {
            host,
            port: self.port,
            security,
            max_connections: self.max_connections,
            ..ServerOptions::default()
        };
        options.validate()?;
        Ok(options)
    }

    fn pipeline(&self) -> anyhow::Result<TextToVideo> {
        let device = self.device.open(self.report.quiet)?;
        let files = model::resolve(&self.model, &self.parts.paths()?, self.report.quiet)?;
        let options = PipelineOptions {
            dtype: self.dtype.float(),
            text_dtype: self.t5_dtype.float(),
            residency: match self.residency {
                Resident::All => Residency::All,
                Resident::Denoiser => Residency::Denoiser,
                Resident::None => Residency::Sequential,
                Resident::Streamed => Residency::Streamed,
            },
        };
        Ok(TextToVideo::new(files, options, device)?)
    }

    /// Fields of the records that `opensora sample --from-record` needs beside those of the request. Clients
    /// get the records: of paths there is the last name only.
    fn record(&self, pipeline: &TextToVideo) -> Map<String, Value> {
        let name = |path: &Option<PathBuf>| match path {
            Some(path) => Value::from(last_name(path)),
            None => Value::Null,
        };
        let files = pipeline.files();
        // The name of a checkpoint without a description is its path.
        let called = if files.name == self.model { self.model_id() } else { files.name.clone() };
        let weights = model::sources(&[&files.denoiser, &files.t5, &files.vae]);
        let low_memory = matches!(self.residency, Resident::Streamed);
        let fields = [
            ("model", called.into()),
            ("model_argument", self.model_id().into()),
            ("t5", name(&self.parts.t5)),
            ("vae", name(&self.parts.vae)),
            ("weights_dir", name(&self.parts.weights_dir)),
            ("dtype", self.dtype.to_string().into()),
            ("t5_dtype", self.t5_dtype.to_string().into()),
            ("low_memory", low_memory.into()),
            ("weights", weights.into()),
        ];
        fields.into_iter().map(|(name, value)| (name.to_string(), value)).collect()
    }

    /// Returns the model's name in requests and responses: the file name of `--model` if it is an
    /// existing path, else its value.
    fn model_id(&self) -> String {
        let path = Path::new(&self.model);
        let name = path.file_name().filter(|_| path.exists());
        name.map_or_else(|| self.model.clone(), |name| name.to_string_lossy().into_owned())
    }
}

/// Returns the last name of a path.
fn last_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Prints a line for each job.
struct Log;

impl JobObserver for Log {
    fn started(&self, job: &Job) {
        output::message(format_args!("{}: started", job.spec.id));
    }

    fn ended(&self, job: &Job) {
        let (id, state) = (&job.spec.id, &job.state);
        match (state.status, &state.error) {
            (JobStatus::Queued, _) => output::message(format_args!("{id}: back in the queue")),
            (status, Some(error)) => {
                output::message(format_args!("{id}: {}: {}", status.name(), error.message));
            }
            (status, None) => {
                let after = state.seconds_taken.map(|seconds| format!(" after {seconds:.1} s"));
                output::message(format_args!(
                    "{id}: {}{}",
                    status.name(),
                    after.unwrap_or_default()
                ));
            }
        }
    }

    fn warned(&self, text: &str) {
        output::message(format_args!("warning: {text}"));
    }
}

pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let options = args.server_options()?;
    let pipeline = args.pipeline()?;
    let record = args.record(&pipeline);
    let engine = ModelEngine::new(&args.model_id(), pipeline)?.with_record(record);
    for warning in args.small_limits(engine.model()).iter().filter(|_| !args.report.quiet) {
        output::message(format_args!("warning: {warning}"));
    }
    // Before the queue, whose worker may read large weights at once: the address may be in use.
    let server = Server::bind(options)?;
    stop::listen();
    let observer: Option<Box<dyn JobObserver>> = match args.report.quiet {
        true => None,
        false => Some(Box::new(Log)),
    };
    let queue_options = QueueOptions { limits: args.limits(), observer };
    let queue = Queue::open(&args.out, Arc::new(engine), queue_options)
        .with_context(|| format!("--out {}", args.out.display()))?;
    let url = format!("http://{}", server.address());
    let told = match args.report.json {
        true => output::json(&json!({"url": url, "model": queue.engine().model().id})),
        false => output::line(format_args!("listening on {url}")),
    };
    // The worker may have begun a job, which goes back into the queue.
    told.inspect_err(|_| queue.stop())?;
    let stopper = server.stopper();
    std::thread::spawn(move || {
        while !stop::asked() {
            std::thread::sleep(SIGNAL_INTERVAL);
        }
        stopper.stop();
    });
    server.run(queue)?;
    Err(Stopped("jobs that are not finished are kept in the queue".into()).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_have_names_in_place_of_paths() {
        assert_eq!(last_name(Path::new("/srv/secret/t5/")), "t5");
        assert_eq!(last_name(Path::new("..")), "");
    }

    #[test]
    fn hosts_are_plain_names() {
        assert_eq!(parse_host("videos.example.org"), Ok("videos.example.org".into()));
        for wrong in
            ["", "videos.example.org:443", "https://videos.example.org", "a/b", "a..b", "*.b"]
        {
            assert!(parse_host(wrong).is_err(), "{wrong}");
        }
    }
}
