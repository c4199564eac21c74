//! Tests of the queue with an engine that has no model.

use super::*;
use crate::{
    limits::WhenFull,
    request::VideoRequest,
    testing::{FakeEngine, model},
};
use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};
use tempfile::TempDir;

const FAST: Duration = Duration::from_millis(1);
/// Slow enough that a job of many steps does not end by itself.
const SLOW: Duration = Duration::from_millis(20);

fn open(folder: &Path, step: Duration, limits: Limits) -> Arc<Queue> {
    let options = QueueOptions { limits, ..QueueOptions::default() };
    Queue::open(folder, Arc::new(FakeEngine::new(step)), options).unwrap()
}

fn request(prompt: &str, steps: usize) -> JobRequest {
    VideoRequest { prompt: prompt.into(), steps: Some(steps), ..VideoRequest::default() }
        .resolve(&model(), &Limits::default(), 1)
        .unwrap()
}

fn id(view: &JobView) -> String {
    view.job.spec.id.clone()
}

/// Waits until a job has a status.
fn wait(queue: &Queue, id: &str, status: JobStatus) -> JobView {
    let began = Instant::now();
    loop {
        let view = queue.get(id).unwrap();
        if view.job.state.status == status {
            return view;
        }
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", view.job.state);
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn names(queue: &Queue, id: &str) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(queue.path(id, "").unwrap())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_job_becomes_files() {
    let folder = tempfile::tempdir().unwrap();
    let queue = open(folder.path(), FAST, Limits::default());
    let made = queue.create(request("fog", 3)).unwrap();
    assert_eq!(made.job.state.status, JobStatus::Queued);
    let done = wait(&queue, &id(&made), JobStatus::Completed);
    assert_eq!(done.job.state.output.as_deref(), Some("video.mp4"));
    assert!(done.job.state.seconds_taken.unwrap() > 0.0);
    let expected = ["request.json", "state.json", "thumbnail.png", "video.mp4", "video.mp4.json"];
    assert_eq!(names(&queue, &id(&made)), expected);
    let clip = opensora_video::mp4::read(&queue.path(&id(&made), "video.mp4").unwrap()).unwrap();
    assert_eq!((clip.0.len(), clip.1), (8, 4.0));

    let mut image = request("fog", 1);
    image.num_frames = 1;
    let image = queue.create(image).unwrap();
    let done = wait(&queue, &id(&image), JobStatus::Completed);
    assert_eq!(done.job.state.output.as_deref(), Some("video.png"));
}

#[test]
fn jobs_run_in_order_of_arrival() {
    let folder = tempfile::tempdir().unwrap();
    let queue = open(folder.path(), SLOW, Limits::default());
    let first = queue.create(request("fog", 200)).unwrap();
    let later: Vec<JobView> = (0..3).map(|_| queue.create(request("fog", 1)).unwrap()).collect();
    wait(&queue, &id(&first), JobStatus::InProgress);
    for (position, view) in later.iter().enumerate() {
        assert_eq!(queue.get(&id(view)).unwrap().queue_position, Some(position));
    }
    queue.cancel(&id(&first)).unwrap();
    let done: Vec<Job> =
        later.iter().map(|view| wait(&queue, &id(view), JobStatus::Completed).job).collect();
    let order: Vec<u64> = done.iter().map(|job| job.spec.sequence).collect();
    assert_eq!(order, [1, 2, 3]);
    assert!(done.is_sorted_by_key(|job| job.state.started_at));
}

#[test]
fn a_cancelled_job_stops_within_a_step() {
    let folder = tempfile::tempdir().unwrap();
    let queue = open(folder.path(), SLOW, Limits::default());
    let running = queue.create(request("fog", 200)).unwrap();
    let waiting = queue.create(request("fog", 200)).unwrap();
    wait(&queue, &id(&running), JobStatus::InProgress);
    assert_eq!(queue.cancel(&id(&waiting)).unwrap().job.state.status, JobStatus::Cancelled);
    let steps = queue.get(&id(&running)).unwrap().live.step;
    queue.cancel(&id(&running)).unwrap();
    // The worker takes the next job as soon as it has left this one.
    let next = queue.create(request("fog", 1)).unwrap();
    wait(&queue, &id(&next), JobStatus::Completed);
    let stopped = queue.get(&id(&running)).unwrap();
    assert_eq!(stopped.job.state.status, JobStatus::Cancelled);
    assert!(stopped.live.step <= steps + 2, "{} after {steps}", stopped.live.step);
    assert_eq!(names(&queue, &id(&running)), ["request.json", "state.json"]);
    let again = queue.cancel(&id(&running)).unwrap_err();
    assert!(matches!(again, QueueError::Finished { status: JobStatus::Cancelled }));
    assert!(matches!(queue.cancel("video_none"), Err(QueueError::NotFound)));
}

#[test]
fn a_job_that_is_deleted_while_it_runs_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let queue = open(folder.path(), SLOW, Limits::default());
    let job = queue.create(request("fog", 200)).unwrap();
    wait(&queue, &id(&job), JobStatus::InProgress);
    assert!(!queue.delete(&id(&job)).unwrap(), "the first call cancels");
    assert!(queue.delete(&id(&job)).unwrap(), "the second deletes");
    assert!(matches!(queue.get(&id(&job)), Err(QueueError::NotFound)));
    let next = queue.create(request("fog", 1)).unwrap();
    wait(&queue, &id(&next), JobStatus::Completed);
    assert_eq!(fs::read_dir(folder.path().join("jobs")).unwrap().count(), 1);
}

#[test]
fn failures_and_panics_end_their_job_only() {
    let folder = tempfile::tempdir().unwrap();
    let queue = open(folder.path(), FAST, Limits::default());
    for (prompt, code, message) in [
        ("fail", "generation_failed", "the video could not be made"),
        ("panic", "internal_error", "the job ended the computation by a panic"),
    ] {
        let job = queue.create(request(prompt, 2)).unwrap();
        let error = wait(&queue, &id(&job), JobStatus::Failed).job.state.error.unwrap();
        assert_eq!((error.code.as_str(), error.message.as_str()), (code, message));
    }
    let rejected = queue.create(request("impossible", 2)).unwrap_err();
    assert!(matches!(rejected, QueueError::Engine(EngineError::Request(_))), "{rejected}");
    let job = queue.create(request("fog", 2)).unwrap();
    wait(&queue, &id(&job), JobStatus::Completed);
    assert!(queue.is_alive());
}

#[test]
fn videos_that_are_not_finite_do_not_count_as_failures_of_the_engine() {
    let folder = tempfile::tempdir().unwrap();
    let queue = open(folder.path(), FAST, Limits::default());
    for _ in 0..4 {
        let job = queue.create(request("overflow", 1)).unwrap();
        let error = wait(&queue, &id(&job), JobStatus::Failed).job.state.error.unwrap();
        assert_eq!(error.code, "not_finite");
        let message = error.message;
        assert!(message.contains("guidance_scale") && !message.contains("/srv"), "{message}");
    }
    let job = queue.create(request("fog", 1)).unwrap();
    wait(&queue, &id(&job), JobStatus::Completed);
    assert!(queue.is_alive());
}

/// The folder of jobs as it is, copied while a server uses it: what SIGKILL leaves.
fn killed(folder: &Path) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    let mut open = vec![(folder.to_path_buf(), copy.path().to_path_buf())];
    while let Some((from, to)) = open.pop() {
        fs::create_dir_all(&to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let target = to.join(entry.file_name());
            match entry.file_type().unwrap().is_dir() {
                true => open.push((entry.path(), target)),
                false => drop(fs::copy(entry.path(), target).unwrap()),
            }
        }
    }
    copy
}

#[test]
fn jobs_survive_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let queue = open(folder.path(), SLOW, Limits::default());
    let done = queue.create(request("fog", 1)).unwrap();
    wait(&queue, &id(&done), JobStatus::Completed);
    let cancelled = queue.create(request("fog", 1)).unwrap();
    let running = queue.create(request("fog", 100)).unwrap();
    let waiting = queue.create(request("fog", 1)).unwrap();
    // It is done before it can be cancelled on a fast machine; both are final.
    let _ = queue.cancel(&id(&cancelled));
    wait(&queue, &id(&running), JobStatus::InProgress);
    let copy = killed(folder.path());
    queue.stop();

    let queue = open(copy.path(), FAST, Limits::default());
    assert_eq!(queue.list(None, 9, false).unwrap().0.len(), 4);
    assert_eq!(queue.get(&id(&done)).unwrap().job.state.status, JobStatus::Completed);
    assert!(queue.path(&id(&done), "video.mp4").unwrap().exists());
    assert!(queue.get(&id(&cancelled)).unwrap().job.state.status.is_final());
    let first = wait(&queue, &id(&running), JobStatus::Completed);
    let second = wait(&queue, &id(&waiting), JobStatus::Completed);
    assert_eq!((first.job.state.attempts, second.job.state.attempts), (2, 1));
}

#[test]
fn a_job_that_ends_the_process_again_and_again_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let queue = open(folder.path(), SLOW, Limits::default());
    let job = queue.create(request("fog", 200)).unwrap();
    wait(&queue, &id(&job), JobStatus::InProgress);
    let copy = killed(folder.path());
    queue.stop();
    let state = copy.path().join("jobs").join(id(&job)).join("state.json");
    let text = fs::read_to_string(&state).unwrap();
    fs::write(&state, text.replace("\"attempts\": 1", "\"attempts\": 5")).unwrap();
    let queue = open(copy.path(), FAST, Limits::default());
    let error = wait(&queue, &id(&job), JobStatus::Failed).job.state.error.unwrap();
    assert_eq!(error.code, "interrupted");
}

#[test]
fn a_stop_puts_the_job_back() {
    let folder = tempfile::tempdir().unwrap();
    let queue = open(folder.path(), SLOW, Limits::default());
    let job = queue.create(request("fog", 200)).unwrap();
    wait(&queue, &id(&job), JobStatus::InProgress);
    queue.stop();
    let state = queue.get(&id(&job)).unwrap().job.state;
    assert_eq!((state.status, state.attempts), (JobStatus::Queued, 0));
    assert!(matches!(queue.create(request("fog", 1)), Err(QueueError::Stopping)));
    assert!(!queue.is_alive());
    drop(queue);
    let queue = open(folder.path(), FAST, Limits::default());
    wait(&queue, &id(&job), JobStatus::Completed);
}

#[test]
fn the_queue_has_a_limit() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits { max_queued: 2, ..Limits::default() };
    let queue = open(folder.path(), SLOW, limits);
    let running = queue.create(request("fog", 200)).unwrap();
    wait(&queue, &id(&running), JobStatus::InProgress);
    for _ in 0..2 {
        queue.create(request("fog", 1)).unwrap();
    }
    let error = queue.create(request("fog", 1)).unwrap_err();
    assert!(matches!(error, QueueError::QueueFull { queued: 2 }), "{error}");
    queue.cancel(&id(&running)).unwrap();
}

#[test]
fn the_disk_has_a_limit() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits { max_disk_bytes: 300_000, ..Limits::default() };
    let queue = open(folder.path(), FAST, limits.clone());
    let mut made = Vec::new();
    let error = loop {
        match queue.create(request("fog", 1)) {
            Ok(job) => {
                wait(&queue, &id(&job), JobStatus::Completed);
                made.push(id(&job));
            }
            Err(error) => break error,
        }
        assert!(queue.counts().bytes <= 300_000, "{:?}", queue.counts());
    };
    assert!(matches!(error, QueueError::DiskFull { .. }), "{error}");
    assert!((2..=30).contains(&made.len()), "{}", made.len());
    queue.delete(&made[1]).unwrap();
    let job = queue.create(request("fog", 1)).unwrap();
    wait(&queue, &id(&job), JobStatus::Completed);
    queue.stop();
    drop(queue);

    let limits = Limits { when_full: WhenFull::DeleteOldest, ..limits };
    let queue = open(folder.path(), FAST, limits);
    let job = queue.create(request("fog", 1)).unwrap();
    wait(&queue, &id(&job), JobStatus::Completed);
    assert!(matches!(queue.get(&made[0]), Err(QueueError::NotFound)));
    assert!(queue.get(&made[made.len() - 1]).is_ok());
}

/// A request that deleting cannot make room for deletes nothing.
#[test]
fn nothing_is_deleted_for_a_request_that_can_never_fit() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits {
        max_disk_bytes: 300_000,
        max_jobs: 2,
        when_full: WhenFull::DeleteOldest,
        ..Limits::default()
    };
    let queue = open(folder.path(), SLOW, limits);
    let done = queue.create(request("fog", 1)).unwrap();
    wait(&queue, &id(&done), JobStatus::Completed);
    let large = JobRequest { width: 512, height: 512, ..request("fog", 1) };
    let error = queue.create(large).unwrap_err();
    assert!(matches!(error, QueueError::DiskFull { .. }), "{error}");
    assert!(queue.get(&id(&done)).is_ok());
    // Two unfinished jobs take all places; the first of them took that of the finished job.
    let running = queue.create(request("fog", 200)).unwrap();
    queue.create(request("fog", 200)).unwrap();
    assert!(matches!(queue.get(&id(&done)), Err(QueueError::NotFound)));
    let error = queue.create(request("fog", 1)).unwrap_err();
    assert!(matches!(error, QueueError::DiskFull { jobs: 2, .. }), "{error}");
    assert!(queue.get(&id(&running)).is_ok());
    queue.stop();
}

#[test]
fn reserved_bytes_do_not_overflow() {
    let huge = JobRequest {
        width: usize::MAX,
        height: usize::MAX,
        num_frames: usize::MAX,
        ..request("fog", 1)
    };
    assert_eq!(huge.max_bytes(), u64::MAX);
}

#[test]
fn a_broken_engine_keeps_the_queue() {
    let folder = tempfile::tempdir().unwrap();
    let queue = open(folder.path(), SLOW, Limits::default());
    let first = queue.create(request("fog", 200)).unwrap();
    let broken: Vec<JobView> = (0..5).map(|_| queue.create(request("fail", 1)).unwrap()).collect();
    queue.cancel(&id(&first)).unwrap();
    let began = Instant::now();
    while queue.is_alive() {
        assert!(began.elapsed() < Duration::from_secs(20));
        std::thread::sleep(FAST);
    }
    let states: Vec<JobStatus> =
        broken.iter().map(|view| queue.get(&id(view)).unwrap().job.state.status).collect();
    use JobStatus::{Failed, Queued};
    assert_eq!(states, [Failed, Failed, Queued, Queued, Queued]);
    assert!(matches!(queue.create(request("fog", 1)), Err(QueueError::Stopping)));
}

#[test]
fn jobs_for_another_model_stay_queued() {
    let folder = tempfile::tempdir().unwrap();
    let queue = open(folder.path(), SLOW, Limits::default());
    let running = queue.create(request("fog", 200)).unwrap();
    let waiting = queue.create(request("fog", 1)).unwrap();
    wait(&queue, &id(&running), JobStatus::InProgress);
    queue.stop();
    drop(queue);
    let mut engine = FakeEngine::new(FAST);
    engine.model.id = "other".into();
    let queue = Queue::open(folder.path(), Arc::new(engine), QueueOptions::default()).unwrap();
    let own = JobRequest { model: "other".into(), ..request("fog", 1) };
    let own = queue.create(own).unwrap();
    assert_eq!(own.queue_position, Some(0));
    wait(&queue, &id(&own), JobStatus::Completed);
    for view in [&running, &waiting] {
        let view = queue.get(&id(view)).unwrap();
        assert_eq!((view.job.state.status, view.queue_position), (JobStatus::Queued, None));
    }
    queue.stop();
    drop(queue);
    let queue = open(folder.path(), FAST, Limits::default());
    wait(&queue, &id(&waiting), JobStatus::Completed);
}

#[cfg(unix)]
#[test]
fn a_state_that_cannot_be_written_is_a_failure_with_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let queue = open(folder.path(), SLOW, Limits::default());
    let job = queue.create(request("fog", 20)).unwrap();
    wait(&queue, &id(&job), JobStatus::InProgress);
    // No file can be renamed over a folder.
    let state = queue.path(&id(&job), "state.json").unwrap();
    fs::remove_file(&state).unwrap();
    fs::create_dir(&state).unwrap();
    let state = wait(&queue, &id(&job), JobStatus::Failed).job.state;
    assert_eq!(state.error.unwrap().code, "storage");
    assert!(state.completed_at.is_some());
}

#[test]
fn lists_have_pages() {
    let folder = tempfile::tempdir().unwrap();
    let queue = open(folder.path(), FAST, Limits::default());
    let made: Vec<String> = (0..5).map(|_| id(&queue.create(request("fog", 1)).unwrap())).collect();
    let page = |after: Option<&str>, newest_first| {
        let (views, more) = queue.list(after, 2, newest_first).unwrap();
        (views.iter().map(id).collect::<Vec<_>>(), more)
    };
    assert_eq!(page(None, true), (vec![made[4].clone(), made[3].clone()], true));
    assert_eq!(page(Some(&made[3]), true), (vec![made[2].clone(), made[1].clone()], true));
    assert_eq!(page(Some(&made[1]), true), (vec![made[0].clone()], false));
    assert_eq!(page(Some(&made[2]), false), (vec![made[3].clone(), made[4].clone()], false));
    assert!(matches!(queue.list(Some("video_none"), 2, true), Err(QueueError::NotFound)));
}

#[test]
fn previews_are_made_for_those_who_follow() {
    let folder = tempfile::tempdir().unwrap();
    let queue = open(folder.path(), SLOW, Limits::default());
    let alone = queue.create(request("fog", 5)).unwrap();
    let view = wait(&queue, &id(&alone), JobStatus::Completed);
    assert!(view.live.preview.is_none());
    let followed = queue.create(request("fog", 200)).unwrap();
    let changes = queue.follow(&id(&followed)).unwrap();
    let began = Instant::now();
    while changes.borrow().preview.is_none() {
        assert!(began.elapsed() < Duration::from_secs(20));
        std::thread::sleep(FAST);
    }
    queue.cancel(&id(&followed)).unwrap();
}

#[test]
fn folders_of_another_server_are_jobs_of_their_own() {
    let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let made = |folder: &Path, prompt: &str| {
        let queue = open(folder, FAST, Limits::default());
        let made = id(&queue.create(request(prompt, 1)).unwrap());
        wait(&queue, &made, JobStatus::Completed);
        let path = queue.path(&made, "").unwrap();
        queue.stop();
        drop(queue);
        (made, path)
    };
    let (first, _) = made(folder.path(), "fog");
    let (second, path) = made(other.path(), "sea");
    // Both servers count from the same number.
    fs::rename(path, folder.path().join("jobs").join(&second)).unwrap();
    let queue = open(folder.path(), FAST, Limits::default());
    for (id, prompt) in [(&first, "fog"), (&second, "sea")] {
        let spec = queue.get(id).unwrap().job.spec;
        assert_eq!((&spec.id, &*spec.request.prompt), (id, prompt));
    }
}
