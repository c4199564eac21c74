//! Captions from a stand-in server that answers, fails, stalls, sends invalid answers and closes connections:
//! every row ends captioned or listed with its reason.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod chat_server;

use chat_server::{
    Answer, ChatServer, Request,
    clips::{QUICK, clips, endpoint, ids, says, spec},
};
use opensora_files::error_line;
use opensora_manifest::{
    Table,
    table::{PATH, TEXT},
};
use opensora_prepare::{
    Advanced, Observer, PrepareError, RunOptions, Shard,
    assemble::failed_path,
    caption::{
        self, CUT, CaptionSpec, Endpoint, EndpointOptions, ImageSpec, Job, Key, Layout, Report,
    },
    retry::RetryPolicy,
};
use serde_json::{Value, json};
use std::{
    net::TcpListener,
    ops::ControlFlow,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

fn made(table: &Table, folder: &Path, endpoint: Endpoint) -> Result<Report, PrepareError> {
    caption::run(&Job::new(spec(), endpoint), table, &folder.join("out.csv"), &mut ())
}

fn text<'a>(table: &'a Table, id: &str, column: &str) -> Option<&'a str> {
    let row = (0..table.len()).find(|&row| table.get(row, "id") == Some(id))?;
    table.get(row, column)
}

/// Answers differently for each clip.
fn misbehaves(request: &Request, before: usize) -> Answer {
    let is_first = before == 0;
    match request.clip {
        Some(1) if is_first => Answer::Status(500, "", "{\"detail\": \"oops\"}".into()),
        Some(2) if is_first => Answer::Status(429, "Retry-After: 60", String::new()),
        Some(3) => Answer::Status(500, "", "<html>".into()),
        Some(4) => Answer::Body("so be it".into()),
        Some(5) => Answer::Body("{\"choices\": []}".into()),
        Some(6) if is_first => Answer::Body("<html>Hello</html>".into()),
        Some(7) => Answer::HangsUp,
        Some(8) => Answer::Stalls(Duration::from_secs(4)),
        Some(9) if is_first => Answer::Stalls(Duration::from_secs(4)),
        Some(10) => Answer::Status(400, "", "{\"error\": {\"message\": \"not this\"}}".into()),
        Some(11) => {
            let message = json!({"content": "<think>hm</think>Clip 11, red. It ju"});
            let choice = json!({"message": message, "finish_reason": "length"});
            Answer::Body(json!({ "choices": [choice] }).to_string())
        }
        Some(13) => unreachable!("it has a caption"),
        Some(14) => Answer::Body(" ".repeat(2 << 20)),
        Some(15) if is_first => Answer::Leaves,
        _ => says(request),
    }
}

#[test]
fn every_clip_ends_captioned_or_listed_with_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    let mut table = clips(folder.path(), 16);
    std::fs::write(table.get(12, PATH).unwrap(), "").unwrap();
    table.set(13, TEXT, "As it was.");
    let twin = table.get(0, PATH).unwrap().to_string();
    table.push([("id", "16".into()), (PATH, twin)]);
    table.push([("id", "17".into())]);

    let server = ChatServer::start(misbehaves);
    let captioned = made(&table, folder.path(), endpoint(server.address, QUICK)).unwrap();

    assert_eq!(ids(&captioned), (0..18).collect::<Vec<_>>(), "no row lost or doubled");
    for clip in [0, 1, 2, 6, 9, 11, 15] {
        let expected = format!("Clip {clip}, red.");
        assert_eq!(
            text(&captioned.tables.output, &clip.to_string(), TEXT),
            Some(expected.as_str())
        );
    }
    assert_eq!(text(&captioned.tables.output, "13", TEXT), Some("As it was."));
    for (clip, cut) in [("0", ""), ("11", "max_tokens"), ("13", "")] {
        assert_eq!(text(&captioned.tables.output, clip, CUT), Some(cut));
    }
    assert_eq!((captioned.tables.output.len(), captioned.kept), (8, 1));
    let counts = server.counts();
    for (clip, words, requests) in [
        (3, "after 3 attempts: 500 Internal Server Error: an HTML page", 3),
        (4, "the answer is not JSON: so be it", 3),
        (5, "the answer has no choices", 3),
        (7, "no whole answer", 3),
        (8, "after 3 attempts: no answer in time", 3),
        (10, "400 Bad Request: not this", 1),
        (12, "it is empty", 0),
        (14, "more than 1048576 bytes", 1),
        (16, "that of row 1 as well", 0),
        (17, "it has no path", 0),
    ] {
        let reason = text(&captioned.tables.failed, &clip.to_string(), "reason").unwrap();
        assert!(reason.contains(words), "{clip}: {reason}");
        assert_eq!(counts.get(&clip).copied().unwrap_or(0), requests, "{clip}: {reason}");
    }

    // The wait that the server asks for is kept, up to the longest wait.
    let second: Vec<Instant> = server
        .requests()
        .iter()
        .filter(|request| request.clip == Some(2))
        .map(|request| request.at)
        .collect();
    assert!(second[1] - second[0] >= QUICK.longest_wait);
    // The request with grey images comes first, and once.
    let checks: Vec<bool> =
        server.requests().iter().map(|request| request.clip.is_none()).collect();
    assert!(checks[0] && !checks[1..].contains(&true));

    // All rows have records: nothing is sent again without a retry of failures.
    let asked = server.requests().len();
    let again = made(&table, folder.path(), endpoint(server.address, QUICK)).unwrap();
    assert_eq!((again, server.requests().len()), (captioned, asked));

    // One clip has changed, and one was deleted, whose caption stays valid.
    std::fs::copy(table.get(9, PATH).unwrap(), table.get(0, PATH).unwrap()).unwrap();
    std::fs::remove_file(table.get(1, PATH).unwrap()).unwrap();
    let again = made(&table, folder.path(), endpoint(server.address, QUICK)).unwrap();
    assert_eq!(text(&again.tables.output, "0", TEXT), Some("Clip 9, red."));
    assert_eq!(text(&again.tables.output, "1", TEXT), Some("Clip 1, red."));
    // One for the changed clip, one with grey images.
    assert_eq!(server.requests().len(), asked + 2);
}

#[test]
fn requests_have_the_frames_in_order_and_in_the_requested_layout() {
    let folder = tempfile::tempdir().unwrap();
    let table = clips(folder.path(), 1);
    let server = ChatServer::start(|request, _| says(request));
    let key = Key::new("s3cret").unwrap();
    let address = format!("http://{}/v1/", server.address);
    let options = EndpointOptions { key: Some(key), retry: QUICK, ..EndpointOptions::default() };
    for (layout, greens) in
        [(Layout::Multi, vec![20u8, 50, 80]), (Layout::Grid, vec![50]), (Layout::First, vec![20])]
    {
        let out = folder.path().join(format!("{layout:?}.csv"));
        let images = ImageSpec { layout, ..ImageSpec::default() };
        let extra = json!({"max_tokens": null, "max_completion_tokens": 99});
        let extra = extra.as_object().unwrap().clone();
        let spec = CaptionSpec { images, extra, ..spec() };
        let job = Job::new(spec, Endpoint::new(&address, options.clone()).unwrap());
        caption::run(&job, &table, &out, &mut ()).unwrap();
        let requests = server.requests();
        let request = requests.last().unwrap();
        let shown: Vec<u8> = request.colours.iter().map(|colour| colour[1]).collect();
        assert_eq!(shown.len(), greens.len());
        for (shown, green) in shown.iter().zip(&greens) {
            assert!(shown.abs_diff(*green) < 8, "{layout:?}: {shown} {green}");
        }
        assert_eq!(request.path, "/v1/chat/completions");
        assert_eq!(request.authorization.as_deref(), Some("Bearer s3cret"));
        let body = &request.body;
        assert_eq!((&body["model"], &body["temperature"]), (&json!("stand-in"), &json!(0.2)));
        assert_eq!(
            (&body["max_tokens"], &body["max_completion_tokens"]),
            (&Value::Null, &json!(99))
        );
        let prompt = body["messages"][0]["content"][0]["text"].as_str().unwrap();
        assert_eq!(prompt.contains("side by side"), layout == Layout::Grid, "{prompt}");

        // The preview is the request with shortened images.
        let mut shown = caption::preview(&job, &table).unwrap().unwrap();
        for (index, part) in body["messages"][0]["content"].as_array().unwrap().iter().enumerate() {
            let place = format!("/messages/0/content/{index}/image_url/url");
            let Some(url) = part["image_url"]["url"].as_str() else { continue };
            let short = shown.pointer_mut(&place).unwrap();
            assert!(
                short.as_str().unwrap().len() < 100
                    && url.starts_with(&short.as_str().unwrap()[..48])
            );
            *short = url.into();
        }
        assert_eq!(&shown, body);
    }
    for entry in std::fs::read_dir(folder.path()).unwrap().map(Result::unwrap) {
        let bytes = std::fs::read(entry.path()).unwrap();
        assert!(!bytes.windows(6).any(|part| part == b"s3cret"), "{:?}", entry.path());
    }
}

#[test]
fn errors_that_affect_every_row_end_the_step() {
    let folder = tempfile::tempdir().unwrap();
    let table = clips(folder.path(), 3);
    let status = |status, body: &str| Answer::Status(status, "", body.into());
    let several = "{\"message\": \"At most 1 image may be given\"}";
    let spent = "{\"error\": {\"message\": \"No money\", \"code\": \"insufficient_quota\"}}";
    for (answer, words) in [
        (status(401, "{\"error\": {\"message\": \"wrong key\"}}"), "401 Unauthorized: wrong key"),
        (status(404, "{\"error\": \"no such model\"}"), "404 Not Found: no such model"),
        (status(400, several), "400 Bad Request: At most 1 image"),
        (status(403, ""), "403 Forbidden"),
        (status(429, spent), "No money"),
        (status(307, "elsewhere"), "307 Temporary Redirect: elsewhere"),
        (status(503, "loading"), "after 3 attempts: 503 Service Unavailable: loading"),
        (Answer::Body("<html>".into()), "not JSON: an HTML page"),
        (Answer::Leaves, "no whole answer"),
    ] {
        let server = ChatServer::start(move |_, _| answer.clone());
        let endpoint = endpoint(server.address, QUICK);
        let address = endpoint.address();
        let halted = made(&table, folder.path(), endpoint).unwrap_err();
        assert!(matches!(halted, PrepareError::Halted { done: 0, total: 3, .. }), "{halted}");
        let halted = error_line(&halted);
        assert!(halted.contains(words) && halted.contains(&address), "{halted}");
        assert!(server.counts().is_empty(), "no row was sent");
    }
    // No server: detected at once, whatever the retry policy.
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let patient = RetryPolicy { attempts: 9, first_wait: Duration::from_secs(600), ..QUICK };
    let halted = error_line(&made(&table, folder.path(), endpoint(nobody, patient)).unwrap_err());
    assert!(halted.contains("no connection"), "{halted}");

    // No row was recorded as failed.
    let server = ChatServer::start(|request, _| says(request));
    let captioned = made(&table, folder.path(), endpoint(server.address, QUICK)).unwrap();
    assert_eq!((captioned.tables.output.len(), captioned.tables.failed.len()), (3, 0));
}

#[test]
fn a_server_that_goes_away_is_the_fault_of_no_row() {
    let folder = tempfile::tempdir().unwrap();
    let table = clips(folder.path(), 4);
    let asked = AtomicUsize::new(0);
    let server = ChatServer::start(move |request, _| {
        if request.clip.is_none() {
            return says(request);
        }
        match asked.fetch_add(1, Ordering::SeqCst) {
            // In flight while another clip gets its caption; then the server ends.
            0 => {
                while asked.load(Ordering::SeqCst) < 3 {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Answer::Dies
            }
            1 => says(request),
            // Notices it later.
            _ => Answer::Stalls(Duration::from_millis(500)),
        }
    });
    let endpoint_of = |server: &ChatServer| endpoint(server.address, QUICK);
    let options = RunOptions { workers: 2, ..RunOptions::default() };
    let job = Job { options, ..Job::new(spec(), endpoint_of(&server)) };
    let halted = caption::run(&job, &table, &folder.path().join("out.csv"), &mut ()).unwrap_err();
    assert!(matches!(halted, PrepareError::Halted { done: 1, total: 4, .. }), "{halted}");
    assert!(error_line(&halted).contains("no connection"), "{halted}");

    let server = ChatServer::start(|request, _| says(request));
    let captioned = made(&table, folder.path(), endpoint_of(&server)).unwrap();
    assert_eq!((captioned.tables.output.len(), captioned.tables.failed.len()), (4, 0));
}

#[test]
fn a_server_that_begins_to_reject_every_request_ends_the_step() {
    const CLIPS: usize = 16;
    let folder = tempfile::tempdir().unwrap();
    let table = clips(folder.path(), CLIPS);
    for (status, captions, workers) in
        [(400, 3, 1), (403, 3, 1), (403, 0, 4), (500, 3, 1), (502, 0, 4)]
    {
        let out = folder.path().join(format!("{status} {workers}.csv"));
        let asked = AtomicUsize::new(0);
        let server = ChatServer::start(move |request, _| {
            // The request with grey images, then clips.
            match asked.fetch_add(1, Ordering::SeqCst) <= captions {
                true => says(request),
                false => Answer::Status(status, "", "no more".into()),
            }
        });
        let options = RunOptions { workers, ..RunOptions::default() };
        let job = Job { options, ..Job::new(spec(), endpoint(server.address, QUICK)) };
        let halted = caption::run(&job, &table, &out, &mut ()).unwrap_err();
        let PrepareError::Halted { done, total: CLIPS, .. } = halted else { panic!("{halted}") };
        // The rows before the eighth failure in a row.
        assert_eq!(done, captions + 7, "{status}");
        let halted = error_line(&halted);
        assert!(halted.contains(&status.to_string()) && halted.contains("no more"), "{halted}");

        let server = ChatServer::start(|request, _| says(request));
        let options = RunOptions { retry_failed: true, ..options };
        let job = Job { options, ..Job::new(spec(), endpoint(server.address, QUICK)) };
        let captioned = caption::run(&job, &table, &out, &mut ()).unwrap();
        let rows = (captioned.tables.output.len(), captioned.tables.failed.len());
        assert_eq!((rows, server.counts().len()), ((CLIPS, 0), CLIPS - captions));
    }
}

#[test]
fn many_rejected_rows_do_not_end_the_step_if_grey_images_are_accepted() {
    let folder = tempfile::tempdir().unwrap();
    let table = clips(folder.path(), 20);
    let server = ChatServer::start(|request, _| match request.clip {
        Some(1..) => Answer::Status(400, "", "not this".into()),
        _ => says(request),
    });
    let captioned = made(&table, folder.path(), endpoint(server.address, QUICK)).unwrap();
    assert_eq!((captioned.tables.output.len(), captioned.tables.failed.len()), (1, 19));
    // One before the first row, and one after each eighth failure in a row.
    let checks = server.requests().iter().filter(|request| request.clip.is_none()).count();
    assert!((2..=3).contains(&checks), "{checks}");
}

#[test]
fn a_key_in_an_answer_is_not_shown() {
    let folder = tempfile::tempdir().unwrap();
    let table = clips(folder.path(), 1);
    let body = "{\"error\": {\"message\": \"wrong key s3cret\"}}";
    let server = ChatServer::start(move |_, _| Answer::Body(body.into()));
    let key = Some(Key::new("s3cret").unwrap());
    let options = EndpointOptions { key, retry: QUICK, ..EndpointOptions::default() };
    let endpoint = Endpoint::new(&format!("http://{}", server.address), options).unwrap();
    let halted = error_line(&made(&table, folder.path(), endpoint).unwrap_err());
    assert!(halted.contains("wrong key (the key)"), "{halted}");
}

#[test]
fn captions_before_an_abort_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let table = clips(folder.path(), 8);
    let out = folder.path().join("out.csv");
    for (from, status) in [(3, 401), (5, 429)] {
        let server = ChatServer::start(move |request, _| match request.clip {
            Some(clip) if clip >= from => Answer::Status(status, "", "enough".into()),
            _ => says(request),
        });
        let endpoint = endpoint(server.address, QUICK);
        let serial = Job { options: RunOptions::default(), ..Job::new(spec(), endpoint) };
        let halted = caption::run(&serial, &table, &out, &mut ()).unwrap_err();
        assert!(
            matches!(&halted, PrepareError::Halted { done, .. } if *done == from)
                && error_line(&halted).contains("enough"),
            "{halted}"
        );
    }
    let server = ChatServer::start(|request, _| says(request));
    let captioned = made(&table, folder.path(), endpoint(server.address, QUICK)).unwrap();
    assert_eq!(ids(&captioned), (0..8).collect::<Vec<_>>());
    assert_eq!(captioned.tables.output.len(), 8);
    let mut asked: Vec<usize> = server.counts().into_keys().collect();
    asked.sort_unstable();
    assert_eq!(asked, [5, 6, 7]);
}

/// Stops after this many rows.
struct StopAt(usize);

impl Observer for StopAt {
    fn advanced(&mut self, event: &Advanced) -> ControlFlow<()> {
        if event.done >= self.0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

#[test]
fn a_stop_ends_waits_and_is_recorded_for_no_row() {
    let folder = tempfile::tempdir().unwrap();
    let table = clips(folder.path(), 6);
    let out = folder.path().join("out.csv");
    let server = ChatServer::start(|request, _| match request.clip {
        Some(4) => {
            // Until the other rows wait.
            std::thread::sleep(Duration::from_millis(300));
            says(request)
        }
        Some(_) => Answer::Status(503, "Retry-After: 3000", String::new()),
        None => says(request),
    });
    let patient = RetryPolicy { longest_wait: Duration::from_secs(3600), ..QUICK };
    let options = RunOptions { workers: 6, ..RunOptions::default() };
    let job = Job { options, ..Job::new(spec(), endpoint(server.address, patient)) };
    let stopped = caption::run(&job, &table, &out, &mut StopAt(1)).unwrap_err();
    assert!(matches!(stopped, PrepareError::Stopped { done: 1, total: 6 }), "{stopped}");
    let journal = std::fs::read_to_string(folder.path().join("out.csv.journal.jsonl")).unwrap();
    assert_eq!(journal.lines().count(), 2, "{journal}");
}

#[test]
fn failures_and_captions_are_repeated_on_request() {
    let folder = tempfile::tempdir().unwrap();
    let mut table = clips(folder.path(), 3);
    table.set(0, TEXT, "Old.");
    let refusing = ChatServer::start(|request, _| match request.clip {
        Some(2) => Answer::Status(422, "", String::new()),
        _ => says(request),
    });
    let first = made(&table, folder.path(), endpoint(refusing.address, QUICK)).unwrap();
    assert_eq!((first.tables.output.len(), first.tables.failed.len()), (2, 1));
    let out = folder.path().join("out.csv");
    assert_eq!(Table::read(&failed_path(&out)).unwrap(), first.tables.failed);

    let server = ChatServer::start(|request, _| says(request));
    let job = || Job::new(spec(), endpoint(server.address, QUICK));
    let mut retry = job();
    retry.options.retry_failed = true;
    let second = caption::run(&retry, &table, &out, &mut ()).unwrap();
    assert_eq!((second.tables.output.len(), second.kept, server.counts().len()), (3, 1, 1));
    assert_eq!(Table::read(&out).unwrap(), second.tables.output);
    assert!(!failed_path(&out).exists(), "a list of failures, but no failures");

    let anew = Job { recaption: true, ..job() };
    let refused = caption::run(&anew, &table, &out, &mut ()).unwrap_err();
    assert!(error_line(&refused).contains("other settings"), "{refused}");
    let out = folder.path().join("anew.csv");
    let anew = caption::run(&anew, &table, &out, &mut ()).unwrap();
    assert_eq!(text(&anew.tables.output, "0", TEXT), Some("Clip 0, red."));

    // Shards: each row is in one, whether it had a caption or not.
    let mut parts = Vec::new();
    for index in 0..2 {
        let mut shard = job();
        shard.options.shard = Shard::new(index, 2).unwrap();
        let out = folder.path().join(format!("part {index}.csv"));
        let part = caption::run(&shard, &table, &out, &mut ()).unwrap();
        parts.push(ids(&part));
    }
    assert_eq!(parts, [vec![0, 2], vec![1]]);
}
