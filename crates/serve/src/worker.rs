//! The worker thread: computes the jobs of the queue one after the other.

use crate::{
    engine::{Decoded, EngineError, Generated, Observer, Preview, Sampled, Stage},
    job::{Job, JobError, JobState, JobStatus, now},
    queue::{Live, Queue, Task},
    store::THUMBNAIL,
};
use opensora_files::error_line;
use opensora_video::{Frames, VideoError, VideoSpec, Writer, png};
use std::{
    ops::ControlFlow,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::watch;

/// Shortest time between two previews.
const PREVIEW_INTERVAL: Duration = Duration::from_millis(250);

/// Progress in percent at the end of sampling; decoding takes it to 99.
const SAMPLING_PERCENT: usize = 90;
const DECODING_PERCENT: usize = 9;

/// Failures of the engine in a row after which it counts as broken.
const MAX_FAILURES: u32 = 3;

/// Computes jobs until the queue stops or the engine is broken. The job of the last failure goes back into
/// the queue then.
pub(crate) fn run(queue: &Queue) {
    let mut failures = 0;
    while let Some(task) = queue.take() {
        queue.observer().started(&task.job);
        let began = Instant::now();
        let Task { job, cancel, live } = task;
        let (id, steps) = (job.spec.id.as_str(), job.spec.request.steps);
        let mut watcher = Watcher { queue, id, cancel, live, steps, shown: None };
        // A panic of a kernel ends the job, not the server.
        let made = catch_unwind(AssertUnwindSafe(|| make(queue, &job, &mut watcher)));
        let taken = began.elapsed().as_secs_f64();
        queue.metrics.busy(taken);
        match &made {
            Ok(Ok(_)) => failures = 0,
            Err(_) => failures += 1,
            // Warnings have the cause and its paths, which clients do not get.
            Ok(Err(error @ MakeError::Engine(EngineError::Failed(_)))) => {
                failures += 1;
                // The reason of a stop is told below.
                if failures < MAX_FAILURES {
                    queue.warn(id, error);
                }
            }
            Ok(Err(
                error @ (MakeError::Engine(EngineError::NotFinite(_)) | MakeError::Write(_)),
            )) => queue.warn(id, error),
            _ => {}
        }
        if failures < MAX_FAILURES {
            queue.settle(&job.spec, next_state(&job, made, taken));
            continue;
        }
        let reason = match &made {
            Ok(Err(error)) => error_line(error),
            _ => "a panic".into(),
        };
        queue.observer().warned(&format!(
            "the engine failed {failures} times in a row, the queue stops: {reason}"
        ));
        queue.begin_stop();
        let back = Ok(Err(EngineError::Stopped.into()));
        queue.settle(&job.spec, next_state(&job, back, taken));
        return;
    }
}

/// Error of an attempt.
#[derive(Debug, thiserror::Error)]
enum MakeError {
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error("the video could not be written")]
    Write(#[source] VideoError),
}

/// Makes the video of a job and writes its files. Returns the name of the video's file.
fn make(queue: &Queue, job: &Job, watcher: &mut Watcher<'_>) -> Result<String, MakeError> {
    let request = &job.spec.request;
    let model = &queue.engine().model().id;
    if request.model != *model {
        let text =
            format!("the job is for the model '{}', this server has '{model}'", request.model);
        return Err(EngineError::Request(text.into()).into());
    }
    let Generated { clip, record } = queue.engine().generate(request, watcher)?;
    if watcher.stage(Stage::Writing).is_break() {
        return Err(EngineError::Stopped.into());
    }
    let id = &job.spec.id;
    let folder = queue.path(id, "").map_err(|_| EngineError::Stopped)?;
    write(&folder, &clip, request.fps, &record).map_err(MakeError::Write)
}

/// Writes a video, its record and its thumbnail to `folder`. Returns the name of the video's file.
fn write(
    folder: &Path,
    clip: &Frames,
    fps: f64,
    record: &serde_json::Value,
) -> Result<String, VideoError> {
    let spec = VideoSpec { frames: clip.len(), width: clip.width(), height: clip.height(), fps };
    png::write(&folder.join(THUMBNAIL), &middle(clip))?;
    let path = Writer::open(&folder.join("video.mp4"), &spec)?.write(clip, record)?;
    Ok(path.file_name().unwrap_or_default().to_string_lossy().into_owned())
}

/// Returns the middle frame of a clip, for the thumbnail.
fn middle(clip: &Frames) -> Frames {
    let frame = clip.frame(clip.len() / 2).unwrap_or_else(|| clip.data());
    Frames::from_rgb(frame.to_vec(), [1, clip.height(), clip.width()])
        .unwrap_or_else(|_| clip.clone())
}

/// Returns the state of a job after an attempt of `taken` seconds that returned `made` (the name of the
/// video, an error or a panic).
fn next_state(
    job: &Job,
    made: std::thread::Result<Result<String, MakeError>>,
    taken: f64,
) -> JobState {
    let state = JobState { seconds_taken: Some(taken), ..job.state.clone() };
    let failed = |code: &str, message: String| JobState {
        status: JobStatus::Failed,
        completed_at: Some(now()),
        error: Some(JobError::new(code, message)),
        ..state.clone()
    };
    match made {
        Ok(Ok(output)) => JobState {
            status: JobStatus::Completed,
            completed_at: Some(now()),
            output: Some(output),
            ..state
        },
        // The server stops; a cancelled job keeps the status that it has.
        Ok(Err(MakeError::Engine(EngineError::Stopped))) => JobState {
            status: JobStatus::Queued,
            attempts: state.attempts.saturating_sub(1),
            started_at: None,
            seconds_taken: None,
            ..state
        },
        Ok(Err(error @ MakeError::Engine(EngineError::Request(_)))) => {
            failed("invalid_request", error_line(&error))
        }
        // Without their causes, which have paths of the server.
        Ok(Err(error @ MakeError::Engine(EngineError::NotFinite(_)))) => {
            failed("not_finite", error.to_string())
        }
        Ok(Err(error @ MakeError::Write(_))) => failed("storage", error.to_string()),
        Ok(Err(error)) => failed("generation_failed", error.to_string()),
        Err(_) => failed("internal_error", "the job ended the computation by a panic".into()),
    }
}

/// Reports progress to the clients that follow the job, and stops it if a client or the server asks for that.
struct Watcher<'a> {
    queue: &'a Queue,
    id: &'a str,
    cancel: Arc<AtomicBool>,
    live: watch::Sender<Live>,
    steps: usize,
    /// When the last preview was made.
    shown: Option<Instant>,
}

impl Watcher<'_> {
    fn flow(&self) -> ControlFlow<()> {
        let stop = self.cancel.load(Ordering::SeqCst) || self.queue.is_stopping();
        if stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

impl Observer for Watcher<'_> {
    fn stage(&mut self, stage: Stage) -> ControlFlow<()> {
        self.live.send_modify(|live| live.stage = Some(stage));
        self.flow()
    }

    fn sampled(&mut self, event: &Sampled) -> ControlFlow<()> {
        self.queue.metrics.step();
        self.steps = event.steps;
        self.live.send_modify(|live| {
            live.step = event.step;
            live.progress = (SAMPLING_PERCENT * event.step / event.steps.max(1)) as u8;
        });
        self.flow()
    }

    fn decoded(&mut self, event: &Decoded) -> ControlFlow<()> {
        let done = DECODING_PERCENT * event.frames / event.total.max(1);
        self.live.send_modify(|live| live.progress = (SAMPLING_PERCENT + done) as u8);
        self.flow()
    }

    fn wants_preview(&mut self) -> bool {
        let due = self.shown.is_none_or(|shown| shown.elapsed() >= PREVIEW_INTERVAL);
        if due && self.live.receiver_count() > 0 {
            self.shown = Some(Instant::now());
            return true;
        }
        false
    }

    fn previewed(&mut self, event: Preview) {
        self.live.send_modify(|live| live.preview = Some(Arc::new(event)));
    }

    fn warned(&mut self, text: &str) {
        self.queue.observer().warned(&format!("{}: {text}", self.id));
    }
}
